// Messages, tool cards, notices and the list of chats as DOM nodes. Shows what it is given, and calls back.

import { button, copyButton, element, renderMarkdown } from "./markdown.js";

// Content is a string, or parts as the server takes them back: text, python, python_output.
const partsOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
export const textOf = (content) => partsOf(content).filter((part) => part.type === "text").map((part) => part.text).join("");

function renderTool(expression, output) {
  const card = element("div", "tool");
  card.setAttribute("role", "group");
  card.setAttribute("aria-label", "Calculator");
  card.append(element("span", "label", "calculator"), element("code", "", expression), element("span", "result", output ? `= ${output}` : "no result"));
  return card;
}

// `onEdit` and `onRegenerate` are there where the message can be edited or written again.
export function renderMessage(message, { onEdit, onRegenerate, busy = false, editing = false }) {
  const row = element("article", `message ${message.role}`);
  row.setAttribute("aria-label", message.role === "user" ? "You" : "nanochat");
  const actions = element("div", "actions");
  actions.append(copyButton(() => textOf(message.content), message.role === "user" ? "Copy question" : "Copy answer"));
  if (message.role === "user") {
    row.append(element("div", "body", message.content));
  } else {
    const parts = partsOf(message.content);
    parts.forEach((part, i) => {
      if (part.type === "python") row.append(renderTool(part.text, parts[i + 1]?.type === "python_output" ? parts[i + 1].text : ""));
      if (part.type === "text") row.append(renderMarkdown(part.text));
    });
    if (parts.at(-1)?.type !== "text") row.append(element("div", "body", ""));
  }
  if (onEdit) actions.append(button("Edit", onEdit, "Edit question"));
  if (onRegenerate) actions.append(button("Regenerate", onRegenerate, "Regenerate answer"));
  row.classList.toggle("busy", busy);
  row.classList.toggle("editing", editing);
  row.append(actions);
  return row;
}

export function renderNotice(text, actions, { calm = false } = {}) {
  const notice = element("div", `notice${calm ? " calm" : ""}`);
  notice.setAttribute("role", calm ? "status" : "alert");
  notice.append(element("span", "", text), ...actions.map(([label, act]) => button(label, act)));
  return notice;
}

export function renderEmpty(ideas, onIdea) {
  const empty = element("div", "empty");
  const list = element("div", "ideas");
  list.append(...ideas.map((idea) => button(idea, () => onIdea(idea))));
  empty.append(element("h2", "", "What would you like to know?"), element("p", "", "A small model, trained from scratch. It may be wrong."), list);
  return empty;
}

export function renderChatRow(chat, { current, busy, onShow, onRemove }) {
  const row = element("div", "chat-row");
  const open = button(chat.title, onShow);
  if (current) open.setAttribute("aria-current", "page");
  if (busy) open.append(element("span", "dot", " ●"));
  row.append(open, button("×", onRemove, `Delete chat ${chat.title}`));
  return row;
}
