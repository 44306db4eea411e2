// What openai-node makes of the gateway, without a line that is meant for it: one JSON object on stdout.
// Arguments: base URL, model, a data: URI, a question about it, a question that needs a search.
import OpenAI from "openai";

const [baseURL, model, picture, about, searched] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 60_000 });
const out = {};

const vision = [{ role: "user", content: [{ type: "text", text: about }, { type: "image_url", image_url: { url: picture } }] }];
const whole = await client.chat.completions.create({ model, messages: vision });
out.vision = { content: whole.choices[0].message.content, reasoning: whole.choices[0].message.reasoning_content };

const stream = await client.chat.completions.create({
  model, messages: [{ role: "user", content: searched }], stream: true, stream_options: { include_usage: true },
});
out.stream = { content: "", steps: [], citations: [], finish: null, usage: null, toolCalls: 0 };
for await (const chunk of stream) {
  const choice = chunk.choices[0];
  out.stream.content += choice?.delta?.content ?? "";
  out.stream.toolCalls += choice?.delta?.tool_calls?.length ?? 0;
  if (chunk.search_step) out.stream.steps.push(chunk.search_step.type);
  if (choice?.finish_reason) [out.stream.finish, out.stream.citations] = [choice.finish_reason, chunk.citations];
  if (chunk.usage) out.stream.usage = chunk.usage.total_tokens;
}

// The client's own helper, which puts a stream together to a completion.
const helper = client.chat.completions.stream({ model, messages: [{ role: "user", content: searched }] });
out.helper = (await helper.finalChatCompletion()).choices[0].message.content;

out.models = (await client.models.list()).data.map((m) => m.id);
out.errors = [];
for (const change of [{ model: "nobody" }, { n: 2 }, { messages: [] }]) {
  try {
    await client.chat.completions.create({ model, messages: vision, ...change });
  } catch (e) {
    out.errors.push({ kind: e.constructor.name, status: e.status, code: e.code, param: e.param });
  }
}

const left = await client.chat.completions.create({ model, messages: vision, stream: true });
out.cancelled = 0;
for await (const chunk of left) {
  out.cancelled += 1;
  if (out.cancelled === 5) break; // openai-node aborts the request
}
console.log(JSON.stringify(out));
