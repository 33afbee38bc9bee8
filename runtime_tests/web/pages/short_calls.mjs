// For transformers.js on WebGPU, until upstream is mended. docs/onnx.md shows this function; a test compares the two.
/** The cache of a prompt but for its last tokens, filled by calls of at most `most` tokens. */
export async function shortCalls(model, { input_ids, attention_mask }, most = 31) {
  let past_key_values = null;
  for (let end = most; end < input_ids.dims[1]; end += most) {
    const until = (tensor) => tensor.slice(null, [0, end]);
    const inputs = { input_ids: until(input_ids), attention_mask: until(attention_mask), past_key_values };
    ({ past_key_values } = await model.generate({ ...inputs, max_new_tokens: 1, return_dict_in_generate: true }));
  }
  return past_key_values;
}
