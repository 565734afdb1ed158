// Answers that a person corrected or praised, for the model's next training.

import { key, render, state, store, tell } from "./app.js";
import { addMessage, pathOf, showBranch } from "./chats.js";
import { askJson } from "./wire.js";

// Keeps a good or corrected answer, with what came before it, on the server for the next training.
export async function collect(message, text, rating) {
  const { chat, facts } = state;
  const content = text === null ? message.content : [{ type: "text", text }];
  chat.leaf = message.parent;
  const messages = [...pathOf(chat), { role: "assistant", content }].map(({ role, content: said }) => ({ role, content: said }));
  if (text === null) chat.leaf = message.id;
  else Object.assign(addMessage(chat, message.parent, "assistant", content), { finish: "stop", rating });
  const kept = text === null ? message : chat.messages.get(chat.leaf);
  if (chat.system.trim()) messages.unshift({ role: "system", content: chat.system });
  showBranch(chat, kept);
  await store.putMessage(Object.assign(kept, { rating }));
  render();
  try {
    const { file, count } = await askJson("corrections", { key: key(), body: { messages } });
    tell(`Kept as conversation ${count} of ${file}. Train on it with: ${facts.card.corrections}`, [["Close", () => tell("")]], { calm: true });
  } catch (error) {
    tell(`Not kept on the server: ${error.message}`);
  }
}
