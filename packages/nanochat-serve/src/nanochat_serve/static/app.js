// The chat page: what a person can do, and the state it changes. Showing is in the modules named for what they show.

import { Answers } from "./answers.js";
import { openCard } from "./card.js";
import { addMessage, branchesOf, chatFrom, isChat, isMessage, newChat, partsFrom, pathOf, showBranch, textOf } from "./chats.js";
import { draftKey, renderComposer, startComposer } from "./composer.js";
import { collect } from "./corrections.js";
import { $, announce, h, keyed, on } from "./dom.js";
import { emptyOf, makeMessage, noticeOf, updateMessage } from "./messages.js";
import { makeSettings, showSettings } from "./settings.js";
import { exportChats, readExport, rowBeside, search, showChats } from "./sidebar.js";
import { recall, remember, Store } from "./store.js";
import { readFacts } from "./wire.js";

const IDEAS = ["What is 37 times 12?", "What can you do?", "Tell me a short story."];
const FACTS_EVERY_MS = 5000;

/** @type {{chats: any[], chat: any, editing: string | null, removed: any, found: Set<string> | null, banner: any, facts: any}} */
export const state = { chats: [], chat: null, editing: null, removed: null, found: null, banner: null, facts: { ready: null } };
const elsewhere = new Set(); // ids of answers that other tabs are writing
export const key = () => $("api-key").value;
export const store = new Store(hear, (error) => showTrouble(error));
export const answers = new Answers({ store, facts: () => state.facts, key, show: showAnswer });

// ---- showing

export function render() {
  const { chat } = state;
  const path = chat.messages ? pathOf(chat) : [];
  const rows = /** @type {any[]} */ (path.map((message) => ({ key: message.id, message })));
  const notice = answers.notices.get(chat.id);
  if (notice) rows.push({ key: `notice ${notice.message}`, notice });
  else if (path.at(-1)?.role === "user" && !answers.isBusy(chat)) rows.push({ key: "unanswered" });
  if (!path.length) rows.push({ key: `empty ${state.facts.model}` });
  const following = isAtEnd();
  keyed($("log"), rows, (row) => row.key, makeRow, (node, row) => row.message && updateMessage(node, itemOf(row.message, path), actions));
  if (following) scrollToEnd();
  $("stop").hidden = !answers.isBusy(chat);
  $("send").hidden = answers.isBusy(chat);
  document.title = path.length ? `${chat.title} - nanochat` : "nanochat";
  renderChats();
  renderComposer();
}

function makeRow(row) {
  if (row.message) return makeMessage(row);
  if (row.notice) return showNotice(state.chat, row.notice);
  if (row.key === "unanswered") return noticeOf("Not answered.", [["Answer it", () => answers.answer(state.chat)]], { calm: true });
  return emptyOf(state.facts.card?.suggestions ?? IDEAS, send, state.facts.card?.intro);
}

function itemOf(message, path) {
  const { chat, facts } = state;
  const start = path.findIndex((other) => other.id === chat.start);
  const run = answers.running.get(chat.id);
  const away = elsewhere.has(message.id);
  return {
    message, branches: branchesOf(chat, message), busy: run?.reply === message || away, elsewhere: away, queued: run?.queued, last: message === path.at(-1),
    outside: path.indexOf(message) < start, editing: state.editing === message.id, tokens: chat.settings.logprobs, canCollect: Boolean(facts.card?.corrections), mayAct: !run,
  };
}

function renderChats() {
  const { chats, chat: current, found } = state;
  showChats(chats, { current, found, isBusy: (chat) => answers.isBusy(chat), act: { show, remove, rename, refresh: renderChats } });
  const undo = state.removed && noticeOf("Chat deleted.", [["Undo", restore]], { calm: true });
  $("toast").replaceChildren(...[undo, state.banner].filter(Boolean));
}

function showNotice(chat, { message, kind, status, param, waiting, onto, settings }) {
  const again = () => answers.answer(chat, { onto, settings });
  const reply = pathOf(chat).at(-1);
  const question = pathOf(chat).findLast((other) => other.role === "user");
  const isLong = kind === "context_length_exceeded" || (kind === "invalid_request_error" && param?.startsWith("messages"));
  if (waiting) return noticeOf(message, [["Try again now", again], ["Give up", () => answers.giveUp(chat)]], { calm: true });
  if (isLong && !onto) return noticeOf(message, [["Edit the question", () => actions.edit(question)], ["Try again", again]]);
  if (reply?.role === "assistant" && status === undefined) return noticeOf(message, [["Continue", () => actions.proceed(reply)], ["Start anew", () => actions.again(reply)]]);
  return noticeOf(message, [["Try again", again]]);
}

