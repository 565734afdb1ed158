// Chats and their messages: records in the browser's store, and a tree of them, since an edit or another answer is a branch.

/**
 * @typedef {{type: "text" | "python" | "python_output", text: string}} Part
 * @typedef {{id: string, chat: string, parent: string | null, role: "user" | "assistant", content: string | Part[], time: number,
 *   finish?: null | "stop" | "length" | "context" | "stopped" | "interrupted", receipt?: any, tokens?: any[], rating?: string}} Message
 *   An answer without `finish` is being written, here or in another tab.
 * @typedef {{id: string, title: string, time: number, leaf: string | null, settings: Record<string, any>, system: string,
 *   named?: boolean, perToken?: number, kept?: boolean, messages?: Map<string, Message>}} Chat
 *   `leaf` is the last message shown; `perToken` the characters of a token, as measured; `messages` is null until they are read.
 */

const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

/** @returns {Chat} */
export const newChat = (settings = {}, system = "") =>
  ({ id: newId(), title: "New chat", time: Date.now(), leaf: null, settings: { ...settings }, system, kept: false, messages: new Map() });

/** @returns {Message} */
export function addMessage(chat, parent, role, content) {
  const message = { id: newId(), chat: chat.id, parent, role, content, time: Date.now() };
  if (role === "assistant") message.finish = null;
  chat.messages.set(message.id, message);
  chat.leaf = message.id;
  return message;
}

/** The messages from the first to the one shown last. @returns {Message[]} */
export function pathOf(chat) {
  const path = new Set();
  let message = chat.messages.get(chat.leaf) ?? latest([...chat.messages.values()]);
  while (message && !path.has(message)) {
    path.add(message);
    message = chat.messages.get(message.parent);
  }
  return [...path].reverse();
}

// Those that could stand in its place, oldest first. What lost its parent counts as a beginning.
export function branchesOf(chat, message) {
  const above = (other) => (chat.messages.has(other.parent) ? other.parent : null);
  return [...chat.messages.values()].filter((other) => above(other) === above(message)).sort((a, b) => a.time - b.time);
}

/** Shows a branch, to its newest end. */
export function showBranch(chat, message) {
  for (let next = message; next; next = latest([...chat.messages.values()].filter((other) => other.parent === next.id))) chat.leaf = next.id;
}

const latest = (messages) => messages.reduce((last, message) => (!last || message.time >= last.time ? message : last), undefined);

/** Takes a message out that was never answered or begun. */
export function dropMessage(chat, message) {
  chat.messages.delete(message.id);
  if (chat.leaf === message.id) chat.leaf = message.parent;
}

/** @returns {Part[]} */
export const partsOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
export const textOf = (content) => partsOf(content).filter((part) => part.type === "text").map((part) => part.text).join("");

export function addText(message, text) {
  const last = message.content.at(-1);
  if (last?.type === "text") last.text += text;
  else message.content.push({ type: "text", text });
}

const OPENED = { "<|python_start|>": "python", "<|python_end|>": "text", "<|output_start|>": "python_output", "<|output_end|>": "text" };

/** An answer's content out of the texts of its tokens, in which special tokens stand for calls of the tool. @returns {Part[]} */
export function partsFrom(texts) {
  const parts = /** @type {Part[]} */ ([{ type: "text", text: "" }]);
  for (const text of texts) {
    if (OPENED[text]) parts.push({ type: OPENED[text], text: "" });
    else parts.at(-1).text += text;
  }
  return parts.filter((part) => part.text);
}

// ---- what comes from a store or a file may be damaged

export const isChat = (chat) => typeof chat?.id === "string" && typeof chat.title === "string" && Number.isFinite(chat.time);

export function isMessage(message) {
  const { id, chat, role, content } = message ?? {};
  const isPart = (part) => ["text", "python", "python_output"].includes(part?.type) && typeof part.text === "string";
  const isContent = typeof content === "string" || (role === "assistant" && Array.isArray(content) && content.every(isPart));
  return typeof id === "string" && typeof chat === "string" && (role === "user" || role === "assistant") && isContent;
}

/** A chat as it is stored, without its messages. */
export const recordOf = ({ messages: _messages, kept: _kept, ...chat }) => chat;

export const chatFrom = (record) =>
  ({ leaf: null, ...record, system: String(record.system ?? ""), settings: { ...record.settings }, kept: true, messages: null });

/** Chats of the page's first edition: `messages` in a row, each chat under a key. */
export function fromOldChat({ id, title, time, messages }) {
  const chat = { ...newChat(), id: String(id), title: String(title ?? "Chat"), time: Number(time) || 0 };
  for (const { role, content } of messages) {
    const message = addMessage(chat, chat.leaf, role, content);
    if (role === "assistant") message.finish = "stop";
    if (!isMessage(message)) dropMessage(chat, message);
  }
  return chat;
}
