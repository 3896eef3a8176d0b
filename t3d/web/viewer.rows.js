/* The list of rows: search, filters, and a choice that keys and clicks move. */
"use strict";

T3D.RowList = class {
  /* root: holds the list and its controls; data: of the page; onChoose(index, place, count) is told of each choice. */
  constructor(root, data, onChoose) {
    const find = (id) => root.querySelector(`#${id}`);
    Object.assign(this, { data, onChoose, list: find("rows"), search: find("search"), reason: find("reason") });
    Object.assign(this, { differs: find("differs"), count: find("count"), nothing: find("nothing"), chosen: -1 });
    this.rows = data.files[0].rows;
    this.texts = this.rows.map((_, index) => this._searched(index).toLocaleLowerCase());
    this.items = this.rows.map((_, index) => this._item(index));
    this.differs.hidden = !data.pairs;
    this._offerReasons();
    this._listen(find("reset"));
    this.filter();
  }

  /* Show what matches; the choice stays if it is still there. */
  filter() {
    const words = this.search.value.trim().toLocaleLowerCase();
    this.shown = this.rows.map((_, index) => index).filter((index) => this._matches(index, words));
    this.list.replaceChildren(...this.shown.map((index) => this.items[index]));
    this.count.textContent = `${this.shown.length} of ${this.rows.length} rows`;
    this.list.hidden = this.shown.length === 0;
    this.nothing.hidden = !this.list.hidden;
    const what = words ? `matches “${this.search.value.trim()}”` : "is like that";
    this.nothing.firstElementChild.textContent = `No row ${what}${words && this._isNarrowed() ? " and the filter" : ""}.`;
    this.choose(this.shown.includes(this.chosen) ? this.chosen : (this.shown[0] ?? -1));
  }

  /* Choose a row by its number among all; -1: none. */
  choose(index) {
    this.items[this.chosen]?.setAttribute("aria-selected", "false");
    const changed = this.chosen !== index;
    this.chosen = index;
    this.list.removeAttribute("aria-activedescendant");
    if (index >= 0) {
      this.items[index].setAttribute("aria-selected", "true");
      this.items[index].scrollIntoView({ block: "nearest" });
      this.list.setAttribute("aria-activedescendant", this.items[index].id);
    }
    this.onChoose(index, this.shown.indexOf(index), this.shown.length, changed);
  }

  /* Choose the row so many places further down among those shown. */
  move(by) {
    if (this.shown.length === 0) return;
    const place = Math.min(Math.max(this.shown.indexOf(this.chosen) + by, 0), this.shown.length - 1);
    this.choose(this.shown[place]);
  }

  _searched(index) {
    const responses = this.data.files.map((file) => file.rows[index].response);
    return [this.rows[index].id, this.rows[index].prompt, ...responses].join("\n");
  }

  _matches(index, words) {
    const reasons = this.data.files.map((file) => file.rows[index].finish_reason);
    if (this.reason.value && !reasons.includes(this.reason.value)) return false;
    if (this.differs.value && this._isSame(index) !== (this.differs.value === "same")) return false;
    return this.texts[index].includes(words);
  }

  _isNarrowed() {
    return Boolean(this.reason.value || this.differs.value);
  }

  _isSame(index) {
    return this.data.pairs[index].first_difference === null;
  }

  _item(index) {
    const row = this.rows[index];
    const same = this.data.pairs ? (this._isSame(index) ? "= same" : "≠ differs") : null;
    const facts = [`${row.ids.length} tokens`, row.finish_reason === "stop" ? null : row.finish_reason, same];
    return T3D.element(
      "div",
      { className: "item", id: `row-${index}`, role: "option", "aria-selected": "false", onclick: () => this.choose(index) },
      T3D.element("div", { className: "text", dir: "auto" }, row.prompt),
      T3D.element(
        "div",
        { className: "facts" },
        T3D.element("span", { className: "id", title: row.id }, row.sample ? `${row.id} · ${row.sample}` : row.id),
        ...facts.filter(Boolean).map((fact) => T3D.element("span", {}, fact)),
      ),
    );
  }

  _offerReasons() {
    const reasons = new Set(this.data.files.flatMap((file) => Object.keys(file.finish_reasons)));
    const options = [...reasons].sort().map((reason) => T3D.element("option", { value: reason }, `ended by ${reason}`));
    this.reason.replaceChildren(T3D.element("option", { value: "" }, "any ending"), ...options);
  }

  _listen(reset) {
    for (const control of [this.search, this.reason, this.differs]) control.addEventListener("input", () => this.filter());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.search.value === "") this.list.focus();
      if (event.key === "Enter" || event.key === "ArrowDown") this.list.focus();
    });
    reset.addEventListener("click", () => {
      for (const control of [this.search, this.reason, this.differs]) control.value = "";
      this.filter();
      this.search.focus();
    });
    this.list.addEventListener("keydown", (event) => {
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity };
      if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(moves[event.key]);
    });
  }
};
