/**
 * What is needed to join a relay: its address, a credential, the pin of its identity, our own
 * identity. Gathered from flags, variables and the profile, in this order. Secrets come from
 * variables and files alone: a command line is read by every user of the machine.
 */
import type { Credential } from '../core/admit.ts'
import { GROUP_BYTES } from '../core/admit.ts'
import { text } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { fingerprint, parseFingerprint, parseKey } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import { parseLabels } from '../core/labels.ts'
import type { Labels } from '../core/labels.ts'
import type { OpenedSocket } from './link.ts'
import { isLoopback } from './loopback.ts'
import { environmentCa, openLinkOut, readCa } from './outward.ts'
import { Profile } from './profile.ts'
import { VERSION } from './version.ts'
import type { World } from './world.ts'

/** What the command line says of the relay. */
export interface RelayChoice {
  relay: string | undefined
  fingerprint: string | undefined
  /** A PEM file of certificates to trust in place of those that come with the program. */
  ca?: string | undefined
  /** `NAME=VALUE` each. */
  labels?: readonly string[]
}

export interface Joining {
  profile: Profile
  identity: Identity
  relay: URL
  credential: Credential
  group16: Uint8Array
  version: string
  labels: Labels
  pin(relayPublic: Uint8Array): boolean
  /** Opens a WebSocket to the relay, its certificate judged as this relay's may be. */
  open(url: string): Promise<OpenedSocket>
}

/** Reads and checks what the flags say; throws `relay/address`, `key/format`, `labels/…`. */
export function checkChoice({ relay, fingerprint, labels = [] }: RelayChoice): void {
  parseLabels(labels)
  if (relay !== undefined) parseRelay(relay, '--relay')
  if (fingerprint !== undefined) parseFingerprint(fingerprint)
}

/** `relay.example`, `relay.example:8443` or a whole URL. Throws `relay/address`. */
export function parseRelay(words: string, from: string): URL {
  const whole = /^[a-z]+:\/\//i.test(words) ? words : `https://${words}`
  const wrong = (found: string): TunnelError =>
    new TunnelError(
      'relay/address',
      `Cannot read the relay from ${from}: found ${found}, expected https://host[:port]`,
    )
  let url: URL
  try {
    url = new URL(whole)
  } catch {
    throw wrong(JSON.stringify(words.slice(0, 200)))
  }
  if (url.username !== '' || url.password !== '') throw wrong('a URL with a secret in it')
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') {
    throw wrong('a URL with a path')
  }
  if (url.protocol === 'https:' || (url.protocol === 'http:' && isLoopback(hostOf(url)))) return url
  throw wrong(url.protocol === 'http:' ? 'http to another machine' : url.protocol)
}

export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '')
}

/** Throws `relay/none`, `relay/credential`, `ca/file`, and what the profile throws. */
export async function join(
  world: World,
  choice: RelayChoice,
  notice: (line: string) => void,
): Promise<Joining> {
  const profile = new Profile(world)
  const settings = await profile.settings()
  const relay = relayOf(world, { choice, kept: settings.relay })
  const own = settings.relay !== undefined &&
    parseRelay(settings.relay, profile.settingsPath).host === relay.host
  const secret = world.env['SOTTO_API_KEY'] || (own ? settings.apiKey : undefined)
  const demanded = choice.fingerprint ?? (world.env['SOTTO_RELAY_FINGERPRINT'] || undefined) ??
    (own ? settings.relayFingerprint : undefined)
  const relays = profile.knownRelays()
  const pinned = demanded !== undefined || (await relays.find(relay.host)).length > 0
  const identity = await profile.identity()
  const firstUse = (key: string): void => {
    const print = fingerprint(world.crypto, parseKey(key))
    notice(`first contact with ${relay.host}: its identity ${print} is pinned now`)
  }
  return {
    profile,
    identity,
    relay,
    credential: await certificateOf(world) ?? credentialOf(secret),
    group16: world.crypto.randomBytes(GROUP_BYTES),
    version: VERSION,
    labels: { ...settings.labels, ...parseLabels(choice.labels ?? []) },
    pin: await relays.pinOf(relay.host, {
      ...(demanded === undefined ? { first: firstUse } : { fingerprint: demanded }),
    }),
    open: opener(world, { relay, pinned, ca: await authorities(world, choice) }),
  }
}

