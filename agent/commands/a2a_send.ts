/**
 * `sotto a2a send`: one message to one agent, or to all that a selector chooses. The reply comes back
 * on standard output, and the exit code says what became of the message.
 */
import { concat, utf8 } from '../../core/bytes.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import { parseSelector } from '../../core/selector.ts'
import { MESSAGE_BYTES_MAX } from '../a2a.ts'
import type { AnswerSink } from '../a2a.ts'
import { bodyFields, BodyOutput, Characters } from '../cli/letter.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { durationOf, LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { printable, Screen } from '../cli/screen.ts'
import { Courier } from '../courier.ts'
import type { Delivery, Parcel } from '../courier.ts'
import { Directory, trustedBy } from '../directory.ts'
import type { SeenAgent } from '../directory.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { Presence } from '../presence.ts'
import type { Terminal, World } from '../world.ts'

const TIMEOUT_MS = 120_000
/** Sends of one broadcast at once. */
const AT_ONCE = 32
/** Kept of each reply to a broadcast; the rest is counted. */
const REPLY_BYTES_MAX = 65_536
const REPLY_LENGTH_SHOWN = 200

const EXIT = Object.freeze({
  delivered: 0,
  other: 1,
  refused: 3,
  timeout: 4,
  untrusted: 5,
  failed: 6,
})

