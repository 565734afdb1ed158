// The chat page: what a person can do, and the state it changes. Rendering is in view.js, the browser's store in store.js.

import { forgetChat, forgetOldest, loadChats, newChat, onOtherTab, recall, remember, saveChat } from "./store.js";
import { renderChatRow, renderEmpty, renderMessage, renderNotice } from "./view.js";
import { isReady, serverFacts, stream } from "./wire.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = { temperature: "temperature", top_k: "top-k", max_tokens: "max-tokens" };
const IDEAS = ["What is 37 times 12?", "How many r are in strawberry?", "What can you do?"];
const PASSING = new Set(["connection", "not_ready", "stopping", "server_busy", "client_busy", "timeout"]);
const MAX_PAUSE_S = 30;

const state = { chats: loadChats(), current: null, editing: null, removed: null };
const running = new Map(); // chat id -> AbortController of the answer that is being written
const notices = new Map(); // chat id -> what went wrong with its last answer

const isBusy = (chat) => chat !== null && running.has(chat.id);

// ---- showing

function render() {
  const { current, editing } = state;
  const messages = current?.messages ?? [];
  const busy = isBusy(current);
  const rows = messages.map((message, index) => {
    const last = index === messages.length - 1;
    return renderMessage(message, {
      onEdit: message.role === "user" && !busy ? () => edit(index) : null,
      onRegenerate: message.role === "assistant" && last && !busy ? regenerate : null,
      busy: busy && last,
      editing: editing === index,
    });
  });
  if (!messages.length) rows.push(renderEmpty(IDEAS, send));
  const notice = current && notices.get(current.id);
  if (notice) rows.push(showNotice(current, notice));
  $("messages").replaceChildren(...rows);
  $("messages").setAttribute("aria-busy", String(busy)); // a screen reader reads the answer once it is whole
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("edit-bar").hidden = editing === null;
  document.title = current ? `${current.title} - nanochat` : "nanochat";
  scrollDown();
  renderChats();
}

function renderChats() {
  $("chats").replaceChildren(...state.chats.map((chat) => renderChatRow(chat, {
    current: chat === state.current,
    busy: isBusy(chat),
    onShow: () => show(chat),
    onRemove: () => remove(chat),
  })));
  const undo = state.removed && renderNotice("Chat deleted.", [["Undo", restore]], { calm: true });
  $("undo").replaceChildren(...(undo ? [undo] : []));
}

function showNotice(chat, { message, kind, param, waiting }) {
  const tooLong = kind === "context_length_exceeded" || (kind === "invalid_request_error" && param === "messages");
  const actions = [];
  if (waiting) actions.push(["Try again now", () => answer(chat)], ["Give up", () => giveUp(chat)]);
  else if (!tooLong) actions.push(["Try again", () => answer(chat)]);
  else if (chat.messages.length > 1) actions.push(["Drop the oldest turns", () => dropOldest(chat)]);
  return renderNotice(message, actions, { calm: Boolean(waiting) });
}

function scrollDown() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

// The answer that is being written, at most once a frame.
function renderLast(chat) {
  if (chat !== state.current || chat.frame) return;
  chat.frame = requestAnimationFrame(() => {
    chat.frame = null;
    if (chat !== state.current || !isBusy(chat)) return;
    const log = $("messages");
    const following = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    log.lastElementChild.replaceWith(renderMessage(chat.messages.at(-1), { busy: true }));
    if (following) scrollDown();
  });
}

// ---- chats

function show(chat) {
  state.current = chat;
  stopEditing();
  openSidebar(false);
  render();
}

function remove(chat) {
  running.get(chat.id)?.abort();
  clearNotice(chat);
  state.removed = chat;
  state.chats = state.chats.filter((other) => other !== chat);
  forgetChat(chat);
  if (chat === state.current) show(null);
  else renderChats();
}

