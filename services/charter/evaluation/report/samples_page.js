// The answers of a run's steps, group by group: what is listed, how it is drawn, and its filters.
(async function () {
  const root = document.getElementById("answers-list");
  let data;
  try {
    data = await readData("data");
  } catch (error) {
    root.replaceChildren(element("p", { class: "absent" }, "The answers cannot be unpacked here (" + error.message + "). Use a newer browser."));
    return;
  }
  const { groups, together } = data;
  const tokens = new Tokens(data.colourings, document.getElementById("readout"));

  // Filters of prompts, and of their answers.
  const dimensions = Array.from(new Set(groups.map((group) => group.dimension)));
  const dimension = menu("Dimension", [["", "all"], ...dimensions.map((name, place) => [place, name || "none given"])]);
  const ends = { eos: "ended by itself", cut: "cut off by the token limit", failed: "left out: no score" };
  const end = menu("End", [["", "any"], ...Object.entries(ends)]);
  const why = menu("Kept", [["", "for any reason"], ["random", "by lot"], ["extreme", "for its score"]]);
  const step = range("Step", { step: 1, min: 1 });
  const score = range("Score", { step: "any" });
  const length = range("Tokens", { step: 1, min: 0 });

  // Two boxes for the least and the most.
  function range(label, attributes) {
    const box = (word) => element("input", { type: "number", "aria-label": label + ", " + word, placeholder: word, ...attributes });
    const [least, most] = [box("from"), box("to")];
    const fits = (value) =>
      (least.value === "" || (value !== null && value >= Number(least.value))) && (most.value === "" || (value !== null && value <= Number(most.value)));
    return { whole: element("span", { class: "range", role: "group", "aria-label": label }, element("span", {}, label), least, most), fits };
  }

  const wanted = (answer) =>
    score.fits(answer.score) &&
    length.fits(answer.tokens) &&
    (end.select.value === "" || answer.end === end.select.value) &&
    (why.select.value === "" || answer[why.select.value]);
  const fitting = (group) => group.answers.filter(wanted);
  function fits(group) {
    if (dimension.select.value !== "" && dimensions[Number(dimension.select.value)] !== group.dimension) return false;
    return step.fits(group.step) && group.answers.some(wanted);
  }

  function textOf(group, scope) {
    const prompt = group.turns.map(([, text]) => text);
    const answers = group.answers.map((answer) => answer.text);
    return [...(scope === "answers" ? [] : prompt), ...(scope === "prompt" ? [] : answers)].join("\n");
  }

  // By the answers that are shown; those that have no such number go last.
  function by(number, sign) {
    const least = (group) => {
      const values = fitting(group).map(number).filter((value) => value !== null);
      return values.length ? Math.min(...values.map((value) => sign * value)) : Infinity;
    };
    return (one, other) => {
      const [a, b] = [least(one), least(other)];
      return a === b ? 0 : a - b;
    };
  }
  const sum = (values) => (values ? values.reduce((total, value) => total + value, 0) : null);
  const orders = [
    ["by step", null],
    ["lowest score", by((answer) => answer.score, 1)],
    ["highest score", by((answer) => answer.score, -1)],
    ["longest answer", by((answer) => answer.tokens, -1)],
    ...(data.colourings.some((one) => one.name === "log_ratios")
      ? [["furthest from the reference", by((answer) => sum(answer.figures.log_ratios), -1)]]
      : []),
  ];

  function draw(group) {
    const shown = fitting(group);
    const others = group.answers.length - shown.length;
    const lacking = together - group.answers.length;
    const notes = [
      others === 1 && "1 more answer to this prompt does not fit the filters.",
      others > 1 && others + " more answers to this prompt do not fit the filters.",
      lacking > 0 && group.answers.length + " of its " + together + " answers were kept.",
    ].filter(Boolean);
    return element(
      "article",
      { class: "entry", "aria-label": "Step " + group.step },
      element("header", {}, element("h3", {}, "Step " + group.step.toLocaleString("en")), group.dimension && element("span", { class: "tag" }, group.dimension)),
      ...group.turns.map(([role, text]) =>
        element("div", { class: "turn" }, group.turns.length > 1 && element("p", { class: "tag" }, role), listing.text(text)),
      ),
      ...shown.map(drawAnswer),
      notes.length ? element("p", { class: "caption" }, notes.join(" ")) : null,
    );
  }

  function drawAnswer(answer) {
    const kept = [answer.random && "by lot", answer.extreme && "for its score"].filter(Boolean).join(" and ");
    const facts = [
      answer.tokens + (answer.tokens === 1 ? " token" : " tokens"),
      ends[answer.end],
      "kept " + kept,
      "weights " + answer.version,
    ];
    const plain = answer.text.trim() ? listing.text(answer.text) : element("p", { class: "empty" }, "(empty answer)");
    return element(
      "section",
      { class: "answer", "aria-label": "Answer " + answer.id },
      element(
        "p",
        { class: "answer-head" },
        element("code", {}, answer.id),
        answer.score === null
          ? element("span", { class: "badge badge-failed" }, "no score")
          : element("strong", {}, signedNumber(answer.score)),
        element("span", { class: "tag" }, facts.join(" · ")),
      ),
      answer.failure ? element("p", { class: "caption" }, "Left out, " + answer.failure) : null,
      answer.pieces.length ? listing.fold(tokens.draw(answer, listing.words), answer.text.length) : plain,
    );
  }

  const listing = new Listing(root, {
    noun: ["prompt", "prompts"],
    items: groups,
    draw,
    textOf,
    scopes: [["", "prompts and answers"], ["answers", "answers"], ["prompt", "prompts"]],
    fits,
    orders,
  });
  listing.add(dimension.whole, end.whole, why.whole, step.whole, score.whole, length.whole);
  document.getElementById("colours").append(...tokens.legend(() => listing.show()));
  listing.refresh();
})();
