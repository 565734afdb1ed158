// The JavaScript clients against a server, each as its documentation shows:
//
//     npm install openai ai @ai-sdk/openai-compatible zod
//     node clients.mjs http://127.0.0.1:8000 [KEY]
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

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
const mood = z.object({ mood: z.enum(["good", "bad"]), sure: z.boolean() });
const compatible = createOpenAICompatible({ name: "nanochat", baseURL, apiKey, supportsStructuredOutputs: true })("any");
const { object } = await generateObject({ model: compatible, schema: mood, prompt: "Hi", maxOutputTokens: 60 });
assert.equal(typeof object.sure, "boolean");
const tools = { tellMood: tool({ description: "Tells it.", inputSchema: mood }) };
for (const toolChoice of ["required", { type: "tool", toolName: "tellMood" }]) {
  const { toolCalls, finishReason } = await generateText({ model, tools, toolChoice, prompt: "Hi", maxOutputTokens: 60 });
  assert.equal(finishReason, "tool-calls");
  mood.parse(toolCalls[0].input);
  const calls = await streamText({ model, tools, toolChoice, prompt: "Hi", maxOutputTokens: 60 }).toolCalls;
  mood.parse(calls[0].input);
}
console.log("AI SDK: generateText, streamText, generateObject, tools");
