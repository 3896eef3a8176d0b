/* The viewer: a list of rows, the chosen one with its replay, and figures. All texts from files are shown as text. */
"use strict";

(() => {
  const data = T3D.data();
  const find = (id) => document.getElementById(id);
  const numRanks = Math.max(...data.files.map((file) => file.block_size)); // one legend for both files
  const state = { color: "step", scope: "all", index: -1, panes: [] };

  /* The tokens of a row as `T3D.Blocks` takes them. */
  function tokensOf(file, row) {
    return row.ids.map((id, at) => ({
      id,
      text: data.tokens[id] ?? `#${id}`,
      step: row.steps[at],
      confidence: row.confidences[at],
      special: file.special_ids.includes(id),
    }));
  }

  /* One response: its file's name, its figures and its cells. */
  function pane(file, index) {
    const row = file.rows[index];
    const root = T3D.element("div");
    const blocks = new T3D.Blocks(root, {
      blockSize: file.block_size,
      offset: row.offset,
      color: state.color,
      numRanks,
      label: `Response tokens of ${file.name}`,
    });
    blocks.append(tokensOf(file, row));
    if (row.ids.length === 0) root.append(T3D.element("p", { className: "muted" }, "The response is empty."));
    const heading = T3D.element("h3", {}, `Response, ${file.name}`);
    const node = T3D.element("article", { className: "pane panel" }, heading, T3D.figures.rowFigures(row), root);
    return { node, blocks };
  }

  function showRow(index, place, count, changed) {
    document.querySelector(".chosen").hidden = index < 0;
    find("row-place").textContent = `${place + 1} of ${count}`;
    find("row-back").disabled = place <= 0;
    find("row-on").disabled = place === count - 1;
    if (!changed || index < 0) return;
    state.index = index;
    const row = data.files[0].rows[index];
    find("row-name").textContent = row.sample ? `${row.id}, sample ${row.sample}` : row.id;
    find("prompt").textContent = row.prompt;
    find("answer").hidden = row.answer === null;
    find("answer").replaceChildren("Reference answer: ", T3D.element("b", { dir: "auto" }, row.answer ?? ""));
    state.panes = data.files.map((file) => pane(file, index));
    find("panes").replaceChildren(...state.panes.map(({ node }) => node));
    showPair(index);
    replay.load(Math.max(...state.panes.map(({ blocks }) => blocks.maxStep)));
    showOrders();
  }

  function showPair(index) {
    find("pair").hidden = !data.pairs;
    if (!data.pairs) return;
    const pair = data.pairs[index];
    find("pair").textContent = T3D.figures.pairSentence(pair, data.files.map((file) => file.rows[index]));
    if (pair.first_difference === null) return;
    for (const { blocks } of state.panes) blocks.mark([pair.first_difference]);
  }

  function showOrders() {
    const nodes = data.files.flatMap((file) => {
      const order = state.scope === "all" ? file.order : file.rows[state.index].order;
      const name = data.files.length > 1 ? [T3D.element("h3", {}, file.name)] : [];
      return [...name, T3D.figures.orderTable(order, file.block_size, file.name)];
    });
    find("orders").replaceChildren(...nodes);
    press("scope", state.scope);
  }

  function setColor(color) {
    state.color = color;
    for (const { blocks } of state.panes) blocks.setColor(color);
    T3D.legend(find("legend"), { color, numRanks });
    press("color", color);
  }

  /* Mark which of the buttons data-NAME is on. */
  function press(name, value) {
    for (const button of document.querySelectorAll(`[data-${name}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[name] === value));
    }
  }

  function showFiles() {
    const [file, other] = data.files;
    const against = other ? [T3D.element("span", { className: "against" }, " against "), other.name] : [];
    find("title").replaceChildren(file.name, ...against);
    document.title = `${find("title").textContent} – ${document.title}`;
    const shown = file.rows.length;
    const why = other ? "that both files have" : "of the file (--limit takes more)";
    const extent = shown === file.num_rows ? `all ${shown} rows` : `${shown} of ${file.num_rows} rows, the first ${why}`;
    const others = data.num_other_prompts ? `; ${data.num_other_prompts} of them with other prompt tokens` : "";
    find("extent").textContent = extent + others;
    find("settings").replaceChildren(...data.files.map(T3D.figures.settings));
    find("token-source").textContent = data.token_source;
    find("agreement").hidden = !data.pairs;
    if (data.pairs) find("agreement").querySelector(".body").replaceChildren(T3D.figures.agreementTable(data));
  }

  /* Keys that work everywhere but in controls that need them. */
  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const target = event.target;
    if (target.matches('input[type="search"], select')) return;
    const ownArrows = target.matches('input[type="range"]');
    const ownSpace = target.matches("button, summary");
    const actions = {
      j: () => list.move(1),
      k: () => list.move(-1),
      ArrowDown: ownArrows ? null : () => list.move(1),
      ArrowUp: ownArrows ? null : () => list.move(-1),
      ArrowRight: ownArrows ? null : () => replay.move(1),
      ArrowLeft: ownArrows ? null : () => replay.move(-1),
      " ": ownSpace ? null : () => replay.toggle(),
      c: () => setColor(state.color === "step" ? "confidence" : "step"),
      "/": () => list.search.focus(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  const replay = new T3D.Replay(document.querySelector(".replay"), (step) => {
    for (const { blocks } of state.panes) blocks.showStep(step);
  });
  setColor(state.color);
  showFiles();
  const list = new T3D.RowList(document.querySelector(".browse"), data, showRow);
  find("row-back").addEventListener("click", () => list.move(-1));
  find("row-on").addEventListener("click", () => list.move(1));
  for (const button of document.querySelectorAll("[data-color]")) {
    button.addEventListener("click", () => setColor(button.dataset.color));
  }
  for (const button of document.querySelectorAll("[data-scope]")) {
    button.addEventListener("click", () => {
      state.scope = button.dataset.scope;
      showOrders();
    });
  }
  document.addEventListener("keydown", onKey);
  list.list.focus({ focusVisible: false });
})();
