/* Figures as text and tables; each function returns nodes. */
"use strict";

T3D.figures = (() => {
  const { element } = T3D;
  const MOST_NUMBERED = 8; // blocks up to this size show numbers in their table

  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;
  const decimal = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
  const grouped = (value) => value.toLocaleString("en-GB");

  /* {name: value} as a list of figures */
  function list(values) {
    const pairs = Object.entries(values).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    return element("dl", { className: "figures" }, ...pairs);
  }

  function rowFigures(row) {
    return list({
      tokens: String(row.ids.length),
      forwards: String(row.forwards),
      TPF: decimal(row.tpf),
      "ended by": row.finish_reason,
      seed: row.seed,
    });
  }

  function coloured(node, [background, color]) {
    Object.assign(node.style, { background, color });
    return node;
  }

  /* One line of the table of reveal order: the shares of a rank by position, and its mean confidence; the largest share
   * of the table has the strongest colour. */
  function rankLine(counts, totals, most, confidence, at) {
    const cells = counts.map((byRank, position) => {
      const share = totals[position] ? byRank[at] / totals[position] : 0;
      const title = `position ${position + 1}, forward ${at + 1}: ${grouped(byRank[at])} of ${grouped(totals[position])} tokens`;
      return coloured(element("td", { title }, share ? (100 * share).toFixed(0) : ""), T3D.shareColor(share / most));
    });
    const sure = element("td", { className: "confidence" }, decimal(confidence));
    if (confidence !== null) coloured(sure, T3D.confidenceColor(confidence));
    return element("tr", {}, element("th", { scope: "row" }, String(at + 1)), ...cells, element("td", { className: "gap" }), sure);
  }

  /* Position in block by forward of the block, as a table that is a heat map, in a box that scrolls if it is wide. */
  function orderTable(order, size, name) {
    const counts = Array.from({ length: size }, () => Array(size).fill(0));
    for (const [position, rank, count] of order.counts) counts[position][rank] = count;
    const totals = counts.map((byRank) => byRank.reduce((sum, count) => sum + count, 0));
    let [most, numRanks] = [0, 0];
    for (const [position, rank, count] of order.counts) {
      most = Math.max(most, count / totals[position]);
      numRanks = Math.max(numRanks, rank + 1);
    }
    const numbered = size <= MOST_NUMBERED;
    const positions = counts.map((_, at) => element("th", { scope: "col" }, numbered ? String(at + 1) : ""));
    const table = element(
      "table",
      { className: numbered ? "order" : "order many" },
      element("caption", { className: "visually-hidden" }, `Reveal order of ${name}: forward of the block by position in it`),
      element(
        "thead",
        {},
        element("tr", {}, element("td"), element("th", { colSpan: size }, "position in block"), element("td"), element("td")),
        element("tr", {}, element("th", { scope: "col" }, "forward"), ...positions, element("td"), element("th", { scope: "col" }, "conf.")),
      ),
      element("tbody", {}, ...Array.from({ length: numRanks }, (_, at) => rankLine(counts, totals, most, order.confidence[at], at))),
    );
    return element("div", { className: "wide" }, table);
  }

  function agreementTable(data) {
    const found = data.agreement;
    const ordered = found.num_identical
      ? `${grouped(found.num_ordered)} pairs of tokens, ${grouped(found.num_together)} left out`
      : "of identical responses; there are none";
    const lines = [
      ["identical responses", `${found.num_identical} of ${found.num_pairs}`],
      ["equal tokens", percent(found.equal_share, 1)],
      ["order of reveal", decimal(found.order_agreement), ordered],
      ...data.files.map((file) => [`TPF, ${file.name}`, decimal(file.tpf)]),
    ];
    return element(
      "table",
      {},
      ...lines.map(([name, value, more]) =>
        element(
          "tr",
          {},
          element("td", {}, name, more ? element("div", { className: "muted note" }, more) : null),
          element("td", { className: "value" }, value),
        ),
      ),
    );
  }

  /* A sentence on two responses. */
  function pairSentence(pair, rows) {
    const order = pair.order_agreement === null ? "" : ` Agreement of their reveal order: ${decimal(pair.order_agreement)}.`;
    if (pair.first_difference === null) return `The responses are identical.${order}`;
    const at = pair.first_difference;
    const ended = rows.findIndex((row) => row.ids.length === at);
    const how = ended < 0 ? `They first differ at token ${at + 1}` : `The ${["left", "right"][ended]} one ends after ${at} tokens`;
    return `${how}; ${pair.num_equal_tokens} of ${pair.num_tokens} tokens are equal (${percent(pair.equal_share)}).`;
  }

  function settings(file) {
    const lines = file.settings.map(([name, value]) => element("tr", {}, element("td", { className: "muted" }, name), element("td", {}, value)));
    const reasons = Object.entries(file.finish_reasons).map(([reason, count]) => `${reason} ${count}`);
    return element(
      "details",
      {},
      element("summary", {}, file.name),
      list({ rows: String(file.rows.length), tokens: grouped(file.num_tokens), forwards: grouped(file.num_forwards), TPF: decimal(file.tpf), "ended by": reasons.join(", ") }),
      element("table", {}, ...lines),
    );
  }

  return { rowFigures, orderTable, agreementTable, pairSentence, settings };
})();
