// The chat page: keeps chats in the browser, streams answers, renders them without ever using innerHTML.

import { button, copyButton, element, renderMarkdown } from "./markdown.js";
import { stream } from "./wire.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = { temperature: "temperature", top_k: "top-k", max_tokens: "max-tokens" };

// A full or forbidden store must not stop the chat.
function recall(name) {
  try { return JSON.parse(localStorage.getItem(`nanochat.${name}`)); } catch { return null; }
}

function remember(name, value) {
  try { localStorage.setItem(`nanochat.${name}`, JSON.stringify(value)); } catch { /* see above */ }
}

const state = { chats: load(), current: null, controller: null, editing: null };

function load() {
  const chats = recall("chats");
  const whole = Array.isArray(chats) ? chats.filter((chat) => Array.isArray(chat?.messages)) : [];
  for (const chat of whole) chat.messages = chat.messages.filter((message) => message.content?.length);
  return whole;
}

const save = () => remember("chats", state.chats.slice(0, 100));

// Content is a string, or parts as the server takes them back: text, python, python_output.
const partsOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
const textOf = (content) => partsOf(content).filter((p) => p.type === "text").map((p) => p.text).join("");

function renderTool(expression, output) {
  const card = element("div", "tool");
  card.append(element("span", "label", "calculator"), element("span", "", expression), element("span", "result", `= ${output}`));
  return card;
}

function renderMessage(message, index) {
  const row = element("article", `message ${message.role}`);
  row.setAttribute("aria-label", message.role === "user" ? "You" : "nanochat");
  const actions = element("div", "actions");
  if (message.role === "user") {
    row.append(element("div", "body", message.content));
    actions.append(button("Edit", () => edit(index)));
  } else {
    const parts = partsOf(message.content);
    parts.forEach((part, i) => {
      if (part.type === "python") row.append(renderTool(part.text, parts[i + 1]?.text ?? ""));
      if (part.type === "text") row.append(renderMarkdown(part.text));
    });
    if (parts.at(-1)?.type !== "text") row.append(element("div", "body", ""));
    if (index === state.current.messages.length - 1) actions.append(button("Regenerate", regenerate));
  }
  actions.prepend(copyButton(() => textOf(message.content)));
  if (state.editing === index) row.classList.add("editing");
  row.append(actions);
  return row;
}

function render() {
  const log = $("messages");
  const messages = state.current?.messages ?? [];
  log.replaceChildren(...messages.map(renderMessage));
  if (!messages.length) {
    const empty = element("div", "empty");
    empty.append(element("h2", "", "What would you like to know?"), element("p", "", "A small model, trained from scratch. It may be wrong."));
    log.append(empty);
  }
  if (state.current?.error) log.append(renderNotice(state.current.error));
  log.scrollTop = log.scrollHeight;
  $("chats").replaceChildren(...state.chats.map(renderChat));
}

function renderChat(chat) {
  const row = element("div", "chat-row");
  row.setAttribute("aria-current", String(chat === state.current));
  row.append(
    button(chat.title, () => show(chat)),
    button("×", () => remove(chat), `Delete chat ${chat.title}`),
  );
  return row;
}

function show(chat) {
  if (state.controller) return;
  state.current = chat;
  state.editing = null;
  $("sidebar").classList.remove("open");
  render();
}

function renderNotice(error) {
  const notice = element("div", "notice");
  notice.setAttribute("role", "alert");
  notice.append(element("span", "", error.message));
  const tooLong = error.type === "context_length_exceeded" || (error.type === "invalid_request_error" && error.param === "messages");
  if (tooLong && state.current.messages.length > 1) notice.append(button("Drop the oldest turns", dropOldest));
  else if (!tooLong) notice.append(button("Try again", () => answer()));
  return notice;
}

function remove(chat) {
  if (state.controller && chat === state.current) return;
  state.editing = null;
  state.chats = state.chats.filter((other) => other !== chat);
  if (chat === state.current) state.current = null;
  save();
  render();
}

