// Answers that are being written: asked for, heard, tried again, and how they ended.

import { addMessage, addText, dropMessage, pathOf, textOf } from "./chats.js";
import { fit, overflow } from "./context.js";
import { isReady, stream, WireError } from "./wire.js";

const PASSING = new Set(["connection", "not_ready", "stopping", "server_busy", "client_busy", "timeout"]);
const MAX_PAUSE_S = 30;
const SAVE_EVERY_MS = 500;

export class Answers {
  /** chat id -> `{controller, reply, queued}` of the answer that is being written */
  running = new Map();
  /** chat id -> `{message, kind, param, waiting}`: what went wrong with its last answer */
  notices = new Map();
  #store; #facts; #key; #show;

  /** `facts()` and `key()` are asked anew each time; `show(chat, reply, what)` with `what` "begun", "more", "ended" or "notice". */
  constructor({ store, facts, key, show }) {
    this.#store = store;
    this.#facts = facts;
    this.#key = key;
    this.#show = show;
  }

  isBusy(chat) { return this.running.has(chat.id); }
  stop(chat) { this.running.get(chat.id)?.controller.abort(); }

  /**
   * Answers the chat's last question, or continues `onto`, its last message. `settings` override the chat's, such as an earlier seed.
   */
  async answer(chat, { onto, settings, pauseS = 2, least = 0 } = /** @type {{onto?: any, settings?: any, pauseS?: number, least?: number}} */ ({})) {
    if (this.isBusy(chat)) return;
    this.clearNotice(chat);
    const facts = this.#facts();
    const sent = fit(pathOf(chat), chat, facts, { least });
    const seed = Math.floor(Math.random() * 2 ** 31);
    const sampling = { seed, ...chat.settings, ...settings };
    const { logprobs, ...rest } = sampling;
    const request = { messages: sent.messages, ...rest, ...(logprobs && { logprobs: true, top_logprobs: 5 }) };
    const reply = onto ?? addMessage(chat, chat.leaf, "assistant", []);
    const before = onto ? { tokens: onto.tokens ?? [], receipt: onto.receipt, finish: onto.finish } : { tokens: [] };
    reply.finish = null;
    chat.start = pathOf(chat)[sent.start].id;
    const run = { controller: new AbortController(), reply, queued: false, saved: 0 };
    const start = performance.now();
    const meter = { first: null, last: start, count: 0 };
    const length = textOf(reply.content).length;
    this.running.set(chat.id, run);
    this.#show(chat, reply, "begun");
    let end = null;
    let failure = null;
    try {
      for await (const event of stream(request, { key: this.#key(), signal: run.controller.signal })) {
        run.queued = Boolean(event.waiting);
        if (event.text !== undefined) {
          meter.first ??= performance.now();
          meter.last = performance.now();
          meter.count += 1;
        }
        if (event.text) addText(reply, event.text);
        if (event.tokens) reply.tokens = [...(reply.tokens ?? before.tokens), ...event.tokens];
        for (const { arguments: text, output } of event.tools ?? []) reply.content.push({ type: "python", text }, { type: "python_output", text: output ?? "" });
        if (event.end) end = event.end;
        this.#saveNowAndThen(run);
        this.#show(chat, reply, "more");
      }
    } catch (error) {
      failure = error;
    }
    this.running.delete(chat.id);
    const got = reply.content.length > 0 && (!onto || textOf(reply.content).length > length || end);
    const spill = failure && overflow(failure);
    if (spill) {
      facts.context = spill.context;
      chat.perToken = Math.min(chat.perToken ?? Infinity, (0.95 * sent.chars) / spill.tokens);
    }
    if (end) this.#measure(chat, reply, { end, sent, sampling, meter, start, facts, before: before.receipt });
    else reply.finish = onto && !got ? before.finish : failure?.name === "AbortError" ? "stopped" : "interrupted";
    if (!end && !reply.content.length) dropMessage(chat, reply);
    else await this.#store.putMessage(reply);
    const question = pathOf(chat).findLastIndex((message) => message.role === "user");
    if (spill && sent.start < question) return this.answer(chat, { onto, settings, pauseS, least: sent.start + 1 });
    if (failure) this.#fail(chat, failure, { got, onto, settings, pauseS, spill });
    this.#show(chat, reply, "ended");
  }

  // Why it ended and what it took. An answer that ended short of its limit for its length has filled the context.
  #measure(chat, reply, { end, sent, sampling, meter, start, facts, before }) {
    const { prompt_tokens: promptTokens, completion_tokens: tokens = meter.count } = end.usage ?? {};
    const most = Number(sampling.max_tokens) || facts.defaults?.max_tokens;
    const full = end.finish === "length" && end.usage && tokens < most;
    reply.finish = full ? "context" : end.finish;
    if (promptTokens && !facts.context && full) facts.context = promptTokens + tokens;
    if (promptTokens) chat.perToken = sent.chars / promptTokens;
    // What came at once, such as a tool's call, says nothing of the time between tokens: then all of the time counts.
    const [counted, seconds] = meter.count > 2 ? [tokens - 1, (meter.last - meter.first) / 1000] : [tokens, (meter.last - start) / 1000];
    const rate = (meter.count > 2 && end.timings?.predicted_per_second) || (counted > 0 && seconds > 0 ? counted / seconds : null);
    const { logprobs: _logprobs, ...settings } = sampling;
    reply.receipt = { model: sampling.model ?? facts.model, promptTokens, tokens: tokens + (before?.tokens ?? 0), firstS: ((meter.first ?? meter.last) - start) / 1000, rate, settings, defaults: facts.defaults };
  }

  #saveNowAndThen(run) {
    const now = performance.now();
    if (!run.reply.content.length || now - run.saved < SAVE_EVERY_MS) return;
    run.saved = now;
    this.#store.putMessage(run.reply);
  }

