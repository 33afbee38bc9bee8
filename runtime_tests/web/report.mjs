// A report page in headless Chromium. Job: { file, scheme, width, screenshot?, pdf? } → what was seen.
import path from "node:path";
import { launch, openPage } from "./chromium.mjs";
import { finish, job } from "./job.mjs";
import { serve } from "./serve.mjs";

const server = await serve({ "/": path.dirname(job.file) });
const browser = await launch();
const address = `${server.url}/${path.basename(job.file)}`;
const { page, complaints } = await openPage(browser, address, { scheme: job.scheme, width: job.width });
let requests = 0;
page.on("request", (request) => (requests += request.url().startsWith("data:") ? 0 : 1));
await page.reload();
const seen = await page.evaluate(() => ({
  title: document.title,
  verdict: document.querySelector("#verdict")?.innerText ?? null,
  first: document.querySelector("main").firstElementChild.id,
  tables: Object.fromEntries([...document.querySelectorAll("table[id]")].map((table) => [table.id, table.rows.length])),
  charts: [...document.querySelectorAll("svg.chart")].map((chart) => ({
    label: chart.getAttribute("aria-label"),
    width: chart.getBoundingClientRect().width,
    drawn: chart.querySelectorAll("path").length,
    texts: [...chart.querySelectorAll("text")].map((text) => text.textContent),
    lines: [...chart.querySelectorAll("path")].map((path) => getComputedStyle(path).stroke),
    ink: getComputedStyle(chart.querySelector("text")).fill,
  })),
  pictures: [...document.images].map((image) => [image.naturalWidth, image.naturalHeight]),
  background: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length,
  sideways: document.documentElement.scrollWidth > document.documentElement.clientWidth,
}));
if (job.screenshot) await page.screenshot({ path: job.screenshot, fullPage: true });
if (job.pdf) await page.pdf({ path: job.pdf });
await browser.close();
server.close();
finish({ ...seen, requests, complaints });