// From the answers: at most one update a frame while one is written, and one announcement once it is whole.
let frame = 0;
function showAnswer(chat, reply, what) {
  if (what === "more") {
    if (chat === state.chat) frame ||= requestAnimationFrame(() => { frame = 0; drawLast(); });
    return;
  }
  if (what === "begun") keep(chat);
  if (what === "ended") {
    store.putChat(chat);
    const notice = answers.notices.get(chat.id);
    if (chat === state.chat && !notice) announce(textOf(reply.content) || "The answer is empty.");
    if (notice?.status === 401) openSettings(true, $("api-key"));
  }
  if (chat === state.chat) render();
  else renderChats();
  if (what === "begun" && chat === state.chat) scrollToEnd();
  else keepFocus();
}

function drawLast() {
  const { chat } = state;
  const run = answers.running.get(chat.id);
  const node = $("log").lastElementChild;
  if (!run || node?.dataset.key !== run.reply.id) return;
  const following = isAtEnd();
  updateMessage(node, itemOf(run.reply, pathOf(chat)), actions);
  if (following) scrollToEnd();
}

const isAtEnd = () => { const log = $("messages"); return log.scrollHeight - log.scrollTop - log.clientHeight < 80; };
const scrollToEnd = () => { $("messages").scrollTop = $("messages").scrollHeight; };

// What had the focus is gone: the composer takes it, or on a phone, where that would open the keyboard, the conversation.
function keepFocus() {
  if (document.activeElement === document.body && document.hasFocus() && getSelection().isCollapsed) (matchMedia("(pointer: coarse)").matches ? $("messages") : $("prompt")).focus({ preventScroll: true });
}

// Above the composer: what is no part of the conversation.
export function tell(text, actions = [], { calm = false } = {}) {
  state.banner = text && noticeOf(text, actions, { calm });
  if (state.chat) renderChats();
}

function showTrouble({ name, message }) {
  const what = name === "QuotaExceededError" ? "The browser's storage is full" : `The browser keeps no chats (${message})`;
  tell(`${what}: what is written now is lost when this page is closed.`, [["Export all chats", () => exportChats(state.chats, store)]]);
}

