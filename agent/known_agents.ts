/**
 * Pins: which identity is behind a name, and which behind a relay, remembered from first contact on,
 * as SSH does. Text files that a person may edit: one pin a line, `#` comments and blank lines stay
 * where they are.
 *
 *   known_agents   NAME KEY HOW WHEN [verified]    several lines of a name are a pool
 *                  @authority NAME KEY HOW WHEN    vouches for others, as an SSH CA does
 *                  @revoked KEY WHEN               has said of itself that it is no more
 *   known_relays   HOST KEY WHEN
 *
 * KEY is 52 characters of base32, or a fingerprint (SHA256:…) until the key was seen; HOW `first-use`,
 * `manual`, `code` or `rotation`, WHEN a date of ISO 8601.
 * Beside them is what was seen of the passports of others, so that no relay can show an old one:
 *
 *   known_passports   KEY SEQUENCE    the one seen last at the end
 */
import { text, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { fingerprint, formatKey, parseFingerprint, parseKey } from '../core/key.ts'
import type { Files } from './world.ts'

const FILE_BYTES_MAX = 1_048_576
/** Identities whose newest passport is remembered; those not seen for longest are forgotten. */
const PASSPORTS_MAX = 10_000
const HOW = ['first-use', 'manual', 'code', 'rotation'] as const

export type PinHow = (typeof HOW)[number]

export interface KnownAgent {
  readonly name: string
  /** KEY, or SHA256:… where a person gave only that and nobody has come with the key yet. */
  readonly key: string
  readonly how: PinHow
  readonly when: string
  /** A person compared it by another way. */
  readonly verified: boolean
}

/** One line of known_agents. */
type Pin =
  | ({ kind: 'agent' } & KnownAgent)
  | ({ kind: 'authority' } & KnownAgent)
  | { kind: 'revoked'; key: string; when: string }

/** True when a pin is of this KEY. */
export function isPinOf(crypto: Crypto, pin: { key: string }, key: string): boolean {
  return pin.key === key ||
    (pin.key.startsWith('SHA256:') && pin.key === fingerprint(crypto, parseKey(key)))
}

/** The fingerprint of a pin, which may be all that it holds. */
export function pinPrint(crypto: Crypto, pin: { key: string }): string {
  return pin.key.startsWith('SHA256:') ? pin.key : fingerprint(crypto, parseKey(pin.key))
}

export interface KnownRelay {
  readonly host: string
  readonly key: string
  readonly when: string
}

export interface PinPorts {
  path: string
  files: Pick<Files, 'read' | 'write'>
  clock: Pick<Clock, 'now'>
  crypto: Crypto
  /** Runs alone among all writers of the file. */
  locked<T>(run: () => Promise<T>): Promise<T>
}

/** A file of lines, of which some are pins. */
class PinFile<P> {
  readonly ports: PinPorts
  readonly #parse: (fields: string[]) => P | undefined

  constructor(ports: PinPorts, parse: (fields: string[]) => P | undefined) {
    this.ports = ports
    this.#parse = parse
  }

  /** Every line as it is, and the pin in it where there is one. Throws `trust/corrupt`. */
  async lines(): Promise<{ line: string; pin: P | undefined }[]> {
    const { files, path } = this.ports
    const content = await files.read(path, { bytesMax: FILE_BYTES_MAX })
    if (content === undefined) return []
    let whole: string
    try {
      whole = text(content)
    } catch {
      throw this.#corrupt(1)
    }
    const lines = whole.split(/\r?\n/)
    if (lines.at(-1) === '') lines.pop()
    return lines.map((line, i) => {
      const bare = line.trim()
      if (bare === '' || bare.startsWith('#')) return { line, pin: undefined }
      const pin = this.#parse(bare.split(/\s+/))
      if (pin === undefined) throw this.#corrupt(i + 1)
      return { line, pin }
    })
  }

  async pins(): Promise<P[]> {
    return (await this.lines()).flatMap(({ pin }) => pin === undefined ? [] : [pin])
  }

  /** Changes the file under its lock; the answer is what becomes of each line. */
  async change(edit: (lines: { line: string; pin: P | undefined }[]) => string[]): Promise<void> {
    const { files, path, locked } = this.ports
    await locked(async () => {
      const before = await this.lines()
      const after = edit(before)
      if (after.length === before.length && after.every((line, i) => line === before[i]!.line)) {
        return
      }
      await files.write(path, utf8(after.map((line) => `${line}\n`).join('')))
    })
  }

  #corrupt(line: number): TunnelError {
    return new TunnelError(
      'trust/corrupt',
      `Cannot read ${this.ports.path}: found something else than a pin in line ${line}`,
      { hint: 'Mend that line, or put # before it' },
    )
  }
}

