// The page's service worker: keeps the bundle's files, so that the next time needs no download and no network.
// Large files are asked for with their SHA-256 and never change; the rest comes from the server while there is one.
const KEPT = "bundle";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === self.location.origin) event.respondWith(answer(event.request));
});

async function answer(request) {
  const kept = await caches.open(KEPT);
  const known = await kept.match(request.url);
  const fixed = new URL(request.url).searchParams.has("sha256");
  if (known && fixed) return known;
  try {
    const response = await fetch(request);
    if (response.ok) {
      if (fixed) await kept.delete(request.url, { ignoreSearch: true });
      await kept.put(request.url, response.clone());
    }
    return response;
  } catch (error) {
    if (known) return known;
    throw error;
  }
}
