// The artifact in onnxruntime-web: tokens in, logits out, one conversation's state kept here.
import { CHUNK, LIMIT, tryAttention } from "./attention.js";
import { require } from "./required.js";

// browsers that have no array of fp16 yet get its bits
const ARRAYS = { float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array };
const COUNTS = ["num_logits_to_keep", "num_states_to_keep"]; // inputs that have a default, which is 1
const BUILDS = { webgpu: "onnxruntime-webgpu", wasm: "onnxruntime" };

export class Model {
  #ort;
  #session;
  #parts; // sessions of what stands before the decoder of a model that takes images, by name
  #states;
  #past;
  #chunk;
  #verified = null; // outputs of the last `verify`
  position = 0;
  imageToken = null; // which stands for an embedding of an image

  /**
   * `files` maps the names in `bundle.model` and `bundle.parts`, and `attention.onnx`, to their bytes, and `download` resolves to those of
   * any other file of the bundle. On WebGPU where the browser has it and its GPU is one, else on WebAssembly; `device`,
   * "webgpu" or "wasm", asks for one of them, a GPU in software too. WebAssembly verifies `drafts` of so many tokens.
   */
  static async load(bundle, files, download, device = null, drafts = 0) {
    let why = null;
    if (device !== "wasm") {
      try {
        return await openOnGpu(bundle, files, download, device === "webgpu");
      } catch (error) {
        why = `not on WebGPU: ${String(error?.message ?? error).split("\n")[0]}`;
        if (device === "webgpu") throw new Error(`${why}. Without ?device=webgpu this page computes on WebAssembly.`);
      }
    }
    const ort = await library("wasm", download);
    const threads = ort.env.wasm.numThreads;
    const described = `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
    if (drafts) require(files[bundle.model.file], COUNTS);
    const opened = await sessions(ort, bundle, files, "wasm");
    return new Model(ort, opened, bundle, why ? `${described} (${why})` : described, { verifies: drafts });
  }

  /**
   * `described` says what computes, for people; `chunk` is the most tokens that one call may have, and `verifies` the most
   * of a `verify`, 0 where there is none.
   */
  constructor(ort, [session, parts], bundle, described, { chunk = Infinity, verifies = 0 }) {
    this.#ort = ort;
    this.#session = session;
    this.#parts = parts;
    this.#states = bundle.states;
    this.#chunk = chunk;
    this.verifies = verifies;
    this.window = bundle.window;
    this.described = described;
    this.reset();
  }

  /** onnxruntime-web, as it was loaded. */
  get ort() {
    return this.#ort;
  }

  /** Bytes of this conversation's state. */
  get stateBytes() {
    const bytes = ({ dims, type }) => dims.reduce((product, size) => product * size, ARRAYS[type].BYTES_PER_ELEMENT);
    return Object.values(this.#past).reduce((sum, tensor) => sum + bytes(tensor), 0);
  }

  /** Forget everything: conv states are zero and caches have no columns yet. */
  reset() {
    this.position = 0;
    this.#keep({});
    for (const { past, dtype, shape } of this.#states) {
      const sizes = shape.map((size) => (typeof size === "number" ? size : size === "batch_size" ? 1 : 0));
      const count = sizes.reduce((product, size) => product * size, 1);
      this.#past[past] = new this.#ort.Tensor(dtype, new ARRAYS[dtype](count), sizes);
    }
  }

  /** The embeddings of one tile, a Float32Array of all its places. */
  async encode({ patches, rows, columns }) {
    const count = rows * columns;
    const { image_features } = await this.#parts.vision_encoder.run({
      pixel_values: new this.#ort.Tensor("float32", patches, [1, count, patches.length / count]),
      pixel_attention_mask: this.#integers(new Array(count).fill(1), [1, count]),
      spatial_shapes: this.#integers([rows, columns], [1, 2]),
    });
    return image_features.data;
  }

  /**
   * Go on with these token ids; resolves to the logits of the last one, a Float32Array. What stands for images among them
   * has the embeddings `images`, all in one Float32Array.
   */
  async feed(tokens, images = new Float32Array(0)) {
    const total = this.position + tokens.length;
    if (!tokens.length || total > this.window) throw new RangeError(`${total} tokens do not fit ${this.window}`);
    const places = (ids) => ids.filter((token) => token === this.imageToken).length;
    const width = images.length && images.length / places(tokens);
    let [logits, seen] = [null, 0];
    for (let start = 0; start < tokens.length; start += this.#chunk) {
      const chunk = tokens.slice(start, start + this.#chunk);
      logits = await this.#call(chunk, images.subarray(seen));
      seen += places(chunk) * width;
    }
    return logits;
  }

  /** The logits after each of these tokens, a Float32Array each. None is part of the conversation until `keep`. */
  async verify(tokens) {
    if (tokens.length > this.verifies) throw new RangeError(`${tokens.length} tokens to verify, of ${this.verifies}`);
    this.#verified = await this.#run(tokens, tokens.length);
    const rows = floats(this.#verified.logits);
    const size = rows.length / tokens.length;
    return tokens.map((_, row) => rows.subarray(row * size, (row + 1) * size));
  }

  /** Take the first `count` tokens of the last `verify`, at least one, into the conversation; let go of the others. */
  keep(count) {
    const outputs = this.#verified;
    // keys and values of the others lie behind the position, where no call looks
    const state = this.#states.map(({ past, present, shape }) => {
      if (shape.length === 4) return [past, outputs[present]];
      const axis = past.startsWith("past_conv.") ? 2 : 1; // of tokens, in what each call replaces
      return [past, this.#columns(outputs[present], axis, count - 1, shape[axis])];
    });
    this.#keep(Object.fromEntries(state));
    this.position += count;
  }

  async #call(tokens, images) {
    const outputs = await this.#run(tokens, 1, images);
    this.#keep(Object.fromEntries(this.#states.map(({ past, present }) => [past, outputs[present]])));
    this.position += tokens.length;
    return floats(outputs.logits);
  }

  /** What the graph gives: logits of the last `kept` tokens, and the states behind each of them. */
  async #run(tokens, kept, images) {
    const total = this.position + tokens.length;
    if (total > this.window) throw new RangeError(`${total} tokens do not fit ${this.window}`);
    const row = (values) => this.#integers(values, [1, values.length]);
    return this.#session.run({
      ...(this.#parts ? { inputs_embeds: await this.#embedded(tokens, images) } : { input_ids: row(tokens) }),
      attention_mask: row(new Array(total).fill(1)),
      position_ids: row(tokens.map((_, index) => this.position + index)),
      ...(this.verifies && Object.fromEntries(COUNTS.map((name) => [name, this.#integers([kept], [])]))),
      ...this.#past,
    });
  }

  /** What the decoder of a model that takes images is given for tokens, the first of `images` in its places. */
  async #embedded(tokens, images) {
    const { inputs_embeds } = await this.#parts.embed_tokens.run({ input_ids: this.#integers(tokens, [1, tokens.length]) });
    if (!images?.length) return inputs_embeds;
    const [size, data] = [inputs_embeds.dims[2], Float32Array.from(inputs_embeds.data)];
    let seen = 0;
    tokens.forEach((token, at) => {
      if (token === this.imageToken) data.set(images.subarray(seen, (seen += size)), at * size);
    });
    return new this.#ort.Tensor("float32", data, inputs_embeds.dims);
  }

  #integers(values, dims) {
    return new this.#ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  }

  /** Some columns of a tensor, along one of its axes. */
  #columns({ type, data, dims }, axis, start, size) {
    const width = dims.slice(axis + 1).reduce((product, each) => product * each, 1);
    const cut = [];
    for (let row = 0; row < data.length; row += dims[axis] * width) cut.push(data.subarray(row + start * width, row + (start + size) * width));
    const whole = new data.constructor(cut.length * size * width);
    cut.forEach((part, index) => whole.set(part, index * size * width));
    return new this.#ort.Tensor(type, whole, dims.with(axis, size));
  }

  /** A new state; what the old one holds on the GPU is freed. */
  #keep(state) {
    for (const tensor of Object.values(this.#past ?? {})) if (tensor.location === "gpu-buffer") tensor.dispose();
    this.#past = state;
    this.#verified = null;
  }
}

/** The most likely token, the lowest id among equals. */
export function greedy(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token] > logits[best]) best = token;
  return best;
}

/** Whether the state, and with it the whole graph, is fp16. */
function isHalf(bundle) {
  return bundle.states.some(({ dtype }) => dtype === "float16");
}

/** A tensor's numbers as a Float32Array. */
function floats({ type, data }) {
  if (type === "float32") return data;
  if (!(data instanceof Uint16Array)) return Float32Array.from(data);
  return Float32Array.from(data, (bits) => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent === 31 ? (fraction ? NaN : Infinity) : exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
    return bits >> 15 ? -size : size;
  });
}

async function openOnGpu(bundle, files, download, software) {
  if (!navigator.gpu) throw new Error("this browser has none");
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("it finds no GPU");
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const name = [vendor, architecture, description].filter(Boolean).join(" ") || "an unnamed GPU";
  const isSoftware = isFallbackAdapter || /swiftshader|llvmpipe/i.test(name);
  if (isSoftware && !software) throw new Error(`${name} is no GPU but software`);
  if (isHalf(bundle) && !adapter.features.has("shader-f16")) throw new Error(`${name} does not compute in fp16 (shader-f16), which ${bundle.recipe} needs`);
  const ort = await library("webgpu", download);
  let [chunk, prompts] = [Infinity, "prompts whole"];
  const key = bundle.states.find(({ past, shape }) => past.endsWith(".key") && shape.length === 4); // no sliding one
  if (key) {
    const { whole, chunked } = await tryAttention(ort, files["attention.onnx"], key.shape[1], key.shape[3]);
    if (!(chunked <= LIMIT)) throw new Error(`${name} computes attention wrongly, by ${chunked.toPrecision(2)}`);
    if (!(whole <= LIMIT)) {
      [chunk, prompts] = [CHUNK, `prompts in chunks of ${CHUNK}: whole ones are wrong by ${whole.toPrecision(2)}`];
    }
  }
  const described = `WebGPU on ${name}${isSoftware ? " (software)" : ""}, ${prompts}`;
  return new Model(ort, await sessions(ort, bundle, files, "webgpu"), bundle, described, { chunk });
}

async function library(device, download) {
  const ort = await import(`./runtime/${BUILDS[device]}.mjs`);
  ort.env.wasm.wasmBinary = await download(`runtime/${BUILDS[device]}.wasm`);
  // Threads need shared memory, which browsers give only to a page served with COOP and COEP headers.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  return ort;
}

/** The decoder's session, and those of `bundle.parts` by name, where it has some. */
async function sessions(ort, bundle, files, device) {
  const decoder = await session(ort, bundle.model, files, device, device === "webgpu" ? bundle.states : []);
  if (!bundle.parts) return [decoder, null];
  const parts = {};
  for (const [name, part] of Object.entries(bundle.parts)) parts[name] = await session(ort, part, files, device, []);
  return [decoder, parts];
}

function session(ort, { file, data }, files, device, onGpu) {
  // external data is found by its file name alone, as the model spells it
  const externalData = data.map((name) => ({ path: name.split("/").at(-1), data: files[name] }));
  const options = { executionProviders: [device], externalData, logSeverityLevel: 3 }; // 3: errors only
  if (onGpu.length) {
    options.preferredOutputLocation = Object.fromEntries(onGpu.map(({ present }) => [present, "gpu-buffer"]));
  }
  return ort.InferenceSession.create(files[file], options);
}
