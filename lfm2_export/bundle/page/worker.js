// The model's own thread: loads it, chats, checks parity. The page asks with { do: … } and is answered with { on: … }.
import { Drafts } from "./drafts.js";
import { check } from "./golden.js";
import { greedy, Model } from "./model.js";
import { Pictures } from "./pictures.js";
import { Text } from "./text.js";

let [bundle, model, text, fed, stopped] = [null, null, null, [], false];
let [pictures, fedPictures] = [null, []]; // what prepares them, and the ids of those among the tokens that were fed
const seen = new Map(); // id of a picture → its text in the prompt, and its embeddings

const jobs = { load, reply, parity };

self.onmessage = async ({ data }) => {
  if (data.do === "stop") {
    stopped = true;
    return;
  }
  try {
    await jobs[data.do](data);
  } catch (error) {
    postMessage({ on: "problem", message: String(error?.message ?? error) });
  }
};

async function load({ device }) {
  bundle = await json("bundle.json");
  const wanted = [bundle.model, ...Object.values(bundle.parts ?? {})].flatMap(({ file, data }) => [file, ...data]);
  const files = {};
  if (bundle.files["attention.onnx"]) files["attention.onnx"] = await download("attention.onnx", () => {});
  const onModel = counter("the model", bundle.model.bytes);
  for (const name of wanted) files[name] = await download(`model/${name}`, onModel);
  text = new Text(await json("model/tokenizer.json"), await json("model/tokenizer_config.json"));
  const { speculation } = await json("model/manifest.json");
  model = await Model.load(bundle, files, library, device, speculation);
  if (bundle.parts) model.imageToken = (await json("model/config.json")).image_token_id;
  postMessage({ on: "ready", bundle, described: model.described, verifies: model.verifies });
}

/** onnxruntime-web, which the model's own loading asks for once it knows on what to compute. */
async function library(name) {
  const bytes = await download(name, counter("onnxruntime-web", bundle.files[name].size));
  postMessage({ on: "preparing" });
  return bytes;
}

/** What is called with every few bytes that have come, and tells the page. */
function counter(what, all) {
  let done = 0;
  return (bytes) => postMessage({ on: "progress", what, done: (done += bytes), all });
}

/** Answer a conversation. Pictures in it are parts `{ type: "image", id }`; `shown` has the files of new ones, by id. */
async function reply({ messages, shown, limit, drafting }) {
  stopped = false;
  for (const [id, blob] of shown) seen.set(id, await look(blob));
  const wanted = picturesOf(messages);
  const prompt = text.prompt(messages, bundle.parts && wanted.map((id) => seen.get(id).text));
  const known = fed.length < prompt.length && begins(fed, prompt) && begins(fedPictures, wanted);
  if (!known) {
    model.reset();
    [fed, fedPictures] = [[], []];
  }
  const fresh = prompt.slice(fed.length);
  if (prompt.length >= model.window) throw new Error(`The conversation is full (${model.window} tokens). Start a new chat.`);
  const start = performance.now();
  let logits = await feed(fresh, joined(wanted.slice(fedPictures.length).map((id) => seen.get(id).embeddings)));
  fedPictures = wanted;
  const begun = performance.now();
  const drafts = drafting ? new Drafts() : null;
  const alone = { steps: 0, seconds: 0 }; // beside the drafts
  const ids = [];
  for (let ended = false; !ended && ids.length < limit && !stopped && model.position < model.window; ) {
    const token = greedy(logits);
    const room = Math.min(limit - ids.length, model.window - model.position, model.verifies);
    const guesses = drafts?.propose([...fed, token], room - 1) ?? [];
    const [before, called] = [fed.length, performance.now()];
    if (guesses.length) {
      logits = await verified(token, guesses);
      drafts.judged(guesses.length, fed.length - before - 1);
    } else {
      logits = await feed([token]);
      alone.steps += 1;
      alone.seconds += (performance.now() - called) / 1000;
    }
    for (const each of fed.slice(before)) {
      ended = bundle.eos_ids.includes(each);
      if (ended) break;
      ids.push(each);
      postMessage({ on: "piece", text: text.decode(ids) });
    }
    await breath();
  }
  const seconds = [(begun - start) / 1000, (performance.now() - begun) / 1000];
  const memory = bundle.model.bytes + model.stateBytes;
  const drafted = drafts && { drafted: drafts.drafted, accepted: drafts.accepted, alone };
  postMessage({ on: "done", text: text.decode(ids), ids, prompt: fresh.length, seconds, memory, drafted });
}

/** Feed a token and as many of the guesses at what follows as are right, none behind a stop token. */
async function verified(token, guesses) {
  const tokens = [token, ...guesses];
  const rows = await model.verify(tokens);
  let last = 0;
  while (!bundle.eos_ids.includes(tokens[last]) && last < guesses.length && greedy(rows[last]) === guesses[last]) last += 1;
  model.keep(last + 1);
  fed.push(...tokens.slice(0, last + 1));
  return rows[last];
}

/** A picture through the processor and the image part. */
async function look(blob) {
  const { text, tiles } = await prepare(blob);
  const embeddings = [];
  for (const tile of tiles) embeddings.push(await model.encode(tile));
  return { text, embeddings: joined(embeddings) };
}

/** A picture through the processor alone, which is loaded for the first one. */
async function prepare(blob) {
  pictures ??= await Pictures.load(model.ort, await json("model/preprocessor_config.json"));
  return pictures.prepare(blob);
}

function picturesOf(messages) {
  const parts = messages.flatMap(({ content }) => (typeof content === "string" ? [] : content));
  return parts.filter(({ type }) => type === "image").map(({ id }) => id);
}

function begins(one, other) {
  return one.length <= other.length && one.every((value, at) => value === other[at]);
}

function joined(arrays) {
  const whole = new Float32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  arrays.reduce((at, array) => (whole.set(array, at), at + array.length), 0);
  return whole;
}

async function parity() {
  [fed, fedPictures] = [[], []];
  const golden = await json("golden.json");
  const result = await check(golden, model, text, prepare);
  const cases = golden.cases.map((one) => said(one.messages.at(-1)));
  postMessage({ on: "parity", ...result, cases, golden, described: model.described });
}

/** The text of a message. */
function said({ content }) {
  return typeof content === "string" ? content : content.map(({ text }) => text ?? "[picture] ").join("");
}

async function feed(tokens, images) {
  const logits = await model.feed(tokens, images);
  fed.push(...tokens);
  return logits;
}

/** Let messages in between two tokens; a promise alone would not. */
function breath() {
  return new Promise((resume) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resume();
    };
    port2.postMessage(null);
  });
}

async function json(name) {
  return (await get(name)).json();
}

/** A large file's bytes, held once. */
async function download(name, onBytes) {
  const { size, sha256 } = bundle.files[name];
  const response = await get(`${name}?sha256=${sha256}`);
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > size) throw new Error(`${name} is larger than bundle.json says.`);
    bytes.set(value, at);
    at += value.length;
    onBytes(value.length);
  }
  if (at !== size) throw new Error(`${name} is cut short: ${at} of ${size} bytes.`);
  await verify(name, bytes, sha256);
  return bytes;
}

/** Browsers hash only for pages from https or this machine; elsewhere the bytes are taken as they come. */
async function verify(name, bytes, expected) {
  if (!self.crypto.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) throw new Error(`${name} is damaged: its SHA-256 is not the one in bundle.json.`);
}

async function get(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}.`);
  return response;
}
