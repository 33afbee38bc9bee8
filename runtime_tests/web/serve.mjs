// A static file server for tests: folders under URL prefixes, on a free port of this machine only.
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";

const LARGE = 200_000; // bytes
const TYPES = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

/**
 * Serve `{ "/prefix/": folder }`; the longest prefix wins. `pause`: milliseconds between the halves of a large file.
 * Returns `{ url, close }`.
 */
export async function serve(mounts, pause = 0) {
  const prefixes = Object.keys(mounts).sort((a, b) => b.length - a.length);
  const server = createServer(async (request, response) => {
    const asked = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const prefix = prefixes.find((known) => asked.startsWith(known));
    const file = prefix && path.join(mounts[prefix], path.normalize("/" + asked.slice(prefix.length)));
    const found = file && (await stat(file).catch(() => null));
    if (!found?.isFile()) {
      response.writeHead(404).end();
      return;
    }
    const type = TYPES[path.extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { "content-type": type, "content-length": found.size });
    const half = Math.ceil(found.size / 2);
    if (pause && half > LARGE) {
      createReadStream(file, { end: half - 1 }).pipe(response, { end: false });
      await new Promise((done) => setTimeout(done, pause));
      createReadStream(file, { start: half }).pipe(response);
    } else createReadStream(file).pipe(response);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => (server.closeAllConnections(), server.close()) };
}
