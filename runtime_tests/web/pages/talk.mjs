// The same conversation wherever transformers.js runs: through the artifact's own tokenizer, template and cache.
import { shortCalls } from "./short_calls.mjs";

/** For each chat, the prompt's token ids and those of the greedy reply, its end token included. */
export async function talk(tokenizer, model, { chats, newTokens }) {
  const found = [];
  for (const messages of chats) {
    const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
    const output = await model.generate({ ...inputs, max_new_tokens: newTokens, do_sample: false });
    const prompt = inputs.input_ids.tolist()[0].map(Number);
    const all = output.tolist()[0].map(Number);
    found.push({ prompt, reply: all.slice(prompt.length) });
  }
  return found;
}

/** For each prompt of token ids, fed whole, its last token's logits; and the greedy reply when it is fed in short calls. */
export async function longPrompts(model, { prompts, newTokens }, Tensor) {
  const found = [];
  for (const prompt of prompts) {
    const row = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const inputs = { input_ids: row(prompt), attention_mask: row(prompt.map(() => 1)) };
    const { data, dims } = (await model(inputs)).logits;
    const past_key_values = await shortCalls(model, inputs);
    const output = await model.generate({ ...inputs, past_key_values, max_new_tokens: newTokens, do_sample: false });
    const reply = output.tolist()[0].map(Number).slice(prompt.length);
    found.push({ logits: [...data.slice(-dims.at(-1))], reply });
  }
  return found;
}
