// A web bundle in headless Chromium, used as a person would. Job: { folder, turns, scheme, … } → what was seen.
// `screenshots` is a folder for pictures; `stopAfter` presses Stop once a reply is that many characters long; `device` is
// the page's own choice; with `offline` the server is gone and the page opened once more before anything is asked;
// with `drafts` the page's box for them is ticked first; `pause` is for how many milliseconds the server stops within each large file; `prompts` are token ids, each fed to the
// page's own model at once, and answered with the logits of the last token; `pictures` are files to show with each turn, of
// which the first is chosen and the others are dropped.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { launch, openPage, WEBGPU } from "./chromium.mjs";
import { finish, job } from "./job.mjs";
import { serve } from "./serve.mjs";

const server = await serve({ "/": job.folder }, job.pause);
const browser = await launch(job.device === "webgpu" ? WEBGPU : []);
const address = `${server.url}/index.html${job.device ? `?device=${job.device}` : ""}`;
const watch = (page) => page.evaluateOnNewDocument(watchLoading);
const { page, complaints } = await openPage(browser, address, { scheme: job.scheme, prepare: watch });
const shot = (name) => job.screenshots && page.screenshot({ path: `${job.screenshots}/${job.scheme}-${name}.png` });
const problems = () => page.$$eval(".problem", (found) => found.map((each) => each.textContent));
const settled = () => !document.getElementById("send").disabled || document.querySelector(".problem");
await page.waitForFunction(settled, { timeout: 300_000 });
const loading = await page.evaluate(() => globalThis.loading);
if (job.offline) {
  await page.waitForFunction(() => document.documentElement.dataset.kept, { timeout: 60_000 });
  server.close();
  await page.reload();
  await page.waitForFunction(settled, { timeout: 300_000 });
}

if (job.drafts) await page.click("#drafts");
const replies = [];
for (const [turn, text] of job.turns.entries()) {
  const [chosen, ...dropped] = job.pictures?.[turn] ?? [];
  if (chosen) await (await page.$("#picture")).uploadFile(chosen);
  for (const file of dropped) await page.evaluate(drop, path.basename(file), await readFile(file, "base64"));
  await page.type("#text", text);
  await page.keyboard.press("Enter");
  if (job.stopAfter) {
    const long = (length) => document.querySelector("#talk > :last-child").textContent.length >= length;
    await page.waitForFunction(long, { timeout: 240_000 }, job.stopAfter);
    await page.click("#send");
  }
  await page.waitForFunction(() => document.getElementById("send").textContent === "Send", { timeout: 300_000 });
  replies.push(await page.$$eval(".assistant", (turns) => turns.at(-1)?.textContent ?? null));
}
const speed = await page.$eval("#speed", (line) => line.textContent);
await shot("chat");
const said = await page.$$eval(".user", (turns) => turns.map((turn) => [turn.textContent, turn.childElementCount]));

let parity = null;
if ((await problems()).length === 0) {
  await page.click("#check");
  const judged = () => !document.getElementById("verdict").textContent.startsWith("Checking");
  await page.waitForFunction(judged, { timeout: 300_000 });
  await shot("parity");
  parity = {
    verdict: await page.$eval("#verdict", (line) => line.textContent),
    rows: await page.$$eval("#cases tr", (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))),
  };
}
const facts = await page.$eval("#facts", (line) => line.textContent);
const logits = await page.evaluate(feedAll, job.prompts ?? [], job.device ?? null);
const result = { loading, replies, said, speed, facts, parity, logits, problems: await problems(), complaints };
await browser.close();
server.close();
finish(result);

/** As somebody would who drags a file onto the page. */
function drop(name, base64) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([Uint8Array.from(atob(base64), (each) => each.charCodeAt(0))], name));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}

/** Remember what the page says while it loads, how far its bar is then, and when that is. */
function watchLoading() {
  globalThis.loading = [];
  document.addEventListener("DOMContentLoaded", () => {
    const [status, bar] = [document.getElementById("status"), document.getElementById("progress")];
    const remember = () => globalThis.loading.push([status.textContent, bar.position, performance.now()]);
    new MutationObserver(remember).observe(status, { childList: true });
  });
}

async function feedAll(prompts, device) {
  if (!prompts.length) return [];
  const { Model } = await import("./model.js");
  const bundle = await (await fetch("bundle.json")).json();
  const names = [bundle.model.file, ...bundle.model.data];
  const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  const files = { "attention.onnx": await bytes("attention.onnx") };
  for (const name of names) files[name] = await bytes(`model/${name}`);
  const model = await Model.load(bundle, files, bytes, device);
  const found = [];
  for (const tokens of prompts) {
    model.reset();
    found.push([...(await model.feed(tokens))]);
  }
  return found;
}