function restore() {
  const chat = state.removed;
  state.removed = null;
  state.chats = [...state.chats, chat].sort((a, b) => b.time - a.time);
  saveChat(chat);
  show(chat);
}

function keep(chat) {
  chat.time = Date.now();
  state.chats = [chat, ...state.chats.filter((other) => other !== chat)];
  forgetOldest(state.chats);
  saveChat(chat);
}

// Chats of other tabs come in; those that are in use here stay as they are.
onOtherTab(() => {
  const mine = new Map(state.chats.filter((chat) => chat === state.current || isBusy(chat)).map((chat) => [chat.id, chat]));
  const theirs = loadChats();
  state.chats = theirs.map((chat) => mine.get(chat.id) ?? chat);
  renderChats();
});

// ---- asking

function send(text) {
  state.removed = null;
  if (!state.current) state.current = newChat(text);
  const chat = state.current;
  if (isBusy(chat)) return;
  if (state.editing !== null) chat.messages.length = state.editing;
  state.editing = null;
  // What was never answered gives way: turns alternate.
  if (chat.messages.at(-1)?.role === "user") chat.messages.pop();
  chat.messages.push({ role: "user", content: text });
  if (chat.messages.length === 1) chat.title = text.slice(0, 60);
  answer(chat);
}

// The turns after an edited message stay until the new text is sent.
function edit(index) {
  state.editing = index;
  write(state.current.messages[index].content);
  render();
  $("prompt").focus();
}

function stopEditing() {
  if (state.editing === null) return;
  state.editing = null;
  write("");
  render();
}

function regenerate() {
  state.current.messages.pop();
  answer(state.current);
}

function dropOldest(chat) {
  chat.messages.splice(0, Math.max(2, 2 * Math.floor(chat.messages.length / 4)));
  answer(chat);
}

async function answer(chat, pauseS = 2) {
  if (isBusy(chat)) return;
  clearNotice(chat);
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  const request = { messages: chat.messages.map(({ role, content }) => ({ role, content })), ...settings() };
  const reply = { role: "assistant", content: [] };
  const controller = new AbortController();
  chat.messages.push(reply);
  running.set(chat.id, controller);
  keep(chat);
  render();
  try {
    await stream(request, { apiKey: $("api-key").value, signal: controller.signal }, (event) => {
      if (event.token !== undefined) addText(reply, event.token);
      if (event.tool) reply.content.push({ type: "python", text: event.tool.expression }, { type: "python_output", text: event.tool.output });
      renderLast(chat);
    });
  } catch (error) {
    if (error.name !== "AbortError") fail(chat, reply, error, pauseS);
    else if (!reply.content.length) notices.set(chat.id, { message: "Stopped before the answer began.", kind: "stopped" });
  } finally {
    if (!reply.content.length) chat.messages.pop();
    running.delete(chat.id);
    if (state.chats.includes(chat)) saveChat(chat);
    if (chat === state.current) render();
    else renderChats();
    if (chat === state.current && document.activeElement === document.body) $("prompt").focus();
  }
}

// What passes by itself is tried again, with longer and longer pauses, as long as nothing of the answer has come.
function fail(chat, reply, error, pauseS) {
  const kind = error.kind ?? "connection";
  let message = error.kind ? error.message : "The server cannot be reached.";
  if (error.status === 401) {
    openSettings(true);
    $("api-key").focus();
  }
  if (PASSING.has(kind) && !reply.content.length) {
    message += " Trying again by itself.";
    const timer = setTimeout(() => tryAgain(chat, pauseS), 1000 * Math.max(pauseS, error.retryAfter ?? 0));
    notices.set(chat.id, { message, kind, waiting: timer });
  } else {
    notices.set(chat.id, { message, kind, param: error.param });
  }
}

