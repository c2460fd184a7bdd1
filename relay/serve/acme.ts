/**
 * Certificates from a CA, on a machine with files: what `relay/acme.ts` decides is asked for here, kept
 * in the folder `acme` of the relay's data (0600), and its questions are answered on the public port.
 */
import { X509Certificate } from 'node:crypto'
import { readdir, readFile, rm } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { createServer } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { fromHex } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { fractionOf, readRenewalInfo, retryAfterOf } from '../../core/renewal.ts'
import type { RenewalWindow } from '../../core/renewal.ts'
import { AcmeDesk } from '../acme.ts'
import type { Kept, Spent } from '../acme.ts'
import { certificateIdOf } from '../certificate.ts'
import type { CertificatePair } from '../certificate.ts'
import type { Log } from '../log.ts'
import type { Settings } from '../settings.ts'
import { newAccount, orderCertificate, renewalInfo, validityOf } from './acme_client.ts'
import type { Account, Ca } from './acme_client.ts'
import { LOOPBACK } from './inside.ts'
import { readSecret, writeSecret } from './secret_file.ts'

/** RFC 8737 §6.2. */
const CHALLENGE_ALPN = 'acme-tls/1'
/** A CA opens a handful of connections at most; they close when TLS is done. */
const CHALLENGE_MS_MAX = 10_000
const ACCOUNT = 'account.json'
const SPENT = 'spent.json'
const CERTIFICATE = /^name-[a-z0-9.-]{1,253}\.json$/

export interface AcmeHostPorts {
  clock: Clock
  crypto: Pick<Crypto, 'randomBytes'>
  log: Log
  folder: string
}

export class AcmeHost {
  readonly #ports: AcmeHostPorts
  readonly #ca: Ca
  readonly #names: readonly string[]
  /** The loopback port that answers a CA, by name. */
  readonly #challenges = new Map<string, number>()
  #desk!: AcmeDesk
  #account: Account | undefined
  /** Set by who has them, once they are there. */
  scopeOf: (name: string) => string | undefined = () => undefined
  changed: (name: string) => Promise<void> = () => Promise.resolve()

  private constructor(ports: AcmeHostPorts, ca: Ca, names: readonly string[]) {
    this.#ports = ports
    this.#ca = ca
    this.#names = names
  }

