// The Rust that builds this package. Debian's tools by full name: shims of rustup may come first in PATH, and
// have no core to build.
import { existsSync } from 'node:fs'

function tool(variable, candidates) {
  const found = process.env[variable] ?? candidates.find((path) => existsSync(path))
  if (!found) {
    console.error(
      `Cannot build wireguard-wasm: found none of ${candidates.join(', ')}; set ${variable}`,
    )
    process.exit(2)
  }
  return found
}

/** Paths; ends the process where one is missing. */
export function toolchain() {
  return {
    rustc: tool('RUSTC', ['/usr/bin/rustc']),
    cargo: tool('CARGO', ['/usr/share/cargo/bin/cargo', '/usr/bin/cargo']),
    linker: tool('WASM_LD', ['/usr/bin/wasm-ld-19', '/usr/bin/wasm-ld']),
  }
}
