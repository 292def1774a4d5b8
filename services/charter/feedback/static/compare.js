// The queue: one pair after the other until none waits.

import { CallError, post } from "./api.js";
import { PairView } from "./pair.js";

const RETRY_MS = 3000;

export class CompareView {
  constructor(node, { session, outbox, announce, signedOut }) {
    this.node = node;
    this.outbox = outbox;
    this.announce = announce;
    this.signedOut = signedOut;
    this.empty = node.querySelector(".empty");
    this.slot = node.querySelector(".slot");
    this.timer = 0;
    // Counts what was asked for, so that a late answer does not replace what came after it.
    this.turn = 0;
    this.view = new PairView(this.slot, {
      principles: session.principles,
      decided: (label, pair) => {
        this.outbox.add(label, pair);
        this.next();
      },
      skip: () => this.view.pair && this.next(this.view.pair.id),
      undo: () => this.undo(),
    });
    this.slot.hidden = true;
  }

  open() {
    if (!this.view.pair) this.next();
  }

  // skip: id of the pair to pass over.
  async next(skip = "") {
    clearTimeout(this.timer);
    const turn = ++this.turn;
    this.view.enable(false);
    // A label that is still on its way would make the server offer its pair again.
    await this.outbox.send();
    if (turn !== this.turn) return;
    if (this.outbox.read().waiting.length) {
      this.retry(skip, "The connection is lost. Your labels are safe in this browser, and are sent when it is back.");
      return;
    }
    let answer;
    try {
      answer = await post("/api/next", { skip });
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      if (turn !== this.turn) return;
      if (error.status === 401) this.signedOut();
      else this.retry(skip, error.message);
      return;
    }
    if (turn !== this.turn) return;
    this.progress(answer.progress);
    if (answer.pair) this.show(answer.pair);
    else this.nothing(answer.progress);
  }

  retry(skip, why) {
    this.message("Waiting for the connection", why);
    this.timer = setTimeout(() => this.next(skip), RETRY_MS);
  }

  show(pair, label = null) {
    clearTimeout(this.timer);
    this.turn += 1;
    this.slot.hidden = false;
    this.empty.hidden = true;
    this.view.show(pair, label);
    this.view.focus();
    this.announce(label ? "Undone. The pair is open again." : "Next pair.");
  }

  undo() {
    const last = this.outbox.undo();
    if (!last) return;
    if (last.pair.id.startsWith("chat-")) {
      this.announce("The label of your last chat is undone.");
      return;
    }
    this.show(last.pair, last.label);
  }

  nothing(progress) {
    if (progress.pairs === 0) {
      this.message("No queue", "This page was started without pairs. In the chat you can draw answers and compare them.");
    } else if (progress.done >= progress.wanted) {
      this.message("All done", `All ${progress.pairs} pairs have their labels. Thank you.`);
    } else {
      this.message("Nothing waits for you", "What is left is with other labellers, or you skipped it.");
    }
    this.announce(this.empty.textContent);
  }

  message(title, text) {
    const heading = document.createElement("h1");
    heading.textContent = title;
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    this.empty.replaceChildren(heading, paragraph);
    if (this.outbox.canUndo()) {
      const undo = document.createElement("button");
      undo.type = "button";
      undo.textContent = "Undo the last label";
      undo.addEventListener("click", () => this.undo());
      this.empty.append(undo);
    }
    this.empty.hidden = false;
    this.slot.hidden = true;
  }

  progress({ pairs, wanted, done, mine }) {
    const part = this.node.querySelector(".progress");
    part.hidden = pairs === 0;
    const bar = part.querySelector(".bar");
    bar.setAttribute("aria-valuemax", wanted);
    bar.setAttribute("aria-valuenow", done);
    bar.firstElementChild.style.width = `${wanted ? (100 * done) / wanted : 0}%`;
    part.querySelector("p").textContent = `${done} of ${wanted} labels, ${mine} by you`;
  }

  key(event) {
    return this.view.key(event);
  }
}
