// The artifact in onnxruntime-web: tokens in, logits out, one conversation's state kept here.
import * as ort from "./runtime/onnxruntime.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("runtime/onnxruntime.wasm", import.meta.url).href };
// Threads need shared memory, which browsers give only to a page served with COOP and COEP headers.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

export const threads = ort.env.wasm.numThreads;

export class Model {
  #session;
  #states;
  #past;
  position = 0;

  /** `files` maps the names in `bundle.model` to their bytes. */
  static async load(bundle, files) {
    const { file, data } = bundle.model;
    // external data is found by its file name alone, as the model spells it
    const externalData = data.map((name) => ({ path: name.split("/").at(-1), data: files[name] }));
    const options = { executionProviders: ["wasm"], externalData, logSeverityLevel: 3 }; // 3: errors only
    const session = await ort.InferenceSession.create(files[file], options);
    return new Model(session, bundle);
  }

  constructor(session, bundle) {
    this.#session = session;
    this.#states = bundle.states;
    this.window = bundle.window;
    this.reset();
  }

  /** Forget everything: conv states are zero and caches have no columns yet. */
  reset() {
    this.position = 0;
    this.#past = {};
    for (const { past, shape } of this.#states) {
      const sizes = shape.map((size) => (typeof size === "number" ? size : size === "batch_size" ? 1 : 0));
      const count = sizes.reduce((product, size) => product * size, 1);
      this.#past[past] = new ort.Tensor("float32", new Float32Array(count), sizes);
    }
  }

  /** Go on with these token ids; resolves to the logits of the last one, a Float32Array. */
  async feed(tokens) {
    const total = this.position + tokens.length;
    if (!tokens.length || total > this.window) throw new RangeError(`${total} tokens do not fit ${this.window}`);
    const outputs = await this.#session.run({
      input_ids: row(tokens),
      attention_mask: row(new Array(total).fill(1)),
      position_ids: row(tokens.map((_, index) => this.position + index)),
      ...this.#past,
    });
    for (const { past, present } of this.#states) this.#past[past] = outputs[present];
    this.position = total;
    return outputs.logits.data;
  }
}

/** The most likely token, the lowest id among equals. */
export function greedy(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token] > logits[best]) best = token;
  return best;
}

function row(values) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}
