// Whether the GPU computes long prompts: the check of `runtimes/_attention_check.py`, whose model and numbers these are.
// All queries are alike; every eighth key is loud, scored 2 where the others are scored 0, and worth 1 where they are
// worth -1. So a row that sees L loud keys and Q others must be (L·e² − Q) / (L·e² + Q).
const TOKENS = 40; // of the prompt tried whole
export const CHUNK = 31; // the longest prompt that WebGPU never computes the other way, which is wrong on some drivers
export const LIMIT = 0.01; // the fault makes 0.14
const EVERY = 8;
const SCORE = 2;

/** The largest errors of a prompt computed whole and in chunks, `{ whole, chunked }`, for heads of this shape. */
export async function tryAttention(ort, model, heads, width) {
  const session = await ort.InferenceSession.create(model, { executionProviders: ["webgpu"], logSeverityLevel: 3 });
  const whole = await largestError(ort, session, heads, width, TOKENS);
  const chunked = await largestError(ort, session, heads, width, CHUNK);
  await session.release();
  return { whole, chunked };
}

async function largestError(ort, session, heads, width, size) {
  const empty = () => new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
  let [key, value] = [empty(), empty()];
  let [worst, loud] = [0, 0];
  for (let start = 0; start < TOKENS; start += size) {
    const end = Math.min(start + size, TOKENS);
    const rows = (columns, number) => {
      const data = Float32Array.from({ length: (end - start) * columns }, (_, at) => number(start + Math.floor(at / columns)));
      return new ort.Tensor("float32", data, [1, end - start, columns]);
    };
    const found = await session.run({
      query: rows(2 * heads * width, () => 1),
      key: rows(heads * width, (at) => (at % EVERY ? 0 : SCORE)),
      value: rows(heads * width, (at) => (at % EVERY ? -1 : 1)),
      past_key: key,
      past_value: value,
      seqlens_k: new ort.Tensor("int32", Int32Array.of(end - 1), [1]),
      total: new ort.Tensor("int32", Int32Array.of(end), []),
    });
    [key, value] = [found.present_key, found.present_value];
    const columns = 2 * heads * width;
    for (let at = start; at < end; at++) {
      if (at % EVERY === 0) loud += 1;
      const [weight, others] = [loud * Math.exp(SCORE), at + 1 - loud];
      const expected = (weight - others) / (weight + others);
      for (const seen of found.output.data.subarray((at - start) * columns, (at - start + 1) * columns)) {
        const off = Math.abs(seen - expected);
        worst = off <= worst ? worst : off; // this way round a NaN stays
      }
    }
  }
  return worst;
}
