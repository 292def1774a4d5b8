// The answers of an evaluation, side by side: what is listed, how it is drawn, and its filters.
(async function () {
  const root = document.getElementById("answers-list");
  let data;
  try {
    data = await readData("data");
  } catch (error) {
    root.replaceChildren(
      element(
        "p",
        { class: "absent" },
        "The answers cannot be unpacked here (" + error.message + "). Use a newer browser.",
      ),
    );
    return;
  }
  const { models, judges, entries, start } = data;
  const percent = (share) => (100 * share).toFixed(1) + "%";

  // Filters. A verdict is read as a sentence: MODEL is preferred to MODEL by JUDGE.
  const named = (names, any) => [["", any], ...names.map((name, place) => [place, name])];
  const dimensions = Array.from(new Set(entries.map((entry) => entry.dimension)));
  const dimension = menu(
    "Dimension",
    named(
      dimensions.map((name) => name || "none given"),
      "all",
    ),
  );
  const model = menu("Model", named(models, "any model"));
  const verdict = menu("verdict", [
    ["", "has any verdict against"],
    ["better", "is preferred to"],
    ["tie", "ties with"],
    ["failed", "could not be judged against"],
    ["order", "is judged by its position against"],
    ...(judges.length > 1 ? [["divided", "divides the judges against"]] : []),
  ]);
  const against = menu("other model", named(models, "any model"));
  for (const { whole } of [verdict, against]) whole.firstChild.className = "sr";
  const judge = menu(
    "by",
    named(
      judges.map((one) => one.name),
      "any judge",
    ),
  );
  const cut = tick("Cut off");

  const is = (chosen, place) => chosen.select.value === "" || Number(chosen.select.value) === place;
  const asked = (one) => (is(model, one.a) && is(against, one.b)) || (is(model, one.b) && is(against, one.a));
  const divided = (one, other) => one.a === other.a && one.b === other.b && one.side * other.side < 0;
  const fitting = {
    better: (one) =>
      (one.side === 1 && is(model, one.a) && is(against, one.b)) ||
      (one.side === -1 && is(model, one.b) && is(against, one.a)),
    tie: (one) => one.side === 0 && asked(one),
    failed: (one) => one.failure !== undefined && asked(one),
    order: (one) => one.order && asked(one),
    divided: (one, entry) => asked(one) && entry.verdicts.some((other) => divided(one, other)),
  };
  function fits(entry) {
    if (!is(dimension, dimensions.indexOf(entry.dimension))) return false;
    if (cut.input.checked && !entry.answers.some((answer, place) => answer && answer.cut && is(model, place)))
      return false;
    const fit = fitting[verdict.select.value];
    return !fit || entry.verdicts.some((one) => is(judge, one.judge) && fit(one, entry));
  }

  function textOf(entry, scope) {
    const prompt = entry.turns.map(([, text]) => text);
    const answers = entry.answers.map((answer) => (answer && answer.text) || "");
    if (scope === "prompt") return prompt.join("\n");
    return scope === "" ? [...prompt, ...answers].join("\n") : answers[Number(scope)];
  }

  // How far the judges are apart on an entry, and how sure they are: the most over its pairs.
  const measured = new Map();
  function measures(entry) {
    if (!measured.has(entry)) {
      const found = { apart: 0, sure: 0 };
      for (const one of entry.verdicts) {
        if (one.p === undefined) continue;
        found.sure = Math.max(found.sure, Math.abs(one.p - 0.5));
        for (const other of entry.verdicts) {
          if (other.a === one.a && other.b === one.b && other.p !== undefined)
            found.apart = Math.max(found.apart, one.p - other.p);
        }
      }
      measured.set(entry, found);
    }
    return measured.get(entry);
  }
  const orders = [
    ["as asked", null],
    ...(judges.length > 1
      ? [["judges furthest apart", (one, other) => measures(other).apart - measures(one).apart]]
      : []),
    ["clearest verdict", (one, other) => measures(other).sure - measures(one).sure],
  ];

  // Which models are shown.
  const shown = new Set(models.keys());
  const columns = (entry) =>
    blind.order(entry).filter((place) => shown.has(place) && (!blind.on || entry.answers[place]));

  function draw(entry, place) {
    const made = columns(entry);
    const title = "Prompt " + (place + 1).toLocaleString("en");
    return element(
      "article",
      { class: "entry", "aria-label": title },
      element(
        "header",
        {},
        element("h3", {}, title),
        element("span", { class: "tag" }, entry.dimension),
        entry.kind && element("span", { class: "tag" }, entry.kind),
        entry.sample !== undefined && element("span", { class: "tag" }, "answer " + (entry.sample + 1)),
      ),
      ...entry.turns.map(([role, text]) =>
        element(
          "div",
          { class: "turn" },
          entry.turns.length > 1 && element("p", { class: "tag" }, role),
          listing.text(text),
        ),
      ),
      element("div", { class: "answers" }, ...made.map((which, column) => answer(entry, which, column))),
      blind.question(entry, place, made),
      blind.covers(entry) ? null : judged(entry),
    );
  }

  function answer(entry, which, column) {
    const found = entry.answers[which];
    const covered = blind.covers(entry);
    const head = element(
      "h4",
      {},
      blind.name(entry, which, column),
      !covered && which === start && element("small", {}, " the start"),
    );
    if (!found)
      return element("section", { class: "answer" }, head, element("p", { class: "empty" }, "(not asked yet)"));
    if (found.failure !== undefined) {
      return element(
        "section",
        { class: "answer" },
        head,
        element("p", { class: "empty" }, "No answer, " + found.failure + ": " + found.reason),
      );
    }
    return element(
      "section",
      { class: "answer" },
      head,
      found.text.trim() ? listing.text(found.text) : element("p", { class: "empty" }, "(empty answer)"),
      found.cut && element("p", { class: "cut-off" }, "Cut off here by the token limit"),
      found.tokens !== undefined &&
        element("p", { class: "tag" }, found.tokens + (found.tokens === 1 ? " token" : " tokens")),
      covered
        ? null
        : element(
            "div",
            {},
            ...(entry.replies || []).filter((one) => one.model === which).map(reply),
            ...entry.verdicts.filter((one) => one.a === which && one.b === start).map(badge),
          ),
    );
  }

  // What an answer does with a request that is harmful or looks so, as a judge says.
  function reply(one) {
    const says = one.failure === undefined ? one.says + ", " + percent(one.p) : "no label: " + one.failure;
    return element("p", { class: "judgement tag" }, judges[one.judge].name + ": " + says);
  }

  // What a judge says of an answer against the start's.
  function badge(one) {
    const by = element("span", { class: "tag" }, judges[one.judge].name);
    if (one.failure !== undefined)
      return element(
        "p",
        { class: "judgement" },
        by,
        element("span", { class: "badge badge-failed" }, "no label: " + one.failure),
      );
    const side = { 1: "after", 0: "tie", "-1": "before" }[one.side];
    const words = {
      1: "preferred to " + models[one.b],
      0: "tie with " + models[one.b],
      "-1": models[one.b] + " preferred",
    }[one.side];
    return element(
      "p",
      { class: "judgement" },
      by,
      element("span", { class: "badge badge-" + side }, words),
      element("span", {}, percent(one.p)),
      element("span", { class: "bar", "aria-hidden": "true" }, bar(one.p, side)),
    );
  }
  function bar(p, side) {
    const made = element("span", { class: "fill-" + side });
    made.style.left = 100 * Math.min(p, 0.5) + "%";
    made.style.width = 100 * Math.abs(p - 0.5) + "%";
    return made;
  }

  // Every judgement of an entry: by which principle, and in which order.
  function judged(entry) {
    const found = entry.verdicts.filter((one) => shown.has(one.a) && shown.has(one.b));
    if (!found.length) return element("p", { class: "caption" }, "Not judged.");
    const split = found.some((one) => found.some((other) => divided(one, other)));
    const counted = found.length + (found.length === 1 ? " judgement" : " judgements");
    const divide = split && element("strong", {}, ", the judges are divided");
    const made = element("details", { class: "judgements" }, element("summary", {}, counted, divide));
    // Made when it is opened: most are not, and a page has thousands of cells of them.
    made.addEventListener("toggle", () => made.append(...table(found)), { once: true });
    return made;
  }
  function table(found) {
    const heads = ["Judge", "Pair", "Prefers", "P", "Principle", "P alone", "Shown first", "Shown second"];
    const bodies = found.map((one) => {
      const rows = one.by.length ? one.by : [{}];
      const cells = rows.map((by, place) => [...(place ? [] : whole(one, rows.length)), ...principle(by)]);
      return element("tbody", {}, ...cells.map((row) => element("tr", {}, ...row)));
    });
    const head = element(
      "thead",
      {},
      element("tr", {}, ...heads.map((words) => element("th", { scope: "col" }, words))),
    );
    const by = Array.from(new Set(found.map((one) => one.judge)), (place) => judges[place]);
    const asked = new Map(
      found
        .flatMap((one) => one.by.map(({ id }) => [id, judges[one.judge].principles[id]]))
        .map((one) => [one.join(), one]),
    );
    return [
      element("div", { class: "scroll" }, element("table", {}, head, ...bodies)),
      element(
        "p",
        { class: "caption" },
        "P is how likely the answer of the pair's first model is the better one: by the judge, by a principle alone (of ",
        "people, by one vote), and when that answer was shown first and second.",
      ),
      element(
        "dl",
        { class: "texts" },
        ...Array.from(asked.values())
          .filter(([, text]) => text)
          .map(([id, text]) => element("div", {}, element("dt", {}, id), element("dd", {}, text))),
      ),
      ...by.flatMap(({ remarks }) => remarks.map((remark) => element("p", { class: "caption warned" }, remark))),
    ];
  }
  function whole(one, rows) {
    const failed = one.failure !== undefined;
    const prefers = failed ? "no label: " + one.failure : one.side === 0 ? "tie" : models[one.side > 0 ? one.a : one.b];
    const pair = models[one.a] + " over " + models[one.b];
    const cells = [judges[one.judge].name, pair, prefers, failed ? "" : percent(one.p)];
    return cells.map((text) => element("td", { rowspan: rows }, text));
  }
  function principle(by) {
    const number = (p) => element("td", {}, p === undefined ? "" : percent(p));
    const why = [by.why, by.why_swapped]
      .filter(Boolean)
      .map((text) => element("details", {}, element("summary", {}, "Its reasoning"), listing.text(text)));
    const name = element(
      "td",
      {},
      element("code", {}, by.id || ""),
      by.failure ? " " + by.failure : "",
      by.order && element("small", {}, " the position decides"),
      ...why,
    );
    return [name, number(by.p), number(by.first), number(by.second)];
  }

  const panel = document.getElementById("blind");
  const ticks = element("fieldset", { class: "shown-models" }, element("legend", {}, "Models"));
  models.forEach((name, place) => {
    const box = tick(name, true);
    box.input.addEventListener("change", () => {
      if (box.input.checked) shown.add(place);
      else shown.delete(place);
      listing.show();
    });
    ticks.append(box.whole);
  });
  panel.append(ticks);
  const blind = new BlindReading(panel, models, judges, (entry) => {
    if (entry) {
      listing.redraw(entry);
      return;
    }
    // A filter that names a model would tell which it is.
    for (const { select } of [model, verdict, against, judge, listing.scope]) {
      select.selectedIndex = 0;
      select.disabled = blind.on;
    }
    ticks.disabled = blind.on;
    listing.refresh();
  });

  document.addEventListener("keydown", (event) => {
    const place = listing.focused();
    const other = event.ctrlKey || event.metaKey || event.altKey;
    if (blind.on && place >= 0 && !other && /^[0-9]$/.test(event.key))
      blind.press(Number(event.key), listing.list.children[place]);
  });

  const listing = new Listing(root, {
    noun: entries.some((entry) => entry.sample) ? ["answer to a prompt", "answers to prompts"] : ["prompt", "prompts"],
    items: entries,
    draw,
    textOf,
    fits,
    orders,
    scopes: [["", "anywhere"], ["prompt", "the prompt"], ...models.map((name, place) => [place, "answers of " + name])],
  });
  listing.add(dimension.whole, model.whole, verdict.whole, against.whole, judge.whole, cut.whole);
  listing.refresh();
})();
