// Reading blind: names are hidden and answers stand in an order of their own, the reader notes which is best, and at the
// end sees how often each judge says the same. What was drawn and noted is gone with the page.
class BlindReading {
  // panel: an element for its buttons and what it says. models, judges: of the page's data. changed: called when it
  // begins and ends, and with an entry when one is uncovered.
  constructor(panel, models, judges, changed) {
    Object.assign(this, { models, judges, changed, on: false });
    this.orders = new Map();
    this.uncovered = new Set();
    this.notes = new Map();
    this.toggle = element(
      "button",
      { type: "button", "aria-pressed": "false", click: () => this.switch() },
      "Read blind",
    );
    this.save = element("button", { type: "button", hidden: true, click: () => this.download() }, "Save what I noted");
    this.summary = element("div", { role: "status" });
    panel.append(this.toggle, this.save, this.summary);
  }

  switch() {
    this.on = !this.on;
    this.orders.clear();
    this.uncovered.clear();
    this.toggle.setAttribute("aria-pressed", String(this.on));
    this.toggle.textContent = this.on ? "End, and compare with the judges" : "Read blind";
    this.summarise();
    this.changed();
  }

  // Whether names are hidden in an entry.
  covers(entry) {
    return this.on && !this.uncovered.has(entry);
  }

  // The places of an entry's models in the order in which they stand.
  order(entry) {
    if (!this.on) return Array.from(this.models.keys());
    if (!this.orders.has(entry)) this.orders.set(entry, shuffled(Array.from(this.models.keys())));
    return this.orders.get(entry);
  }

  // What a model is called in a column of an entry.
  name(entry, model, column) {
    return this.covers(entry) ? "Answer " + String.fromCharCode(65 + column) : this.models[model];
  }

  // The question below an entry whose columns are of these models; nothing while names are shown.
  question(entry, place, columns) {
    if (!this.on) return null;
    const noted = this.notes.get(entry);
    const choices = [
      ...columns.map((model, column) => [model, this.name(entry, model, column)]),
      [null, "No difference"],
    ];
    const inputs = choices.map(([best, words]) => {
      const input = element("input", {
        type: "radio",
        name: "best-" + place,
        checked: noted !== undefined && noted.best === best,
        // What is noted with the names in sight is not blind.
        disabled: !this.covers(entry),
      });
      input.addEventListener("change", () => {
        this.notes.set(entry, { best, shown: columns });
        this.summarise();
      });
      return element("label", { class: "tick" }, input, element("span", {}, words));
    });
    const uncover = element("button", { type: "button" }, "Uncover");
    uncover.addEventListener("click", () => {
      this.uncovered.add(entry);
      this.changed(entry);
    });
    return element(
      "fieldset",
      { class: "noting" },
      element("legend", {}, "Which is best?"),
      ...inputs,
      this.covers(entry) && uncover,
    );
  }

  // A digit that was pressed while an entry has the focus: 1 to 9 are its answers, 0 is no difference.
  press(digit, drawn) {
    const inputs = drawn.querySelectorAll(".noting input");
    const place = digit === 0 ? inputs.length - 1 : digit - 1;
    if (inputs.length && place < inputs.length - (digit ? 1 : 0)) inputs[place].click();
  }

  summarise() {
    this.save.hidden = this.notes.size === 0;
    const count = this.notes.size + (this.notes.size === 1 ? " prompt" : " prompts");
    if (this.on) {
      const words = "Names are hidden, and each prompt has an order of its own. Noted: " + count + ". ";
      this.summary.replaceChildren(
        element(
          "p",
          { class: "caption" },
          words,
          "Keys 1 to 9 note the best answer of the prompt in focus, 0 no difference.",
        ),
      );
    } else if (this.notes.size) {
      this.summary.replaceChildren(
        element("p", {}, "You noted which answer is best on " + count + "."),
        ...this.compared(),
      );
    } else {
      this.summary.replaceChildren();
    }
  }

  // How often each judge prefers what the reader noted to the other answers that stood beside it.
  compared() {
    const best = Array.from(this.notes).filter(([, noted]) => noted.best !== null);
    const rows = this.judges.map((judge, place) => {
      const sides = best.flatMap(([entry, { best: noted, shown }]) =>
        entry.verdicts
          .filter(
            (one) => one.judge === place && one.side !== undefined && shown.includes(one.a) && shown.includes(one.b),
          )
          .filter((one) => one.a === noted || one.b === noted)
          .map((one) => (one.a === noted ? one.side : -one.side)),
      );
      const [agreed, parted] = [1, -1].map((side) => sides.filter((one) => one === side).length);
      const share = agreed + parted ? ((100 * agreed) / (agreed + parted)).toFixed(1) + "%" : "";
      return [judge.name, agreed, parted, sides.length - agreed - parted, share];
    });
    const wins = Array.from(this.models, (name, place) => [
      name,
      best.filter(([, noted]) => noted.best === place).length,
    ]);
    return [
      noteTable(
        "Comparisons with the answer that you noted; a coin agrees with half",
        ["Judge", "Agrees", "Disagrees", "Ties", "Agreement"],
        rows,
      ),
      noteTable("Best by your notes; no difference on " + (this.notes.size - best.length), ["Model", "Best"], wins),
    ];
  }

  download() {
    const lines = Array.from(this.notes, ([entry, { best, shown }]) =>
      JSON.stringify({
        prompt: entry.key,
        dimension: entry.dimension,
        sample: entry.sample || 0,
        best: best === null ? null : this.models[best],
        shown: shown.map((model) => this.models[model]),
      }),
    );
    const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" }));
    element("a", { href: url, download: "blind.jsonl" }).click();
    URL.revokeObjectURL(url);
  }
}

function shuffled(places) {
  for (let place = places.length - 1; place > 0; place--) {
    const other = Math.floor(Math.random() * (place + 1));
    [places[place], places[other]] = [places[other], places[place]];
  }
  return places;
}

function noteTable(caption, heads, rows) {
  const head = element("thead", {}, element("tr", {}, ...heads.map((words) => element("th", { scope: "col" }, words))));
  const body = rows.map(([name, ...numbers]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      ...numbers.map((number) => element("td", {}, String(number))),
    ),
  );
  return element(
    "div",
    { class: "scroll" },
    element("table", {}, element("caption", {}, caption), head, element("tbody", {}, ...body)),
  );
}
