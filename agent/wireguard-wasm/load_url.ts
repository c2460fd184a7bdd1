/** The module from beside this file, over HTTP, for browsers. */

/** `url` where a bundler has moved it. */
export async function loadModule(
  url: URL | string = new URL('./wireguard.wasm', import.meta.url),
) {
  const response = await fetch(url)
  if (!response.ok) {
    throw new Error(`Cannot load ${url}: found status ${response.status}`)
  }
  return await WebAssembly.compile(await response.arrayBuffer())
}
