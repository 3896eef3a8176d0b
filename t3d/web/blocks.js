/* A response as cells, block by block, coloured by when or how surely each token was revealed.
 *
 * A plain script; it defines one global, `T3D`. Pages build on `T3D.Blocks`, `T3D.legend` and the two colour scales.
 * A "rank" is the place of a token's step among the steps of its block: 1 for the block's first forward, 2 for the next.
 */
"use strict";

const T3D = (() => {
  /* Anchors of the scales, evenly spaced. Lightness falls (or rises) evenly, so that order shows without hue too. */
  const STEP = {
    day: ["#fbeeb0", "#a9d9b4", "#4fb0b8", "#2c7bb0", "#33368a"],
    night: ["#e2cf7c", "#86bd92", "#3f949c", "#2f6c9e", "#3d4091"],
  };
  const CONFIDENCE = {
    day: ["#8c2d04", "#cf5312", "#f3954a", "#f8cfa5", "#f4f1ea"],
    night: ["#ffb37a", "#d98243", "#9c5b30", "#5f422f", "#2b2d32"],
  };
  const SHARE = {
    day: ["#f7f8fa", "#d3e0f0", "#9dbddf", "#5a8fc4", "#20568f"],
    night: ["#20242c", "#26374d", "#2f5580", "#4a80b8", "#8fbdea"],
  };
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

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /* the colour at `share` (0 .. 1) of a scale, as three channels */
  function blend(anchors, share) {
    const place = Math.min(Math.max(share, 0), 1) * (anchors.length - 1);
    const low = Math.min(Math.floor(place), anchors.length - 2);
    const [first, second] = [channels(anchors[low]), channels(anchors[low + 1])];
    return first.map((value, at) => Math.round(value + (second[at] - value) * (place - low)));
  }

  /* relative luminance as WCAG 2 defines it */
  function luminance(rgb) {
    const linear = rgb.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  }

  /* Black or white, whichever stands out more: one of them always has a contrast of at least 4.58. */
  const textOn = (rgb) => (luminance(rgb) > 0.1791 ? "#000" : "#fff");

  /* [background, text] of a place on a scale, each right for light and dark pages alike */
  function pair(scale, share) {
    const [day, night] = [blend(scale.day, share), blend(scale.night, share)];
    const css = (rgb) => `rgb(${rgb.join(" ")})`;
    return [`light-dark(${css(day)}, ${css(night)})`, `light-dark(${textOn(day)}, ${textOn(night)})`];
  }

  /* rank 1 .. blockSize: pale when early, dark when late */
  function stepColor(rank, blockSize) {
    return pair(STEP, blockSize > 1 ? (rank - 1) / (blockSize - 1) : 0);
  }

  /* 0 .. 1: what is sure recedes, what is unsure stands out */
  function confidenceColor(confidence) {
    return pair(CONFIDENCE, confidence ?? 0);
  }

  /* 0 .. 1, for tables: from the page's own colour to a strong one */
  function shareColor(share) {
    return pair(SHARE, share);
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
   * floor((offset + j) / blockSize); color, "step" or "confidence"; label, what the response is called.
   * A token is {text, step, confidence, id}.
   */
  class Blocks {
    constructor(root, { blockSize, offset = 0, color = "step", label = "Response tokens" }) {
      Object.assign(this, { root, blockSize, offset, color, tokens: [], ranks: [], cells: [], expected: [], step: null });
      this.onToken = () => {};
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
      Object.assign(this, { tokens: [], ranks: [], cells: [], expected: [], step: null });
      this.tip.hidden = true;
      this.root.replaceChildren(this.tip);
    }

    /* Add tokens; they take the place of what was expected. */
    append(tokens) {
      this.expect(0);
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

    /* Show so many masked cells at the end, in place of those expected before. */
    expect(count) {
      for (const cell of this.expected) cell.remove();
      this.expected = Array.from({ length: count }, (_, at) => {
        const cell = this._cell(this.tokens.length + at);
        cell.classList.add("masked", "expected");
        cell.setAttribute("aria-label", "masked");
        return cell;
      });
      this.root.append(...this.expected);
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
      const cell = element("span", { className: "t3d-cell", role: "option", tabIndex: index === 0 ? 0 : -1 });
      cell.classList.toggle("block-end", this._block(index + 1) > this._block(index));
      cell.dataset.index = index;
      return cell;
    }

    /* Give a cell its colour, or its mask, and what is said of it. */
    _dress(index) {
      const [token, cell] = [this.tokens[index], this.cells[index]];
      const [phase, rank] = [this._phase(token), this.ranks[index]];
      const colors = this.color === "step" ? stepColor(rank, this.blockSize) : confidenceColor(token.confidence);
      const masked = phase === "masked";
      [cell.style.background, cell.style.color] = masked ? ["", ""] : colors;
      cell.classList.toggle("masked", masked);
      cell.classList.toggle("fresh", phase === "fresh");
      cell.dataset.rank = rank;
      cell.setAttribute("aria-label", this.describe(index).replaceAll("\n", ", "));
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
      this.root.addEventListener("focusin", (event) => this._enter(cellOf(event)));
      this.root.addEventListener("pointerleave", () => (this.tip.hidden = true));
      this.root.addEventListener("focusout", () => (this.tip.hidden = true));
      this.root.addEventListener("keydown", (event) => this._key(event, cellOf(event)));
    }

    _enter(cell) {
      this.tip.hidden = !cell;
      if (!cell) return;
      const index = Number(cell.dataset.index);
      this.tip.textContent = this.describe(index);
      const room = this.root.clientWidth - this.tip.offsetWidth;
      this.tip.style.left = `${Math.max(0, Math.min(cell.offsetLeft, room))}px`;
      this.tip.style.top = `${cell.offsetTop + cell.offsetHeight + 5}px`;
      if (this.tokens[index]) this.onToken(index, this.tokens[index], cell);
    }

    /* Arrows, Home and End move among the cells, which are one stop of the Tab key. */
    _key(event, cell) {
      if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape") this.tip.hidden = true;
      const target = this._neighbour(cell, event.key);
      if (!target) return;
      event.preventDefault();
      event.stopPropagation(); // the page may use arrows too
      for (const each of this.root.querySelectorAll('.t3d-cell[tabindex="0"]')) each.tabIndex = -1;
      target.tabIndex = 0;
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
  function legend(root, { color, blockSize }) {
    const swatch = ([background, text], label) => {
      const made = element("span", { className: "swatch" }, label);
      Object.assign(made.style, { background, color: text });
      return made;
    };
    const count = Math.min(blockSize, MOST_SWATCHES);
    const ranks = Array.from({ length: count }, (_, at) => 1 + Math.round((at * (blockSize - 1)) / Math.max(count - 1, 1)));
    const byStep = color === "step";
    const swatches = byStep
      ? ranks.map((rank) => swatch(stepColor(rank, blockSize), String(rank)))
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

  return { Blocks, legend, stepColor, confidenceColor, shareColor, visibleText, element, data };
})();
