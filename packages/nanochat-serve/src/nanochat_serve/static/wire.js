// Talks to the server: answers event by event, facts about it, and errors that carry `kind`, `param`, `status` and `retryAfter`.

const MAX_AT_ONCE = 4; // a browser opens six connections to a server: the rest stay free for what is asked besides

export class WireError extends Error {
  constructor(message, fields) {
    super(message);
    /** @type {string} */ this.kind = fields.kind;
    /** @type {string | undefined} */ this.param = fields.param;
    /** @type {number | undefined} */ this.status = fields.status;
    /** @type {number | undefined} */ this.retryAfter = fields.retryAfter;
  }
}

const headersWith = (key) => ({ "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) });

async function call(path, { key, body, signal } = /** @type {any} */ ({})) {
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers: headersWith(key), body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new WireError("The server cannot be reached.", { kind: "connection" });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const { message = `The server said ${response.status}.`, type = "http_error", param } = answer.error ?? {};
  throw new WireError(message, { kind: type, param, status: response.status, retryAfter: Number(response.headers.get("Retry-After")) || undefined });
}

/** JSON for JSON; without a body it asks. */
export const askJson = async (path, options) => (await call(path, options)).json();

let free = MAX_AT_ONCE;
const waiting = [];

async function takeLane(signal) {
  if (free > 0) free -= 1;
  else {
    await new Promise((resolve, reject) => {
      waiting.push(resolve);
      signal.addEventListener("abort", () => {
        if (waiting.includes(resolve)) waiting.splice(waiting.indexOf(resolve), 1);
        reject(signal.reason);
      });
    });
  }
}

function leaveLane() {
  const next = waiting.shift();
  if (next) next();
  else free += 1;
}

/**
 * The events of one answer: `{waiting}`, `{text, tokens, tools}`, at last `{end: {finish, usage, timings}}`.
 * With `request.logprobs` it tells each token's probability and what else was likely.
 */
export async function* stream(request, { key, signal }) {
  if (!free) yield { waiting: true };
  await takeLane(signal);
  try {
    const body = { ...request, stream: true, stream_options: { include_usage: true }, include_tool_calls: true };
    const response = await call("v1/chat/completions", { key, signal, body });
    yield {};
    const end = { finish: "stop", usage: null, timings: null };
    for await (const line of dataLines(response.body)) {
      if (line === "[DONE]") return yield { end };
      const { error, usage, timings, choices: [choice] = [] } = JSON.parse(line);
      if (error) throw new WireError(error.message, { kind: error.type, param: error.param });
      Object.assign(end, { usage: usage ?? end.usage, timings: timings ?? end.timings, finish: choice?.finish_reason ?? end.finish });
      const { content: text = "", executed_tools: tools } = choice?.delta ?? {};
      const tokens = choice?.logprobs?.content?.map(shortToken);
      if (text || tools || tokens?.length) yield { text, tokens, tools };
    }
    throw new WireError("The connection was lost before the answer was complete.", { kind: "connection" });
  } finally {
    leaveLane();
  }
}

/** A token as it is kept: its text, its log probability, and the same of the most likely ones. */
const shortToken = ({ token, logprob, top_logprobs: top = [] }) => ({ text: token, logprob, top: top.map((other) => [other.token, other.logprob]) });

async function* dataLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true };
      });
      if (done) return;
      const events = (buffer + value).split("\n\n");
      buffer = events.pop();
      for (const event of events) if (event.startsWith("data: ")) yield event.slice(6); // else a heartbeat
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function isReady() {
  try { return (await fetch("ready", { cache: "no-store" })).ok; } catch { return false; }
}

/**
 * What the server says of itself; what it does not say stays out, and `fault` says why it says nothing.
 * `details`: also what changes only with the model (context, limits, fields, card).
 */
export async function readFacts(key, { details }) {
  const ask = (path) => askJson(path, { key }).catch((error) => ({ fault: error.status === 401 ? "needs a key" : "not reachable" }));
  const [stats, models, document, card] = await Promise.all(details ? ["stats", "v1/models", "openapi.json", "card"].map(ask) : [ask("stats")]);
  if (stats.fault) return { ready: false, fault: stats.fault };
  const facts = { fault: undefined, model: stats.model, defaults: stats.defaults, ready: stats.available_workers > 0 || stats.workers?.some((worker) => worker.ready), running: stats.running, waiting: stats.waiting };
  if (!details) return facts;
  const listed = models?.data ?? [];
  const mine = listed.find((model) => model.id === stats.model) ?? listed[0];
  const schema = document?.paths?.["/v1/chat/completions"]?.post?.requestBody?.content?.["application/json"]?.schema;
  return {
    ...facts,
    models: listed.map((model) => model.id),
    ...defined({ context: mine?.max_model_len ?? mine?.context_length, fields: schema?.properties }),
    ...defined({ messageChars: card?.limits?.message_chars, totalChars: card?.limits?.total_chars, maxMessages: card?.limits?.messages }),
    card,
  };
}

const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null));