  static async open(settings: Settings, ports: AcmeHostPorts): Promise<AcmeHost> {
    const { acmeDirectory, acmeContact, acmeCaPath, acmeEabId, acmeEabKeyPath, names } = settings
    const host = new AcmeHost(ports, {
      directory: acmeDirectory,
      contact: acmeContact,
      roots: acmeCaPath === '' ? undefined : await readFile(acmeCaPath, 'utf8'),
      binding: acmeEabId === ''
        ? undefined
        : { id: acmeEabId, key: (await readFile(acmeEabKeyPath, 'utf8')).trim() },
    }, names)
    const account = await host.#read<Account>(ACCOUNT)
    // Another CA knows nothing of this account, and may give certificates of its own.
    const same = account?.directory === acmeDirectory
    if (same) host.#account = account
    host.#desk = new AcmeDesk(host.#deskPorts(), {
      kept: await host.#certificates(),
      spent: await host.#read<Spent[]>(SPENT) ?? [],
    })
    return host
  }

  get desk(): AcmeDesk {
    return this.#desk
  }

  ownPair(): CertificatePair | undefined {
    return this.#desk.pair(this.#names[0]!)
  }

  /** Where a CA that asks for `name` is answered; undefined: none was asked. */
  challengePort(name: string): number | undefined {
    return this.#challenges.get(name)
  }

  #deskPorts(): ConstructorParameters<typeof AcmeDesk>[0] {
    const { clock, crypto, log } = this.#ports
    return {
      clock,
      random: () => crypto.randomBytes(1)[0]! / 256,
      ownNames: this.#names,
      scopeOf: (name) => this.scopeOf(name),
      order: (names, replaces) => this.#order(names, replaces),
      ask: (pair) => this.#ask(pair),
      read: (pair) => {
        const { fingerprint256 } = new X509Certificate(pair.cert)
        const fraction = fractionOf(fromHex(fingerprint256.replaceAll(':', '').toLowerCase()))
        return { ...validityOf(pair.cert), fraction }
      },
      keep: (name, kept) => this.#write(`name-${name}.json`, kept),
      keepBudget: (spent) => this.#write(SPENT, spent),
      forget: (name) => rm(join(this.#ports.folder, `name-${name}.json`), { force: true }),
      changed: (name) => this.changed(name),
      log: (level, event, fields) => log[level](event, fields),
    }
  }

  async #order(
    names: readonly string[],
    replaces: CertificatePair | undefined,
  ): Promise<CertificatePair> {
    const account = this.#account ??= await newAccount(this.#ca.directory)
    return await orderCertificate({
      ca: this.#ca,
      account,
      names,
      replaces: replaces && certificateIdOf(replaces.cert),
      accountMade: async (made) => {
        this.#account = made
        await this.#write(ACCOUNT, made)
      },
      challenge: (name, pair) => this.#answer(name, pair),
    })
  }

  async #ask(
    pair: CertificatePair,
  ): Promise<{ window?: RenewalWindow; retryAfterMs?: number } | undefined> {
    const id = certificateIdOf(pair.cert)
    const answer = id === undefined ? undefined : await renewalInfo(this.#ca, id)
    if (!answer) return undefined
    const retryAfterMs = retryAfterOf(answer.retryAfter, this.#ports.clock.now())
    return {
      window: readRenewalInfo(answer.info),
      ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
    }
  }

  /** TLS by `acme-tls/1` with the CA's own certificate for it, on a port of loopback. */
  async #answer(name: string, pair: CertificatePair): Promise<() => Promise<void>> {
    const open = new Set<TLSSocket>()
    const server = createServer({
      cert: pair.cert,
      key: pair.key,
      ALPNProtocols: [CHALLENGE_ALPN],
      handshakeTimeout: CHALLENGE_MS_MAX,
    }, (socket) => {
      open.add(socket)
      socket.on('error', () => {})
      socket.once('close', () => void open.delete(socket))
      // Nothing is said on such a connection: RFC 8737 §3.
      socket.end()
    })
    server.on('tlsClientError', () => {})
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(0, LOOPBACK, resolve)
    })
    const { port } = server.address() as AddressInfo
    this.#challenges.set(name, port)
    return () => {
      if (this.#challenges.get(name) === port) this.#challenges.delete(name)
      server.close()
      for (const socket of open) socket.destroy()
      return Promise.resolve()
    }
  }

  async #certificates(): Promise<Kept[]> {
    const kept: Kept[] = []
    const files = await readdir(this.#ports.folder).catch(() => [] as string[])
    for (const file of files.filter((name) => CERTIFICATE.test(name))) {
      const one = await this.#read<Kept>(file)
      if (one && isKept(one, this.#names)) kept.push(one)
    }
    return kept
  }

  /** Undefined where there is none, or one that was torn. */
  async #read<T>(name: string): Promise<T | undefined> {
    const bytes = await readSecret(join(this.#ports.folder, name))
    try {
      return bytes && JSON.parse(new TextDecoder().decode(bytes)) as T
    } catch {
      return undefined
    }
  }

  #write(name: string, value: unknown): Promise<void> {
    return writeSecret(
      join(this.#ports.folder, name),
      new TextEncoder().encode(JSON.stringify(value)),
    )
  }
}

/** Whether a file holds what was kept: a relay that has other names by now asks anew for its own. */
function isKept(kept: Kept, ownNames: readonly string[]): boolean {
  if (!Array.isArray(kept.names) || typeof kept.names[0] !== 'string') return false
  if (kept.names.some((name) => ownNames.includes(name))) {
    if (kept.names.join() !== ownNames.join()) return false
  }
  try {
    return !kept.pair || validityOf(kept.pair.cert).notAfterMs > 0
  } catch {
    return false
  }
}
