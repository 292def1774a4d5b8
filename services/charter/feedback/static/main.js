// Sign-in, the three views, and the keys.

import { CallError, get, post } from "./api.js";
import { ChatView } from "./chat.js";
import { CompareView } from "./compare.js";
import { Outbox } from "./outbox.js";
import { StatisticsView } from "./statistics.js";

const find = (selector) => document.querySelector(selector);
const RETRY_MS = 3000;

let outbox = null;
let views = {};
let current = "";

function announce(text) {
  find("#announcement").textContent = text;
}

function open(name) {
  current = name;
  for (const view of document.querySelectorAll("main > section")) view.hidden = view.id !== `view-${name}`;
  for (const button of document.querySelectorAll("[data-view]")) {
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  views[name]?.open();
}

function showOutbox() {
  if (!outbox) return;
  const { waiting, refused } = outbox.read();
  const saved = find("#saved");
  saved.textContent = waiting.length ? `${waiting.length} not sent yet` : "All saved";
  saved.classList.toggle("waiting", waiting.length > 0);
  const problem = find("#problem");
  problem.hidden = refused.length === 0;
  if (refused.length) {
    const what = refused.length === 1 ? "A label was refused" : `${refused.length} labels were refused`;
    problem.querySelector("p").textContent = `${what}: ${refused[0].why}`;
  }
}

function begin(session) {
  outbox = new Outbox(session.labeller, { changed: showOutbox, signedOut: signIn });
  const shared = { session, outbox, announce, signedOut: signIn };
  views = {
    compare: new CompareView(find("#view-compare"), shared),
    chat: new ChatView(find("#view-chat"), shared),
    statistics: new StatisticsView(find("#view-statistics"), shared),
  };
  find("#labeller").textContent = session.labeller;
  find('[data-view="chat"]').hidden = !session.chat;
  find("header").hidden = false;
  showOutbox();
  open(session.queue ? "compare" : "chat");
}

// Labels that are not sent stay in the box of their labeller.
function signIn() {
  outbox?.close();
  outbox = null;
  views = {};
  find("header").hidden = true;
  open("sign-in");
  find("#token").focus();
}

async function enter(token) {
  try {
    await post("/api/sign-in", { token });
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    signIn();
    const why = find("#view-sign-in .error");
    why.textContent = error.message;
    why.hidden = false;
    return;
  }
  location.reload();
}

async function start() {
  // The link holds the token behind the #, which browsers do not send; it leaves the address bar at once.
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    await enter(token);
    return;
  }
  try {
    begin(await get("/api/session"));
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    if (error.temporary) setTimeout(start, RETRY_MS);
    else signIn();
  }
}

find("#view-sign-in form").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(find("#token").value);
});
for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => open(button.dataset.view));
}
find("#sign-out").addEventListener("click", async () => {
  await post("/api/sign-out");
  location.reload();
});
find("#help-button").addEventListener("click", () => find("#help").showModal());
find("#problem button").addEventListener("click", () => outbox?.discardRefused());
window.addEventListener("storage", showOutbox);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || find("#help").open) return;
  const target = event.target;
  if (target.matches("textarea, input, select")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (event.key === "?") find("#help").showModal();
  else if (!views[current]?.key?.(event)) return;
  event.preventDefault();
});

start();
