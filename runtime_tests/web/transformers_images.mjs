// transformers.js under Node, with images. Job: { folder, tokens, pixels, patches, shapes, newTokens }, `pixels` the values
// of all images' patches, each image padded to as many `patches`, `shapes` rows and columns of each → { version, reply }.
import { AutoModelForImageTextToText, Tensor, env } from "@huggingface/transformers";
import { finish, job } from "./job.mjs";

env.allowRemoteModels = false;
env.localModelPath = "/";
const model = await AutoModelForImageTextToText.from_pretrained(job.folder, { device: "cpu" });
const whole = (values, ...dims) => new Tensor("int64", BigInt64Array.from(values, BigInt), dims);
const images = job.shapes.length;
const masks = job.shapes.map(([rows, columns]) => Array.from({ length: job.patches }, (_, i) => Number(i < rows * columns)));
const output = await model.generate({
  input_ids: whole(job.tokens, 1, job.tokens.length),
  attention_mask: whole(job.tokens.map(() => 1), 1, job.tokens.length),
  pixel_values: new Tensor("float32", Float32Array.from(job.pixels), [images, job.patches, job.pixels.length / images / job.patches]),
  pixel_attention_mask: whole(masks.flat(), images, job.patches),
  spatial_shapes: whole(job.shapes.flat(), images, 2),
  max_new_tokens: job.newTokens,
  do_sample: false,
});
const reply = output.tolist()[0].slice(job.tokens.length).map(Number);
finish({ version: env.version, class: model.constructor.name, reply });
