/**
 * What an agent keeps of its dealings with CAs, below the profile's state: one account for each directory,
 * the certificates, and what was asked for each name, so that a program that is started again and again
 * meets no limit of the CA. All of it 0600; keys are made here and go nowhere.
 */
import { hex, text, utf8 } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import { readAttempts } from '../core/renewal.ts'
import type { Attempts } from '../core/renewal.ts'
import { accountKey } from './acme_challenge.ts'
import type { Profile } from './profile.ts'
import type { TlsIdentity, World } from './world.ts'

const FILE_BYTES_MAX = 65_536
const MARK_BYTES = 6

export interface AcmeAccount {
  /** PEM. */
  readonly key: string
  /** Undefined until the CA has made it. */
  readonly url: string | undefined
}

export class AcmeStore {
  readonly accountPath: string
  readonly #world: Pick<World, 'files' | 'crypto'>
  readonly #profile: Profile
  readonly #directory: string
  readonly #mark: string

  constructor(
    world: Pick<World, 'files' | 'crypto'>,
    { profile, directory }: { profile: Profile; directory: string },
  ) {
    this.#world = world
    this.#profile = profile
    this.#directory = directory
    this.#mark = hex(world.crypto.sha256(utf8(directory)).subarray(0, MARK_BYTES))
    this.accountPath = `${this.#dir}/account-${this.#mark}.json`
  }

  get #dir(): string {
    return `${this.#profile.stateDir}/acme`
  }

  /** The account at this directory; its key is made, and kept, before anything is sent. */
  async account(): Promise<AcmeAccount> {
    return await this.#profile.locked(`acme-account-${this.#mark}`, async () => {
      const kept = await this.#read(this.accountPath)
      if (typeof kept?.['key'] === 'string') {
        const url = kept['url']
        return { key: kept['key'], url: typeof url === 'string' ? url : undefined }
      }
      const made = { key: await accountKey(), url: undefined }
      await this.#write(this.accountPath, { directory: this.#directory, ...made })
      return made
    })
  }

  async keepAccount({ key, url }: AcmeAccount): Promise<void> {
    await this.#write(this.accountPath, { directory: this.#directory, url, key })
  }

  /** The certificate of this CA for the name, with its key. */
  certificate(name: string): Promise<TlsIdentity | undefined> {
    return this.#profile.certificate(`ca-${this.#mark}-${name}`)
  }

  async keepCertificate(name: string, pair: TlsIdentity): Promise<void> {
    await this.#profile.keepCertificate(`ca-${this.#mark}-${name}`, pair)
  }

  async attempts(name: string): Promise<Attempts> {
    return readAttempts(await this.#read(this.#attemptsPath(name)))
  }

  async keepAttempts(name: string, attempts: Attempts): Promise<void> {
    await this.#write(this.#attemptsPath(name), { name, ...attempts })
  }

  /** Undefined while another process is at the same name. */
  lock(name: string): Promise<(() => Promise<void>) | undefined> {
    return this.#world.files.lock(
      `${this.#profile.stateDir}/locks/acme-${this.#mark}-${plain(name)}`,
    )
  }

  #attemptsPath(name: string): string {
    return `${this.#dir}/attempts-${this.#mark}-${plain(name)}.json`
  }

  async #read(path: string): Promise<Record<string, unknown> | undefined> {
    const content = await this.#profile.readSecret(path, FILE_BYTES_MAX)
    try {
      return content && JSON.parse(text(content)) as Record<string, unknown>
    } catch {
      throw new TunnelError('profile/corrupt', `Cannot read ${path}: found no JSON`, {
        hint: `Restore it from a copy, or move it away: ${path}`,
      })
    }
  }

  async #write(path: string, value: object): Promise<void> {
    await this.#world.files.write(path, utf8(`${JSON.stringify(value, null, 2)}\n`))
  }
}

/** A name may hold what a relay said. */
function plain(name: string): string {
  return name.replace(/[^a-z0-9.-]/g, '_')
}
