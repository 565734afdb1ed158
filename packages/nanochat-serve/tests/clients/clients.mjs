// The JavaScript clients against a server, each as its documentation shows:
//
//     npm install openai ai @ai-sdk/openai-compatible
//     node clients.mjs http://127.0.0.1:8000 [KEY]
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const baseURL = `${process.argv[2]}/v1`;
const apiKey = process.argv[3] ?? "none";
const messages = [{ role: "user", content: "Say something." }];

const client = new OpenAI({ baseURL, apiKey });
const chat = await client.chat.completions.create({ model: "any", messages, max_tokens: 8 });
assert.ok(["stop", "length"].includes(chat.choices[0].finish_reason));
let reason = null;
for await (const chunk of await client.chat.completions.create({ model: "any", messages, max_tokens: 8, stream: true })) {
  reason = chunk.choices[0]?.finish_reason ?? reason;
}
assert.ok(reason);
const response = await client.responses.create({ model: "any", input: "Hi", max_output_tokens: 8 });
assert.equal(response.object, "response");
console.log("openai (npm): chat, stream, responses");

const model = createOpenAICompatible({ name: "nanochat", baseURL, apiKey, includeUsage: true })("any");
const whole = await generateText({ model, system: "Be brief.", prompt: "Hi", maxOutputTokens: 8 });
assert.ok(whole.usage.outputTokens <= 8);
const streamed = streamText({ model, messages, maxOutputTokens: 8 });
for await (const piece of streamed.textStream) assert.equal(typeof piece, "string");
assert.ok((await streamed.usage).outputTokens <= 8);
console.log("AI SDK: generateText, streamText");
