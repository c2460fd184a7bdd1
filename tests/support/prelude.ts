/** Reads a prelude as an agent does, for tests that hold a bulk link in their hands. */
import type { Visit } from '../../core/frame.ts'
import { readPrelude } from '../../core/ticket.ts'
import { fast } from './crypto.ts'
import type { TestAgent } from './star.ts'

export function decodePrelude(
  agent: TestAgent,
  { bytes, counter }: { bytes: Uint8Array; counter: number },
): { visit: Visit; rest: Uint8Array } {
  const linkId = Uint8Array.from(
    (agent.welcome['link'] as string).match(/../g)!,
    (pair) => parseInt(pair, 16),
  )
  const prelude = readPrelude(bytes, { crypto: fast, linkId, counter, bulkKey: agent.bulkKey })
  if (prelude === 'more') throw new Error('the prelude is not complete')
  return { visit: prelude.visit, rest: bytes.subarray(prelude.bytes) }
}
