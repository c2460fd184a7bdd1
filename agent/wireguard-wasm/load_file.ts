/** The module from the file beside this one, for runtimes that have files: Node, Bun and Deno. */
import { readFile } from 'node:fs/promises'

export async function loadModule(): Promise<WebAssembly.Module> {
  return await WebAssembly.compile(
    await readFile(new URL('./wireguard.wasm', import.meta.url)),
  )
}
