// onnxruntime-web as transformers.js imports it: the build that the page has loaded for the model already.
const ort = globalThis[Symbol.for("onnxruntime")];
export const { InferenceSession, Tensor, env } = ort;
