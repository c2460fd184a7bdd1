/**
 * What a relay needs on any machine with files, whichever runtime it is: identity, certificate,
 * registry, credentials, quotas, metrics, log. Bun, Node and Deno share it; each brings its sockets.
 */
import { createPublicKey, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { RelayIdentity } from '../../core/admit.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, generateIdentity } from '../../core/key.ts'
import { Resolver } from '../../core/resolver.ts'
import { certificateHash, isCurrent, makeCertificate } from '../certificate.ts'
import type { CertificatePair } from '../certificate.ts'
import type { AppPorts } from '../app.ts'
import { certificateVerifier } from '../client_ca.ts'
import type { CertificateVerifier } from '../client_ca.ts'
import { Credentials } from '../credentials.ts'
import { Logins } from '../device.ts'
import type { ReleaseFiles } from '../downloads.ts'
import { createLog } from '../log.ts'
import type { Log } from '../log.ts'
import { Domains } from '../domains.ts'
import { Metrics } from '../metrics.ts'
import { Quota } from '../quota.ts'
import { Registry } from '../registry.ts'
import type { Relay, RelayPorts } from '../relay.ts'
import { RevokedCertificates } from '../revoked_certificates.ts'
import type { Settings } from '../settings.ts'
import type { Store } from '../store/store.ts'
import { dnsExchange } from './dns.ts'
import { AcmeHost } from './acme.ts'
import { releaseFolder } from './release_folder.ts'
import { readSecret, writeSecret } from './secret_file.ts'

const SEED_BYTES = 32
/** Certificates that a challenge names: the one that is served, and those before it. */
const CERTIFICATES_MAX = 4

/** A relay that runs, as commands and tests hold it. */
export interface RunningRelay {
  port: number
  /** KEY bytes and fingerprint of the relay's identity, for agents to pin. */
  identity: Uint8Array
  fingerprint: string
  /** PEM of the certificate that it serves, as of the start. */
  certificate: string
  /** Looks for a new certificate now, not when it is time; true: it is served from now on. */
  renew(): Promise<boolean>
  relay: Relay
  credentials: Credentials
  registry: Registry
  /** Shown once, on the first start with this store. */
  adminKey: string | undefined
  /** Another relay has taken the port over: it is time to drain. */
  replaced: Promise<void>
  /** Turns visitors away, lets running ones finish within the grace, then stops. */
  drain(graceMs?: number): Promise<void>
  stop(): Promise<void>
}

export interface Host {
  ports: Omit<RelayPorts, 'publicPort' | 'net' | 'app' | 'bulkTls'>
  /** Another object after `renew` has found another pair. */
  readonly tls: CertificatePair
  /** What readable endpoints get that have no certificate of their own. */
  readonly appsTls: CertificatePair
  /** Certificates from a CA, where the operator wants them. */
  acme: AcmeHost | undefined
  store: Store
  /**
   * Reads the files again, and makes a new certificate of our own when it is time. True: there is
   * another pair to serve. Throws `relay/certificate` and what reading throws; then all stays.
   */
  renew(): Promise<boolean>
  publicPort(): number
  /** What the HTTP app needs, but for what only the runtime's server can do. */
  appPorts(relay: Relay, http: Pick<AppPorts, 'upgrade' | 'remoteAddress'>): AppPorts
  listening(port: number): void
  running(
    relay: Relay,
    listener: Pick<RunningRelay, 'port' | 'renew' | 'replaced' | 'stop'>,
  ): RunningRelay
}

/** Timers of the runtime that never keep a process alive. */
export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(ms, run) {
    const timer = setTimeout(run, ms)
    if (typeof timer === 'object') timer.unref()
    return { cancel: () => clearTimeout(timer) }
  },
}

/** Where a relay keeps its files unless told. */
export function defaultDirectory(env: Record<string, string | undefined>): string {
  const base = env['SOTTO_HOME'] ??
    join(env['XDG_STATE_HOME'] ?? join(homedir(), '.local', 'state'), 'sotto')
  return join(base, 'relay')
}

export interface HostOptions {
  settings: Settings
  store: Store
  crypto: Crypto
  runtime: string
  version: string
  write(line: string): void
}

