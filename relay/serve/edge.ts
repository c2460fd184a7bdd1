/**
 * What relays at the edge share, where there is no disk and no raw TCP: settings, identity and admin
 * key come from variables and secrets of the platform, TLS ends in front of us.
 *
 *   SOTTO_RELAY_…               the settings of relay/settings.ts
 *   SOTTO_RELAY_IDENTITY        secret: the relay's Ed25519 seed, 32 bytes in hex
 *   SOTTO_RELAY_ADMIN_HASH      secret: SHA-256 of the admin key, in hex
 *   SOTTO_RELAY_SCHEME          `https`, or `http` for a relay on this machine alone
 *   SOTTO_RELAY_PATHS           `true`: no wildcard is to be had, readable endpoints are paths
 *   SOTTO_RELAY_ADDRESS_HEADER  the header in which the platform, and only it, says who visits
 */
import type { RelayIdentity } from '../../core/admit.ts'
import { equal, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Grant } from '../credentials.ts'
import type { Place } from '../rules.ts'
import { readSettings } from '../settings.ts'
import type { Settings } from '../settings.ts'

/** The most that windows grow to: nobody here can slow a sender down but by credit. */
export const EDGE_WINDOW_BYTES_MAX = 1_048_576
export const VERSION = '0.1.0'

export type Variables = Readonly<Record<string, unknown>>

export interface Edge {
  settings: Settings
  place: Place
  /** Lower case; empty: the visitor is taken to be on this machine. */
  addressHeader: string
  /** Is this the operator's own key? */
  isAdmin(secret: string): boolean
}

/** Timers of a runtime that has no `unref`, or where none is needed. */
export const webClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(ms, run) {
    const timer = setTimeout(run, ms)
    return { cancel: () => clearTimeout(timer) }
  },
}

/** Throws `settings/invalid`. */
export function readEdge(variables: Variables, crypto: Crypto): Edge {
  const text = (name: string): string => {
    const value = variables[`SOTTO_RELAY_${name}`]
    return typeof value === 'string' ? value : ''
  }
  const environment = Object.fromEntries(
    Object.entries(variables).filter((entry): entry is [string, string] =>
      typeof entry[1] === 'string'
    ),
  )
  const settings = readSettings({ environment })
  const scheme = text('SCHEME') === 'http' ? 'http' : 'https'
  const port = text('PUBLIC_PORT') === '' && text('PORT') === '' && scheme === 'https'
    ? 443
    : settings.publicPort
  const local = scheme === 'http'
  const names = [...new Set([...settings.names, ...(local ? ['localhost', '127.0.0.1'] : [])])]
  const admin = text('ADMIN_HASH')
  if (admin !== '' && !/^[0-9a-f]{64}$/.test(admin)) {
    throw new TunnelError(
      'settings/invalid',
      'Cannot start the relay: SOTTO_RELAY_ADMIN_HASH is not 64 hex digits',
      { hint: 'It is the SHA-256 of the admin key, not the key.' },
    )
  }
  const known = { ...settings, names }
  return {
    settings: known,
    place: { settings: known, raw: false, port, scheme, paths: text('PATHS') === 'true' },
    addressHeader: text('ADDRESS_HEADER').toLowerCase(),
    isAdmin: (secret) => admin !== '' && equal(utf8(hex(crypto.sha256(utf8(secret)))), utf8(admin)),
  }
}

/** The grant of the key that the platform's secret names; it is revoked by changing that secret. */
export const ADMIN_GRANT: Grant = { id: 'operator', kind: 'admin', scope: 'admin', admin: true }

/** Throws `relay/identity`. TLS is the platform's, so no certificate is ours to name. */
export function readIdentity(
  seedHex: unknown,
  { crypto, names }: { crypto: Crypto; names: string[] },
): RelayIdentity {
  if (typeof seedHex !== 'string' || !/^[0-9a-f]{64}$/.test(seedHex)) {
    throw new TunnelError(
      'relay/identity',
      'Cannot start the relay: SOTTO_RELAY_IDENTITY is not 64 hex digits',
      { hint: 'Make one with "openssl rand -hex 32" and keep it as a secret of the platform.' },
    )
  }
  const seed = fromHex(seedHex)
  return { seed, public: crypto.ed25519Public(seed), names, certificates: [] }
}

/** What the platform says of who visits; never what the visitor says. */
export function addressOf(request: Request, { addressHeader }: Edge): string {
  if (addressHeader === '') return '127.0.0.1'
  return (request.headers.get(addressHeader) ?? '').slice(0, 64)
}

/** The endpoint that a request is for, by its host, or by its path where there is no wildcard. */
export function endpointOf(
  request: Request,
  { settings, place }: Edge,
): { name: string; prefix: string } | undefined {
  const url = new URL(request.url)
  if (place.paths) {
    const found = /^\/t\/([a-z0-9-]{1,63})(?=\/|$)/.exec(url.pathname)
    return found ? { name: found[1]!, prefix: `/t/${found[1]!}` } : undefined
  }
  const host = url.hostname.toLowerCase().replace(/\.$/, '')
  const zone = `.${settings.appsDomain}`
  if (!host.endsWith(zone)) return undefined
  const name = host.slice(0, -zone.length)
  return name === '' || name.includes('.') ? undefined : { name, prefix: '' }
}
