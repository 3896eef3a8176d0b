/* The playground: a prompt, one pane or two that answer it, and what they have in common. */
"use strict";
{
  const NAMES = ["A", "B"];
  const KEY = "t3d-api-key";
  const COPIED = 1500; // milliseconds that a button says so
  const find = (id) => document.getElementById(id);
  const [prompt, example, pace] = ["prompt", "example", "pace"].map(find);
  const panes = [];
  const choices = { api: "chat", color: "step" };
  let numRuns = 0;
  let key = storedKey();
  let typed = ""; // the prompt that an example took the place of

  const page = {
    models: [],
    key: () => key,
    question: () => [prompt.value, choices.api],
    look: () => ({ color: choices.color, pace: Number(pace.value) || pace.value }),
    changed: () => {
      offerExamples();
      keepLink();
    },
    refused: askForKey,
    copy,
  };

  /* --- what is served --- */

  async function start() {
    try {
      page.models = await T3D.models(page.key());
    } catch (error) {
      find("served").textContent = "";
      tell(error.message);
      if (error.status === 401) askForKey();
      return;
    }
    find("served").textContent = `${location.host} serves ${page.models.map(({ id }) => id).join(", ")}`;
    if (!panes.length) readPanes();
    find("run").disabled = find("compare").disabled = false;
  }

  function askForKey() {
    find("key-form").hidden = false;
    find("key").focus();
  }

  /* null: none, or a browser that keeps nothing for pages, as where cookies are blocked; then this page keeps it */
  function storedKey() {
    try {
      return sessionStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function takeKey(event) {
    event.preventDefault();
    key = find("key").value;
    try {
      sessionStorage.setItem(KEY, key);
    } catch {
      // see storedKey
    }
    find("key").value = "";
    find("key-form").hidden = true;
    tell("");
    prompt.focus();
    start();
  }

  /* --- panes --- */

  function addPane() {
    const pane = new T3D.Pane(NAMES[panes.length], page);
    panes.push(pane);
    find("panes").append(pane.root);
    pane.settings.form.addEventListener("submit", (event) => {
      event.preventDefault();
      run();
    });
    tellPanes();
    return pane;
  }

  function removePane() {
    const pane = panes.pop();
    pane.stop();
    pane.root.remove();
    panes[0].mark(null);
    find("verdict").hidden = true;
    tellPanes();
  }

  function tellPanes() {
    find("compare").textContent = panes.length > 1 ? "Remove pane B" : "Compare";
    find("panes").classList.toggle("two", panes.length > 1);
  }

  function toggleCompare() {
    if (panes.length > 1) {
      removePane();
    } else {
      const added = addPane();
      added.settings.fill(panes[0].settings.values);
      added.settings.nextTokensPerStep();
    }
    keepLink();
  }

  /* --- running --- */

  async function run() {
    if (find("run").disabled || !panes.every((pane) => pane.settings.isValid)) return;
    tell(prompt.value ? "" : "There is no prompt: type one, or take an example.");
    if (!prompt.value) {
      prompt.focus();
      return;
    }
    const number = ++numRuns;
    const asked = [...panes];
    keepLink();
    find("verdict").hidden = true;
    find("stop").disabled = false;
    announce("Running.");
    await Promise.all(asked.map((pane) => pane.run(...page.question())));
    if (number === numRuns) finish(asked);
  }

  function finish(asked) {
    find("stop").disabled = true;
    const sentences = asked.map((pane) => pane.summary);
    const done = asked.filter((pane) => pane.isDone && panes.includes(pane));
    if (done.length > 1) sentences.push(T3D.compare(find("verdict"), ...done));
    announce(sentences.join(" "));
  }

  function stop() {
    for (const pane of panes) pane.stop();
  }

  /* --- prompt and view --- */

  function offerExamples() {
    const model = panes[0].settings.model.id;
    const texts = T3D.examples.of(model);
    example.replaceChildren(new Option("Examples …", ""), ...texts.map((text) => new Option(text)));
    ownPrompt();
  }

  /* Take the chosen example; without one, what stood there before, so that arrow keys may pass through all of them. */
  function takeExample() {
    const text = example.value;
    if (!text) prompt.value = typed;
    else prompt.value = choices.api === "raw" ? T3D.examples.raw(text, panes[0].settings.model.id) : text;
    keepLink();
  }

  /* What stands there is a person's own from here on. */
  function ownPrompt() {
    typed = prompt.value;
    example.value = "";
  }

  /* Press one button of a group: `name` is the group's id and the choice's name. */
  function choose(name, value) {
    choices[name] = value;
    for (const button of find(name).children) button.setAttribute("aria-pressed", button.value === value);
    if (name === "api") ownPrompt();
    if (name === "color") for (const pane of panes) pane.setColor(value);
  }

  function setPace() {
    for (const pane of panes) pane.setPace(page.look().pace);
  }

  /* --- the link --- */

  /* The address with all settings; the key is none of them. Until there are panes, theirs are known from it only. */
  function link() {
    if (!panes.length) return location.href;
    const settings = new URLSearchParams({ ...choices, pace: pace.value, prompt: prompt.value });
    for (const { name, settings: own } of panes) {
      for (const [field, value] of Object.entries(own.values)) settings.set(`${name}.${field}`, value);
    }
    return new URL(`#${settings}`, location.href).href;
  }

  function keepLink() {
    try {
      history.replaceState(null, "", link());
    } catch {
      // browsers refuse an address that is too long, or too many a second; the old one stays
    }
  }

  /* Take the prompt and the view from the address; what it does not name stays. */
  function readView() {
    const given = settingsInLink();
    for (const name of Object.keys(choices)) {
      if ([...find(name).children].some(({ value }) => value === given.get(name))) choose(name, given.get(name));
    }
    if ([...pace.options].some(({ value }) => value === given.get("pace"))) pace.value = given.get("pace");
    prompt.value = given.get("prompt") ?? prompt.value;
    ownPrompt();
  }

  /* Take the panes from it. */
  function readPanes() {
    const given = settingsInLink();
    const complaints = NAMES.map((name, index) => fillPane(index, settingsOf(given, name)));
    tell(complaints.filter(Boolean).join(". "));
    offerExamples();
  }

  function settingsInLink() {
    return new URLSearchParams(location.hash.slice(1));
  }

  /* The settings of one pane in a link; null: it has none. */
  function settingsOf(given, name) {
    const own = [...given].filter(([field]) => field.startsWith(`${name}.`));
    return own.length ? Object.fromEntries(own.map(([field, value]) => [field.slice(name.length + 1), value])) : null;
  }

  function fillPane(index, values) {
    if (!panes[index] && (index === 0 || values)) addPane();
    if (panes[index] && index > 0 && !values) removePane();
    return panes[index] && values ? panes[index].settings.fill(values) : "";
  }

  /* --- telling --- */

  function tell(message) {
    find("notice").textContent = message;
    find("notice").hidden = !message;
  }

  function announce(message) {
    find("announcer").textContent = message;
  }

  /* To the clipboard; browsers have none on pages from afar without TLS, there a person copies. */
  async function copy(text, what, button) {
    try {
      await navigator.clipboard.writeText(text);
      announce(`Copied the ${what}.`);
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), COPIED);
    } catch {
      const area = find("copy-dialog").querySelector("textarea");
      area.value = text;
      find("copy-dialog").showModal();
      area.select();
    }
  }

  function onKey(event) {
    if (event.isComposing || find("copy-dialog").open) return; // the key is theirs
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
    if (event.key === "Escape") stop();
  }

  /* --- wiring --- */

  if (matchMedia("(prefers-reduced-motion: reduce)").matches) pace.value = "instant";
  find("key-form").addEventListener("submit", takeKey);
  find("compare").addEventListener("click", toggleCompare);
  find("run").addEventListener("click", run);
  find("stop").addEventListener("click", stop);
  find("link").addEventListener("click", () => {
    keepLink();
    copy(link(), "link", find("link"));
  });
  example.addEventListener("change", takeExample);
  prompt.addEventListener("input", ownPrompt);
  prompt.addEventListener("change", keepLink);
  pace.addEventListener("change", () => {
    setPace();
    keepLink();
  });
  for (const name of Object.keys(choices)) {
    find(name).addEventListener("click", (event) => {
      if (!event.target.value) return;
      choose(name, event.target.value);
      keepLink();
    });
  }
  addEventListener("hashchange", () => {
    readView();
    if (panes.length) readPanes();
  });
  document.addEventListener("keydown", onKey);
  readView();
  start();
}