const page: Page = {
  name: 'sotto a2a send',
  summary: 'send a message to another agent, or to all that a selector chooses',
  args: ['[PEER]', '[MESSAGE]'],
  examples: [
    ['sotto a2a send alice hello', 'The reply, if there is one, comes on standard output.'],
    ['sotto a2a send ops.deployer - --exec', 'Standard input, for a program there to run on.'],
    ["sotto a2a send --to 'role=worker,env!=prod' reload", 'A line for each, and a summary.'],
    ['sotto a2a send alice hello --wait 5m', 'Holds it while alice is away.'],
  ],
  flags: [
    {
      name: 'to',
      value: 'SELECTOR',
      help: 'In place of PEER: all agents with such labels that are pinned or vouched for.',
    },
    { name: 'exec', help: 'Ask for a program to run: refused where none answers.' },
    { name: 'wait', value: 'TIME', without: 'not at all', help: 'For a peer that is away.' },
    {
      name: 'timeout',
      value: 'TIME',
      without: '2m',
      help: 'From the first try that reached the peer to the result.',
    },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `PEER is a name of the relay, SCOPE.NAME, a name of "sotto peers", a KEY or a fingerprint. Without
MESSAGE, or with -, the message is standard input; at most 16 MiB.
Exit codes: 0 delivered, 3 refused, 4 timed out or away, 5 not trusted, 6 the program or service
there failed (its own code is shown, and "exit" of --json), 1 anything else. With --to: 0 when all
were delivered, the code of the others when they agree, else 1.`,
}

interface SendOptions {
  peer: string | undefined
  selector: string | undefined
  message: string | undefined
  exec: boolean
  waitMs: number
  timeoutMs: number
  choice: RelayChoice
  json: boolean
}

function read(given: Given): SendOptions {
  const selector = textOf(given, 'to')
  const [first, second] = given.args
  if (selector !== undefined && second !== undefined) {
    throw new TunnelError('cli/conflict', 'Cannot use --to together with PEER', {
      hint: 'A message of several words is put in quotes.',
    })
  }
  const message = selector === undefined ? second : first
  return {
    peer: selector === undefined ? first : undefined,
    selector,
    message: message === '-' ? undefined : message,
    exec: isSet(given, 'exec'),
    waitMs: durationOf(given, 'wait') ?? 0,
    timeoutMs: durationOf(given, 'timeout') ?? TIMEOUT_MS,
    choice: readLabelled(given),
    json: isSet(given, 'json'),
  }
}

function check({ peer, selector, choice }: SendOptions): void {
  checkChoice(choice)
  if (selector !== undefined) parseSelector(selector)
  else if (peer === undefined) {
    throw new TunnelError('cli/usage', 'Cannot send to nobody: expected PEER or --to SELECTOR', {
      hint: 'See "sotto a2a send --help".',
    })
  }
}

async function run(options: SendOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const parcel = await parcelOf(world.terminal, options)
  const presence = await Presence.open(world, {
    joining,
    tell: (sentence) => screen.tell(sentence),
    onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
  })
  const known = joining.profile.knownAgents()
  const directory = new Directory({
    crypto: world.crypto,
    uplink: presence.agent.uplink,
    known,
    trust: presence.trust,
    own: formatKey(joining.identity.public),
  })
  const { peers } = presence
  const courier = new Courier({ clock: world.clock, crypto: world.crypto, peers, directory, known })
  try {
    await presence.ready()
    const sending = new Sending(world, { options, screen, courier, directory, joining })
    const id = courier.newId()
    return options.selector === undefined
      ? await sending.one({ ...parcel, id })
      : await sending.many({ ...parcel, id })
  } finally {
    courier.close()
    await presence.end()
    screen.close()
  }
}

interface SendingPorts {
  options: SendOptions
  screen: Screen
  courier: Courier
  directory: Directory
  joining: Joining
}

class Sending {
  readonly #world: World
  readonly #ports: SendingPorts

  constructor(world: World, ports: SendingPorts) {
    this.#world = world
    this.#ports = ports
  }

  async one(parcel: Parcel): Promise<number> {
    const { options, courier, screen, joining } = this.#ports
    const { waitMs, timeoutMs, json } = options
    const output = outputOf(this.#world.terminal, json)
    let delivery: Delivery
    try {
      delivery = await courier.send(options.peer!, parcel, {
        sink: output,
        waitMs,
        timeoutMs,
        signal: this.#world.signal,
      })
    } catch (error) {
      if (this.#world.signal.aborted) throw error
      const family = asTunnelError(error, 'a2a/fault')
      const hint = family.code === 'session/refused' ? letInHint(joining, options) : family.hint
      if (json) screen.event('error', { ...family.toJSON(), id: parcel.id })
      this.#tell(family.message, hint)
      return exitOfError(family)
    } finally {
      await output.end()
    }
    if (json) screen.event('result', resultFields(delivery, parcel))
    if (delivery.again) this.#tell('it had been taken before; its reply went with the first try')
    if (delivery.status !== 'delivered') this.#tell(whyNot(delivery))
    return EXIT[delivery.status]
  }

  async many(parcel: Parcel): Promise<number> {
    const { options, directory, courier, screen } = this.#ports
    const { selector, waitMs, json } = options
    const { agents } = (await directory.list(selector))!
    const own = formatKey(this.#ports.joining.identity.public)
    const others = agents.filter(({ key, names }) => key !== own && names.length > 0)
    const trusted = others.filter((one) => trustedBy(one) && (one.online || waitMs > 0))
    if (trusted.length === 0) throw nobody(others)
    const counts = new Map<string, number>()
    const codes: number[] = []
    const queue = [...trusted]
    const width = Math.max(...trusted.map(({ name }) => name.length))
    const work = async (): Promise<void> => {
      for (let to = queue.shift(); to; to = queue.shift()) {
        const told = await this.#sendOne(to, { ...parcel, id: courier.newId() }, width)
        codes.push(told.code)
        counts.set(told.word, (counts.get(told.word) ?? 0) + 1)
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, work))
    const words = [...counts].map(([word, count]) => `${count} ${word}`).join(', ')
    const unknown = others.filter((one) => !trustedBy(one)).length
    const left = unknown === 0 ? '' : `; ${unknown} not pinned, not sent to`
    if (json) screen.event('summary', { ...Object.fromEntries(counts), skipped: unknown })
    else this.#tell(`${words}${left}`)
    const bad = [...new Set(codes.filter((code) => code !== EXIT.delivered))]
    return bad.length === 0 ? EXIT.delivered : bad.length === 1 ? bad[0]! : EXIT.other
  }

  async #sendOne(
    to: SeenAgent,
    parcel: Parcel,
    width: number,
  ): Promise<{ word: string; code: number }> {
    const { options, courier, screen } = this.#ports
    const { waitMs, timeoutMs, json } = options
    const { signal, terminal } = this.#world
    const reply = new Kept()
    const errors = new Kept()
    const sink = {
      output: (bytes: Uint8Array) => reply.push(bytes),
      errors: (bytes: Uint8Array) => errors.push(bytes),
    }
    const line = (word: string, rest: string): void => {
      const words = `${to.name.padEnd(width)}  ${word.padEnd(9)}  ${rest}`
      terminal.stdout.write(`${printable(words).trimEnd()}\n`)
    }
    try {
      const delivery = await courier.send(to, parcel, { sink, waitMs, timeoutMs, signal })
      const { status } = delivery
      if (json) {
        screen.event('result', {
          ...resultFields(delivery, parcel),
          reply: bodyFields(reply.bytes),
          errors: bodyFields(errors.bytes),
          ...(reply.cut || errors.cut ? { cut: true } : {}),
        })
      } else line(status, status === 'delivered' ? shown(reply.bytes) : whyNot(delivery))
      return { word: status, code: EXIT[status] }
    } catch (error) {
      if (signal.aborted) throw error
      const family = asTunnelError(error, 'a2a/fault')
      const code = exitOfError(family)
      const word = { 3: 'refused', 4: 'timeout', 5: 'untrusted' }[code] ?? 'error'
      if (json) {
        const { name, key } = to
        screen.event('result', { peer: name, key, id: parcel.id, status: word, ...family.toJSON() })
      } else line(word, family.message)
      return { word, code }
    }
  }

  #tell(sentence: string, hint?: string): void {
    this.#ports.screen.tell(sentence, { again: true, ...(hint === undefined ? {} : { hint }) })
  }
}

/** The first bytes of a reply. */
class Kept {
  bytes: Uint8Array = new Uint8Array(0)
  cut = false

  push(more: Uint8Array): void {
    const room = REPLY_BYTES_MAX - this.bytes.length
    if (more.length > room) this.cut = true
    if (room > 0) this.bytes = concat(this.bytes, more.subarray(0, room))
  }
}

function shown(reply: Uint8Array): string {
  const [first = '', ...rest] = new TextDecoder().decode(reply).trimEnd().split('\n')
  const isCut = rest.length > 0 || first.length > REPLY_LENGTH_SHOWN
  return `${first.slice(0, REPLY_LENGTH_SHOWN)}${isCut ? ' …' : ''}`
}

/** Replies where people and programs want them. */
function outputOf(
  { stdout, stderr }: Terminal,
  json: boolean,
): AnswerSink & { end(): Promise<void> } {
  if (!json) {
    const out = new BodyOutput(stdout)
    const errors = new BodyOutput(stderr)
    return {
      output: (bytes) => out.write(bytes),
      errors: (bytes) => errors.write(bytes),
      end: () => {
        out.end()
        errors.end()
        return Promise.resolve()
      },
    }
  }
  const cuts = { output: new Characters(), errors: new Characters() }
  const write = async (event: 'output' | 'errors', bytes: Uint8Array): Promise<void> => {
    if (bytes.length === 0) return
    stdout.write(`${JSON.stringify({ event, ...bodyFields(bytes) })}\n`)
    await stdout.taken?.()
  }
  return {
    output: (bytes) => write('output', cuts.output.push(bytes)),
    errors: (bytes) => write('errors', cuts.errors.push(bytes)),
    end: async () => {
      await write('output', cuts.output.end())
      await write('errors', cuts.errors.end())
    },
  }
}

/** The message; from standard input it passes as it comes, unless it may be needed again. */
async function parcelOf(terminal: Terminal, options: SendOptions): Promise<Omit<Parcel, 'id'>> {
  const { message, exec, waitMs, selector } = options
  if (message !== undefined) return kept([utf8(message)], exec)
  const input = readInput(terminal)
  if (waitMs > 0 || selector !== undefined) {
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of input) {
      bytes += chunk.length
      if (bytes > MESSAGE_BYTES_MAX) return kept(chunks, exec, bytes)
      chunks.push(chunk)
    }
    return kept(chunks, exec)
  }
  // A person who types the first line slowly holds nobody up.
  const first = await input.next()
  const body = async function* (): AsyncGenerator<Uint8Array> {
    if (first.done) return
    yield first.value
    yield* input
  }
  return { exec, body, repeatable: false }
}

function kept(
  chunks: readonly Uint8Array[],
  exec: boolean,
  bytes: number = chunks.reduce((sum, { length }) => sum + length, 0),
): Omit<Parcel, 'id'> {
  if (bytes > MESSAGE_BYTES_MAX) {
    throw new TunnelError(
      'a2a/size',
      `Cannot send the message: found more than ${MESSAGE_BYTES_MAX} bytes`,
      { hint: 'Files go by "sotto p2p send".' },
    )
  }
  return { exec, bytes, body: () => chunks, repeatable: true }
}

/** Standard input, no faster than it is taken. */
async function* readInput(terminal: Terminal): AsyncGenerator<Uint8Array, void, void> {
  const conn = terminal.stdio()
  const chunks: Uint8Array[] = []
  let over = false
  let wake = (): void => {}
  conn.handle({
    data: (bytes) => {
      chunks.push(bytes)
      conn.pause()
      wake()
    },
    end: () => {
      over = true
      wake()
    },
    closed: () => {
      over = true
      wake()
    },
  })
  for (;;) {
    const chunk = chunks.shift()
    if (chunk) yield chunk
    else if (over) return
    else {
      const more = new Promise<void>((resolve) => void (wake = resolve))
      conn.resume()
      await more
    }
  }
}

function resultFields({ peer, ...result }: Delivery, { id }: Parcel): Record<string, unknown> {
  const { name, key, how, verified } = peer
  return { peer: name, key, how, verified, id, ...result }
}

function whyNot({ status, exit, code, message }: Delivery): string {
  if (exit !== undefined) return `the program there failed: exit code ${exit}`
  const words = { refused: 'refused', failed: 'failed there', timeout: 'timed out there' }
  const why = [message, code === undefined ? undefined : `(${code})`].filter(Boolean).join(' ')
  return `${words[status as keyof typeof words]}${why === '' ? '' : `: ${why}`}`
}

function exitOfError({ code }: TunnelError): number {
  if (code.startsWith('trust/') || code === 'link/untrusted') return EXIT.untrusted
  if (/^(a2a\/(timeout|away)|session\/timeout|uplink\/timeout)$/.test(code)) return EXIT.timeout
  return /^(session|stream|a2a)\/refused$/.test(code) ? EXIT.refused : EXIT.other
}

function letInHint({ identity }: Joining, { exec }: SendOptions): string {
  const key = formatKey(identity.public)
  const right = exec ? "'a2a exec'" : 'a2a'
  return `Whoever runs it lets you in by: sotto peers trust NAME ${key} && ` +
    `sotto access allow NAME ${right}`
}

function nobody(others: readonly SeenAgent[]): TunnelError {
  const unknown = others.filter((one) => !trustedBy(one)).length
  const away = others.length - unknown
  const found = others.length === 0
    ? 'no other agent has such labels'
    : away === 0
    ? `${unknown} have such labels, and none of them is pinned or vouched for`
    : `${away} of those that are trusted are away`
  return new TunnelError('a2a/nobody', `Cannot send to anybody: ${found}`, {
    hint: 'See "sotto agents"; --wait holds for those who are away.',
  })
}

export const sendA2a = command({ page, read, check, run })
