// A web bundle in headless Chromium, used as a person would. Job: { folder, turns, scheme, … } → what was seen.
// `screenshots` is a folder for pictures; `stopAfter` presses Stop once a reply is that many characters long.
import { launch, openPage } from "./chromium.mjs";
import { finish, job } from "./job.mjs";
import { serve } from "./serve.mjs";

const server = await serve({ "/": job.folder });
const browser = await launch();
const { page, complaints } = await openPage(browser, `${server.url}/index.html`, { scheme: job.scheme });
const shot = (name) => job.screenshots && page.screenshot({ path: `${job.screenshots}/${job.scheme}-${name}.png` });
const problems = () => page.$$eval(".problem", (found) => found.map((each) => each.textContent));
const settled = () => !document.getElementById("send").disabled || document.querySelector(".problem");
await page.waitForFunction(settled, { timeout: 300_000 });

const replies = [];
for (const text of job.turns) {
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
  await page.waitForFunction(() => !document.getElementById("verdict").textContent.startsWith("Checking"));
  await shot("parity");
  parity = {
    verdict: await page.$eval("#verdict", (line) => line.textContent),
    rows: await page.$$eval("#cases tr", (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))),
  };
}
const facts = await page.$eval("#facts", (line) => line.textContent);
const result = { replies, said, speed, facts, parity, problems: await problems(), complaints };
await browser.close();
server.close();
finish(result);