/** The relay that is meant. Throws `relay/none`, `relay/address`. */
export function relayOf(
  world: Pick<World, 'env'>,
  { choice, kept }: { choice: RelayChoice; kept: string | undefined },
): URL {
  if (choice.relay !== undefined) return parseRelay(choice.relay, '--relay')
  const named = world.env['SOTTO_RELAY']
  if (named) return parseRelay(named, 'SOTTO_RELAY')
  if (kept !== undefined) return parseRelay(kept, 'the profile')
  throw new TunnelError('relay/none', 'Cannot join a relay: none is named', {
    hint: 'Log in to one: sotto login RELAY. Or run one of your own: sotto relay',
  })
}

/**
 * A client certificate in place of a key: `SOTTO_CLIENT_CERT` and `SOTTO_CLIENT_KEY` name PEM files.
 * Throws `relay/credential` when one of them is missing or unreadable, `tls/certificate`.
 */
export async function certificateOf(
  world: Pick<World, 'env' | 'files' | 'tls'>,
): Promise<Credential | undefined> {
  const certPath = world.env['SOTTO_CLIENT_CERT']
  const keyPath = world.env['SOTTO_CLIENT_KEY']
  if (!certPath && !keyPath) return undefined
  const read = async (name: string, path: string | undefined): Promise<string> => {
    const content = path ? await world.files.read(path) : undefined
    if (content) return text(content)
    throw new TunnelError(
      'relay/credential',
      `Cannot use the client certificate: ${name} ${
        path ? `names ${path}, which is not there` : 'is not set'
      }`,
      { hint: 'SOTTO_CLIENT_CERT and SOTTO_CLIENT_KEY name two PEM files, both by absolute path.' },
    )
  }
  const cert = await read('SOTTO_CLIENT_CERT', certPath)
  const key = await read('SOTTO_CLIENT_KEY', keyPath)
  return { kind: 'certificate', ...world.tls.signer({ cert, key }) }
}

/** A secret tells by its beginning what it is. Throws `relay/credential`. */
export function credentialOf(secret: string | undefined): Credential {
  if (secret === undefined || secret === '') return { kind: 'none' }
  if (/^(sk|ak)_/.test(secret)) return { kind: 'key', secret }
  if (secret.startsWith('ft_')) return { kind: 'token', secret }
  throw new TunnelError(
    'relay/credential',
    'Cannot use the API key: found a text that begins with none of sk_, ft_ and ak_',
    { hint: 'Give the whole key, as "sotto relay keys create" printed it.' },
  )
}

interface Authorities {
  certificates: string[]
  /** Named by the person, for this relay: then they are asked for one on this machine as well. */
  isChosen: boolean
}

/** Whom to trust in place of the CAs that come with the program. Throws `ca/file`. */
async function authorities(
  world: Pick<World, 'env' | 'files'>,
  { ca }: RelayChoice,
): Promise<Authorities | undefined> {
  if (ca !== undefined) return { certificates: await readCa(world, ca, '--ca'), isChosen: true }
  const certificates = await environmentCa(world)
  return certificates && { certificates, isChosen: false }
}

/**
 * A CA that vouches for the certificate is always enough. Without one the relay's own identity must:
 * it is pinned, or it is on this machine, where nobody stands in between.
 */
function opener(
  world: World,
  { relay, pinned, ca }: { relay: URL; pinned: boolean; ca: Authorities | undefined },
): (url: string) => Promise<OpenedSocket> {
  const asksCa = !isLoopback(hostOf(relay)) ||
    (ca?.isChosen === true && relay.protocol === 'https:')
  const trusted = ca ? { ca: ca.certificates } : {}
  return async (url) => {
    if (asksCa) {
      try {
        return { ...await openLinkOut(world, url, { trust: 'ca', ...trusted }), trusted: true }
      } catch (error) {
        if (!pinned || !isTunnelError(error, 'link/untrusted')) throw error
      }
    }
    return { ...await openLinkOut(world, url, { trust: 'admission' }), trusted: false }
  }
}
