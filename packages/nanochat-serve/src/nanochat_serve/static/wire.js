// Talks to the server: one request, its events one by one, and errors that carry `kind`, `param`, `status` and `retryAfter`.

export async function stream(request, { apiKey, signal }, onEvent) {
  const response = await fetch("chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(apiKey && { Authorization: `Bearer ${apiKey}` }) },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    const { message = `The server said ${response.status}.`, type = "http_error", param } = body.error ?? {};
    const retryAfter = Number(response.headers.get("Retry-After")) || null;
    throw Object.assign(new Error(message), { kind: type, param, status: response.status, retryAfter });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw Object.assign(new Error("The connection was lost before the answer was complete."), { kind: "connection" });
    buffer += value;
    const lines = buffer.split("\n\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // a heartbeat
      const event = JSON.parse(line.slice(6));
      if (event.done) return;
      if (event.error) throw Object.assign(new Error(event.error.message), { kind: event.error.type });
      onEvent(event);
    }
  }
}

export async function isReady() {
  try { return (await fetch("ready", { cache: "no-store" })).ok; } catch { return false; }
}

// Which model answers, and what a request that leaves a setting out gets; null where the server is gone or wants a key.
export async function serverFacts(apiKey) {
  const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  try {
    const response = await fetch("stats", { cache: "no-store", headers });
    return response.ok ? await response.json() : null;
  } catch { return null; }
}
