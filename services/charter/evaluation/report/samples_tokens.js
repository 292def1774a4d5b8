// An answer as its tokens, coloured by a figure of each, with the figures of the token under the pointer or the focus.

const shownNumber = (value) => (value < 0 ? "−" : "") + Number(Math.abs(value).toPrecision(3));
const signedNumber = (value) => (value > 0 ? "+" : "") + shownNumber(value);

class Tokens {
  // colourings: [{name, label, words, scale: [low, middle, high]}]; readout: the element that shows a token's figures.
  constructor(colourings, readout) {
    this.colourings = colourings;
    this.readout = readout;
    this.by = colourings.length ? colourings[0] : null;
  }

  // Menu and legend. `changed` is called when another figure is chosen.
  legend(changed) {
    if (!this.by) return [];
    const chosen = menu("Colour tokens by", [...this.colourings.map((one, place) => [place, one.label]), ["", "nothing"]]);
    const scale = element("div", { class: "scale" });
    const draw = () => {
      if (!this.by) return scale.replaceChildren();
      const [low, high] = this.by.words;
      scale.replaceChildren(
        element("span", { class: "scale-words" }, low),
        element("span", { class: "scale-bar", "aria-hidden": "true" }),
        element("span", { class: "scale-words" }, high),
        element("span", { class: "scale-numbers" }, ...this.by.scale.map((value) => element("span", {}, shownNumber(value)))),
      );
    };
    chosen.select.addEventListener("change", () => {
      this.by = chosen.select.value === "" ? null : this.colourings[Number(chosen.select.value)];
      draw();
      changed();
    });
    draw();
    return [chosen.whole, scale];
  }

  // Tokens that share a character stand together: [{text, first, last}], places of tokens.
  static parts(pieces) {
    const parts = [];
    let first = 0;
    pieces.forEach((text, place) => {
      if (text === "" && place < pieces.length - 1) return;
      parts.push({ text, first, last: place });
      first = place + 1;
    });
    return parts;
  }

  // `answer` as an element; `words` are searched, in small letters.
  draw(answer, words) {
    const parts = Tokens.parts(answer.pieces);
    const found = this.found(parts, words);
    const body = element("div", { class: "text tokens", dir: "auto", role: "group", "aria-label": "Tokens: arrow keys go from one to the next" });
    parts.forEach((part, place) => {
      const end = answer.end === "eos" && part.last === answer.pieces.length - 1;
      const token = element("span", { class: "token" + (end ? " end" : "") + (found.has(place) ? " found" : ""), tabindex: place ? -1 : 0 }, part.text);
      if (part.text.includes("\n")) token.classList.add("breaks");
      this.colour(token, answer, part);
      body.append(token);
    });
    const show = (event) => {
      const place = Array.prototype.indexOf.call(body.children, event.target.closest(".token"));
      if (place >= 0) this.show(answer, parts[place]);
    };
    body.addEventListener("mouseover", show);
    body.addEventListener("focusin", show);
    for (const name of ["mouseleave", "focusout"]) body.addEventListener(name, () => (this.readout.hidden = true));
    body.addEventListener("keydown", (event) => this.move(event, body));
    return body;
  }

  // Of several tokens it is the one furthest from the middle.
  colour(token, answer, part) {
    const figures = this.by && answer.figures[this.by.name];
    if (!figures) return;
    const [, middle, high] = this.by.scale;
    const away = figures.slice(part.first, part.last + 1).map((value) => value - middle);
    const most = away.reduce((one, other) => (Math.abs(other) > Math.abs(one) ? other : one));
    const share = Math.min(1, Math.abs(most) / (high - middle));
    token.classList.add(most < 0 ? "low" : "high");
    token.style.setProperty("--share", share.toFixed(3));
  }

  // Places of the parts that the words are in, which may go over several.
  found(parts, words) {
    const found = new Set();
    if (!words.length) return found;
    const text = parts.map((part) => part.text).join("").toLowerCase();
    for (const word of words) {
      for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
        let begin = 0;
        parts.forEach((part, place) => {
          const end = begin + part.text.length;
          if (begin < at + word.length && end > at) found.add(place);
          begin = end;
        });
      }
    }
    return found;
  }

  show(answer, part) {
    const several = part.last > part.first;
    const where = several ? "tokens " + (part.first + 1) + " to " + (part.last + 1) : "token " + (part.first + 1);
    const figures = this.colourings
      .filter((one) => answer.figures[one.name])
      .map((one) => one.label + " " + answer.figures[one.name].slice(part.first, part.last + 1).map(signedNumber).join(", "));
    this.readout.replaceChildren(
      element("code", {}, JSON.stringify(part.text)),
      " " + where + " of " + answer.pieces.length + (figures.length ? ": " + figures.join("; ") : ", without figures"),
    );
    this.readout.hidden = false;
  }

  move(event, body) {
    const place = Array.prototype.indexOf.call(body.children, document.activeElement);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: body.children.length - 1 }[event.key];
    const next = place >= 0 && body.children[to];
    if (!next) return;
    event.preventDefault();
    body.children[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
