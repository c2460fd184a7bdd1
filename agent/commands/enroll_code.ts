/** `sotto authority enroll-code`: machines join a fleet, one by a code or many by a secret. */
import { text, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { PATTERN_LENGTH_MAX } from '../../core/glob.ts'
import { fingerprint, formatKey, parseKey } from '../../core/key.ts'
import { parseLabels } from '../../core/labels.ts'
import { Authority, checkAuthorityName, DAYS_DEFAULT, DAYS_MAX } from '../authority.ts'
import { showCode } from '../cli/code_entry.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName, durationOf, readChoice } from '../cli/plan.ts'
import { Screen, waitWords } from '../cli/screen.ts'
import { uplinkTeller } from '../cli/uplink_words.ts'
import { ENROLL_SERVICE, enrolmentName, makeSecret, readSecret, Registrar } from '../enrolment.ts'
import type { Enrolled, EnrolmentSecret, EnrolmentTerms } from '../enrolment.ts'
import { EnrolmentBook, ENROLMENTS_MAX } from '../enrolment_book.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { PairRoom } from '../pairing.ts'
import { Presence } from '../presence.ts'
import type { Profile } from '../profile.ts'
import { stopped } from '../stop.ts'
import type { World } from '../world.ts'

const EXPIRES_MS_DEFAULT = 3_600_000
/** From the code to the machine's request for its vouch. */
const ENROLL_MS_MAX = 60_000
const SECRET_FILE_BYTES_MAX = 4096
const PATTERN = /^[a-z0-9*?-]+$/

const page: Page = {
  name: 'sotto authority enroll-code',
  summary: 'let machines join a fleet: one by a code, or many by a secret',
  args: ['[NAME]'],
  examples: [
    [
      "sotto authority enroll-code ops --names 'web-*' --label role=web",
      'Shows a code for one machine, which types it into "sotto enroll".',
    ],
    [
      'sotto authority enroll-code ops --secret-file fleet.secret --count 200 --expires 1h',
      '200 machines may enroll while this runs: SOTTO_CODE=$(cat fleet.secret) sotto enroll.',
    ],
  ],
  flags: [
    {
      name: 'names',
      value: 'PATTERN',
      many: true,
      without: 'no names',
      help: 'Names that a machine may ask for and be trusted under, such as web-1 or web-*.',
    },
    { name: 'scope', value: 'SCOPE', without: 'any', help: 'Those names in this scope alone.' },
    {
      name: 'label',
      value: 'NAME=VALUE',
      many: true,
      without: 'none',
      help: 'What each machine is, for selectors and for rules of "sotto access".',
    },
    { name: 'days', value: 'DAYS', without: `${DAYS_DEFAULT}`, help: 'How long a vouch holds.' },
    {
      name: 'secret-file',
      value: 'PATH',
      without: 'a code for one machine',
      help: 'A secret for many machines in this file; made when the file is not there.',
    },
    { name: 'count', value: 'COUNT', help: 'With a new secret: how many machines may enroll.' },
    {
      name: 'expires',
      value: 'TIME',
      without: '1h',
      help: 'With a new secret: how long it is good for, such as 30m or 24h.',
    },
    {
      name: 'key-file',
      value: 'PATH',
      without: 'authorities/NAME in the profile',
      help: "The authority's key.",
    },
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `NAME is the authority, where there are several. Machines enroll while this runs, from the scope of
this agent. A restart with the same --secret-file counts on: it begins with as many as were left.`,
}

interface EnrollCodeOptions {
  name: string | undefined
  keyFile: string | undefined
  terms: EnrolmentTerms
  secretFile: string | undefined
  count: number | undefined
  expiresMs: number | undefined
  choice: RelayChoice
  json: boolean
}

function read(given: Given): EnrollCodeOptions {
  return {
    name: given.args[0],
    keyFile: textOf(given, 'key-file'),
    terms: {
      names: listOf(given, 'names').flatMap((one) => one.split(',')),
      scope: textOf(given, 'scope') ?? '',
      labels: parseLabels(listOf(given, 'label')),
      days: numberOf(given, 'days', { min: 1, max: DAYS_MAX }) ?? DAYS_DEFAULT,
    },
    secretFile: textOf(given, 'secret-file'),
    count: numberOf(given, 'count', { min: 1, max: ENROLMENTS_MAX }),
    expiresMs: durationOf(given, 'expires'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ name, terms, secretFile, count, expiresMs, choice }: EnrollCodeOptions): void {
  checkChoice(choice)
  if (name !== undefined) checkAuthorityName(name)
  if (terms.scope !== '') checkName(terms.scope)
  const wrong = terms.names.find((one) => one.length > PATTERN_LENGTH_MAX || !PATTERN.test(one))
  if (wrong !== undefined) {
    throw new TunnelError('cli/pattern', `Cannot use the pattern ${JSON.stringify(wrong)}`, {
      hint: 'Names are of a-z 0-9 and hyphens; * is any run of them, ? any one.',
    })
  }
  if (secretFile === undefined && (count !== undefined || expiresMs !== undefined)) {
    throw new TunnelError('cli/conflict', 'Cannot use --count or --expires without --secret-file', {
      hint: 'A code is for one machine, and for 10 minutes.',
    })
  }
}

async function run(options: EnrollCodeOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const authority = await Authority.open(world, joining.profile, options)
  return await new Enrolling(world, { options, screen, joining, authority }).run()
}

interface Parts {
  options: EnrollCodeOptions
  screen: Screen
  joining: Joining
  authority: Authority
}

class Enrolling {
  readonly #world: World
  readonly #parts: Parts
  #secret: { secret: EnrolmentSecret; book: EnrolmentBook } | undefined
  #room: PairRoom | undefined
  #done!: () => void

  constructor(world: World, parts: Parts) {
    this.#world = world
    this.#parts = parts
  }

  async run(): Promise<number> {
    const { options, screen, joining, authority } = this.#parts
    const world = this.#world
    const { secretFile } = options
    if (secretFile !== undefined) this.#secret = await this.#openSecret(secretFile)
    const tellState = uplinkTeller(screen)
    const done = new Promise<void>((resolve) => void (this.#done = resolve))
    const registrar = new Registrar({
      ...world,
      authority,
      terms: options.terms,
      ...(this.#secret && { secret: { key: this.#secret.secret.key, book: this.#secret.book } }),
      enrolled: (machine) => this.#enrolled(machine),
      refused: (key, reason) => {
        const print = fingerprint(world.crypto, parseKey(key))
        screen.tell(`${print}: ${reason}`, { event: 'refused', fields: { key, reason } })
      },
    })
    const presence = await Presence.open(world, {
      joining,
      tell: (sentence) => screen.tell(sentence),
      onState: (state) => {
        tellState(state)
        if (state.kind === 'down') this.#room?.lost()
      },
      onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
      onPair: (stream) => this.#room ? this.#room.accept(stream) : stream.reset(1),
    })
    // Whoever comes has to prove itself inside: there is no rule, and no pin, for strangers.
    presence.peers.serve(ENROLL_SERVICE, {
      needs: () => true,
      session: (session, { key }) => registrar.take(session, key),
    })
    const stop = stopped(world.signal)
    try {
      await Promise.race([presence.ready(), stop.promise])
      if (this.#secret) await this.#many(presence, done, stop.promise)
      else await this.#one(presence, { registrar, done, stop: stop.promise })
      return 0
    } finally {
      stop.done()
      screen.close()
      await this.#room?.close()
      if (world.signal.aborted) presence.close()
      else await presence.end()
    }
  }

  async #one(
    presence: Presence,
    { registrar, done, stop }: { registrar: Registrar; done: Promise<void>; stop: Promise<never> },
  ): Promise<void> {
    const { joining, screen } = this.#parts
    const { crypto, clock } = this.#world
    const print = fingerprint(crypto, joining.identity.public)
    // The machine learns by the code where we wait.
    const name = await presence.announceNear(enrolmentName(print))
    const ports = { clock, crypto, presence, joining, name }
    this.#room = await Promise.race([PairRoom.open(ports), stop])
    const { code, expires } = this.#room
    showCode(this.#world, screen, { code, expires, whom: 'one machine', typed: 'sotto enroll' })
    const peer = await Promise.race([this.#room.paired, stop])
    registrar.invite(formatKey(peer.identity))
    let late: { cancel(): void } | undefined
    const never = new Promise<never>((_, reject) => {
      late = clock.after(ENROLL_MS_MAX, () => reject(silent()))
    })
    never.catch(() => {})
    await Promise.race([done, stop, never]).finally(() => late?.cancel())
  }

  async #many(presence: Presence, done: Promise<void>, stop: Promise<never>): Promise<void> {
    const { screen, options } = this.#parts
    const { clock } = this.#world
    const { secret, book } = this.#secret!
    const { expires, count } = book.terms
    const leftMs = expires - clock.now()
    if (leftMs <= 0 || book.left === 0) throw used(options.secretFile!, leftMs <= 0)
    await presence.agent.announce(secret.at)
    screen.show('open', [
      { name: 'file', value: options.secretFile!, line: `the secret is in ${options.secretFile}` },
      { name: 'count', value: count, line: `${book.left} of ${count} machines may still enroll` },
      { name: 'left', value: book.left },
      {
        name: 'expires',
        value: new Date(expires).toISOString(),
        line: `for ${waitWords(leftMs)}: SOTTO_CODE=$(cat ${options.secretFile}) sotto enroll`,
        whole: true,
      },
    ])
    screen.follow(() => `${count - book.left} of ${count} enrolled`)
    let late: { cancel(): void } | undefined
    const over = new Promise<void>((resolve) => void (late = clock.after(leftMs, resolve)))
    await Promise.race([done, over, stop]).finally(() => late?.cancel())
    screen.tell(`${count - book.left} of ${count} machines have enrolled`, {
      event: 'over',
      fields: { enrolled: count - book.left, left: book.left },
    })
  }

  #enrolled({ key, names, serial }: Enrolled): void {
    const { screen } = this.#parts
    const left = this.#secret?.book.left ?? 0
    const print = fingerprint(this.#world.crypto, parseKey(key))
    const who = names.length === 0 ? print : `${names.join(', ')} (${print})`
    screen.tell(`enrolled ${who}, serial ${serial}`, {
      event: 'enrolled',
      fields: { key, fingerprint: print, names, serial, left },
    })
    if (left === 0) this.#done()
  }

  /** Throws `enroll/…`, `files/…`, `profile/permissions`. */
  async #openSecret(path: string): Promise<{ secret: EnrolmentSecret; book: EnrolmentBook }> {
    const { files, crypto, clock } = this.#world
    const { options, joining, authority } = this.#parts
    const isThere = await files.info(path) !== undefined
    const secret = isThere ? await readSecretFile(this.#world, path) : makeSecret(crypto)
    const { count } = options
    const expiresMs = options.expiresMs ?? (count === undefined ? undefined : EXPIRES_MS_DEFAULT)
    const book = await EnrolmentBook.open(bookPorts(this.#world, joining.profile, secret), {
      authority: authority.key,
      count,
      expires: expiresMs === undefined ? undefined : clock.now() + expiresMs,
    })
    // After its book, so that no secret is ever good without a limit.
    if (!isThere) await files.write(path, utf8(`${secret.words}\n`))
    return { secret, book }
  }
}

function bookPorts(
  { files, clock }: World,
  profile: Profile,
  { at }: EnrolmentSecret,
): Parameters<typeof EnrolmentBook.open>[0] {
  return {
    path: `${profile.stateDir}/enrolments/${at}`,
    files,
    clock,
    locked: (run) => profile.locked(at, run),
  }
}

async function readSecretFile(world: World, path: string): Promise<EnrolmentSecret> {
  const info = await world.files.info(path)
  if (info && (info.mode & 0o077) !== 0) {
    throw new TunnelError(
      'profile/permissions',
      `Cannot use ${path}: found mode ${info.mode.toString(8).padStart(4, '0')}, expected 0600`,
      { hint: `Others may have read it: take another file.` },
    )
  }
  const content = await world.files.read(path, { bytesMax: SECRET_FILE_BYTES_MAX })
  return readSecret(world.crypto, text(content ?? new Uint8Array(0)))
}

function used(path: string, expired: boolean): TunnelError {
  const found = expired ? 'it has expired' : 'as many machines as it takes have enrolled'
  return new TunnelError('enroll/over', `Cannot go on with the secret in ${path}: ${found}`, {
    hint: 'Take another --secret-file, with --count and --expires.',
  })
}

function silent(): TunnelError {
  return new TunnelError(
    'enroll/silent',
    'Cannot enroll the machine that had the code: it did not ask for its vouch',
    { hint: 'On that machine type "sotto enroll", not "sotto pair". Make a new code.' },
  )
}

export const enrollCode = command({ page, read, check, run })
