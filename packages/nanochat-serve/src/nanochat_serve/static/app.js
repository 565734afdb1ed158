// The chat page: keeps chats in the browser, streams answers, renders them without ever using innerHTML.

const $ = (id) => document.getElementById(id);
const STORE = "nanochat.chats";

const state = { chats: load(), current: null, controller: null };

function load() {
  try {
    const chats = JSON.parse(localStorage.getItem(STORE));
    return Array.isArray(chats) ? chats : [];
  } catch {
    return [];
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state.chats.slice(0, 100)));
  } catch {
    // A full or forbidden store must not stop the chat.
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(label, act, name) {
  const made = element("button", "", label);
  made.type = "button";
  if (name) made.setAttribute("aria-label", name);
  made.addEventListener("click", act);
  return made;
}

// Content is a string, or parts as the server takes them back: text, python, python_output.
const partsOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
const textOf = (content) => partsOf(content).filter((p) => p.type === "text").map((p) => p.text).join("");

function renderMarkdown(text) {
  const body = element("div", "body");
  text.split(/(```[^\n]*\n[\s\S]*?(?:```|$))/).forEach((block) => {
    const fence = block.match(/^```[^\n]*\n([\s\S]*?)(?:```)?$/);
    if (fence) {
      const pre = element("pre");
      pre.append(element("code", "", fence[1]));
      body.append(pre);
      return;
    }
    block.split(/\n{2,}/).filter((p) => p.trim()).forEach((paragraph) => {
      const p = element("p");
      paragraph.trim().split("\n").forEach((line, i) => {
        if (i) p.append(element("br"));
        line.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).forEach((span) => {
          if (/^`[^`]+`$/.test(span)) p.append(element("code", "", span.slice(1, -1)));
          else if (/^\*\*[^*]+\*\*$/.test(span)) p.append(element("strong", "", span.slice(2, -2)));
          else if (/^\*[^*\s][^*]*\*$/.test(span)) p.append(element("em", "", span.slice(1, -1)));
          else p.append(span);
        });
      });
      body.append(p);
    });
  });
  return body;
}

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
    if (!parts.length) row.append(element("div", "body", ""));
    if (index === state.current.messages.length - 1) actions.append(button("Regenerate", regenerate));
  }
  actions.prepend(button("Copy", () => navigator.clipboard?.writeText(textOf(message.content))));
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
    button(chat.title, () => { if (!state.controller) { state.current = chat; $("sidebar").classList.remove("open"); render(); } }),
    button("×", () => remove(chat), `Delete chat ${chat.title}`),
  );
  return row;
}

function renderNotice(error) {
  const notice = element("div", "notice");
  notice.setAttribute("role", "alert");
  notice.append(element("span", "", error.message));
  if (error.type === "context_length_exceeded") notice.append(button("Drop the oldest turns", dropOldest));
  else notice.append(button("Try again", () => answer()));
  return notice;
}

function remove(chat) {
  if (state.controller && chat === state.current) return;
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
  state.current.messages.push({ role: "user", content: text });
  return answer();
}

function edit(index) {
  if (state.controller) return;
  $("prompt").value = state.current.messages[index].content;
  state.current.messages.length = index;
  state.current.error = null;
  save();
  render();
  $("prompt").focus();
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
  const request = {
    messages: chat.messages.map(({ role, content }) => ({ role, content })),
    temperature: Number($("temperature").value),
    top_k: Number($("top-k").value),
    max_tokens: Number($("max-tokens").value),
  };
  const reply = { role: "assistant", content: [] };
  chat.error = null;
  chat.messages.push(reply);
  busy(true);
  render();
  try {
    await stream(request, (event) => {
      if (event.token !== undefined) addText(reply, event.token);
      if (event.tool) reply.content.push({ type: "python", text: event.tool.expression }, { type: "python_output", text: event.tool.output });
      if (event.error) throw Object.assign(new Error(event.error.message), { kind: event.error.type });
      renderLast(reply);
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      chat.error = { message: error.kind ? error.message : "The server cannot be reached.", type: error.kind };
    }
  } finally {
    if (!reply.content.length) chat.messages.pop();
    busy(false);
    save();
    render();
    $("prompt").focus();
  }
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

async function stream(request, onEvent) {
  const response = await fetch("/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal: state.controller.signal,
  });
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw Object.assign(new Error(body.error?.message ?? `The server said ${response.status}.`), { kind: body.error?.type ?? "http" });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw Object.assign(new Error("The connection was lost before the answer was complete."), { kind: "connection" });
    buffer += value;
    const lines = buffer.split("\n\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.done) return;
      onEvent(event);
    }
  }
}

function busy(on) {
  state.controller = on ? new AbortController() : null;
  $("stop").hidden = !on;
  $("send").hidden = on;
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
  $("prompt").value = "";
  fit();
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
  if (event.key === "Escape") state.controller?.abort();
});
$("stop").addEventListener("click", () => state.controller?.abort());
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("new-chat").addEventListener("click", () => {
  if (state.controller) return;
  state.current = null;
  $("sidebar").classList.remove("open");
  render();
  $("prompt").focus();
});
$("toggle-sidebar").addEventListener("click", () => $("sidebar").classList.toggle("open"));
$("toggle-settings").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("toggle-settings").setAttribute("aria-expanded", String(!$("settings").hidden));
});

const setTheme = (theme) => { document.documentElement.dataset.theme = theme; };
const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
setTheme(localStorage.getItem("nanochat.theme") ?? preferred);
$("toggle-theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  localStorage.setItem("nanochat.theme", document.documentElement.dataset.theme);
});

state.current = state.chats[0] ?? null;
render();
