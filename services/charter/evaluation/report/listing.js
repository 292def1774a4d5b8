// A long list that is shown a page at a time: words, filters, order, keys. It knows nothing of what it lists, and only
// the page that is shown is in the document. Texts become text nodes and never markup, whoever wrote them.

// An element: `element("p", {class: "note"}, "text", another)`. What is null or false among its attributes and children is
// left out.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// What the page was written with (pages.py: packed): JSON as gzip in base64, in a script element that nothing runs.
async function readData(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place++) bytes[place] = binary.charCodeAt(place);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// A labelled menu of `[value, words]`; its `select` is what was chosen.
function menu(label, choices) {
  const select = element("select", {}, ...choices.map(([value, words]) => element("option", { value }, words)));
  const whole = element("label", {}, element("span", {}, label), select);
  return { whole, select };
}

// A labelled box to tick; its `input` says whether it is.
function tick(label, ticked) {
  const input = element("input", { type: "checkbox", checked: Boolean(ticked) });
  return { whole: element("label", { class: "tick" }, input, element("span", {}, label)), input };
}

const PAGE_SIZES = [10, 20, 50];
// Longer texts are folded, if the reader does not want them whole.
const FOLDED_CHARACTERS = 900;
// Words that are marked in one text.
const MOST_MARKS = 20;

class Listing {
  // It shows nothing before `refresh`. root: an empty element. options:
  //   noun       ["prompt", "prompts"]
  //   items      what is listed
  //   draw       (item, place) -> element, of an item on the page that is shown; place counts from 0 in `items`
  //   textOf     (item, scope) -> string in which words are searched
  //   scopes     [[scope, words]], where words may be searched; the first is the default
  //   fits       (item) -> whether it is wanted by the page's own filters; they stand in `controls`, which is watched
  //   orders     [[words, null or (item, item) -> number]]; the first is the default
  constructor(root, options) {
    this.root = root;
    this.options = { scopes: [["", "anywhere"]], orders: [], fits: () => true, ...options };
    this.page = 0;
    this.words = [];
    this.chosen = [];
    this.texts = new Map();
    this.places = new Map(this.options.items.map((item, place) => [item, place]));
    this.build();
    // The first search does not wait for it.
    setTimeout(() => this.searched(this.scope.select.value));
  }

  build() {
    const { scopes, orders } = this.options;
    this.search = element("input", { type: "search", placeholder: 'words, or "a phrase"', "aria-keyshortcuts": "/" });
    this.scope = menu("in", scopes);
    this.order = menu(
      "Order",
      orders.map(([words], place) => [place, words]),
    );
    this.size = menu(
      "Per page",
      PAGE_SIZES.map((size) => [size, String(size)]),
    );
    this.whole = tick("Whole texts");
    this.controls = element("div", { class: "listing-filters" });
    this.status = element("output", { class: "listing-status" });
    this.clear = element("button", { type: "button", hidden: true, click: () => this.reset() }, "Clear");
    const find = element("label", { class: "listing-words" }, element("span", {}, "Find"), this.search);
    this.form = element(
      "form",
      { class: "listing-controls", role: "search", submit: (event) => event.preventDefault() },
      element("div", { class: "listing-row" }, find, scopes.length > 1 && this.scope.whole),
      this.controls,
      element(
        "div",
        { class: "listing-row" },
        orders.length > 1 && this.order.whole,
        this.size.whole,
        this.whole.whole,
      ),
    );
    // Whole texts or folded ones are the same entries: the page stays.
    this.form.addEventListener("input", (event) => (event.target === this.whole.input ? this.show() : this.refresh()));
    this.list = element("div", { class: "listing-items" });
    this.pagers = [this.pager(), this.pager()];
    const [above, below] = this.pagers;
    this.head = element("div", { class: "listing-head" }, this.status, this.clear, above.whole);
    this.root.classList.add("listing");
    this.root.replaceChildren(
      this.form,
      this.head,
      this.list,
      below.whole,
      element(
        "p",
        { class: "caption listing-keys" },
        "Keys: / find, n and p next and previous page, j and k next and previous entry.",
      ),
    );
    document.addEventListener("keydown", (event) => this.press(event));
  }

  pager() {
    const number = element("input", { type: "number", min: 1, "aria-label": "Page" });
    const of = element("span", {});
    const turn = (by) =>
      element("button", { type: "button", click: () => this.turn(this.page + by) }, by < 0 ? "Previous" : "Next");
    const [previous, next] = [turn(-1), turn(1)];
    number.addEventListener("change", () => this.turn(Number(number.value) - 1));
    const whole = element(
      "nav",
      { class: "listing-pager", "aria-label": "Pages" },
      previous,
      element("span", {}, "Page "),
      number,
      of,
      next,
    );
    return { whole, number, of, previous, next };
  }

  // Put a control of the page's own beside the filters.
  add(...controls) {
    this.controls.append(...controls);
  }

