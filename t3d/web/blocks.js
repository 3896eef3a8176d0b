/* A response as cells, block by block, coloured by when or how surely each token was revealed.
 *
 * Adds `Blocks`, `legend`, and what all pages need, to the global `T3D`.
 * A "rank" is the place of a token's step among the steps of its block: 1 for the block's first forward, 2 for the next.
 */
"use strict";

{
  const { stepColor, confidenceColor } = T3D;
  const BLANKS = { " ": "·", "\n": "⏎\n", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
  const MOST_SWATCHES = 8;

  /* The data that the page was made with. */
  function data() {
    return JSON.parse(document.getElementById("data").textContent);
  }

  /* An element with attributes (or properties) and children; text stays text. */
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in made && !key.startsWith("aria")) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  /* A token's text with blanks and control characters made visible, as nodes. */
  function visibleText(text) {
    if (text === "") return [element("span", { className: "blank" }, "∅")];
    return text.split(/([\s\x00-\x1f\x7f])/u).filter(Boolean).map((piece) => {
      if (Object.hasOwn(BLANKS, piece)) return element("span", { className: "blank" }, BLANKS[piece].trimEnd());
      const code = piece.length === 1 ? piece.charCodeAt(0) : 32;
      if (code < 32) return element("span", { className: "blank" }, String.fromCharCode(0x2400 + code));
      return piece;
    });
  }

  /* The response of one request; see the top of this file.
   *
   * root: an element of its own. options: blockSize; offset, the prompt's tokens, so that token j is in block
   * floor((offset + j) / blockSize); color, "step" or "confidence"; numRanks, where the scale of steps ends, the same for
   * all that share a legend; label, what the response is called. A token is {text, step, confidence, id}.
   */
  class Blocks {
    constructor(root, { blockSize, offset = 0, color = "step", numRanks = blockSize, label = "Response tokens" }) {
      Object.assign(this, { root, blockSize, offset, color, numRanks });
      this._forget();
      this.tip = element("div", { className: "t3d-tip", hidden: true, "aria-hidden": "true" });
      root.classList.add("t3d-blocks");
      root.setAttribute("role", "listbox");
      root.setAttribute("aria-orientation", "horizontal");
      root.setAttribute("aria-label", label);
      root.replaceChildren(this.tip);
      this._listen();
    }

    get maxStep() {
      return this.tokens.reduce((most, token) => Math.max(most, token.step), 0);
    }

    /* Forget the response. */
    clear() {
      this._forget();
      this.tip.hidden = true;
      this.root.replaceChildren(this.tip);
    }

    /* stop: the index of the one cell that the Tab key reaches; told: of the one that the tip is about */
    _forget() {
      Object.assign(this, { tokens: [], ranks: [], cells: [], expected: [], step: null, stop: 0, told: 0 });
    }

    /* Add tokens; they take the place of what was expected. */
    append(tokens) {
      this._keepStop(() => this._append(tokens));
    }

    /* Show so many masked cells at the end, in place of those expected before. */
    expect(count) {
      this._keepStop(() => this._expect(count));
    }

    _append(tokens) {
      this._expect(0);
      const first = this.tokens.length;
      for (const token of tokens) {
        const cell = this._cell(this.tokens.length);
        cell.append(...visibleText(token.text));
        cell.classList.toggle("special", Boolean(token.special));
        this.tokens.push(token);
        this.cells.push(cell);
        this.root.append(cell);
        if (token.text.includes("\n")) this.root.append(element("br"));
      }
      for (let index = this._blockStart(first); index < this.tokens.length; index++) {
        this.ranks[index] = this._rank(index);
        this._dress(index);
      }
    }

    _expect(count) {
      for (const cell of this.expected) cell.remove();
      this.expected = Array.from({ length: count }, (_, at) => {
        const cell = this._cell(this.tokens.length + at);
        cell.classList.add("masked", "expected");
        cell.setAttribute("aria-label", "masked");
        return cell;
      });
      this.root.append(...this.expected);
    }

    /* Change the cells; the stop, the focus if it is there, and the tip go to what is in their place then. */
    _keepStop(change) {
      const hadFocus = this.root.contains(document.activeElement);
      change();
      const all = [...this.cells, ...this.expected];
      if (!all[this.told]) this.tip.hidden = true;
      const cell = all[Math.min(this.stop, all.length - 1)];
      if (!cell) return;
      this._stopAt(cell);
      if (hadFocus && document.activeElement !== cell) cell.focus({ preventScroll: true });
    }

    _stopAt(cell) {
      for (const each of this.root.querySelectorAll('.t3d-cell[tabindex="0"]')) each.tabIndex = -1;
      cell.tabIndex = 0;
      this.stop = Number(cell.dataset.index);
    }

    /* What was known after `step` of the request; null: everything. */
    showStep(step) {
      const before = this.tokens.map((token) => this._phase(token));
      this.step = step;
      this.tokens.forEach((token, index) => this._phase(token) !== before[index] && this._dress(index));
    }

    /* "masked", "fresh" (revealed by the step shown) or "known" */
    _phase(token) {
      if (this.step === null || token.step < this.step) return "known";
      return token.step === this.step ? "fresh" : "masked";
    }

    setColor(mode) {
      this.color = mode;
      this.cells.forEach((_, index) => this._dress(index));
    }

    /* Underline and frame the tokens at these indices. */
    mark(indices) {
      const marked = new Set(indices);
      this.cells.forEach((cell, index) => cell.classList.toggle("marked", marked.has(index)));
    }

    /* The rank of a token: the place of its step among those of its block. */
    _rank(index) {
      const steps = new Set();
      const block = this._block(index);
      for (let other = this._blockStart(index); this._block(other) === block && other < this.tokens.length; other++) {
        if (this.tokens[other].step <= this.tokens[index].step) steps.add(this.tokens[other].step);
      }
      return steps.size;
    }

    _block(index) {
      return Math.floor((this.offset + index) / this.blockSize);
    }

    /* the first response token of a token's block */
    _blockStart(index) {
      return Math.max(this._block(index) * this.blockSize - this.offset, 0);
    }

    _cell(index) {
      const cell = element("span", { className: "t3d-cell", role: "option", tabIndex: -1 });
      cell.classList.toggle("block-end", this._block(index + 1) > this._block(index));
      cell.dataset.index = index;
      return cell;
    }

    /* Give a cell its colour, or its mask, and what is said of it. */
    _dress(index) {
      const [token, cell] = [this.tokens[index], this.cells[index]];
      const [phase, rank] = [this._phase(token), this.ranks[index]];
      const colors = this.color === "step" ? stepColor(rank, this.numRanks) : confidenceColor(token.confidence);
      const masked = phase === "masked";
      [cell.style.background, cell.style.color] = masked ? ["", ""] : colors;
      cell.classList.toggle("masked", masked);
      cell.classList.toggle("fresh", phase === "fresh");
      cell.dataset.rank = rank;
      cell.setAttribute("aria-label", this.describe(index).replaceAll("\n", ", "));
      if (index === this.told && !this.tip.hidden) this._tell(cell);
    }

    /* What is known of a token at this step, a line each. */
    describe(index) {
      const token = this.tokens[index];
      if (!token || this._phase(token) === "masked") return "masked";
      const sure = token.confidence === null || token.confidence === undefined ? "unknown" : token.confidence.toFixed(3);
      return [
        JSON.stringify(token.text),
        `step ${token.step}, forward ${this.ranks[index]} of block ${this._block(index)}`,
        `confidence ${sure}`,
        `id ${token.id}`,
      ].join("\n");
    }

    _listen() {
      const cellOf = (event) => event.target.closest?.(".t3d-cell");
      this.root.addEventListener("pointerover", (event) => this._enter(cellOf(event)));
      this.root.addEventListener("focusin", (event) => {
        this._stopAt(cellOf(event));
        this._enter(cellOf(event));
      });
      this.root.addEventListener("pointerleave", () => (this.tip.hidden = true));
      this.root.addEventListener("focusout", () => (this.tip.hidden = true));
      this.root.addEventListener("keydown", (event) => this._key(event, cellOf(event)));
    }

    _enter(cell) {
      this.tip.hidden = !cell;
      if (!cell) return;
      this.told = Number(cell.dataset.index);
      this._tell(cell);
    }

    /* What is known of a cell, into the tip below it. */
    _tell(cell) {
      this.tip.textContent = this.describe(this.told);
      const room = this.root.clientWidth - this.tip.offsetWidth;
      this.tip.style.left = `${Math.max(0, Math.min(cell.offsetLeft, room))}px`;
      this.tip.style.top = `${cell.offsetTop + cell.offsetHeight + 5}px`;
    }

    /* Arrows, Home and End move among the cells, which are one stop of the Tab key. */
    _key(event, cell) {
      if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape") this.tip.hidden = true;
      const target = this._neighbour(cell, event.key);
      if (!target) return;
      event.preventDefault();
      event.stopPropagation(); // the page may use arrows too
      target.focus();
    }

    _neighbour(cell, key) {
      const all = [...this.cells, ...this.expected];
      const at = Number(cell.dataset.index);
      const beside = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 };
      if (key in beside) return all[Math.min(Math.max(beside[key], 0), all.length - 1)];
      const lines = { ArrowDown: (other) => other.offsetTop > cell.offsetTop, ArrowUp: (other) => other.offsetTop < cell.offsetTop };
      if (!(key in lines)) return null;
      const distance = (other) => 1e4 * Math.abs(other.offsetTop - cell.offsetTop) + Math.abs(other.offsetLeft - cell.offsetLeft);
      const there = all.filter(lines[key]);
      return there.length ? there.reduce((best, other) => (distance(other) < distance(best) ? other : best)) : cell;
    }
  }

  /* What the colours mean, into `root`. */
  function legend(root, { color, numRanks }) {
    const swatch = ([background, text], label) => {
      const made = element("span", { className: "swatch" }, label);
      Object.assign(made.style, { background, color: text });
      return made;
    };
    const count = Math.min(numRanks, MOST_SWATCHES);
    const ranks = Array.from({ length: count }, (_, at) => 1 + Math.round((at * (numRanks - 1)) / Math.max(count - 1, 1)));
    const byStep = color === "step";
    const swatches = byStep
      ? ranks.map((rank) => swatch(stepColor(rank, numRanks), String(rank)))
      : [0, 0.25, 0.5, 0.75, 1].map((share) => swatch(confidenceColor(share), share.toFixed(2)));
    root.classList.add("t3d-legend");
    root.replaceChildren(
      element("span", {}, byStep ? "revealed in forward" : "confidence"),
      element("span", { className: "scale" }, ...swatches),
      ...(byStep ? [element("span", {}, "of its block")] : []),
      element("span", { className: "swatch masked", "aria-hidden": "true" }),
      element("span", {}, "still masked"),
    );
  }

  Object.assign(T3D, { Blocks, legend, visibleText, element, data });
}
