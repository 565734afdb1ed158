// Chats and settings in the browser. Each chat has a key of its own, so that two tabs do not undo each other's work.

const CHAT = "nanochat.chat.";
const MAX_CHATS = 200;

// A full or forbidden store must not stop the chat.
export function recall(name) {
  try { return JSON.parse(localStorage.getItem(`nanochat.${name}`)); } catch { return null; }
}

export function remember(name, value) {
  try { localStorage.setItem(`nanochat.${name}`, JSON.stringify(value)); } catch { /* see above */ }
}

export function newChat(text) {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`, title: text.slice(0, 60), time: Date.now(), messages: [] };
}

// The newest first; what is damaged is left out.
export function loadChats() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
    const chats = keys.map((key) => recall(key.slice("nanochat.".length))).filter((chat) => chat?.id && Array.isArray(chat.messages));
    for (const chat of chats) chat.messages = chat.messages.filter((message) => message?.content?.length);
    return chats.sort((a, b) => b.time - a.time);
  } catch {
    return [];
  }
}

export function saveChat({ id, title, time, messages }) {
  remember(`chat.${id}`, { id, title, time, messages: messages.filter((message) => message.content.length) });
}

export function forgetChat(chat) {
  try { localStorage.removeItem(CHAT + chat.id); } catch { /* see above */ }
}

export function forgetOldest(chats) {
  for (const chat of chats.splice(MAX_CHATS)) forgetChat(chat);
}

// Another tab has written a chat, or forgotten one.
export function onOtherTab(act) {
  addEventListener("storage", (event) => { if (event.key === null || event.key.startsWith(CHAT)) act(); });
}