  // What is searched of all items in one scope: made once, in small letters.
  searched(scope) {
    if (!this.texts.has(scope)) {
      this.texts.set(
        scope,
        this.options.items.map((item) => this.options.textOf(item, scope).toLowerCase()),
      );
    }
    return this.texts.get(scope);
  }

  // Choose again what is shown, from its first page.
  refresh() {
    this.words = Array.from(
      this.search.value.toLowerCase().matchAll(/"([^"]+)"?|[^\s"]+/g),
      (found) => found[1] || found[0],
    );
    this.chosen = this.options.items;
    if (this.words.length) {
      const texts = this.searched(this.scope.select.value);
      this.chosen = this.chosen.filter((_, place) => this.words.every((word) => texts[place].includes(word)));
    }
    this.chosen = this.chosen.filter((item) => this.options.fits(item));
    const order = this.options.orders.length ? this.options.orders[this.order.select.value][1] : null;
    if (order) this.chosen = this.chosen.slice().sort(order);
    const [one, many] = this.options.noun;
    const [found, all] = [this.chosen.length, this.options.items.length];
    const counted = (count) => count.toLocaleString("en") + " " + (count === 1 ? one : many);
    this.status.textContent = found === all ? counted(all) : found.toLocaleString("en") + " of " + counted(all);
    this.clear.hidden = found === all;
    this.page = 0;
    this.show();
  }

  // Draw the page that is shown again.
  show() {
    const size = Number(this.size.select.value);
    const pages = Math.max(1, Math.ceil(this.chosen.length / size));
    this.page = Math.min(Math.max(0, this.page || 0), pages - 1);
    const shown = this.chosen.slice(this.page * size, (this.page + 1) * size);
    this.list.replaceChildren(...shown.map((item) => this.drawn(item)));
    if (!shown.length) this.list.append(element("p", { class: "absent" }, "Nothing fits these words and filters."));
    for (const { whole, number, of, previous, next } of this.pagers) {
      whole.hidden = pages === 1;
      number.value = this.page + 1;
      number.max = pages;
      of.textContent = " of " + pages.toLocaleString("en");
      previous.disabled = this.page === 0;
      next.disabled = this.page === pages - 1;
    }
  }

  drawn(item) {
    const made = this.options.draw(item, this.places.get(item));
    made.classList.add("listing-item");
    made.tabIndex = -1;
    return made;
  }

  // Draw one item again, if it is shown.
  redraw(item) {
    const place = this.chosen.indexOf(item) - this.page * Number(this.size.select.value);
    const old = place >= 0 && this.list.children[place];
    if (!old) return;
    const focused = old.contains(document.activeElement);
    const made = this.drawn(item);
    old.replaceWith(made);
    if (focused) made.focus({ preventScroll: true });
  }

  turn(page) {
    this.page = page;
    this.show();
    this.head.scrollIntoView({ behavior: "instant" });
    this.list.firstElementChild.focus({ preventScroll: true });
  }

  // Show everything again: what the reader wrote and chose is taken back.
  reset() {
    const kept = [this.order.select.value, this.size.select.value, this.whole.input.checked];
    this.form.reset();
    [this.order.select.value, this.size.select.value, this.whole.input.checked] = kept;
    this.refresh();
    this.search.focus();
  }

  press(event) {
    const writes = event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || writes) return;
    const keys = {
      "/": () => this.search.focus(),
      n: () => this.turn(this.page + 1),
      p: () => this.turn(this.page - 1),
      j: () => this.step(1),
      k: () => this.step(-1),
    };
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  }

  // Place of the entry on the page that has the focus; -1 where none has.
  focused() {
    return Array.from(this.list.children).findIndex((one) => one.contains(document.activeElement));
  }

  step(by) {
    const [shown, place] = [this.list.children, this.focused()];
    const next = shown[place < 0 ? 0 : place + by];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "start", behavior: "instant" });
  }

  // A text with the words that were searched marked, as children for `element`.
  marked(text) {
    if (!this.words.length) return [text];
    const words = this.words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const parts = text.split(new RegExp("(" + words.join("|") + ")", "gi"));
    // Thousands of marks tell nothing and take their time.
    const [marked, rest] = [parts.slice(0, 2 * MOST_MARKS), parts.slice(2 * MOST_MARKS)];
    return [...marked.map((part, place) => (place % 2 ? element("mark", {}, part) : part)), rest.join("")];
  }

  // A text of a model or person, in an element: folded where it is long, with a button that shows the whole.
  text(text) {
    const body = element("div", { class: "text", dir: "auto" }, ...this.marked(text));
    return this.fold(body, text.length);
  }

  // `body`, folded if so many characters are many. What words were searched in is never folded.
  fold(body, characters) {
    if (characters <= FOLDED_CHARACTERS || this.words.length || this.whole.input.checked) return body;
    body.classList.add("folded");
    const button = element("button", { type: "button", class: "link", "aria-expanded": "false" }, "Show all");
    button.addEventListener("click", () => {
      const folded = body.classList.toggle("folded");
      button.textContent = folded ? "Show all" : "Show less";
      button.setAttribute("aria-expanded", String(!folded));
    });
    return element("div", {}, body, button);
  }
}
