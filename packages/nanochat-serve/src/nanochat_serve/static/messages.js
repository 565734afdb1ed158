// Messages, tool cards, receipts and notices as DOM nodes. Shows what it is given, and calls back.

import { partsOf, textOf } from "./chats.js";
import { button, copyButton, h } from "./dom.js";
import { updateMarkdown } from "./markdown.js";
import { recall, remember } from "./store.js";
import { showTokens } from "./tokens.js";

// How an answer ended: in the receipt, and above it where it is not whole.
const ENDS = {
  stop: ["ended by itself", ""],
  length: ["token limit", "Cut off: the most tokens that were allowed are used up."],
  context: ["context full", "Cut off: the model's context is full."],
  stopped: ["stopped", "Stopped."],
  interrupted: ["interrupted", "Interrupted: this is not the whole answer."],
};

export const makeMessage = ({ message }) => h(`article.message.${message.role}`, { "aria-labelledby": `said-${message.id}` },
  h("h2.hidden", { id: `said-${message.id}` }, message.role === "user" ? "You said" : "nanochat said"), h("div.content"), h("div.foot"));

/**
 * Brings a message's node up to date, and touches only what is different.
 * `item`: `{message, branches, busy, elsewhere, queued, last, outside, editing, tokens, canCollect}`; `act`: what its buttons call.
 */
export function updateMessage(node, item, act) {
  const { message, busy, outside, editing } = item;
  const [, content, foot] = node.children;
  node.classList.toggle("busy", busy);
  node.classList.toggle("outside", outside);
  node.title = outside ? "The model no longer sees this: its context is full." : "";
  if (editing) showEditor(content, message, act);
  else if (message.role === "user") showOnce(content, message.content, () => h("div.body", { dir: "auto" }, message.content));
  else if (item.tokens && message.tokens?.length && !busy) showTokens(content, message, (index, text) => act.take(message, index, text));
  else showParts(content, item);
  const state = [message.finish, item.branches.map((other) => other.id), busy, item.elsewhere, item.queued, item.last, editing, message.rating, message.receipt, Boolean(textOf(message.content)), item.canCollect, item.mayAct];
  showOnce(foot, JSON.stringify(state), () => (editing ? [] : footOf(item, act)));
}

// The same content is left alone.
function showOnce(parent, state, make) {
  if (parent.dataset.state === state) return;
  parent.dataset.state = state;
  parent.replaceChildren(...[make()].flat());
}

function showParts(content, { message, busy }) {
  const parts = partsOf(message.content);
  if (content.dataset.state !== "parts") content.replaceChildren();
  content.dataset.state = "parts";
  let place = 0;
  parts.forEach((part, index) => {
    if (part.type === "python_output") return;
    let child = content.children[place];
    const kind = part.type === "text" ? "body" : "tool";
    if (child?.className !== kind) {
      const made = kind === "body" ? h("div.body", { dir: "auto" }) : h("div.tool", { role: "group", tabIndex: 0 });
      if (child) child.replaceWith(made);
      else content.append(made);
      child = made;
    }
    if (kind === "body") updateMarkdown(child, part.text, !busy || index < parts.length - 1);
    else showTool(child, part.text, parts[index + 1]?.text, message.finish);
    place += 1;
  });
  while (content.children.length > place) content.lastChild.remove();
  if (parts.length || busy) return;
  content.append(h("p.body.note", {}, "The model ended its answer without a word."));
  content.dataset.state = "empty";
}

function showTool(card, expression, output, finish) {
  const without = finish === "context" || finish === "length" ? "cut off before its result" : "no result";
  const result = output ? `= ${output}` : without;
  card.setAttribute("aria-label", `Calculator: ${expression} ${result}`);
  showOnce(card, `${expression}\n${result}`, () => [h("span.label", {}, "calculator"), h("code", {}, expression), h("span.result", {}, result)]);
}