export class KnownAgents {
  readonly #file: PinFile<Pin>
  readonly #ports: PinPorts

  constructor(ports: PinPorts) {
    this.#ports = ports
    this.#file = new PinFile(ports, parseAgent)
  }

  async list(): Promise<KnownAgent[]> {
    return (await this.#file.pins()).flatMap((pin) => pin.kind === 'agent' ? [pin] : [])
  }

  async find(name: string): Promise<KnownAgent[]> {
    return (await this.list()).filter((pin) => pin.name === name)
  }

  async authorities(): Promise<KnownAgent[]> {
    return (await this.#file.pins()).flatMap((pin) => pin.kind === 'authority' ? [pin] : [])
  }

  /** KEYs that were revoked by their own statement. */
  async revoked(): Promise<string[]> {
    return (await this.#file.pins()).flatMap((pin) => pin.kind === 'revoked' ? [pin.key] : [])
  }

  /** Remembered for ever: a relay that keeps the statement back changes nothing. */
  async revoke(key: string): Promise<void> {
    parseKey(key)
    await this.#file.change((lines) => [
      ...lines.map((one) => one.line),
      ...(lines.some(({ pin }) => pin?.kind === 'revoked' && pin.key === key)
        ? []
        : [`@revoked ${key} ${this.#now()}`]),
    ])
  }

  /** Adds a pin, or renews how it came about. Throws `trust/name`, `key/format`. */
  async trust(
    name: string,
    key: string,
    options: { how?: PinHow; verified?: boolean; authority?: boolean } = {},
  ): Promise<void> {
    checkToken(name)
    checkKey(key)
    const { how = 'manual', verified = false, authority = false } = options
    const kind = authority ? 'authority' : 'agent'
    const line = this.#line({ name, key, how, verified }, kind)
    await this.#file.change((lines) => {
      const at = lines.findIndex(({ pin }) =>
        pin?.kind === kind && pin.name === name && this.#same(pin.key, key)
      )
      if (at < 0) return [...lines.map((one) => one.line), line]
      if (how === 'first-use') return lines.map((one) => one.line)
      return lines.map((one, i) => i === at ? line : one.line)
    })
  }

  /** A pin becomes that of its successor, wherever the old one stands; verified stays verified. */
  async succeed(old: string, next: string): Promise<string[]> {
    parseKey(next)
    const names: string[] = []
    await this.#file.change((lines) =>
      lines.flatMap(({ line, pin }) => {
        if (!pin || pin.kind === 'revoked' || !this.#same(pin.key, old)) return [line]
        names.push(pin.name)
        const isThere = lines.some(({ pin: other }) =>
          other?.kind === pin.kind && other.name === pin.name && this.#same(other.key, next)
        )
        return isThere ? [] : [this.#line({ ...pin, key: next, how: 'rotation' }, pin.kind)]
      })
    )
    return names
  }

  /**
   * The pin of a name and KEY is marked: a person compared it; or marked no longer. False: there is no
   * such pin.
   */
  async verify(name: string, key: string, verified = true): Promise<boolean> {
    let found = false
    await this.#file.change((lines) =>
      lines.map(({ line, pin }) => {
        if (pin?.kind !== 'agent' || pin.name !== name || !this.#same(pin.key, key)) return line
        found = true
        return this.#line({ ...pin, key, verified }, 'agent')
      })
    )
    return found
  }

  /** Removes all pins of a name; the answer is how many there were. */
  async forget(name: string, { authority = false } = {}): Promise<number> {
    const kind = authority ? 'authority' : 'agent'
    let removed = 0
    await this.#file.change((lines) =>
      lines.filter(({ pin }) => {
        const goes = pin?.kind === kind && pin.name === name
        if (goes) removed++
        return !goes
      }).map(({ line }) => line)
    )
    return removed
  }

  /**
   * Checks the KEYs that serve a name. Those that are pinned are trusted; where none ever was, all are
   * pinned now and `first` is true. Throws `trust/changed` when there are pins and none of them serves.
   */
  async check(
    name: string,
    keys: readonly string[],
  ): Promise<{ trusted: string[]; first: boolean }> {
    checkToken(name)
    for (const key of keys) parseKey(key)
    let outcome: { trusted: string[]; first: boolean } | undefined
    let pinned: string[] = []
    // Under the lock from the start: two first contacts at once must agree on one identity.
    await this.#file.change((lines) => {
      pinned = lines.flatMap(({ pin }) =>
        pin?.kind === 'agent' && pin.name === name ? [pin.key] : []
      )
      const isPinned = (key: string): boolean => pinned.some((one) => this.#same(one, key))
      if (pinned.length > 0 || keys.length === 0) {
        outcome = { trusted: keys.filter(isPinned), first: false }
        return lines.map(({ line, pin }) => this.#completed(line, { pin, name, keys }))
      }
      outcome = { trusted: [...keys], first: true }
      return [
        ...lines.map(({ line }) => line),
        ...keys.map((key) => this.#line({ name, key, how: 'first-use', verified: false })),
      ]
    })
    if (outcome!.trusted.length === 0 && pinned.length > 0) {
      throw changed(this.#ports.crypto, { subject: `"${name}"`, found: [...keys], pinned }, {
        accept: [
          `sotto peers forget ${name}`,
          ...keys.map((key) => `sotto peers trust ${name} ${key}`),
        ].join(' && '),
      })
    }
    return outcome!
  }

  /** A line with a fingerprint alone becomes one with the key that it is of. */
  #completed(
    line: string,
    { pin, name, keys }: { pin: Pin | undefined; name: string; keys: readonly string[] },
  ): string {
    if (pin?.kind !== 'agent' || pin.name !== name || !pin.key.startsWith('SHA256:')) return line
    const key = keys.find((one) => this.#same(pin.key, one))
    return key === undefined ? line : line.replace(pin.key, key)
  }

  #same(pinned: string, key: string): boolean {
    if (key.startsWith('SHA256:')) return pinPrint(this.#ports.crypto, { key: pinned }) === key
    return isPinOf(this.#ports.crypto, { key: pinned }, key)
  }

  #now(): string {
    return new Date(this.#ports.clock.now()).toISOString()
  }

  #line(pin: Omit<KnownAgent, 'when'>, kind: 'agent' | 'authority' = 'agent'): string {
    const mark = kind === 'authority' ? '@authority ' : ''
    return `${mark}${pin.name} ${pin.key} ${pin.how} ${this.#now()}${
      pin.verified ? ' verified' : ''
    }`
  }
}

