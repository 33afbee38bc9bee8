// Parity: this browser's runtime against what the artifact answered where the bundle was made.
import { greedy } from "./model.js";

const PIXELS = 0.03; // the most by which the pixels of a picture may differ in the mean: filters differ at edges

/**
 * Feed a golden case its own tokens and compare every step. An error is relative to the step's largest logit; a
 * different token counts as wrong unless the golden choice was closer than the allowed error. A case with pictures is fed
 * its own pixels; of the pictures `prepare` must make much the same, and the same prompt.
 */
export async function check(golden, model, text, prepare) {
  const reports = [];
  for (const { messages, prompt, steps, pictures = [], images = [] } of golden.cases) {
    model.reset();
    const prepared = [];
    for (const picture of pictures) prepared.push(await prepare(new Blob([bytes(picture)])));
    const tiles = images.map(({ rows, columns, patches }) => ({ rows, columns, patches: new Float32Array(bytes(patches).buffer) }));
    const texts = pictures.length ? prepared.map((each) => each.text) : null;
    const samePrompt = equal(text.prompt(messages, texts), prompt);
    const pixels = difference(prepared.flatMap((each) => each.tiles), tiles);
    const embeddings = [];
    for (const tile of tiles) embeddings.push(...(await model.encode(tile)));
    let [feed, error, same, wrong] = [prompt, 0, 0, 0];
    for (const { top, logits: expected, scale } of steps) {
      const logits = await model.feed(feed, feed === prompt ? Float32Array.from(embeddings) : undefined);
      for (const [at, token] of top.entries()) {
        const off = Math.abs(logits[token] - expected[at]) / scale;
        error = off <= error ? error : off; // this way round a NaN stays
      }
      const margin = (expected[0] - expected[1]) / scale;
      if (greedy(logits) === top[0]) same += 1;
      else if (margin > golden.max_error) wrong += 1;
      feed = [top[0]];
    }
    const passed = samePrompt && pixels <= PIXELS && wrong === 0 && error <= golden.max_error;
    reports.push({ samePrompt, pixels, samePixels: pixels <= PIXELS, same, steps: steps.length, error, passed });
  }
  model.reset();
  return { reports, passed: reports.length > 0 && reports.every((report) => report.passed) };
}

function equal(one, other) {
  return one.length === other.length && one.every((value, at) => value === other[at]);
}

/** The mean difference of the pixels of these tiles; Infinity where they are not of the same sizes. */
function difference(ours, theirs) {
  const sizes = (tiles) => tiles.flatMap(({ rows, columns, patches }) => [rows, columns, patches.length]);
  if (!equal(sizes(ours), sizes(theirs))) return Infinity;
  let [sum, count] = [0, 0];
  ours.forEach(({ patches }, tile) => {
    patches.forEach((value, at) => (sum += Math.abs(value - theirs[tile].patches[at])));
    count += patches.length;
  });
  return count ? sum / count : 0;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
