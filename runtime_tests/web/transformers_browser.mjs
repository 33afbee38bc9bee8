// transformers.js in headless Chromium, on WebAssembly or, with `device: "webgpu"`, on WebGPU.
// Job and result as in transformers_node.mjs, and `error`.
import path from "node:path";
import { fileURLToPath } from "node:url";
import { launch, openPage, WEBGPU } from "./chromium.mjs";
import { finish, job } from "./job.mjs";
import { serve } from "./serve.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const server = await serve({
  "/": path.join(here, "pages"),
  "/packages/": path.join(here, "node_modules"),
  "/artifact/": job.folder,
});
const browser = await launch(job.device === "webgpu" ? WEBGPU : []);
const { page, complaints } = await openPage(browser, `${server.url}/transformers.html`);
await page.waitForFunction("window.run");
const run = (asked) => window.run(asked).catch((error) => ({ error: String(error) }));
const result = await page.evaluate(run, { ...job, folder: "artifact" });
const chromium = await browser.version();
await browser.close();
server.close();
finish({ ...result, chromium, complaints });