export class KnownRelays {
  readonly #file: PinFile<KnownRelay>
  readonly #ports: PinPorts
  #keeping: Promise<void> = Promise.resolve()

  constructor(ports: PinPorts) {
    this.#ports = ports
    this.#file = new PinFile(ports, parseRelay)
  }

  list(): Promise<KnownRelay[]> {
    return this.#file.pins()
  }

  async find(host: string): Promise<KnownRelay[]> {
    return (await this.list()).filter((pin) => pin.host === host)
  }

  /** Replaces what was pinned for a host (`relay.example` or `relay.example:8443`). */
  async trust(host: string, key: string): Promise<void> {
    checkToken(host)
    parseKey(key)
    const line = `${host} ${key} ${new Date(this.#ports.clock.now()).toISOString()}`
    await this.#file.change((lines) => [
      ...lines.filter(({ pin }) => pin?.host !== host).map((one) => one.line),
      line,
    ])
  }

  async forget(host: string): Promise<number> {
    const before = (await this.find(host)).length
    await this.#file.change((lines) =>
      lines.filter(({ pin }) => pin?.host !== host).map(({ line }) => line)
    )
    return before
  }

  /** When what `pinOf` found out is on disk. */
  kept(): Promise<void> {
    return this.#keeping
  }

  /**
   * What admission asks about the relay's identity, ready to be called without waiting. With a
   * `fingerprint` (SHA256:…) that alone counts, and is the pin from then on; else the pins of the host; else first use: `first` is
   * called, and the pin is kept. The function throws `trust/changed`.
   */
  async pinOf(
    host: string,
    options: { fingerprint?: string; first?: (key: string) => void } = {},
  ): Promise<(relayPublic: Uint8Array) => boolean> {
    const { crypto } = this.#ports
    const demanded = options.fingerprint
    if (demanded !== undefined) parseFingerprint(demanded)
    const pinned = (await this.find(host)).map(({ key }) => key)
    return (relayPublic) => {
      const key = formatKey(relayPublic)
      if (demanded !== undefined) {
        if (fingerprint(crypto, relayPublic) !== demanded) {
          throw new TunnelError(
            'trust/changed',
            `Cannot trust relay ${host}: found ${fingerprint(crypto, relayPublic)}, ` +
              `expected ${demanded}`,
            { hint: 'Ask who runs the relay for its fingerprint.' },
          )
        }
      } else if (pinned.length > 0 && !pinned.includes(key)) {
        throw changed(crypto, { subject: `relay ${host}`, found: [key], pinned }, {
          accept: `say --relay-fingerprint ${fingerprint(crypto, relayPublic)} once`,
        })
      }
      if (!pinned.includes(key)) {
        if (pinned.length === 0) options.first?.(key)
        pinned.splice(0, pinned.length, key)
        // A pin that cannot be kept is no reason to refuse: the next run asks again.
        this.#keeping = this.trust(host, key).catch(() => {})
      }
      return true
    }
  }
}

