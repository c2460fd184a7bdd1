/**
 * `sotto a2a listen`: takes messages from the agents that may send them, and prints them, gives them
 * to a program, or posts them to a local service. What comes back from there is the reply.
 */
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import type { Incoming, MessageResult } from '../a2a.ts'
import type { Service } from '../access.ts'
import { bodyFields, BodyOutput } from '../cli/letter.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName, defaultAgentName, durationOf, LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { bytesWords, Screen, waitWords } from '../cli/screen.ts'
import { EXEC_DEFAULTS, Runner } from '../exec.ts'
import { parseHandler, postMessage } from '../handler.ts'
import { Holding, Inbox, joinChunks, MESSAGE_SERVICE } from '../inbox.ts'
import type { Outcome } from '../inbox.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { isPinOf } from '../known_agents.ts'
import type { KnownAgents } from '../known_agents.ts'
import type { Peer } from '../peers.ts'
import { Presence } from '../presence.ts'
import type { UplinkState } from '../uplink.ts'
import type { StopReason, World } from '../world.ts'

const RUNS_MAX = 256
/** For the answers of messages that are done when the command is told to end. */
const GRACE_MS = 5000

const page: Page = {
  name: 'sotto a2a listen',
  summary: 'take messages from other agents',
  examples: [
    ['sotto a2a listen', 'Each message on standard output, its sender on standard error.'],
    ['sotto a2a listen --once > message', 'One message, byte for byte.'],
    ['sotto a2a listen --json --exec ./answer.sh --fast', 'A program answers each message.'],
    ['sotto a2a listen --handler http://127.0.0.1:3000/inbox', 'A local service does.'],
  ],
  flags: [
    {
      name: 'name',
      value: 'NAME',
      without: 'agent- and the beginning of your key',
      help: 'What others send to; reserved to you on first use.',
    },
    {
      name: 'exec',
      value: 'PROGRAM ARGS…',
      rest: true,
      help:
        'Run this for each message, without a shell: the message is its input, its output the ' +
        'reply. Takes all that follows it. Needs the right "a2a exec".',
    },
    { name: 'shell', value: 'COMMAND', help: 'The same by "sh -c".' },
    {
      name: 'handler',
      value: 'URL',
      help: 'POST each message to this URL; 2xx says that it is delivered, the body is the reply.',
    },
    { name: 'once', help: 'End after one message.' },
    { name: 'time', value: 'TIME', without: '60s', help: 'For a program or service to answer.' },
    {
      name: 'output-max',
      value: 'BYTES',
      without: String(EXEC_DEFAULTS.outputBytesMax),
      help: 'Of one reply.',
    },
    { name: 'runs', value: 'COUNT', without: '4', help: 'Programs at once; more are refused.' },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more: `Whom to let in: sotto peers trust NAME KEY && sotto access allow NAME a2a
A program gets SOTTO_PEER, SOTTO_PEER_KEY, SOTTO_MESSAGE_ID and little else of the environment; a
service gets the headers X-Sotto-Peer, X-Sotto-Peer-Key and X-Sotto-Message-Id.
A message is taken once, also when it is sent again after the way broke.`,
}

type Answer =
  | { kind: 'print' }
  | { kind: 'run'; argv: readonly string[] }
  | { kind: 'post'; url: URL }

interface ListenOptions {
  name: string | undefined
  answer: Answer
  once: boolean
  timeMs: number
  outputBytesMax: number
  runsMax: number
  choice: RelayChoice
  json: boolean
}

function read(given: Given): ListenOptions {
  return {
    name: textOf(given, 'name'),
    answer: readAnswer(given),
    once: isSet(given, 'once'),
    timeMs: durationOf(given, 'time') ?? EXEC_DEFAULTS.timeMs,
    outputBytesMax: numberOf(given, 'output-max', { min: 1, max: 999_999_999 }) ??
      EXEC_DEFAULTS.outputBytesMax,
    runsMax: numberOf(given, 'runs', { min: 1, max: RUNS_MAX }) ?? EXEC_DEFAULTS.runsMax,
    choice: readLabelled(given),
    json: isSet(given, 'json'),
  }
}

function readAnswer(given: Given): Answer {
  const argv = listOf(given, 'exec')
  const shell = textOf(given, 'shell')
  const url = textOf(given, 'handler')
  const ways = [argv.length > 0, shell !== undefined, url !== undefined].filter(Boolean).length
  if (ways > 1) {
    throw new TunnelError(
      'cli/conflict',
      'Cannot answer in two ways: expected one of --exec, --shell and --handler',
    )
  }
  if (argv.length > 0) return { kind: 'run', argv }
  if (shell !== undefined) return { kind: 'run', argv: ['sh', '-c', shell] }
  return url === undefined ? { kind: 'print' } : { kind: 'post', url: parseHandler(url) }
}

function check({ name, choice }: ListenOptions): void {
  if (name !== undefined) checkName(name)
  checkChoice(choice)
}

async function run(options: ListenOptions, world: World): Promise<number> {
  return await new Listening(world, options).run()
}

class Listening {
  readonly #world: World
  readonly #options: ListenOptions
  readonly #screen: Screen
  readonly #holding = new Holding()
  readonly #runner: Runner | undefined
  readonly #body: BodyOutput
  /** Messages are printed one after the other. */
  #printing: Promise<void> = Promise.resolve()
  #told = false
  #inbox: Inbox | undefined
  #finish!: () => void

  constructor(world: World, options: ListenOptions) {
    this.#world = world
    this.#options = options
    this.#screen = new Screen(world, options)
    this.#body = new BodyOutput(world.terminal.stdout)
    if (options.answer.kind === 'run') {
      this.#runner = new Runner(world, { ...options, argv: options.answer.argv })
    }
  }

  async run(): Promise<number> {
    const { signal } = this.#world
    const { answer, choice } = this.#options
    const joining = await join(this.#world, choice, (line) => this.#screen.tell(line))
    const known = joining.profile.knownAgents()
    const needs: InboxRight = answer.kind === 'run' ? 'a2a exec' : 'a2a'
    let stop = (): void => {}
    let fail!: (error: unknown) => void
    const ended = new Promise<void>((resolve, reject) => {
      stop = this.#finish = resolve
      fail = reject
    })
    ended.catch(() => {})
    signal.addEventListener('abort', stop, { once: true })
    const presence = await Presence.open(this.#world, {
      joining,
      tell: (sentence) => this.#screen.tell(sentence),
      onState: (state) => this.#state(state, fail),
      onNotice: ({ message }) => this.#screen.tell(`the relay says: ${message}`),
      refused: ({ service, peer, calledSelf }) => {
        if (service === MESSAGE_SERVICE) void this.#knocked(known, { peer, calledSelf, needs })
      },
    })
    try {
      if (signal.aborted) stop()
      this.#inbox = new Inbox({
        clock: this.#world.clock,
        peers: presence.peers,
        needs,
        take: (incoming, peer) => this.#take(incoming, peer),
      })
      const up = async (): Promise<void> => {
        await presence.ready()
        const name = this.#options.name ?? defaultAgentName(joining.identity)
        await presence.agent.announce(name)
        this.#listening(name, { presence, identity: joining.identity.public })
      }
      await Promise.race([up(), ended])
      await ended
      this.#inbox.close()
      await this.#settle()
    } finally {
      signal.removeEventListener('abort', stop)
      this.#runner?.close()
      await presence.end()
      this.#screen.close()
    }
    return signal.aborted ? (signal.reason as StopReason).exitCode : 0
  }

  #listening(
    name: string,
    { presence, identity }: { presence: Presence; identity: Uint8Array },
  ): void {
    const { scope } = presence.agent.uplink.up?.welcome ?? { scope: '' }
    this.#screen.tell(`listening as ${scope}.${name}`, {
      event: 'listening',
      fields: {
        name,
        scope,
        key: formatKey(identity),
        fingerprint: fingerprint(this.#world.crypto, identity),
      },
    })
  }

  #state(state: UplinkState, fail: (error: unknown) => void): void {
    if (state.kind === 'refused') fail(state.error)
    else if (state.kind === 'up' && this.#told) {
      this.#told = false
      this.#screen.tell('relay is back', { event: 'up', again: true })
    } else if (state.kind === 'down' && !this.#told) {
      this.#told = true
      const words = `relay lost (${state.reason}), again in ${waitWords(state.retryInMs)}`
      this.#screen.tell(words, { event: 'down', fields: { reason: state.reason }, again: true })
    }
  }

  async #knocked(known: KnownAgents, knock: Knock): Promise<void> {
    const { peer, needs } = knock
    const name = await nameFor(this.#world, known, knock)
    const trust = peer.names.includes(name) ? '' : `sotto peers trust ${name} ${peer.key} && `
    const right = needs === 'a2a' ? needs : `'${needs}'`
    const remedy = `${trust}sotto access allow ${name} ${right}`
    this.#screen.tell(`${peer.fingerprint} knocked and may not send messages here`, {
      hint: `To let it in: ${remedy}`,
      event: 'knock',
      fields: { key: peer.key, fingerprint: peer.fingerprint, needs, remedy },
    })
  }

  async #take(incoming: Incoming, peer: Peer): Promise<Outcome> {
    const { answer } = this.#options
    const outcome = answer.kind === 'print'
      ? await this.#holding.whole(incoming, (chunks) => this.#print(chunks, { incoming, peer }))
      : answer.kind === 'run'
      ? await this.#ran(incoming, peer)
      : await postMessage(this.#world, { incoming, peer }, {
        url: answer.url,
        timeMs: this.#options.timeMs,
        outputBytesMax: this.#options.outputBytesMax,
      })
    if (answer.kind !== 'print') this.#report(incoming, { peer, result: outcome.result })
    // The result is sent before the end is waited for.
    if (this.#options.once && outcome.taken) queueMicrotask(() => this.#finish())
    return outcome
  }

  async #ran(incoming: Incoming, peer: Peer): Promise<Outcome> {
    const result = await this.#runner!.run(incoming, peer)
    const ran = result.status !== 'refused' && result.code !== 'program/start'
    return { result, taken: ran }
  }

  #print(
    chunks: readonly Uint8Array[],
    { incoming, peer }: { incoming: Incoming; peer: Peer },
  ): Promise<void> {
    const print = async (): Promise<void> => {
      const { stdout } = this.#world.terminal
      const now = this.#world.clock.now()
      if (this.#options.json) {
        const body = bodyFields(joinChunks(chunks))
        stdout.write(`${JSON.stringify({ ...this.#event(incoming, peer), ...body })}\n`)
        await stdout.taken?.()
        return
      }
      this.#screen.tell(`from ${peer.name} · ${clockWords(now)} · ${bytesWords(incoming.bytes)}`, {
        again: true,
      })
      for (const chunk of chunks) await this.#body.write(chunk)
      this.#body.end()
    }
    this.#printing = this.#printing.then(print)
    return this.#printing
  }

  /** What became of a message that a program or a service answered. */
  #report(
    incoming: Incoming,
    { peer, result }: { peer: Peer; result: MessageResult },
  ): void {
    const { status, exit, code } = result
    const how = exit !== undefined ? `exit ${exit}` : code ?? status
    const now = clockWords(this.#world.clock.now())
    this.#screen.tell(`from ${peer.name} · ${now} · ${bytesWords(incoming.bytes)} · ${how}`, {
      again: true,
      event: 'message',
      fields: { ...this.#event(incoming, peer), ...result },
    })
  }

  #event(incoming: Incoming, peer: Peer): Record<string, unknown> {
    return {
      event: 'message',
      from: peer.name,
      key: peer.key,
      id: incoming.request.id,
      bytes: incoming.bytes,
      at: new Date(this.#world.clock.now()).toISOString(),
    }
  }

  /** Answers that are on their way leave; what has not been taken is cut off. */
  async #settle(): Promise<void> {
    await this.#printing
    if (this.#inbox!.size === 0) return
    await new Promise<void>((resolve) => {
      const { clock } = this.#world
      const late = clock.after(GRACE_MS, resolve)
      const look = (): void => {
        if (this.#inbox!.size > 0 && !this.#world.signal.aborted) return void clock.after(10, look)
        late.cancel()
        resolve()
      }
      look()
    })
  }
}

type InboxRight = Extract<Service, 'a2a' | 'a2a exec'>

interface Knock {
  peer: { key: string; fingerprint: string; names: string[] }
  calledSelf: readonly string[]
  needs: InboxRight
}

/**
 * What a stranger may be called: its own word for itself, unless somebody else is known by that; a
 * person who copies the command must not add a stranger to a friend's pins.
 */
async function nameFor(
  world: Pick<World, 'crypto'>,
  known: KnownAgents,
  { peer, calledSelf }: Knock,
): Promise<string> {
  if (peer.names.length > 0) return peer.names[0]!
  const pins = await known.list()
  const free = (name: string): boolean =>
    pins.every((pin) => pin.name !== name || isPinOf(world.crypto, pin, peer.key))
  const own = calledSelf.find(free)
  return own ?? `friend-${peer.key.slice(0, 6)}`
}

function clockWords(ms: number): string {
  return new Date(ms).toTimeString().slice(0, 5)
}

export const listenA2a = command({ page, read, check, run })