// A bug of the page is called one.
const showBug = (error) => tell(`The page failed: ${error?.message ?? error}. Reloading it may help.`);
addEventListener("error", (event) => showBug(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => showBug(event.reason));

// ---- chats

async function show(chat, { focus = true, push = true } = {}) {
  state.chat = chat;
  state.editing = null;
  if (push) history.pushState(null, "", chat.kept ? `#${chat.id}` : location.pathname);
  await load(chat);
  chat.leaf = pathOf(chat).at(-1)?.id ?? null; // it may name an answer of which nothing came
  if (chat !== state.chat) return;
  for (const message of chat.messages.values()) if (message.finish === null && !isWritten(message)) message.finish = "interrupted";
  $("prompt").value = recall(draftKey()) ?? "";
  showSettings(state.facts, chat);
  openSidebar(false);
  render();
  scrollToEnd();
  if (focus) keepFocus();
}

const load = async (chat) => { chat.messages ??= new Map((await store.messages(chat.id)).map((message) => [message.id, message])); };
const list = (...chats) => { state.chats = chats.sort((a, b) => b.time - a.time); };
const isWritten = (message) => elsewhere.has(message.id) || answers.running.get(message.chat)?.reply === message;
const fresh = () => newChat(recall("settings") ?? {}, "");

async function remove(chat) {
  const beside = rowBeside(chat);
  answers.stop(chat);
  answers.clearNotice(chat);
  await load(chat);
  state.removed = chat;
  state.chats = state.chats.filter((other) => other !== chat);
  if (chat === state.chat) await show(fresh(), { focus: false });
  else renderChats();
  beside.focus();
  await store.removeChat(chat.id);
}

async function restore() {
  const chat = state.removed;
  state.removed = null;
  list(...state.chats, chat);
  await show(chat, { focus: false });
  [...$("chats").children].find((row) => row.dataset.key === chat.id)?.firstChild.focus();
  await store.restore(chat);
}

function rename(chat, title) {
  Object.assign(chat, { title, named: true });
  store.putChat(chat);
  if (chat === state.chat) render();
}

export function keep(chat) {
  const anew = !chat.kept;
  chat.time = Date.now();
  state.chats = [chat, ...state.chats.filter((other) => other !== chat)];
  const written = store.putChat(chat, { anew });
  if (anew && chat === state.chat) written.then(() => { if (chat === state.chat) history.replaceState(null, "", `#${chat.id}`); });
  return written;
}

// Another tab has done something.
async function hear({ kind, chat: id, id: messageId, live, ids }) {
  if (!state.chat) return;
  const chat = state.chats.find((other) => other.id === id);
  if (kind === "who") for (const { reply } of answers.running.values()) store.putMessage(reply);
  else if (kind === "left") ids.forEach((left) => elsewhere.delete(left));
  else if (kind === "gone" && chat) {
    answers.stop(chat);
    state.chats = state.chats.filter((other) => other !== chat);
    if (chat === state.chat) await show(fresh(), { push: false });
  } else if (kind === "chat") {
    const record = await store.chat(id);
    if (!isChat(record)) return;
    if (chat) Object.assign(chat, { title: record.title, named: record.named, time: record.time });
    list(...state.chats, ...(chat ? [] : [chatFrom(record)]));
  } else if (kind === "message" && chat?.messages) {
    const message = await store.message(messageId);
    if (!isMessage(message) || answers.running.get(id)?.reply.id === messageId) return;
    elsewhere[live ? "add" : "delete"](messageId);
    const follows = !chat.messages.has(messageId) && (message.parent === chat.leaf || message.parent === null) && !answers.isBusy(chat);
    chat.messages.set(messageId, message);
    if (follows) chat.leaf = messageId;
  }
  render();
}

// ---- asking

export async function send(text) {
  const { chat } = state;
  if (answers.isBusy(chat)) return;
  state.removed = null;
  tell("");
  await ask(below(pathOf(chat).at(-1)), text);
}

// Where the next question goes: what was never answered becomes another branch.
export const below = (last) => (last?.role === "user" ? last.parent : (last?.id ?? null));

// A question below `parent`. What stood there stays, as another branch.
async function ask(parent, text) {
  const { chat } = state;
  const question = addMessage(chat, parent, "user", text);
  if (parent === null && !chat.named) chat.title = text.slice(0, 60);
  render();
  await keep(chat);
  store.putMessage(question);
  await answers.answer(chat);
}

export const actions = {
  edit(message) {
    state.editing = message?.id ?? null;
    render();
    keepFocus();
  },
  saveEdit(message, text) {
    state.editing = null;
    if (!text || text === textOf(message.content)) return actions.edit(null);
    if (message.role === "assistant") collect(message, text, "corrected");
    else ask(message.parent, text);
    return keepFocus();
  },
  branch(message) {
    showBranch(state.chat, message);
    store.putChat(state.chat);
    render();
    keepFocus();
  },
  again(message, settings) {
    state.chat.leaf = message.parent;
    answers.answer(state.chat, { settings });
  },
  proceed: (message) => answers.answer(state.chat, { onto: message }),
  take(message, index, text) {
    const { chat } = state;
    const tokens = [...message.tokens.slice(0, index), { ...message.tokens[index], text, logprob: message.tokens[index].top.find(([other]) => other === text)[1] }];
    const reply = addMessage(chat, message.parent, "assistant", partsFrom(tokens.map((token) => token.text)));
    Object.assign(reply, { tokens, finish: "interrupted" });
    answers.answer(chat, { onto: reply });
  },
  rate: (message) => collect(message, null, "up"),
};

// ---- keys and panels

function openSidebar(open) {
  $("sidebar").classList.toggle("open", open);
  $("toggle-sidebar").setAttribute("aria-expanded", String(open));
}

function openSettings(open, focus) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
  focus?.focus();
}