  /** Before the page goes: what has come so far is kept, and known to be cut off. */
  leave() {
    const replies = [...this.running.values()].map(({ reply }) => reply);
    this.#store.putLast(replies.filter(({ content }) => content.length).map((reply) => ({ ...reply, finish: "interrupted" })));
    this.#store.tell({ kind: "left", ids: replies.map(({ id }) => id) });
  }

  // What passes by itself is tried again, with longer and longer pauses, as long as nothing of the answer has come.
  #fail(chat, error, { got, onto, settings, pauseS, spill }) {
    const notice = { message: error.message, kind: error.kind ?? "page", param: error.param, status: error.status, onto, settings, pauseS, waiting: null };
    if (error.name === "AbortError") {
      if (got) return;
      Object.assign(notice, { message: "Stopped before the answer began.", kind: "stopped" });
    } else if (!(error instanceof WireError)) {
      notice.message = `The page failed, not the server: ${error.message}. Reloading it may help; what was written is kept.`;
      console.error(error);
    } else if (spill) {
      notice.message = `This question is too long: with it the model would have to read ${spill.tokens} tokens, and its context holds ${spill.context}.`;
    } else if (PASSING.has(notice.kind) && !got) {
      notice.message += " Trying again by itself.";
      notice.waiting = setTimeout(() => this.#tryAgain(chat, notice), 1000 * Math.max(pauseS, error.retryAfter ?? 0));
    }
    this.notices.set(chat.id, notice);
  }

  async #tryAgain(chat, notice) {
    const pauseS = Math.min(2 * notice.pauseS, MAX_PAUSE_S);
    const ready = await isReady();
    if (this.notices.get(chat.id) !== notice) return;
    if (ready) this.answer(chat, { onto: notice.onto, settings: notice.settings, pauseS });
    else notice.waiting = setTimeout(() => this.#tryAgain(chat, Object.assign(notice, { pauseS })), 1000 * pauseS);
  }

  clearNotice(chat) {
    clearTimeout(this.notices.get(chat.id)?.waiting);
    this.notices.delete(chat.id);
  }

  giveUp(chat) {
    this.clearNotice(chat);
    this.notices.set(chat.id, { message: "Not answered.", kind: "stopped" });
    this.#show(chat, null, "notice");
  }
}
