/* Two answers to the same prompt: the same text or not, and what each cost. Adds `compare` to the global `T3D`. */
"use strict";
{
  const BEFORE = 28; // characters shown around a difference
  const AFTER = 14;

  /** The first place where two texts differ, in code points; null: they are equal. */
  function firstDifference(one, other) {
    const [ones, others] = [Array.from(one), Array.from(other)];
    const longest = Math.max(ones.length, others.length);
    for (let place = 0; place < longest; place++) if (ones[place] !== others[place]) return place;
    return null;
  }

  /** The token that holds the code point at a place of the tokens' joined text; null: there is none. */
  function tokenAt(tokens, place) {
    let end = 0;
    const index = tokens.findIndex(({ text }) => (end += Array.from(text).length) > place);
    return index < 0 ? null : index;
  }

  /** The tokens at which two answers part, one of each; null where there is none. */
  function partings(one, other) {
    const joined = [one, other].map((tokens) => tokens.map(({ text }) => text).join(""));
    const place = firstDifference(...joined);
    return [one, other].map((tokens) => (place === null ? null : tokenAt(tokens, place)));
  }

  /** "Forwards: A 120, B 30, 4.00 to 1.", of panes that are done. */
  function costs(one, other) {
    const [first, second] = [one.facts.forwards, other.facts.forwards];
    const ratio = (Math.max(first, second) / Math.min(first, second)).toFixed(2);
    const order = first === second ? "as many" : first > second ? `${ratio} to 1` : `1 to ${ratio}`;
    return `Forwards: ${one.name} ${first}, ${other.name} ${second}, ${order}.`;
  }

  /** The text around a place, which is marked. */
  function excerpt(text, place) {
    const points = Array.from(text);
    const start = Math.max(0, place - BEFORE);
    const piece = (from, to) => points.slice(from, to).join("").replaceAll("\n", "⏎");
    return T3D.element(
      "q",
      {},
      (start > 0 ? "…" : "") + piece(start, place),
      T3D.element("mark", {}, piece(place, place + 1) || "(end)"),
      piece(place + 1, place + 1 + AFTER) + (points.length > place + 1 + AFTER ? "…" : ""),
    );
  }

  /** The verdict on two panes that are done, into `root`; marks the tokens at which they part. Returns it as text. */
  function compare(root, one, other) {
    const place = firstDifference(one.text, other.text);
    const isSame = place === null;
    const [first, second] = isSame ? [null, null] : partings(one.tokens, other.tokens);
    one.mark(first);
    other.mark(second);
    const sentence = isSame ? "The texts are equal." : `The texts differ from character ${place + 1} on.`;
    root.replaceChildren(
      T3D.element("p", {}, T3D.element("strong", {}, sentence), ` ${costs(one, other)}`),
      ...(isSame ? [] : [one, other].map((pane) => T3D.element("p", {}, `${pane.name} `, excerpt(pane.text, place)))),
    );
    root.hidden = false;
    return `${sentence} ${costs(one, other)}`;
  }

  T3D.compare = compare;
}
