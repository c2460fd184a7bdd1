/** The WebAssembly module of WireGuard, from its file or out of the program that it was built into. */
import path from '../wireguard-wasm/wireguard.wasm' with { type: 'file' }

export async function compileModule(): Promise<WebAssembly.Module> {
  return await WebAssembly.compile(await Bun.file(path).arrayBuffer())
}
