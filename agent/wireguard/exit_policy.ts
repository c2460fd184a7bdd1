/**
 * Where an exit may dial. Nothing but the routes that were asked for; and of these not this machine
 * itself, not what is meant for one link or for many receivers, unless that was asked for as well. The
 * address that is judged is the address that is dialled: names are judged by what they lead to.
 */
import { formatAddress, isWithin, parseAddress, parseNetwork } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import { TunnelError } from '../../core/errors.ts'

/** More are a mistake, and each is looked at for each dial. */
const ROUTES_MAX = 256

export interface ExitRules {
  readonly routes: readonly Range[]
  /** 127.0.0.0/8, ::1, also where no route says so. */
  readonly loopback?: boolean
  /** 169.254.0.0/16, fe80::/10: routers, and the metadata services of clouds. */
  readonly linkLocal?: boolean
  /** The addresses of this machine's own interfaces. */
  readonly own?: boolean
}

/** Why an address is not dialled. */
export type Refusal =
  | 'malformed'
  | 'unspecified'
  | 'loopback'
  | 'link-local'
  | 'multicast'
  | 'reserved'
  | 'own'
  | 'route'

const KINDS: readonly (readonly [Refusal, readonly Range[]])[] = [
  // Linux takes 0.0.0.0 and :: for this machine.
  ['unspecified', ranges('0.0.0.0/8', '::/128')],
  ['loopback', ranges('127.0.0.0/8', '::1/128')],
  ['link-local', ranges('169.254.0.0/16', 'fe80::/10')],
  // Where clouds keep their metadata beside that.
  [
    'link-local',
    ranges('fd00:ec2::254/128', '168.63.129.16/32', '100.100.100.200/32', '192.0.0.192/32'),
  ],
  ['multicast', ranges('224.0.0.0/4', 'ff00::/8')],
  // With the addresses that carry another one inside, where nobody would look at it.
  ['reserved', ranges('240.0.0.0/4', '::/96', 'fec0::/10', '2002::/16', '2001::/32')],
]
/** RFC 6052 §2.1: the last four bytes are the IPv4 address that a translator dials. */
const TRANSLATED = ranges('64:ff9b::/96')

export class ExitPolicy {
  readonly rules: ExitRules
  readonly #own: () => readonly string[]

  /** `own` tells the addresses of this machine as they are now. Throws `exit/routes`. */
  constructor(rules: ExitRules, own: () => readonly string[] = () => []) {
    if (rules.routes.length > ROUTES_MAX) {
      throw new TunnelError(
        'exit/routes',
        `Cannot serve these routes: found ${rules.routes.length}, expected at most ${ROUTES_MAX}`,
        { hint: 'Join neighbouring networks into larger ones' },
      )
    }
    this.rules = rules
    this.#own = own
  }

  /** Undefined: it may be dialled. `address` is IPv4 or IPv6 text; a zone is only known to this machine. */
  judge(address: string): Refusal | undefined {
    const bytes = parseAddress(address)
    if (!bytes) return 'malformed'
    const { routes, loopback, linkLocal, own } = this.rules
    // One spelling: IPv4 in IPv6 is IPv4.
    const plain = formatAddress(bytes)
    const kind = KINDS.find(([, networks]) => isWithin(plain, networks))?.[0]
    if (kind === 'loopback') return loopback ? undefined : kind
    if (address.includes('%') && kind !== 'link-local') return 'malformed'
    if (kind !== undefined && !(kind === 'link-local' && linkLocal)) return kind
    if (isWithin(plain, TRANSLATED)) {
      const inner = formatAddress(bytes.slice(12))
      const hidden = KINDS.find(([, networks]) => isWithin(inner, networks))?.[0]
      if (hidden !== undefined) return hidden
    }
    if (!isWithin(plain, routes)) return 'route'
    if (!own && this.#isOwn(plain)) return 'own'
    return undefined
  }

  #isOwn(plain: string): boolean {
    return this.#own().some((one) => {
      const bytes = parseAddress(one)
      return bytes !== undefined && formatAddress(bytes) === plain
    })
  }
}

/** `192.168.1.0/24`, also with bits beyond the mask, as people type. Throws `exit/route`. */
export function parseRoute(words: string): Range {
  const [, host = '', bits] = /^([^/]{2,45})(?:\/(\d{1,3}))?$/.exec(words.trim()) ?? []
  const bytes = parseAddress(host)
  const length = bits === undefined ? (bytes?.length ?? 0) * 8 : Number(bits)
  if (!bytes || host.includes('%') || host.startsWith('[') || length > bytes.length * 8) {
    throw new TunnelError(
      'exit/route',
      `Cannot read the route ${JSON.stringify(words.slice(0, 80))}: expected a network such as ` +
        '192.168.1.0/24 or fd00:1::/64',
    )
  }
  return { bytes: masked(bytes, length), bits: length }
}

export function routeText({ bytes, bits }: Range): string {
  return `${formatAddress(bytes)}/${bits}`
}

/** Whether two networks share an address. */
export function overlaps(a: Range, b: Range): boolean {
  const bits = Math.min(a.bits, b.bits)
  return a.bytes.length === b.bytes.length &&
    masked(a.bytes, bits).every((byte, i) => byte === masked(b.bytes, bits)[i])
}

/** The first `bits` of an address, the others 0. */
export function masked(bytes: Uint8Array, bits: number): Uint8Array {
  return bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * i))))
}

function ranges(...words: string[]): Range[] {
  return words.map((one) => parseNetwork(one)!)
}