const startNew = async () => { await show(fresh(), { focus: false }); $("prompt").focus(); };
document.addEventListener("keydown", (event) => {
  if (event.altKey && event.key.toLowerCase() === "n") { event.preventDefault(); startNew(); }
  if (event.key !== "Escape" || document.querySelector("dialog[open], .choices")) return;
  if ($("sidebar").classList.contains("open")) { openSidebar(false); $("toggle-sidebar").focus(); }
  else answers.stop(state.chat);
});
on("new-chat", "click", startNew);
on("search", "input", async () => { state.found = await search($("search").value, state.chats, store); renderChats(); });
on("export", "click", () => exportChats(state.chats, store));
on("import", "click", () => $("import-file").click());
on("import-file", "change", async () => {
  try {
    const { chats, damaged } = readExport(await $("import-file").files[0].text());
    const taken = chats.filter((chat) => !state.chats.some((mine) => mine.id === chat.id));
    await store.restore(...taken);
    list(...state.chats, ...taken);
    const rest = [[chats.length - taken.length, "were here already"], [damaged, "damaged records left out"]].filter(([count]) => count);
    tell(`${[`${taken.length} chats imported`, ...rest.map((part) => part.join(" "))].join(", ")}.`, [], { calm: true });
  } catch (error) {
    tell(`That file cannot be imported: ${error.message}.`);
  }
  $("import-file").value = "";
});
on("toggle-sidebar", "click", () => openSidebar(!$("sidebar").classList.contains("open")));
on("messages", "click", () => openSidebar(false));
on("toggle-settings", "click", () => openSettings($("settings").hidden));
on("settings", "submit", (event) => event.preventDefault());
on("status", "click", () => openCard(state.facts.card, state.facts, send));
addEventListener("pagehide", () => answers.leave());
addEventListener("popstate", showAddress);

// The chat that the address names; without one a new chat.
async function showAddress() {
  const id = decodeURIComponent(location.hash.slice(1));
  const chat = state.chats.find((other) => other.id === id);
  if (id && !chat) tell("This browser has no chat of that address.", [], { calm: true });
  await show(chat ?? fresh(), { push: false });
}

// ---- settings

function keepSettings() {
  const { chat } = state;
  remember("settings", chat.settings);
  if (chat.kept) store.putChat(chat);
  render();
}

on("system", "input", () => { state.chat.system = $("system").value; if (state.chat.kept) store.putChat(state.chat); renderComposer(); });
on("show-tokens", "change", () => { if ($("show-tokens").checked) state.chat.settings.logprobs = true; else delete state.chat.settings.logprobs; keepSettings(); });
on("model-choice", "change", () => { state.chat.settings.model = $("model-choice").value; keepSettings(); });
on("reset-settings", "click", () => { state.chat.settings = {}; keepSettings(); showSettings(state.facts, state.chat); });
on("api-key", "change", () => showFacts(true));

// ---- light and dark: the system's choice until a person makes another

on("toggle-theme", "click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  remember("theme", document.documentElement.dataset.theme);
});

// ---- what the server says of itself, now and then; all of it where the model is another

async function showFacts(details = false) {
  const facts = await readFacts(key(), { details });
  if (!facts.fault && facts.model !== state.facts.model && !details) return showFacts(true);
  Object.assign(state.facts, facts);
  const { model, ready, fault, waiting, models } = state.facts;
  const now = fault ?? (!ready ? "loading" : waiting ? `ready, ${waiting} waiting` : "ready");
  $("status").replaceChildren(h("span", {}, model ?? "model"), h(`span.state${ready ? ".ready" : ""}`, {}, now));
  $("compare").hidden = !(models?.length > 1);
  if (details && !fault) {
    makeSettings(state.facts, () => state.chat, keepSettings);
    render();
  }
}

async function start() {
  state.chat = fresh();
  startComposer();
  makeSettings(state.facts, () => state.chat, keepSettings);
  await store.open();
  const stored = (await store.chats()).map(chatFrom);
  list(...state.chats, ...stored.filter((chat) => chat.id !== state.chat.id));
  store.tell({ kind: "who" });
  if (!state.chat.leaf) await showAddress(); // who was quick has asked already
  await showFacts(true);
  setInterval(() => { if (document.visibilityState === "visible") showFacts(); }, FACTS_EVERY_MS);
}

start();
