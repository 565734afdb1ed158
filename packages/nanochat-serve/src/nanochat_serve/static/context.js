// What of a chat the model is given: as many of its last turns as fit its context and the server's limits.

import { partsOf } from "./chats.js";

const CHARS_PER_TOKEN = 3; // until a server has counted

export const lengthOf = (content) => partsOf(content).reduce((sum, part) => sum + part.text.length, 0);

/** Tokens of so many characters, about. */
export const tokensOf = (chat, chars) => Math.ceil(chars / (chat.perToken ?? CHARS_PER_TOKEN));

/**
 * The messages to send, from the first turn that fits on; `start` is that turn's index in the path. The last question always goes.
 * @returns {{start: number, messages: any[], chars: number}}
 */
export function fit(path, chat, facts, { least = 0 } = {}) {
  const { context = Infinity, messageChars = Infinity, totalChars = Infinity, maxMessages = Infinity } = facts;
  const answer = Math.min(Number(chat.settings.max_tokens) || facts.defaults?.max_tokens || Infinity, context / 4);
  const room = Math.min((context - answer) * (chat.perToken ?? CHARS_PER_TOKEN), totalChars) - chat.system.length;
  const last = path.findLastIndex((message) => message.role === "user");
  let start = last;
  let chars = path.slice(last).reduce((sum, message) => sum + lengthOf(message.content), 0);
  for (let index = last - 1; index >= least; index -= 1) {
    chars += Math.min(lengthOf(path[index].content), messageChars);
    if (chars > room || path.length - index + 1 > maxMessages) break;
    if (path[index].role === "user") start = index;
  }
  const messages = path.slice(start).map(({ role, content }, index) => ({ role, content: start + index < last ? shortened(content, messageChars) : content }));
  if (chat.system.trim()) messages.unshift({ role: "system", content: chat.system });
  return { start, messages, chars: messages.reduce((sum, message) => sum + lengthOf(message.content), 0) };
}

// A message of the past that the server would refuse for its length goes as its end.
function shortened(content, most) {
  if (typeof content === "string") return content.slice(-most);
  let room = most;
  return content.toReversed().map((part) => {
    const text = room > 0 ? part.text.slice(-room) : "";
    room -= text.length;
    return { ...part, text };
  }).reverse().filter((part) => part.text);
}

/** From "has 300 tokens, the model's context holds 256"; null for another error. */
export function overflow(error) {
  const [, tokens, context] = /(\d+) tokens\D+(\d+)/.exec(error.kind === "context_length_exceeded" ? error.message : "") ?? [];
  return tokens ? { tokens: Number(tokens), context: Number(context) } : null;
}
