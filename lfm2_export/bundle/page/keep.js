// The page's service worker: keeps the bundle's files, so that the next time needs no download and no network.
// Large files are asked for with their SHA-256 and never change; the rest comes from the server while there is one.
// A file goes to the page while it is still being kept; a message is answered once all is kept that was on its way.
const KEPT = "bundle";
const keeping = new Set();

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === self.location.origin) event.respondWith(answer(event));
});
self.addEventListener("message", (event) => {
  event.waitUntil(Promise.allSettled([...keeping]).then(() => event.ports[0].postMessage("kept")));
});

async function answer(event) {
  const { request } = event;
  const kept = await caches.open(KEPT);
  const known = await kept.match(request.url);
  const fixed = new URL(request.url).searchParams.has("sha256");
  if (known && fixed) return known;
  try {
    const response = await fetch(request);
    if (response.ok) {
      const done = keep(kept, request.url, response.clone(), fixed);
      keeping.add(done);
      event.waitUntil(done.finally(() => keeping.delete(done)));
    }
    return response;
  } catch (error) {
    if (known) return known;
    throw error;
  }
}

/** Where there is no room it is not kept, and asked for again the next time. */
async function keep(kept, url, response, fixed) {
  try {
    if (fixed) await kept.delete(url, { ignoreSearch: true });
    await kept.put(url, response);
  } catch (error) {
    console.info(`${url} is not kept: ${error}`);
  }
}
