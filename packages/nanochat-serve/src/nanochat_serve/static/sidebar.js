// The list of chats: open, search, rename, delete; a file out of them, and chats out of a file.

import { chatFrom, isChat, isMessage, recordOf, textOf } from "./chats.js";
import { $, button, download, h, keyed } from "./dom.js";

let renaming = null;

/** `act`: `show(chat)`, `remove(chat)`, `rename(chat, title)`, `refresh()`; `found`: ids of chats to list, null for all. */
export function showChats(chats, { current, isBusy, found, act }) {
  const listed = chats.filter((chat) => !found || found.has(chat.id));
  keyed($("chats"), listed, (chat) => chat.id, () => h("li.chat-row"), (row, chat) => {
    const state = JSON.stringify([chat.title, chat === current, isBusy(chat), renaming === chat.id]);
    if (row.dataset.state === state) return;
    const focused = row.contains(document.activeElement) ? [...row.children].indexOf(document.activeElement) : -1;
    row.dataset.state = state;
    row.replaceChildren(...(renaming === chat.id ? renamingRow(chat, act) : plainRow(chat, { current, isBusy, act })));
    if (renaming === chat.id) row.firstChild.select();
    else if (focused >= 0) row.children[Math.min(focused, row.children.length - 1)].focus({ preventScroll: true });
  });
  $("no-chats").hidden = !found || listed.length > 0;
}

function plainRow(chat, { current, isBusy, act }) {
  const title = h("bdi", {}, chat.title);
  return [
    h("a", { href: `#${chat.id}`, "aria-current": chat === current && "page", onclick: (event) => { event.preventDefault(); act.show(chat); } },
      title, isBusy(chat) && h("span.dot", { role: "img", "aria-label": "being answered" }, " ●")),
    button("✎", () => { renaming = chat.id; act.refresh(); }, { name: `Rename chat ${chat.title}` }),
    button("×", () => act.remove(chat), { name: `Delete chat ${chat.title}` }),
  ];
}

function renamingRow(chat, act) {
  const end = (title) => {
    if (renaming !== chat.id) return;
    renaming = null;
    if (title && title !== chat.title) act.rename(chat, title);
    act.refresh();
  };
  const input = h("input", { value: chat.title, "aria-label": "New name of the chat", onblur: () => end(input.value.trim()) });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(input.value.trim());
    if (event.key === "Escape") { event.stopPropagation(); end(null); }
  });
  return [input];
}

/** Where to put the focus once a chat's row is gone. */
export function rowBeside(chat) {
  const rows = [...$("chats").children];
  const at = rows.findIndex((row) => row.dataset.key === chat.id);
  return (rows[at + 1] ?? rows[at - 1])?.firstChild ?? $("new-chat");
}

/** Ids of the chats in which the words occur, in the title or in a message; null without words. */
export async function search(words, chats, store) {
  const wanted = words.trim().toLowerCase();
  if (!wanted) return null;
  const found = new Set(chats.filter((chat) => chat.title.toLowerCase().includes(wanted)).map((chat) => chat.id));
  for (const message of await store.allMessages()) if (textOf(message.content).toLowerCase().includes(wanted)) found.add(message.chat);
  return found;
}

export async function exportChats(chats, store) {
  const stored = await store.allMessages();
  const all = chats.map((chat) => {
    const messages = new Map(stored.filter((message) => message.chat === chat.id).map((message) => [message.id, message]));
    for (const message of chat.messages?.values() ?? []) messages.set(message.id, message);
    return { ...recordOf(chat), messages: [...messages.values()] };
  });
  download(`nanochat-${new Date().toISOString().slice(0, 10)}.json`, JSON.stringify({ format: "nanochat-chats", version: 1, chats: all }, null, 1));
}

/** The chats of an exported file, and how many records in it were damaged; throws for another file. */
export function readExport(text) {
  const { format, chats } = JSON.parse(text);
  if (format !== "nanochat-chats" || !Array.isArray(chats)) throw new Error("it was not exported from here");
  let damaged = 0;
  const whole = chats.filter((chat) => (isChat(chat) && Array.isArray(chat.messages)) || !(damaged += 1)).map(({ messages, ...record }) => {
    const sound = messages.filter((message) => (isMessage(message) && message.chat === record.id) || !(damaged += 1));
    return { ...chatFrom(record), messages: new Map(sound.map((message) => [message.id, message])) };
  });
  return { chats: whole, damaged };
}