export async function openHost(options: HostOptions): Promise<Host> {
  const { settings, store } = options
  const files = settings.downloads === '' ? undefined : await releaseFolder(settings.downloads)
  const services = await openServices(options)
  const { ports, watches, adminKey } = services
  let { tls, appsTls } = services
  let port = settings.publicPort
  const publicPort = (): number => port
  return {
    ports,
    get tls() {
      return tls
    },
    get appsTls() {
      return appsTls
    },
    acme: services.acme,
    store,
    publicPort,
    async renew() {
      const found = await services.renewed({ tls, appsTls })
      if (found) ({ tls, appsTls } = found)
      return found !== undefined
    },
    appPorts: (relay, http) => ({
      ...appPorts(ports, { relay, files }),
      store,
      logins: new Logins({ store, clock: ports.clock }),
      runtime: options.runtime.split(' ')[0]!,
      publicPort,
      ...http,
    }),
    listening(bound) {
      if (port === 0) port = bound
    },
    running: (relay, listener) =>
      running(ports, {
        relay,
        port: listener.port,
        certificate: tls.cert,
        adminKey,
        replaced: listener.replaced,
        renew: () => listener.renew(),
        stop: async () => {
          for (const watch of watches) watch.cancel()
          await listener.stop()
        },
      }),
  }
}

/** Reads or makes what is kept on disk, and opens what stands on it. */
async function openServices(options: HostOptions): Promise<Services> {
  const { settings, store, crypto, version } = options
  const clock = systemClock
  const log = createLog({
    write: options.write,
    clock,
    level: settings.logLevel,
    json: settings.logFormat === 'json',
  })
  const identity = await loadIdentity(crypto, join(settings.dataDirectory, 'identity'))
  const names = [
    ...new Set([...settings.names, ...(isLocal(settings) ? ['127.0.0.1', 'localhost'] : [])]),
  ]
  const folder = join(settings.dataDirectory, 'acme')
  const acme = settings.acme
    ? await AcmeHost.open(settings, { clock, crypto, log, folder })
    : undefined
  const pairs = async (): Promise<Pairs> => {
    const appsTls = await loadCertificate(settings, names, clock)
    return { tls: acme?.ownPair() ?? appsTls, appsTls }
  }
  const { tls, appsTls } = await pairs()
  const quota = new Quota(clock, { limits: settings.quotas })
  const metrics = new Metrics({ clock, version, runtime: options.runtime })
  const credentials = new Credentials({ store, crypto, clock })
  const registry = await Registry.open({
    store,
    crypto,
    clock,
    namesMax: (scope) => quota.limit('names', { scope }),
  })
  const revoked = await RevokedCertificates.open(store, clock)
  const watches = [credentials.watch(), registry.watch(), revoked.watch()]
  const admin = await credentials.ensureAdmin()
  const authority = settings.clientCaPath === ''
    ? undefined
    : await ClientAuthority.open(settings.clientCaPath, clock)
  const domains = settings.customDomains
    ? openDomains(options, { names, log, registry })
    : undefined
  if (domains) watches.push({ cancel: () => domains.close() })
  const relayIdentity: RelayIdentity = {
    seed: identity.seed,
    public: identity.public,
    names,
    certificates: [await certificateHash(tls.cert)],
  }
  const ports: Shared = {
    clock,
    crypto,
    identity: relayIdentity,
    credentials,
    registry,
    quota,
    revoked,
    metrics,
    log,
    settings: { ...settings, names },
    version,
    ...(domains ? { domains } : {}),
    ...(authority ? { verifyCertificate: (...shown) => authority.verify(...shown) } : {}),
  }
  const renewed = async (now: Pairs): Promise<Pairs | undefined> => {
    await authority?.reread()
    return await changedPairs(now, await pairs(), relayIdentity)
  }
  return { ports, tls, appsTls, acme, renewed, watches, adminKey: admin?.secret }
}

/** `found` where it differs, and its certificate is named to agents from then on. */
async function changedPairs(
  now: Pairs,
  found: Pairs,
  { certificates }: RelayIdentity,
): Promise<Pairs | undefined> {
  const { tls: pair } = found
  const sameApps = found.appsTls.cert === now.appsTls.cert
  if (pair.cert === now.tls.cert && pair.key === now.tls.key && sameApps) return undefined
  checkPair(pair)
  // Connections that began with the one before are still in admission.
  certificates.unshift(await certificateHash(pair.cert))
  certificates.splice(CERTIFICATES_MAX)
  return found
}

interface Services extends Pairs {
  ports: Shared
  acme: AcmeHost | undefined
  /** Another pair than `now`, which the relay's challenges name from then on; undefined: the same. */
  renewed(now: Pairs): Promise<Pairs | undefined>
  watches: Timer[]
  adminKey: string | undefined
}

interface Pairs {
  tls: CertificatePair
  appsTls: CertificatePair
}

type Shared = Host['ports']

function openDomains(
  { settings, store, crypto }: HostOptions,
  { names, log, registry }: { names: string[]; log: Log; registry: Registry },
): Domains {
  const clock = systemClock
  return new Domains({
    ...settings,
    clock,
    store,
    resolver: new Resolver({ clock, crypto, exchange: dnsExchange(settings.dns) }),
    names,
    owner: (label) => registry.owner(label),
    log: (event, fields) => log.info(event, fields),
  })
}

