// Two answers side by side and what a person can say about them: with the mouse, a finger or the keyboard.

const CHOICE_KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", t: "tie", 3: "tie" };
const RATING_KEYS = { q: ["left", "up"], w: ["left", "down"], o: ["right", "up"], p: ["right", "down"] };

// crypto.randomUUID exists on secure pages only, and the page may be served by plain HTTP.
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function turn(role, content) {
  const node = document.createElement("div");
  node.className = `turn ${role}`;
  const speaker = document.createElement("span");
  speaker.className = "speaker";
  speaker.textContent = { user: "Person", assistant: "Model", system: "System" }[role];
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  text.textContent = content;
  node.append(speaker, text);
  return node;
}

export class PairView {
  // decided(label, pair), skip() or null, undo() or null.
  constructor(slot, { principles, decided, skip, undo }) {
    this.node = document.getElementById("pair-template").content.firstElementChild.cloneNode(true);
    this.decided = decided;
    this.actions = { skip, undo };
    this.pair = null;
    const find = (selector) => this.node.querySelector(selector);
    this.parts = {
      principle: find(".principle"),
      prompt: find(".prompt"),
      left: find('[data-side="left"] .text'),
      right: find('[data-side="right"] .text'),
      reason: find(".reason textarea"),
      decided: find(".decided select"),
    };
    for (const { id, dimension } of principles) {
      this.parts.decided.append(new Option(dimension ? `${id} (${dimension})` : id, id));
    }
    find(".decided").hidden = principles.length === 0;
    for (const [name, action] of Object.entries(this.actions)) {
      const button = find(`[data-action="${name}"]`);
      button.hidden = !action;
      button.addEventListener("click", () => action());
    }
    for (const button of this.node.querySelectorAll("[data-choice]")) {
      button.addEventListener("click", () => this.choose(button.dataset.choice));
    }
    for (const button of this.node.querySelectorAll("[data-rating]")) {
      button.addEventListener("click", () => this.rate(button));
    }
    this.parts.reason.addEventListener("input", () => grow(this.parts.reason));
    slot.replaceChildren(this.node);
  }

  // A pair to decide; label: what was said of it before an undo.
  show(pair, label = null) {
    this.writing(pair.prompt);
    this.pair = pair;
    this.text("left", pair.left);
    this.text("right", pair.right);
    this.cutOff("left", pair.left_cut_off);
    this.cutOff("right", pair.right_cut_off);
    this.parts.principle.hidden = !pair.principle;
    if (pair.principle) this.parts.principle.querySelector("p").textContent = pair.principle.text;
    this.parts.reason.value = label?.reason || "";
    this.parts.decided.value = label ? label.principle : pair.principle?.id || "";
    for (const button of this.node.querySelectorAll("[data-rating]")) {
      const side = button.closest("[data-side]").dataset.side;
      button.setAttribute("aria-pressed", String(label?.[`${side}_rating`] === button.dataset.rating));
    }
    grow(this.parts.reason);
    this.enable(true);
  }

  // Empty answers that are about to be written to this prompt.
  writing(prompt) {
    this.parts.prompt.replaceChildren(...prompt.map((one) => turn(one.role, one.content)));
    for (const side of ["left", "right"]) {
      this.text(side, "");
      this.cutOff(side, false);
      this.parts[side].scrollTop = 0;
    }
    this.enable(false);
  }

  text(side, text) {
    this.parts[side].textContent = text;
    this.parts[side].classList.toggle("nothing", text.trim() === "");
  }

  // An answer that the token limit ended is not one that its model ended in the middle of a sentence.
  cutOff(side, cut) {
    this.node.querySelector(`[data-side="${side}"] .cut-off`).hidden = !cut;
  }

  // While there is nothing to decide, what a person could say is out of reach.
  enable(on) {
    this.node.classList.toggle("undecidable", !on);
    for (const button of this.node.querySelectorAll("[data-choice], [data-rating]")) button.disabled = !on;
    if (!on) this.pair = null;
  }

  rate(button) {
    const pressed = button.getAttribute("aria-pressed") === "true";
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(!pressed));
  }

  choose(choice) {
    const pair = this.pair;
    if (!pair) return;
    const rated = (side) =>
      this.node.querySelector(`[data-side="${side}"] [aria-pressed="true"]`)?.dataset.rating || "";
    const label = {
      id: newId(),
      pair: pair.id,
      choice,
      left_rating: rated("left"),
      right_rating: rated("right"),
      reason: this.parts.reason.value.trim(),
      principle: this.parts.decided.value,
    };
    this.enable(false);
    this.decided(label, pair);
  }

  // Returns whether the key meant something.
  key(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    // Inside a long answer, arrows scroll.
    if (key === "ArrowDown" && scrolls(document.activeElement)) return false;
    if (key === "u" && this.actions.undo) this.actions.undo();
    else if (key === "s" && this.actions.skip) this.actions.skip();
    else if (!this.pair) return false;
    else if (key in CHOICE_KEYS) this.choose(CHOICE_KEYS[key]);
    else if (key in RATING_KEYS) {
      const [side, rating] = RATING_KEYS[key];
      this.rate(this.node.querySelector(`[data-side="${side}"] [data-rating="${rating}"]`));
    } else if (key === "r") this.parts.reason.focus();
    else if (key === "n" && this.parts.decided.options.length > 1) this.parts.decided.focus();
    else return false;
    return true;
  }

  focus() {
    this.parts.prompt.focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }
}

function grow(area) {
  area.style.height = "auto";
  if (area.value) area.style.height = `${area.scrollHeight + 2}px`;
}

function scrolls(node) {
  return node?.classList.contains("text") && node.scrollHeight > node.clientHeight + 1;
}
