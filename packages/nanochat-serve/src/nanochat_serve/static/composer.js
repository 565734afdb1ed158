// What stands under the conversation: the message to send, its draft, how full the context is, and what else can be asked with it.

import { actions, answers, below, keep, key, render, send, state, store } from "./app.js";
import { addMessage, pathOf, textOf } from "./chats.js";
import { fit, lengthOf, tokensOf } from "./context.js";
import { $, on } from "./dom.js";
import { openComparison, openSamples } from "./samples.js";
import { remember } from "./store.js";
import { openPrompt, updateRibbon } from "./tokens.js";

export const draftKey = () => `draft.${state.chat.kept ? state.chat.id : "new"}`;

function write(text) {
  $("prompt").value = text;
  remember(draftKey(), text);
  renderComposer();
}

// Height, what is too long, and how full the model's context is.
export function renderComposer() {
  const { chat, facts } = state;
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
  const { length } = prompt.value.trim();
  const over = facts.messageChars && length > facts.messageChars;
  $("too-long").textContent = over ? `${length.toLocaleString("en")} of at most ${facts.messageChars.toLocaleString("en")} characters: shorten it to send it.` : "";
  prompt.setAttribute("aria-invalid", String(Boolean(over)));
  const path = chat.messages ? pathOf(chat) : [];
  const draft = length ? [{ role: "user", content: prompt.value }] : [];
  const seen = path.length + draft.length ? fit([...path, ...draft], chat, facts) : { start: 0, chars: 0 };
  const used = tokensOf(chat, path.slice(seen.start).reduce((sum, message) => sum + lengthOf(message.content), length + chat.system.length));
  $("ruler").hidden = !facts.context;
  if (!facts.context) return;
  $("ruler-bar").max = facts.context;
  $("ruler-bar").value = Math.min(used, facts.context);
  const turns = path.slice(0, seen.start).filter((message) => message.role === "user").length;
  $("ruler-text").textContent = `${Math.min(used, facts.context)}/${facts.context} tokens${turns ? `, ${turns} earlier turn${turns > 1 ? "s" : ""} out of sight` : ""}`;
}

const showRibbon = () => { if (!$("ribbon").hidden) updateRibbon($("prompt").value, key()); };

// What would be asked now, of the chat and what stands in the composer.
const requestNow = () => {
  const { chat, facts } = state;
  const text = $("prompt").value.trim();
  const path = /** @type {any[]} */ (pathOf(chat));
  if (text) path.push({ role: "user", content: text });
  else if (path.at(-1)?.role === "assistant") path.pop();
  if (!path.length) return null;
  const { logprobs: _logprobs, ...settings } = chat.settings;
  return { messages: fit(path, chat, facts).messages.map(({ role, content }) => ({ role, content: textOf(content) })), ...settings };
};

// An answer out of several, with its question, as a part of the chat.
async function keepSample(text) {
  const { chat } = state;
  const asked = $("prompt").value.trim();
  const path = pathOf(chat);
  const question = asked ? addMessage(chat, below(path.at(-1)), "user", asked) : path.findLast((message) => message.role === "user");
  if (asked) write("");
  if (!chat.kept && !chat.named) chat.title = textOf(question.content).slice(0, 60);
  const reply = Object.assign(addMessage(chat, question.id, "assistant", [{ type: "text", text }]), { finish: "stop" });
  await keep(chat);
  for (const message of [question, reply]) store.putMessage(message);
  render();
}

export function startComposer() {
  on("composer", "submit", (event) => {
    event.preventDefault();
    const text = $("prompt").value.trim();
    if (!text || answers.isBusy(state.chat) || $("too-long").textContent) return;
    write("");
    send(text);
  });
  on("prompt", "input", () => { remember(draftKey(), $("prompt").value); renderComposer(); showRibbon(); });
  on("prompt", "keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches) {
      event.preventDefault();
      $("composer").requestSubmit();
    } else if (event.key === "ArrowUp" && !$("prompt").value && !answers.isBusy(state.chat)) {
      const question = pathOf(state.chat).findLast((message) => message.role === "user");
      if (question) { event.preventDefault(); actions.edit(question); }
    }
  });
  on("stop", "click", () => { answers.stop(state.chat); $("prompt").focus(); });
  on("toggle-ribbon", "click", () => {
    const open = $("ribbon").hidden;
    $("ribbon").hidden = !open;
    $("toggle-ribbon").setAttribute("aria-expanded", String(open));
    showRibbon();
  });
  const withRequest = (id, act) => on(id, "click", () => { const request = requestNow(); if (request) act(request); });
  withRequest("see-prompt", ({ messages }) => openPrompt(messages, key()));
  withRequest("ask-many", (request) => openSamples(request, key(), keepSample));
  withRequest("compare", (request) => openComparison({ seed: 1, ...request }, state.facts.models, key(), keepSample));
}