/** The newest passport seen of each identity: an older one is a replay, in whatever run. */
export class KnownPassports {
  readonly #file: PinFile<{ key: string; sequence: number }>
  /** What this run has read or seen. */
  readonly #newest = new Map<string, number>()

  constructor(ports: PinPorts) {
    this.#file = new PinFile(ports, parseSeen)
  }

  /** The sequence number; 0 where none was seen. Throws `trust/corrupt`. */
  async newest(key: string): Promise<number> {
    const known = this.#newest.get(key)
    if (known !== undefined) return known
    const seen = (await this.#file.pins()).filter((pin) => pin.key === key)
    const newest = Math.max(0, ...seen.map(({ sequence }) => sequence))
    // Those alone that are in the file: what strangers ask about is not remembered.
    if (newest > 0) this.#newest.set(key, newest)
    return newest
  }

  /** Keeps a higher number, and never a lower one: another process may know a newer passport. */
  async keep(key: string, sequence: number): Promise<void> {
    parseKey(key)
    if ((this.#newest.get(key) ?? -1) >= sequence) return
    this.#newest.set(key, sequence)
    // A number that cannot be written is no reason to refuse: this run knows it.
    await this.#write(key, sequence).catch(() => {})
  }

  async #write(key: string, sequence: number): Promise<void> {
    await this.#file.change((lines) => {
      const kept = lines.map(({ line }) => line)
      if (lines.some(({ pin }) => pin?.key === key && pin.sequence >= sequence)) return kept
      const others = lines.filter(({ pin }) => pin?.key !== key).map(({ line }) => line)
      return [...others.slice(Math.max(0, others.length - PASSPORTS_MAX + 1)), `${key} ${sequence}`]
    })
  }
}

function changed(
  crypto: Crypto,
  { subject, found, pinned }: { subject: string; found: string[]; pinned: string[] },
  { accept }: { accept: string },
): TunnelError {
  const words = (keys: string[]): string =>
    keys.map((key) => pinPrint(crypto, { key })).join(' or ')
  return new TunnelError(
    'trust/changed',
    `Cannot trust ${subject}: its identity has changed: found ${words(found)}, expected ${
      words(pinned)
    }`,
    {
      hint: `Somebody may stand in between. If the change is meant (ask by another way): ${accept}`,
    },
  )
}

function parseAgent(fields: string[]): Pin | undefined {
  if (fields[0] === '@revoked') {
    const [, key, when, more] = fields
    if (!isKey(key) || !isDate(when) || more !== undefined) return undefined
    return { kind: 'revoked', key, when }
  }
  const kind = fields[0] === '@authority' ? 'authority' : 'agent'
  const [name, key, how, when, mark, more] = kind === 'authority' ? fields.slice(1) : fields
  if (!name || name.startsWith('@') || !isPinned(key) || !isDate(when) || more !== undefined) {
    return undefined
  }
  if (!HOW.includes(how as PinHow) || (mark !== undefined && mark !== 'verified')) return undefined
  return { kind, name, key, how: how as PinHow, when, verified: mark === 'verified' }
}

function parseRelay(fields: string[]): KnownRelay | undefined {
  const [host, key, when, more] = fields
  if (!isKey(key) || !isDate(when) || more !== undefined) return undefined
  return { host: host!, key, when }
}

function parseSeen(fields: string[]): { key: string; sequence: number } | undefined {
  const [key, sequence, more] = fields
  if (!isKey(key) || more !== undefined || !/^[0-9]{1,16}$/.test(sequence ?? '')) return undefined
  const number = Number(sequence)
  return Number.isSafeInteger(number) ? { key, sequence: number } : undefined
}

function isKey(word: string | undefined): word is string {
  try {
    parseKey(word ?? '')
    return true
  } catch {
    return false
  }
}

function isPinned(word: string | undefined): word is string {
  try {
    checkKey(word ?? '')
    return true
  } catch {
    return false
  }
}

/** A KEY or a fingerprint. Throws `key/format`. */
function checkKey(word: string): void {
  if (word.startsWith('SHA256:')) parseFingerprint(word)
  else parseKey(word)
}

function isDate(word: string | undefined): word is string {
  return word !== undefined && /^\d{4}-\d{2}-\d{2}/.test(word) && !Number.isNaN(Date.parse(word))
}

function checkToken(word: string): void {
  if (/^[^\s#@]\S{0,252}$/.test(word)) return
  throw new TunnelError('trust/name', `Cannot pin "${word}": expected a name without blanks`)
}
