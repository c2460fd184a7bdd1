/** Two paths joined in memory: what one sends the other receives on a later turn. For tests and examples. */
import { encodeEndpoint, formatEndpoint } from './address.ts'
import type { Endpoint } from './address.ts'
import { Batch, RUN_WORDS } from './batch.ts'
import type { Path } from './driver.ts'

/** Any address will do; these are for documentation (RFC 5737). */
const ENDS: readonly Endpoint[] = [
  { host: '192.0.2.1', port: 51820 },
  { host: '192.0.2.2', port: 51820 },
]

export class MemoryPath implements Path {
  readonly mtu = 65_507
  onReceive: Path['onReceive']
  onDrain: Path['onDrain']
  inbox: Path['inbox']
  /** While it is set, everything is lost. */
  isCut = false
  /** Under which the peer at the other end is reached. */
  readonly endpoint: string
  other: MemoryPath = this
  readonly #record: Uint8Array

  constructor(own: Endpoint, far: Endpoint) {
    this.#record = encodeEndpoint(own)
    this.endpoint = formatEndpoint(far)
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    if (this.isCut) return true
    let bytes = 0
    for (let i = from; i < to; i++) bytes += batch.words[i * RUN_WORDS + 1]!
    const copy = Batch.make(bytes, to - from)
    for (let i = from; i < to; i++) {
      const at = batch.words[i * RUN_WORDS]!
      const run = batch.bytes.subarray(at, at + batch.words[i * RUN_WORDS + 1]!)
      copy.push(run, this.#record, batch.words[i * RUN_WORDS + 3]!)
    }
    setTimeout(() => this.other.onReceive?.(copy), 0)
    return true
  }
}

export function memoryPaths(): [MemoryPath, MemoryPath] {
  const [a, b] = [new MemoryPath(ENDS[0]!, ENDS[1]!), new MemoryPath(ENDS[1]!, ENDS[0]!)]
  a.other = b
  b.other = a
  return [a, b]
}