function showEditor(content, message, act) {
  if (content.dataset.state === "editing") return;
  content.dataset.state = "editing";
  const draft = `draft.${message.id}`;
  const text = h("textarea", { value: recall(draft) ?? textOf(message.content), "aria-label": message.role === "user" ? "Edit question" : "The right answer", dir: "auto", oninput: () => { fit(); remember(draft, text.value); } });
  const fit = () => { text.style.height = "auto"; text.style.height = `${text.scrollHeight + 2}px`; };
  const send = () => { remember(draft, null); act.saveEdit(message, text.value.trim()); };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); act.edit(null); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches) { event.preventDefault(); send(); }
  });
  const note = message.role === "user" ? "What follows stays, as another branch." : "Kept on the server, for the next training, and here as another branch.";
  content.replaceChildren(h("div.editor", {}, text, h("div.row", {}, h("span.note", {}, note), button("Cancel", () => act.edit(null)), button("Save", send, { className: "primary" }))));
  requestAnimationFrame(() => { fit(); text.focus({ preventScroll: true }); });
}

function footOf({ message, branches, busy, elsewhere, queued, last, canCollect, mayAct }, act) {
  if (busy) return [h("p.note", {}, queued ? "Waiting for one of your other answers to end." : elsewhere ? "Being written in another tab." : "")];
  const user = message.role === "user";
  const actions = h("div.actions", {});
  if (branches.length > 1) {
    const at = branches.indexOf(message);
    const step = (by, label, name) => button(label, () => act.branch(branches[at + by]), { name, disabled: !branches[at + by] });
    actions.append(h("span.branches", { role: "group", "aria-label": "Versions" }, step(-1, "‹", "Previous version"), h("span", {}, `${at + 1}/${branches.length}`), step(1, "›", "Next version")));
  }
  if (textOf(message.content)) actions.append(copyButton(() => textOf(message.content), user ? "Copy question" : "Copy answer"));
  if (user && mayAct) actions.append(button("Edit", () => act.edit(message), { name: "Edit question" }));
  if (!user && mayAct) {
    if (last && message.content.length) actions.append(button("Continue", () => act.proceed(message), { name: "Continue answer" }));
    actions.append(button("Regenerate", () => act.again(message), { name: "Regenerate answer" }));
    if (canCollect) {
      actions.append(button("Good", () => act.rate(message), { name: "A good answer: keep it for training", "aria-pressed": String(message.rating === "up") }));
      actions.append(button("Correct", () => act.edit(message), { name: "Correct this answer" }));
    }
  }
  const [, why] = ENDS[message.finish] ?? [];
  const end = !user && why ? h("p.end", {}, why) : null;
  return [end, actions, user ? null : receiptOf(message, mayAct && act)].filter(Boolean);
}

function receiptOf(message, act) {
  const { receipt, finish } = message;
  if (!receipt) return null;
  const [ended = finish] = ENDS[finish] ?? [];
  const rate = receipt.rate ? `${receipt.rate.toFixed(receipt.rate < 10 ? 1 : 0)} tokens/s` : null;
  const rows = [
    ["Ended", ended], ["Model", receipt.model], ["Tokens read", receipt.promptTokens], ["Tokens written", receipt.tokens],
    ["First token after", `${receipt.firstS.toFixed(2)} s`], ["Speed", rate], ...Object.entries({ ...receipt.defaults, ...receipt.settings }),
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h("details.receipt", {}, h("summary", {}, [`${receipt.tokens} tokens`, rate, ended].filter(Boolean).join(" · ")),
    h("dl", {}, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
    act && button("Same again", () => act.again(message, receipt.settings), { name: "Ask again with the same seed and settings" }));
}

/** What went wrong, or what happened; `actions` are `[label, act]`. */
export function noticeOf(text, actions, { calm = false } = {}) {
  return h(`div.notice${calm ? ".calm" : ""}`, { role: calm ? "status" : "alert" }, h("span", {}, text), ...actions.map(([label, act]) => button(label, act)));
}

export function emptyOf(ideas, send, intro) {
  return h("div.empty", {}, h("h2", {}, "What would you like to know?"), h("p", {}, intro ?? "A small model, trained from scratch. It may be wrong."),
    h("div.ideas", {}, ideas.map((idea) => button(idea, () => send(idea)))));
}
