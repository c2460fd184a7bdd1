/** Reads what an agent asks for when it claims an endpoint; docs/protocol.md, "Welcome and requests". */
import { TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import type { Claim } from './endpoints.ts'

const KINDS = ['http', 'tcp', 'udp', 'agent'] as const
const MODES = ['verified', 'inspectable', 'raw', 'session'] as const

/** Throws `claim/name`, `claim/kind`, `claim/mode` or `claim/port`, each naming what was found. */
export function readClaim(body: Record<string, unknown>): Claim {
  const { name, kind, port = 0 } = body
  // A name of an agent has one mode alone, which need not be said.
  const mode = body['mode'] ?? (kind === 'agent' ? 'session' : undefined)
  if (typeof name !== 'string' || !isName(name)) {
    throw new TunnelError(
      'claim/name',
      `Cannot claim ${short(name)}: expected 1 to 63 of a-z 0-9 and inner hyphens`,
    )
  }
  return {
    name,
    kind: oneOf(kind, { of: KINDS, code: 'claim/kind' }),
    mode: oneOf(mode, { of: MODES, code: 'claim/mode' }),
    port: portOf(port),
  }
}

function oneOf<T extends string>(
  value: unknown,
  want: { of: readonly T[]; code: `claim/${string}` },
): T {
  const found = want.of.find((known) => known === value)
  if (found !== undefined) return found
  throw new TunnelError(
    want.code,
    `Cannot claim an endpoint: found ${short(value)}, expected ${want.of.join(', ')}`,
  )
}

function portOf(value: unknown): number {
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 65_535) {
    return value as number
  }
  throw new TunnelError('claim/port', `Cannot claim a public port: found ${short(value)}`)
}

function short(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 80)
}
