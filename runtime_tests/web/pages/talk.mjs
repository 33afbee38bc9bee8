// The same conversation wherever transformers.js runs: through the artifact's own tokenizer, template and cache.

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
