// The service worker: the app opens without a network. What it is made of is kept when it is installed, detectors when
// the app asks for it. Requests to the server's interface are never touched.

const CACHE = "haversack-__VERSION__";
const SHELL = __SHELL__;
const PARTS = __PARTS__;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(SHELL)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const others = async () => {
    for (const name of await caches.keys()) if (name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(others());
});

/** Keeps the parts whose names begin with one of `keep`, so that they are there without a network. */
self.addEventListener("message", (event) => {
  const keep = async () => {
    const cache = await caches.open(CACHE);
    for (const name of PARTS.filter((part) => event.data.keep.some((begin) => part.startsWith(begin))))
      if (!(await cache.match(name))) await cache.add(name);
  };
  event.waitUntil(keep());
});

self.addEventListener("fetch", (event) => {
  const address = new URL(event.request.url);
  const ours = address.origin === location.origin && event.request.method === "GET";
  if (!ours || /^\/(v1|dashboard|metrics|healthz)/.test(address.pathname)) return;
  const answer = async () => {
    const cache = await caches.open(CACHE);
    const kept = await cache.match(event.request, { ignoreSearch: true });
    if (kept) return kept;
    const response = await fetch(event.request);
    if (response.ok) await cache.put(event.request, response.clone());
    return response;
  };
  event.respondWith(answer());
});