function send(text) {
  if (!state.current) {
    state.current = { title: text.slice(0, 60), messages: [] };
    state.chats.unshift(state.current);
  }
  const { messages } = state.current;
  if (state.editing !== null) messages.length = state.editing;
  state.editing = null;
  // What was never answered gives way: turns alternate.
  if (messages.at(-1)?.role === "user") messages.pop();
  messages.push({ role: "user", content: text });
  if (messages.length === 1) state.current.title = text.slice(0, 60);
  return answer();
}

// The turns after an edited message stay until the new text is sent.
function edit(index) {
  if (state.controller) return;
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

function write(text) {
  $("prompt").value = text;
  fit();
}

function regenerate() {
  if (state.controller) return;
  state.current.messages.pop();
  answer();
}

function dropOldest() {
  const messages = state.current.messages;
  messages.splice(0, Math.max(2, 2 * Math.floor(messages.length / 4)));
  answer();
}

async function answer() {
  const chat = state.current;
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  const request = { messages: chat.messages.map(({ role, content }) => ({ role, content })), ...settings() };
  const reply = { role: "assistant", content: [] };
  chat.error = null;
  chat.messages.push(reply);
  busy(true);
  save();
  render();
  renderLast(reply);
  try {
    await stream(request, { apiKey: $("api-key").value, signal: state.controller.signal }, (event) => {
      if (event.token !== undefined) addText(reply, event.token);
      if (event.tool) reply.content.push({ type: "python", text: event.tool.expression }, { type: "python_output", text: event.tool.output });
      if (event.error) throw Object.assign(new Error(event.error.message), { kind: event.error.type });
      renderLast(reply);
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      chat.error = { message: error.kind ? error.message : "The server cannot be reached.", type: error.kind, param: error.param };
    } else if (!reply.content.length) {
      chat.error = { message: "Stopped before the answer began.", type: "stopped" };
    }
    if (chat.error?.type === "http_error" && error.status === 401) openSettings(true);
  } finally {
    if (!reply.content.length) chat.messages.pop();
    busy(false);
    save();
    render();
    $("prompt").focus();
  }
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

function renderLast(reply) {
  const log = $("messages");
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const row = renderMessage(reply, -1);
  row.classList.add("busy");
  log.lastElementChild.replaceWith(row);
  if (following) log.scrollTop = log.scrollHeight;
}

function busy(on) {
  state.controller = on ? new AbortController() : null;
  $("stop").hidden = !on;
  $("send").hidden = on;
  $("messages").setAttribute("aria-busy", String(on)); // a screen reader reads the answer once it is whole
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || state.controller) return;
  write("");
  send(text);
});
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.controller) state.controller.abort();
  else stopEditing();
});
$("stop").addEventListener("click", () => state.controller?.abort());
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("new-chat").addEventListener("click", () => {
  if (state.controller) return;
  state.current = null;
  state.editing = null;
  $("sidebar").classList.remove("open");
  render();
  $("prompt").focus();
});
$("toggle-sidebar").addEventListener("click", () => $("sidebar").classList.toggle("open"));
function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}
$("toggle-settings").addEventListener("click", () => openSettings($("settings").hidden));
addEventListener("pagehide", save);
$("messages").addEventListener("click", () => $("sidebar").classList.remove("open"));

function rememberSettings() {
  remember("settings", Object.fromEntries(Object.values(SETTINGS).map((id) => [id, $(id).value])));
}

// An empty field means the server's own value, shown in grey.
async function prepareSettings() {
  const kept = recall("settings") ?? {};
  for (const id of Object.values(SETTINGS)) {
    $(id).value = kept[id] ?? "";
    $(id).addEventListener("change", rememberSettings);
  }
  try {
    const { defaults } = await (await fetch("/stats")).json();
    for (const [name, id] of Object.entries(SETTINGS)) $(id).placeholder = defaults[name];
  } catch {
    // The chat says so itself when the server is gone.
  }
}

const setTheme = (theme) => { document.documentElement.dataset.theme = theme; };
setTheme(recall("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("toggle-theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  remember("theme", document.documentElement.dataset.theme);
});

prepareSettings();
state.current = state.chats[0] ?? null;
render();
