// Chats in IndexedDB, a record a message, so that two tabs do not undo each other's work; each tells the others what changed.

import { fromOldChat, isChat, isMessage, recordOf } from "./chats.js";

// Small things of this browser: theme, drafts, the last settings. A full or forbidden store must not stop the chat.
export function recall(name) {
  try { return JSON.parse(localStorage.getItem(`nanochat.${name}`)); } catch { return null; }
}

export function remember(name, value) {
  try {
    if (value === null || value === "") localStorage.removeItem(`nanochat.${name}`);
    else localStorage.setItem(`nanochat.${name}`, JSON.stringify(value));
  } catch { /* see above */ }
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Store {
  #db = null;
  #opened = null;
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("nanochat") : null;

  /** `hear(change)`: another tab's `{kind: "chat" | "message" | "gone" | "who" | "left", ...}`; `fail(error)`: nothing is kept. */
  constructor(hear, fail) {
    this.fail = fail;
    this.#channel?.addEventListener("message", (event) => hear(event.data));
  }

  /** What is read or written meanwhile waits. */
  async open() {
    this.#opened = this.#open();
    await this.#opened;
    if (this.#db) await this.#takeOldChats();
  }

  async #open() {
    try {
      const request = indexedDB.open("nanochat", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("chats", { keyPath: "id" });
        request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("chat", "chat");
      };
      this.#db = await result(request);
    } catch (error) {
      this.fail(error);
    }
  }

  tell(change) { this.#channel?.postMessage(change); }

  // What is damaged is left out, and left where it is.
  async chats() { return ((await this.#read("chats", (chats) => chats.getAll())) ?? []).filter(isChat); }
  async messages(chat) { return ((await this.#read("messages", (messages) => messages.index("chat").getAll(chat))) ?? []).filter(isMessage); }
  async allMessages() { return ((await this.#read("messages", (messages) => messages.getAll())) ?? []).filter(isMessage); }
  async chat(id) { return this.#read("chats", (chats) => chats.get(id)); }
  async message(id) { return this.#read("messages", (messages) => messages.get(id)); }

  /** A chat that another tab has deleted stays deleted, unless `anew`. */
  async putChat(chat, { anew = false } = {}) {
    const kept = await this.#write(async (chats) => {
      if (chat.kept && !anew && !(await result(chats.get(chat.id)))) return;
      chats.put(recordOf(chat));
    });
    if (kept) chat.kept = true;
    this.tell({ kind: "chat", chat: chat.id });
  }

  async putMessage(message) {
    const kept = await this.#write(async (chats, messages) => {
      if (await result(chats.get(message.chat))) messages.put(message);
    });
    if (kept) this.tell({ kind: "message", chat: message.chat, id: message.id, live: message.finish === null });
  }

  /** Without waiting for anything: the page is about to go. */
  putLast(messages) {
    const change = this.#db?.transaction("messages", "readwrite");
    for (const message of messages) change?.objectStore("messages").put(message);
    change?.commit();
  }

  async removeChat(id) {
    await this.#write(async (chats, messages) => {
      chats.delete(id);
      for (const key of await result(messages.index("chat").getAllKeys(id))) messages.delete(key);
    });
    this.tell({ kind: "gone", chat: id });
  }

  /** Writes chats with all of their messages, those from a file or one whose deletion is undone. */
  async restore(...chats) {
    for (const chat of chats) {
      const kept = await this.#write(async (records, messages) => {
        records.put(recordOf(chat));
        for (const message of chat.messages.values()) messages.put(message);
      });
      if (!kept) return false;
      chat.kept = true;
      this.tell({ kind: "chat", chat: chat.id });
    }
    return true;
  }

  async #read(name, act) {
    try {
      await this.#opened;
      return this.#db && (await result(act(this.#db.transaction(name).objectStore(name))));
    } catch (error) {
      this.fail(error);
      return null;
    }
  }

  // One transaction over both stores; whether it came through.
  async #write(act) {
    try {
      await this.#opened;
      if (!this.#db) throw new Error("the browser keeps nothing");
      const change = this.#db.transaction(["chats", "messages"], "readwrite");
      const through = new Promise((resolve, reject) => {
        change.oncomplete = () => resolve(true);
        change.onabort = change.onerror = () => reject(change.error ?? new Error("the change was given up"));
      });
      await Promise.all([act(change.objectStore("chats"), change.objectStore("messages")), through]);
      return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
  }

  // The first edition kept a chat a key in localStorage.
  async #takeOldChats() {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith("nanochat.chat."))) {
      try {
        if (await this.restore(fromOldChat(JSON.parse(localStorage.getItem(key))))) localStorage.removeItem(key);
      } catch { /* damaged: it stays */ }
    }
  }
}
