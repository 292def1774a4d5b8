// A conversation with the served policy: each message is answered twice, and the better answer goes on.

import { CallError, stream } from "./api.js";
import { PairView, turn } from "./pair.js";

export class ChatView {
  constructor(node, { session, outbox, announce, signedOut }) {
    this.node = node;
    this.announce = announce;
    this.signedOut = signedOut;
    this.key_ = `charter-feedback-chat:${session.labeller}`;
    this.slot = node.querySelector(".slot");
    this.form = node.querySelector("form");
    this.message = node.querySelector("#message");
    this.stopButton = node.querySelector("#stop");
    this.abort = null;
    this.view = new PairView(this.slot, {
      principles: session.principles,
      decided: (label, pair) => {
        outbox.add(label, pair);
        const chosen = label.choice === "right" ? pair.right : pair.left;
        this.save([...pair.prompt, { role: "assistant", content: chosen }]);
        this.draw();
        this.message.focus();
        this.announce("Saved. Write your next message.");
      },
      skip: null,
      undo: null,
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.message.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    node.querySelector("#new-chat").addEventListener("click", () => {
      this.abort?.abort();
      this.save([]);
      this.draw();
      this.message.focus();
    });
    this.stopButton.addEventListener("click", () => this.abort?.abort());
    this.draw();
  }

  open() {
    if (!this.view.pair) this.message.focus();
  }

  read() {
    return JSON.parse(localStorage.getItem(this.key_) || "[]");
  }

  save(messages) {
    localStorage.setItem(this.key_, JSON.stringify(messages));
  }

  // The conversation so far, with nothing to decide.
  draw() {
    this.view.enable(false);
    this.slot.hidden = true;
    this.form.hidden = false;
    this.stopButton.hidden = true;
    this.form.querySelector("[type=submit]").disabled = false;
    const messages = this.read();
    const conversation = this.node.querySelector(".conversation");
    if (messages.length) conversation.replaceChildren(...messages.map((one) => turn(one.role, one.content)));
    else {
      const hint = document.createElement("p");
      hint.className = "hint";
      hint.textContent = "Write to the model. It answers twice; choose the better answer, and the conversation goes on with it.";
      conversation.replaceChildren(hint);
    }
  }

  async send() {
    const content = this.message.value.trim();
    if (!content || this.abort) return;
    const messages = [...this.read(), { role: "user", content }];
    this.message.value = "";
    this.node.querySelector(".conversation").replaceChildren();
    this.slot.hidden = false;
    this.view.writing(messages);
    this.stopButton.hidden = false;
    this.form.querySelector("[type=submit]").disabled = true;
    this.abort = new AbortController();
    this.node.setAttribute("aria-busy", "true");
    try {
      let pair = null;
      for await (const event of stream("/api/chat", { messages }, this.abort.signal)) {
        if (event.error) throw new CallError(503, event.error);
        if (event.pair) pair = event.pair;
        else this.view.text(event.side, event.text);
      }
      if (!pair) throw new CallError(0, "The connection was lost while the answers were written.");
      this.view.show(pair);
      this.form.hidden = true;
      this.view.focus();
      this.announce("Both answers are complete. Choose the better one.");
    } catch (error) {
      this.draw();
      this.message.value = content;
      if (error instanceof CallError && error.status === 401) this.signedOut();
      else if (error.name !== "AbortError") this.failed(error.message);
    } finally {
      this.abort = null;
      this.node.removeAttribute("aria-busy");
    }
  }

  failed(why) {
    const note = document.createElement("p");
    note.className = "error";
    note.setAttribute("role", "alert");
    note.textContent = why;
    this.node.querySelector(".conversation").append(note);
  }

  key(event) {
    return this.view.key(event);
  }
}
