// Labels on their way. They lie in localStorage until the server has them, so that neither a lost connection nor a
// closed tab loses one; they are sent in order, and each keeps its id, so that sending twice stores once.

import { CallError, post } from "./api.js";

const RETRY_MS = 3000;
// Labels that can be undone.
const KEPT = 50;

export class Outbox {
  // changed() is called whenever something moved; signedOut() when the server does not know us any more.
  constructor(labeller, { changed, signedOut }) {
    this.key = `charter-feedback:${labeller}`;
    this.changed = changed;
    this.signedOut = signedOut;
    this.sending = null;
    this.timer = 0;
    this.onOnline = () => this.send();
    window.addEventListener("online", this.onOnline);
    this.send();
  }

  close() {
    window.removeEventListener("online", this.onOnline);
    clearTimeout(this.timer);
  }

  // waiting: what is not sent yet; done: labels that the server has; refused: labels that it never will have.
  read() {
    return { waiting: [], done: [], refused: [], ...JSON.parse(localStorage.getItem(this.key) || "{}") };
  }

  // Two tabs of one labeller share the box: it is read anew before each change.
  change(edit) {
    const box = this.read();
    edit(box);
    localStorage.setItem(this.key, JSON.stringify(box));
    this.changed();
  }

  // label: what POST /api/labels takes; pair: what was shown, for an undo.
  add(label, pair) {
    this.change((box) => box.waiting.push({ kind: "label", label, pair }));
    this.send();
  }

  // Takes back the last label; returns {label, pair}, or null when there is none.
  undo() {
    let last = null;
    this.change((box) => {
      const undone = new Set(box.waiting.filter((one) => one.kind === "undo").map((one) => one.id));
      const mine = [...box.done, ...box.waiting.filter((one) => one.kind === "label")];
      last = mine.reverse().find((one) => !undone.has(one.label.id)) || null;
      if (last) box.waiting.push({ kind: "undo", id: last.label.id });
    });
    this.send();
    return last;
  }

  canUndo() {
    const box = this.read();
    const undone = box.waiting.filter((one) => one.kind === "undo").length;
    return box.done.length + box.waiting.length - undone > undone;
  }

  discardRefused() {
    this.change((box) => (box.refused = []));
  }

  // Resolves when everything is sent, or when that failed for now.
  send() {
    this.sending ??= this.sendAll().finally(() => {
      this.sending = null;
      this.changed();
    });
    return this.sending;
  }

  async sendAll() {
    clearTimeout(this.timer);
    try {
      for (;;) {
        const [next] = this.read().waiting;
        if (!next) return;
        await (next.kind === "label" ? this.sendLabel(next) : this.sendUndo(next));
      }
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      if (error.status === 401) this.signedOut();
      else this.timer = setTimeout(() => this.send(), RETRY_MS);
    }
  }

  async sendLabel(entry) {
    let answer;
    try {
      answer = await post("/api/labels", entry.label);
    } catch (error) {
      if (error.temporary || error.status === 401) throw error;
      this.change((box) => {
        box.waiting = box.waiting.filter((one) => one.label?.id !== entry.label.id && one.id !== entry.label.id);
        box.refused.push({ label: entry.label, why: error.message });
      });
      return;
    }
    this.change((box) => {
      box.waiting = box.waiting.filter((one) => one.label?.id !== entry.label.id);
      box.done = [...box.done, { ...entry, comparison: answer.comparison }].slice(-KEPT);
    });
  }

  async sendUndo(entry) {
    const done = this.read().done.find((one) => one.label.id === entry.id);
    // Without one, another tab has taken it back already.
    if (done) await post("/api/undo", { comparison: done.comparison });
    this.change((box) => {
      box.waiting = box.waiting.filter((one) => one.kind !== "undo" || one.id !== entry.id);
      box.done = box.done.filter((one) => one.label.id !== entry.id);
    });
  }
}
