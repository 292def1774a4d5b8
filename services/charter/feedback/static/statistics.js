// Numbers of all labels.

import { CallError, get } from "./api.js";

const percent = (share) => `${Math.round(100 * share)} %`;

export class StatisticsView {
  constructor(node, { signedOut }) {
    this.node = node;
    this.signedOut = signedOut;
  }

  async open() {
    try {
      this.draw(await get("/api/statistics"));
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      if (error.status === 401) this.signedOut();
      else this.node.replaceChildren(element("p", "error", error.message));
    }
  }

  draw(numbers) {
    const { progress } = numbers;
    const decided = numbers.left + numbers.right;
    const cards = [
      card("Labels", String(numbers.labels), `${progress.mine} by you`),
      progress.pairs
        ? card("Queue", percent(progress.done / progress.wanted), `${progress.done} of ${progress.wanted} labels of ${progress.pairs} pairs; ${numbers.second_wanted} pairs get a second labeller`)
        : null,
      numbers.labelled_twice
        ? card("Agreement of labellers", numbers.kappa === null ? "not defined" : `κ ${numbers.kappa.toFixed(2)}`, `Cohen's kappa over ${numbers.labelled_twice} pairs that two people labelled; the same label on ${percent(numbers.agreement)}`)
        : card("Agreement of labellers", "none yet", "No pair has the labels of two people."),
      numbers.known_pairs
        ? card("Agreement with the given labels", percent(numbers.known_agreement), `on ${numbers.known_pairs} labels of pairs that a judge or a file had decided`)
        : null,
      decided
        ? card("Left answer preferred", percent(numbers.left / decided), `${numbers.left} left, ${numbers.right} right, ${numbers.ties} ties. The order is random: far from 50 % is a bias`)
        : null,
    ].filter(Boolean);
    const grid = element("div", "cards");
    grid.append(...cards);
    this.node.replaceChildren(element("h1", "", "Statistics"), grid);
    if (numbers.labellers.length) this.node.append(people(numbers.labellers));
  }
}

function card(title, number, detail) {
  const node = element("div", "card");
  node.append(element("h2", "", title), element("p", "number", number), element("p", "detail", detail));
  return node;
}

function people(labellers) {
  const table = element("table", "");
  const head = table.createTHead().insertRow();
  head.append(element("th", "", "Labeller"), element("th", "right", "Labels"));
  const body = table.createTBody();
  for (const { name, labels } of labellers) {
    const row = body.insertRow();
    row.append(element("td", "", name), element("td", "right", String(labels)));
  }
  return table;
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}