async function tryAgain(chat, pauseS) {
  const notice = notices.get(chat.id);
  const longer = Math.min(2 * pauseS, MAX_PAUSE_S);
  if (await isReady()) {
    if (notices.get(chat.id) === notice) answer(chat, longer);
  } else if (notices.get(chat.id) === notice) {
    notice.waiting = setTimeout(() => tryAgain(chat, longer), 1000 * longer);
  }
}

function clearNotice(chat) {
  clearTimeout(notices.get(chat.id)?.waiting);
  notices.delete(chat.id);
}

function giveUp(chat) {
  clearNotice(chat);
  notices.set(chat.id, { message: "Not answered.", kind: "stopped" });
  render();
}

// Only what a person has set: the rest is the server's choice.
function settings() {
  const set = Object.entries(SETTINGS).filter(([, id]) => $(id).value !== "");
  return Object.fromEntries(set.map(([name, id]) => [name, Number($(id).value)]));
}

function addText(reply, text) {
  const last = reply.content.at(-1);
  if (last?.type === "text") last.text += text;
  else reply.content.push({ type: "text", text });
}

// ---- the composer, keys and panels

function write(text) {
  $("prompt").value = text;
  fit();
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function stop() {
  if (state.current) running.get(state.current.id)?.abort();
}

function openSidebar(open) {
  $("sidebar").classList.toggle("open", open);
  $("toggle-sidebar").setAttribute("aria-expanded", String(open));
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || isBusy(state.current)) return;
  write("");
  send(text);
});
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("prompt").value && state.current && !isBusy(state.current)) {
    const index = state.current.messages.findLastIndex((message) => message.role === "user");
    if (index >= 0) {
      event.preventDefault();
      edit(index);
    }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.altKey && event.key.toLowerCase() === "n") {
    event.preventDefault();
    $("new-chat").click();
  }
  if (event.key !== "Escape") return;
  if ($("sidebar").classList.contains("open")) {
    openSidebar(false);
    $("toggle-sidebar").focus();
  } else if (isBusy(state.current)) stop();
  else stopEditing();
});
$("stop").addEventListener("click", stop);
$("cancel-edit").addEventListener("click", () => { stopEditing(); $("prompt").focus(); });
$("new-chat").addEventListener("click", () => { show(null); $("prompt").focus(); });
$("toggle-sidebar").addEventListener("click", () => openSidebar(!$("sidebar").classList.contains("open")));
$("messages").addEventListener("click", () => openSidebar(false));
$("toggle-settings").addEventListener("click", () => openSettings($("settings").hidden));
$("settings").addEventListener("submit", (event) => event.preventDefault());
addEventListener("pagehide", () => state.chats.filter(isBusy).forEach(saveChat));

// ---- settings: an empty field means the server's own value, shown in grey

async function prepareSettings() {
  const kept = recall("settings") ?? {};
  for (const id of Object.values(SETTINGS)) {
    $(id).value = kept[id] ?? "";
    $(id).addEventListener("change", rememberSettings);
  }
  $("api-key").addEventListener("change", showFacts);
  await showFacts();
}

async function showFacts() {
  const facts = await serverFacts($("api-key").value);
  if (!facts) return; // the chat says so itself when the server is gone
  for (const [name, id] of Object.entries(SETTINGS)) $(id).placeholder = facts.defaults[name];
  $("model").textContent = facts.model;
}

function rememberSettings() {
  remember("settings", Object.fromEntries(Object.values(SETTINGS).map((id) => [id, $(id).value])));
}

$("reset-settings").addEventListener("click", () => {
  for (const id of Object.values(SETTINGS)) $(id).value = "";
  rememberSettings();
});

// ---- light and dark: the system's choice until a person makes another

const dark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => { document.documentElement.dataset.theme = recall("theme") ?? (dark.matches ? "dark" : "light"); };
dark.addEventListener("change", setTheme);
$("toggle-theme").addEventListener("click", () => {
  remember("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  setTheme();
});

setTheme();
prepareSettings();
state.current = state.chats[0] ?? null;
render();
