/**
 * An AEAD that the host lends to the module: ChaCha20-Poly1305 by a library of the machine, called for each
 * text that is long enough. Nothing needs it; without one the module uses its own.
 *
 * The module imports nothing. A module of some sixty bytes, which does, makes functions of the
 * right type of the host's, and they go into the first one's table.
 */
import type { Exports } from './instance.ts'

/** Addresses in the module's memory: key 32 bytes, nonce 12, tag 16, text of `bytes`. */
export type LentCall = (
  key: number,
  nonce: number,
  tag: number,
  text: number,
  bytes: number,
) => number

/** Called in the middle of the module's work: neither may call the module. */
export interface LentAead {
  /** For people: whose code it is. */
  readonly name: string
  /** Shorter texts stay with the module's own code. */
  readonly bytesMin: number
  /** Seals the text in place, lays the tag, answers 1; or 0, and has changed nothing. */
  readonly seal: LentCall
  /** Opens the text in place and answers 1; or 0, and the text is as it was: the tag is wrong. */
  readonly open: LentCall
}

/** Gives the AEAD for one memory, which may grow; undefined where there is none. */
export type AeadLender = (memory: WebAssembly.Memory) => LentAead | undefined

/** (type (func (param i32 i32 i32 i32 i32) (result i32))) imported as e.s and e.o, exported as s and o. */
// deno-fmt-ignore
const ADAPTER = Uint8Array.of(
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
  1, 10, 1, 0x60, 5, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f,
  2, 13, 2, 1, 0x65, 1, 0x73, 0, 0, 1, 0x65, 1, 0x6f, 0, 0,
  7, 9, 2, 1, 0x73, 0, 0, 1, 0x6f, 0, 1,
)
/** The name of the module's own. */
const OWN = 'wasm'
let adapter: WebAssembly.Module | undefined

const lenders = new WeakMap<WebAssembly.Module, AeadLender>()

/** Devices that are made of this module from now on use what `lender` gives; without one, their own again. */
export function lendAead(module: WebAssembly.Module, lender: AeadLender | undefined): void {
  if (lender) lenders.set(module, lender)
  else lenders.delete(module)
}

/** Of this package: the name of what an instance of the module is lent, `wasm` for nothing. */
export function borrowAead(module: WebAssembly.Module, call: Exports): string {
  const aead = lenders.get(module)?.(call.memory)
  if (!aead) return OWN
  adapter ??= new WebAssembly.Module(ADAPTER)
  const imports = { e: { s: aead.seal, o: aead.open } }
  const { exports } = new WebAssembly.Instance(adapter, imports)
  const table = call.__indirect_function_table
  const place = table.grow(2)
  table.set(place, exports['s'])
  table.set(place + 1, exports['o'])
  call['wg_lend_aead']!(place, place + 1, aead.bytesMin)
  return aead.name
}
