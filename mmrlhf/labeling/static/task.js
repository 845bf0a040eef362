// A task's page: keys, dialogs, time, a draft that survives a reload, and saving without losing the form.
import { viewer } from "./viewer.js";
import { pairwise } from "./pairwise.js";
import { ranking } from "./ranking.js";
import { claims } from "./claims.js";
import { facts } from "./facts.js";

const main = document.querySelector("main.task");
const form = document.getElementById("task");
const status = document.getElementById("status");
const draftName = `draft ${main.dataset.token}`;

// ---- storage ----
function stored(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(name); else localStorage.setItem(name, value);
  } catch { /* a browser may refuse storage; then a reload starts the task over */ }
}
const DRAFT_DAYS = 7;
function dropOldDrafts() { // not those of other open tasks, which come back after an undo
  const isOld = (draft) => !(JSON.parse(draft).time > Date.now() - DRAFT_DAYS * 86400e3);
  try {
    for (const name of Object.keys(localStorage)) if (name.startsWith("draft ") && isOld(stored(name))) localStorage.removeItem(name);
  } catch { /* as above */ }
}

// ---- time: only while the page can be seen ----
let seconds = 0, since = document.hidden ? null : performance.now();
function measured() {
  return seconds + (since === null ? 0 : (performance.now() - since) / 1000);
}
document.addEventListener("visibilitychange", () => {
  seconds = measured();
  since = document.hidden ? null : performance.now();
  saveDraft();
});

// ---- draft ----
const isOwn = (name) => !["form_key", "token", "kind", "seconds"].includes(name);
export function saveDraft() {
  const fields = Object.fromEntries([...new FormData(form)].filter(([name]) => isOwn(name)));
  store(draftName, JSON.stringify({ ...fields, seconds: measured(), time: Date.now() }));
}
function fillIn(fields) {
  for (const [name, value] of Object.entries(fields)) {
    const control = form.elements[name];
    if (!control || !isOwn(name)) continue;
    if (control instanceof HTMLInputElement && control.type === "checkbox") control.checked = true;
    else control.value = value;
  }
}
function restore() {
  let fields = {};
  try { fields = JSON.parse(stored(draftName)) ?? JSON.parse(main.dataset.previous); } catch { /* a broken draft is no draft */ }
  fillIn(fields);
  seconds = Math.max(0, Number(fields.seconds) || 0);
}

// ---- saving ----
let saving = false;
function say(text) {
  status.textContent = text;
}
async function send(target, body) {
  const headers = { Accept: "application/json" };
  const response = await fetch(target.action, { method: "POST", body: new URLSearchParams(body), headers, redirect: "error" });
  const reply = await response.json();
  if (!response.ok) throw new Error(reply.error);
  return reply;
}
async function submit(target, body) {
  if (saving) return;
  saving = true;
  say("");
  try {
    const reply = await send(target, body);
    if (target === form) store(draftName, null);
    store("notice", reply.note || null);
    location.replace(reply.next);
  } catch (error) {
    saving = false;
    say(error instanceof TypeError || error instanceof SyntaxError
      ? "Not saved: the server does not answer. Your answer is still here; save it again."
      : `Not saved: ${error.message}`);
  }
}
document.addEventListener("submit", (event) => {
  const target = event.target;
  if (target !== form && target.id !== "undo") return;
  event.preventDefault();
  form.elements.seconds.value = measured().toFixed(2);
  const body = new FormData(target);
  if (target === form) {
    const kind = event.submitter?.value ?? "label";
    body.set("kind", kind);
    if (kind === "label" && mode.problem && mode.problem()) return say(mode.problem());
    // However large a label is, its task can be skipped and flagged.
    if (kind !== "label") for (const name of [...body.keys()]) if (isOwn(name) && name !== "note") body.delete(name);
  } else saveDraft();
  submit(target, body);
});
form.addEventListener("input", () => { say(""); saveDraft(); });

// ---- dialogs ----
const guidelines = document.getElementById("guidelines");
guidelines.hidden = stored("guidelines") !== "open";
function toggleGuidelines() {
  guidelines.hidden = !guidelines.hidden;
  store("guidelines", guidelines.hidden ? null : "open");
}
function open(id) {
  if (id === "guidelines") return toggleGuidelines();
  const dialog = document.getElementById(id);
  if (dialog.open) dialog.close(); else dialog.showModal();
}
for (const button of document.querySelectorAll("[data-opens]")) button.addEventListener("click", () => open(button.dataset.opens));
for (const button of document.querySelectorAll("[data-closes]")) button.addEventListener("click", () => button.closest("dialog").close());

// ---- keys ----
const singleKeys = document.getElementById("single-keys");
singleKeys.checked = stored("single-keys") !== "off";
singleKeys.addEventListener("change", () => store("single-keys", singleKeys.checked ? null : "off"));

// A key that is held moves and enlarges; it does not answer tasks that nobody has read.
const isHeld = (event) => event.repeat && !event.key.startsWith("Arrow") && !["+", "=", "-"].includes(event.key);
function save() {
  if (mode.problem && mode.problem()) return say(mode.problem());
  if (form.reportValidity()) form.requestSubmit(document.getElementById("save"));
}
// A radio button or a checkbox that has the focus keeps its own keys.
const CHOICE_KEYS = [" ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const isChoice = (event) => event.target.matches("input[type=radio], input[type=checkbox]") && CHOICE_KEYS.includes(event.key);
const view = viewer(document.querySelector(".pictures"));
const keys = {
  s: () => form.requestSubmit(form.querySelector('[value="skip"]')),
  f: () => open("flagging"),
  u: () => document.getElementById("undo")?.requestSubmit(),
  g: () => open("guidelines"),
  "?": () => open("keys"),
  ...view.keys,
};
document.addEventListener("keydown", (event) => {
  const target = event.target;
  const dialog = document.querySelector("dialog[open]");
  const isText = target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (isHeld(event)) return;
    return dialog ? dialog.querySelector("[type=submit]")?.click() : save();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || isText) return;
  const isButton = target.matches("button, summary, a");
  if (event.key === "Enter" && !dialog && !isButton) {
    event.preventDefault();
    return isHeld(event) ? undefined : save();
  }
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.key.length === 1 && !singleKeys.checked) return;
  if (dialog && !(name === "?" && dialog.id === "keys")) return;
  if (isChoice(event) || view.takes(event) || mode.takes?.(event)) return;
  const act = mode.keys?.[name] ?? keys[name];
  if (act && !(isButton && event.key === " ")) {
    event.preventDefault();
    if (!isHeld(event)) act(event);
  }
});

restore();
dropOldDrafts();
say(stored("notice") ?? "");
store("notice", null);
const mode = { pairwise, ranking, claims, facts }[main.dataset.mode](form, { saveDraft, say, send, save });
if (document.activeElement === document.body) main.querySelector(".words")?.focus({ preventScroll: true });
main.dataset.ready = "yes";
