// Parity: this browser's runtime against what the artifact answered where the bundle was made.
import { greedy } from "./model.js";

/**
 * Feed a golden case its own tokens and compare every step. An error is relative to the step's largest logit; a
 * different token counts as wrong unless the golden choice was closer than the allowed error.
 */
export async function check(golden, model, text) {
  const reports = [];
  for (const { messages, prompt, steps } of golden.cases) {
    model.reset();
    const samePrompt = equal(text.prompt(messages), prompt);
    let [feed, error, same, wrong] = [prompt, 0, 0, 0];
    for (const { top, logits: expected, scale } of steps) {
      const logits = await model.feed(feed);
      for (const [at, token] of top.entries()) {
        const off = Math.abs(logits[token] - expected[at]) / scale;
        error = off <= error ? error : off; // this way round a NaN stays
      }
      const margin = (expected[0] - expected[1]) / scale;
      if (greedy(logits) === top[0]) same += 1;
      else if (margin > golden.max_error) wrong += 1;
      feed = [top[0]];
    }
    const passed = samePrompt && wrong === 0 && error <= golden.max_error;
    reports.push({ samePrompt, same, steps: steps.length, error, passed });
  }
  model.reset();
  return { reports, passed: reports.length > 0 && reports.every((report) => report.passed) };
}

function equal(one, other) {
  return one.length === other.length && one.every((value, at) => value === other[at]);
}