/** The file of the authority whose certificates admit agents, as it is now. */
class ClientAuthority {
  readonly #path: string
  readonly #clock: Clock
  #pem: string
  verify: CertificateVerifier

  private constructor(path: string, clock: Clock, pem: string) {
    this.#path = path
    this.#clock = clock
    this.#pem = pem
    this.verify = certificateVerifier(pem, clock)
  }

  /** Throws `certificate/authority`. */
  static async open(path: string, clock: Clock): Promise<ClientAuthority> {
    return new ClientAuthority(path, clock, await readFile(path, 'utf8'))
  }

  /** Throws `certificate/authority`; the old one stays then. */
  async reread(): Promise<void> {
    const pem = await readFile(this.#path, 'utf8')
    if (pem === this.#pem) return
    this.verify = certificateVerifier(pem, this.#clock)
    this.#pem = pem
  }
}

/** Two files are never written at one moment. Throws `relay/certificate`. */
function checkPair({ cert, key }: CertificatePair): void {
  try {
    const named = new X509Certificate(cert).publicKey.export({ type: 'spki', format: 'der' })
    const own = createPublicKey(key).export({ type: 'spki', format: 'der' })
    if (named.equals(own)) return
  } catch (cause) {
    throw new TunnelError(
      'relay/certificate',
      `Cannot take the new certificate: ${(cause as Error).message}`,
      { cause },
    )
  }
  throw new TunnelError(
    'relay/certificate',
    'Cannot take the new certificate: found a key that is not the one it names',
  )
}

/** What the HTTP app is told of a relay that runs on a machine with raw sockets. */
function appPorts(
  ports: Shared,
  { relay, files }: { relay: Relay; files: ReleaseFiles | undefined },
): Omit<AppPorts, 'store' | 'logins' | 'runtime' | 'publicPort' | 'upgrade' | 'remoteAddress'> {
  const { bulkIdle, inspectable } = ports.settings
  return {
    ...ports,
    ...(files ? { files } : {}),
    abilities: { rawTcp: true, rawUdp: true, bulkLinks: bulkIdle > 0, inspectable },
    draining: () => relay.draining,
    agents: (scope) => relay.agents(scope),
    peers: (scope) => relay.peers(scope),
    grants: ports.registry.grants,
  }
}

function running(
  { crypto, identity, credentials, registry, settings }: Shared,
  of: Pick<
    RunningRelay,
    'relay' | 'port' | 'certificate' | 'adminKey' | 'renew' | 'replaced' | 'stop'
  >,
): RunningRelay {
  return {
    ...of,
    identity: identity.public,
    fingerprint: fingerprint(crypto, identity.public),
    credentials,
    registry,
    drain: async (graceMs = settings.graceSeconds * 1000) => {
      await of.relay.drain(graceMs)
      await of.stop()
    },
  }
}

function isLocal(settings: Settings): boolean {
  return settings.domain === 'localhost' || settings.host === '127.0.0.1'
}

/** The relay's Ed25519 seed: made on first start, 0600, refused when others may read it. */
async function loadIdentity(
  crypto: Crypto,
  path: string,
): Promise<{ seed: Uint8Array; public: Uint8Array }> {
  const seed = await readSecret(path)
  if (seed) {
    if (seed.length !== SEED_BYTES) {
      throw new TunnelError(
        'relay/identity',
        `Cannot read ${path}: found ${seed.length} bytes, expected ${SEED_BYTES}`,
        {
          hint:
            'Restore it from a backup. Without it agents that pinned this relay will refuse it.',
        },
      )
    }
    return { seed, public: crypto.ed25519Public(seed) }
  }
  const made = generateIdentity(crypto)
  await writeSecret(path, made.seed)
  return made
}

async function loadCertificate(
  settings: Settings,
  names: string[],
  clock: Clock,
): Promise<CertificatePair> {
  if (settings.tlsCertPath !== '') {
    const [cert, key] = await Promise.all([
      readFile(settings.tlsCertPath, 'utf8'),
      readFile(settings.tlsKeyPath, 'utf8'),
    ])
    return { cert, key }
  }
  const path = join(settings.dataDirectory, 'certificate.json')
  const wanted = [...names, `*.${settings.appsDomain}`]
  const kept = await readSecret(path)
  if (kept) {
    try {
      const pair = JSON.parse(new TextDecoder().decode(kept)) as CertificatePair
      if (isCurrent(pair.cert, wanted, clock.now())) return pair
    } catch {
      // A torn or foreign file: the certificate is only worth its freshness, so it is made anew.
    }
  }
  const pair = await makeCertificate(wanted, clock.now())
  await writeSecret(path, new TextEncoder().encode(JSON.stringify(pair)))
  return pair
}
