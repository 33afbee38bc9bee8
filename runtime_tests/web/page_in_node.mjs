// A web bundle's golden cases by the page's own code, in Node on the GPU that Vulkan finds: where no browser's GPU has fp16.
// By hand, since Dawn's package is large: npm install --no-save --ignore-scripts webgpu@0.6.2
// usage: node page_in_node.mjs BUNDLE
import { readFile } from "node:fs/promises";
import path from "node:path";
import { create, globals } from "webgpu";

Object.assign(globalThis, globals, { self: globalThis });
Object.defineProperty(globalThis.navigator, "gpu", { value: create([]) });
const bundleFolder = path.resolve(process.argv[2]);
const bytes = async (name) => new Uint8Array(await readFile(path.join(bundleFolder, name)));
const json = async (name) => JSON.parse(await readFile(path.join(bundleFolder, name), "utf8"));
const page = (name) => import(path.join(bundleFolder, name));

const [{ Model }, { Text }, { check }] = [await page("model.js"), await page("text.js"), await page("golden.js")];
const bundle = await json("bundle.json");
const files = { "attention.onnx": await bytes("attention.onnx") };
for (const name of [bundle.model.file, ...bundle.model.data]) files[name] = await bytes(`model/${name}`);
const model = await Model.load(bundle, files, bytes, "webgpu");
const text = new Text(await json("model/tokenizer.json"), await json("model/tokenizer_config.json"));
const { passed, reports } = await check(await json("golden.json"), model, text);
console.log(model.described);
console.table(reports);
process.exit(passed ? 0 : 1);
