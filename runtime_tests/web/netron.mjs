// A model in the real Netron. Job: { url (of Netron's own server), operator, weight, screenshot? } → what is drawn.
// The first node of that operator is clicked, and what its input of that name holds is asked for.
import { launch, openPage } from "./chromium.mjs";
import { finish, job } from "./job.mjs";

const html = await (await fetch(job.url)).text();
const released = html.match(/<meta name="date" content="([\d-]+)/)[1];

async function prepare(page) {
  await page.evaluateOnNewDocument((day) => {
    // a release of Netron half a year old only asks to be replaced: let the page have the day it is from
    globalThis.Date = class extends Date {
      constructor(...given) {
        super(...(given.length ? given : [day]));
      }
    };
    navigator.sendBeacon = () => true; // its statistics go nowhere
  }, released);
  // the notice about cookies has been accepted once; without this it asks the internet which country it is in
  await page.setCookie({ url: job.url, name: "consent", value: "1" });
}

const browser = await launch();
const { page, complaints } = await openPage(browser, job.url, { width: 1400, height: 1000, prepare });
const read = [];
page.on("request", (request) => read.push(new URL(request.url()).pathname));
// "default" once a graph is shown; "alert" and "notification" are its dialogs
await page.waitForFunction(() => /default|alert|notification/.test(document.body.className), { timeout: 120_000 });
const dialog = await page.evaluate(() => document.body.className !== "default" && document.body.innerText);
if (dialog) throw new Error(dialog);

const drawn = await page.$$eval("#nodes .node-item", (items) =>
  items
    .filter((item) => item.getBoundingClientRect().width > 0)
    .map((item) => ({
      kind: item.getAttribute("class").match(/input|output|type/)[0],
      text: item.querySelector("text").textContent,
      name: item.querySelector("title")?.textContent, // of a node; of inputs and outputs, their type and shape
    })),
);
if (job.screenshot) await page.screenshot({ path: job.screenshot });

const [node] = await page.$$(`xpath/.//*[@id="nodes"]//*[local-name()="text"][.="${job.operator}"]`);
await node.click();
const value = `xpath/.//*[@class="sidebar-item"][.//input[@value="${job.weight}"]]`;
await (await page.waitForSelector(`${value}//*[.="+"]`)).evaluate((more) => more.click()); // it is still sliding in
const tensor = await page.waitForSelector(`${value}//pre[translate(., "0123456789", "") != .]`); // once it has numbers
const values = (await tensor.evaluate((text) => text.textContent.match(/-?\d[\d.e+-]*/g))).map(Number);
if (job.screenshot) await page.screenshot({ path: job.screenshot.replace(".png", "-weight.png") });
await browser.close();
finish({ drawn, values, read, complaints });
