/**
 * What a relay says yes and no to, wherever it runs: which claims it takes, what it answers to them,
 * what it says in a welcome, which passports it keeps. No state; the owners of hubs bring theirs.
 */
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { parseKey } from '../core/key.ts'
import { openPassport } from '../core/passport.ts'
import type { Claim } from './endpoints.ts'
import type { Registry } from './registry.ts'
import type { Settings } from './settings.ts'

/** Longest base64 of a passport. */
const PASSPORT_TEXT_LENGTH_MAX = 8192
/** Streams at once that a link is told it may have. */
const LINK_STREAMS_MAX = 1024

/** How this relay is reached, and what it has. */
export interface Place {
  settings: Pick<
    Settings,
    | 'domain'
    | 'secureDomain'
    | 'appsDomain'
    | 'agentsAcme'
    | 'bulkIdle'
    | 'publicPorts'
    | 'inspectable'
  >
  /** Raw TCP and UDP: without it no visitor brings TLS of his own. */
  raw: boolean
  /** The port that URLs name. */
  port: number
  scheme: 'http' | 'https'
  /** Inspectable endpoints are `/t/NAME/` of the relay's own host: there is no wildcard. */
  paths: boolean
}

/** Throws `claim/not-allowed`, `claim/mode`, `claim/inspectable`, `claim/passthrough`, `ports/closed`. */
export function checkClaim(
  claim: Claim,
  { place, allows }: { place: Place; allows(name: string): boolean },
): void {
  if (!allows(claim.name)) {
    throw new TunnelError(
      'claim/not-allowed',
      `Cannot claim "${claim.name}": this credential does not allow that name`,
      { hint: 'Choose a name that its patterns allow, or ask the operator for another token.' },
    )
  }
  if ((claim.kind === 'agent') !== (claim.mode === 'session')) {
    throw new TunnelError(
      'claim/mode',
      `Cannot claim ${claim.mode} ${claim.kind}: an agent's name has the mode "session", and nothing else has`,
    )
  }
  if (claim.mode === 'session') return
  if (claim.mode !== 'raw' && claim.kind === 'udp') {
    throw new TunnelError('claim/mode', 'Cannot claim a UDP endpoint: it needs a raw public port', {
      hint: 'Use "sotto udp PORT --e2ee=false --public-port N".',
    })
  }
  if (claim.mode === 'inspectable' && !place.settings.inspectable) {
    throw new TunnelError(
      'claim/inspectable',
      'Cannot serve an endpoint that the relay can read: its operator does not want any',
      { hint: 'Leave out --e2ee=false.' },
    )
  }
  if (place.raw) return
  // A private TCP endpoint needs no browser: "sotto connect" reaches it over the link.
  if (claim.mode === 'verified' && claim.kind !== 'tcp') {
    throw new TunnelError(
      'claim/passthrough',
      'Cannot serve a verified endpoint here: this relay has no raw TCP port',
      {
        hint:
          'Use --e2ee=false (the relay can then read the traffic), or "sotto tcp" here and "sotto ' +
          'connect" from the visitor\'s side.',
      },
    )
  }
  if (claim.mode === 'raw') throw portsClosed()
}

/** An identity that said, signed, that nobody should believe it any more. */
export function revokedIdentity(): TunnelError {
  return new TunnelError('admit/revoked', 'Cannot admit the link: its identity was revoked', {
    hint: 'Make a new one with "sotto identity", and pair with your peers anew.',
  })
}

/** Where nothing passes through, or the operator wants none. */
export function noDomains(): TunnelError {
  return new TunnelError(
    'domains/closed',
    'Cannot claim a domain: this relay takes no domains of others',
    { hint: "Use the endpoint's own name." },
  )
}

export function portsClosed(): TunnelError {
  return new TunnelError(
    'ports/closed',
    'Cannot open a public port: this relay has no raw sockets',
    { hint: 'Use "sotto tcp" here and "sotto connect" from the visitor\'s side.' },
  )
}

/** The reply to a claim of a name; raw ports have their own. */
export function claimReply({ name, mode }: Claim, place: Place): object {
  // Other agents ask for it by name; no visitor of DNS ever does.
  if (mode === 'session') return { name }
  const { settings, scheme, port } = place
  const origin = (host: string): string =>
    `${scheme}://${host}${port === (scheme === 'https' ? 443 : 80) ? '' : `:${port}`}`
  if (mode === 'inspectable' && place.paths) {
    const path = `/t/${name}/`
    const host = settings.domain
    return { name, host, port, path, url: `${origin(host)}${path}` }
  }
  const host = `${name}.${mode === 'verified' ? settings.secureDomain : settings.appsDomain}`
  // Where nothing passes through, a verified name leads nowhere in a browser.
  if (mode === 'verified' && !place.raw) return { name, host, port }
  return { name, host, port, url: `${origin(host)}/` }
}

/** The welcome's JSON, but for the link's own id. */
export function welcomeBody(
  member: { scope: string; address: string },
  place: Place,
  { version, windowBytes }: { version: string; windowBytes: number },
): object {
  const { settings, raw } = place
  const { bulkIdle, publicPorts, inspectable } = settings
  return {
    scope: member.scope,
    secure: settings.secureDomain,
    apps: settings.appsDomain,
    port: place.port,
    scheme: place.scheme,
    window: windowBytes,
    streams: LINK_STREAMS_MAX,
    bulk: raw ? bulkIdle : 0,
    can: [
      ...(raw ? ['passthrough'] : []),
      ...(raw && settings.agentsAcme ? ['acme'] : []),
      ...(raw && bulkIdle > 0 ? ['bulk'] : []),
      ...(raw && publicPorts ? ['raw-tcp', 'raw-udp'] : []),
      ...(raw && publicPorts && bulkIdle > 0 ? ['shared'] : []),
      ...(inspectable ? ['inspectable'] : []),
      ...(inspectable && place.paths ? ['path'] : []),
    ],
    address: member.address,
    version,
  }
}

/** Keeps a passport that the agent `key` signed. Throws what is wrong with it. */
export async function publishPassport(
  ports: {
    registry: Pick<Registry, 'publishPassport'>
    crypto: Crypto
    clock: Clock
  },
  key: string,
  body: Record<string, unknown>,
): Promise<object> {
  const bytes = fromBase64(body['passport'], {
    subject: 'passport',
    lengthMax: PASSPORT_TEXT_LENGTH_MAX,
  })
  const after = body['after']
  const passport = openPassport(ports.crypto, bytes, {
    now: ports.clock.now(),
    identity: parseKey(key),
  })
  await ports.registry.publishPassport(key, {
    bytes,
    sequence: passport.sequence,
    expected: typeof after === 'number' ? after : 0,
  })
  return { sequence: passport.sequence }
}

export function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
}

/** Throws `request/passport` or `request/statement`. */
export function fromBase64(
  value: unknown,
  { subject, lengthMax }: { subject: 'passport' | 'statement'; lengthMax: number },
): Uint8Array {
  if (
    typeof value !== 'string' || value.length > lengthMax || value.length % 4 === 1 ||
    !/^[A-Za-z0-9+/]*={0,2}$/.test(value)
  ) {
    throw new TunnelError(`request/${subject}`, `Cannot read the ${subject}: expected base64`)
  }
  return Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0))
}
