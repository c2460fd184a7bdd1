/**
 * `sotto connect`: another agent's private endpoint as a port of this machine, or on standard input
 * and output. The other end is known by its passport, never by a CA, and never by the relay's word.
 */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, isName, parseKey } from '../../core/key.ts'
import { splice } from '../../core/socket.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import type { Agent } from '../agent.ts'
import { clientCertificate } from '../certificate.ts'
import type { CertificateSource } from '../certificate.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { describeCounts, Screen, waitWords } from '../cli/screen.ts'
import { Dialler } from '../dial.ts'
import { askStatements } from '../enquiry.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { isFinal, joinedAgent } from '../joined_agent.ts'
import { followedWords, Trust } from '../trust.ts'
import type { StopReason, World } from '../world.ts'

/** Connections through one `sotto connect` at once. */
const CONNECTIONS_MAX = 512

const page: Page = {
  name: 'sotto connect',
  summary: "reach another agent's private endpoint",
  args: ['NAME'],
  examples: [
    ['sotto connect db --listen 5432', 'The endpoint "db" as port 5432 of this machine.'],
    [
      "ssh -o ProxyCommand='sotto connect box --stdio' me@box",
      'An SSH server behind the endpoint "box".',
    ],
  ],
  flags: [
    {
      name: 'listen',
      value: 'ADDRESS',
      without: '127.0.0.1 and any free port',
      help: 'Where to listen, a port or host:port.',
    },
    { name: 'stdio', help: 'Carry one connection over standard input and output instead.' },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
}

export interface ConnectOptions {
  name: string
  listen: { host: string; port: number }
  stdio: boolean
  choice: RelayChoice
  json: boolean
}

function read(given: Given): ConnectOptions {
  const listen = textOf(given, 'listen')
  const stdio = isSet(given, 'stdio')
  if (stdio && listen !== undefined) throw conflict('--listen', 'there is no port then')
  return {
    name: given.args[0]!,
    listen: readListen(listen ?? '0'),
    stdio,
    choice: readLabelled(given),
    json: isSet(given, 'json'),
  }
}

function readListen(words: string): { host: string; port: number } {
  const parts = /^(?:(\[[0-9a-fA-F:.]+\]|[^:[\]\s]+):)?(\d{1,5})$/.exec(words)
  const port = Number(parts?.[2] ?? NaN)
  if (port <= 65_535) return { host: (parts![1] ?? '127.0.0.1').replace(/^\[|\]$/g, ''), port }
  throw new TunnelError(
    'cli/listen',
    `Cannot listen on "${words}": expected a port or host:port`,
  )
}

function check({ name, stdio, json, choice }: ConnectOptions): void {
  checkChoice(choice)
  if (!isName(name)) {
    throw new TunnelError(
      'cli/name',
      `Cannot connect to "${name}": expected the name of an endpoint, such as "db"`,
    )
  }
  if (stdio && json) throw conflict('--json', 'standard output carries the connection then')
}

function conflict(flag: string, reason: string): TunnelError {
  return new TunnelError('cli/conflict', `Cannot use ${flag} together with --stdio: ${reason}`, {
    hint: 'Leave out one of them.',
  })
}

async function run(options: ConnectOptions, world: World): Promise<number> {
  // Standard output belongs to the connection then: nothing else may be written to it.
  const { terminal } = world
  const screen = new Screen(
    options.stdio ? { ...world, terminal: { ...terminal, stdout: terminal.stderr } } : world,
    options,
  )
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  return await new Connection(world, { options, screen, joining }).run()
}

interface Parts {
  options: ConnectOptions
  screen: Screen
  joining: Joining
}

class Connection {
  readonly #world: World
  readonly #parts: Parts
  readonly #agent: Agent
  readonly #live = new Set<Conn>()
  readonly #counts = { visitors: 0, total: 0, bytesIn: 0, bytesOut: 0 }
  #shown: CertificateSource | undefined
  #dialler: Dialler | undefined
  #told = false
  #ready!: () => void
  #fail!: (error: unknown) => void

  constructor(world: World, parts: Parts) {
    this.#world = world
    this.#parts = parts
    const { joining, screen } = parts
    this.#agent = joinedAgent(world, joining, {
      unopened: (error) => {
        // A script that carries one connection wants to know at once.
        if (parts.options.stdio || isFinal(error)) this.#fail(error)
      },
      bulkLinks: false,
      certificates: () => this.#certificates(),
      onState: (state) => {
        if (state.kind === 'refused') this.#fail(state.error)
        else if (state.kind === 'up') {
          if (this.#told) screen.tell('relay is back', { again: true })
          this.#told = false
          this.#ready()
        } else if (state.kind === 'down' && !this.#told) {
          this.#told = true
          screen.tell(
            `relay lost (${state.reason}), reconnecting in ${waitWords(state.retryInMs)}`,
            {
              again: true,
            },
          )
        }
      },
      onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
    })
  }

  async run(): Promise<number> {
    const { signal } = this.#world
    const { screen, options } = this.#parts
    let listener: Listener | undefined
    let stop = (): void => {}
    try {
      const stopped = new Promise<'stopped'>((resolve) => {
        stop = () => resolve('stopped')
        if (signal.aborted) stop()
        else signal.addEventListener('abort', stop, { once: true })
      })
      const failed = new Promise<never>((_, reject) => void (this.#fail = reject))
      failed.catch(() => {})
      const up = new Promise<void>((resolve) => void (this.#ready = resolve))
      this.#agent.start()
      if (await Promise.race([up, stopped, failed]) === 'stopped') return exitCode(signal)
      this.#dialler = this.#makeDialler()
      if (options.stdio) {
        const done = await Promise.race([this.#stdio(), stopped, failed])
        return done === 'stopped' ? exitCode(signal) : 0
      }
      listener = await this.#listen()
      await Promise.race([stopped, failed])
      return exitCode(signal)
    } finally {
      signal.removeEventListener('abort', stop)
      screen.close()
      await listener?.close()
      for (const conn of this.#live) conn.abort()
      this.#dialler?.close()
      this.#agent.close()
      this.#shown?.close()
    }
  }

  async #listen(): Promise<Listener> {
    const { net } = this.#world
    const { options, screen, joining } = this.#parts
    const { name } = options
    // Asked at once, so that the pin is made and told before anything is sent.
    const served = await this.#dialler!.resolve().catch((error) => {
      if (asTunnelError(error, 'dial/fault').code.startsWith('trust/')) throw error
      screen.trouble(asTunnelError(error, 'dial/fault'))
      return []
    })
    const listener = await net.listen(options.listen, (conn) => void this.#carry(conn))
    const host = listener.host.includes(':') ? `[${listener.host}]` : listener.host
    const address = `${host}:${listener.port}`
    screen.show('listening', [
      { name: 'address', value: address, line: address },
      { name: 'name', value: name, line: `leads to "${name}" on ${joining.relay.host}\n` },
      ...served.map(({ key }) => {
        const print = fingerprint(this.#world.crypto, parseKey(key))
        return { name: 'fingerprint', value: print, line: `served by ${print}` }
      }),
    ])
    screen.follow(() => describeCounts(this.#counts))
    return listener
  }

  async #carry(conn: Conn): Promise<void> {
    const { screen } = this.#parts
    if (this.#live.size >= CONNECTIONS_MAX) return conn.abort()
    this.#live.add(conn)
    this.#counts.visitors++
    this.#counts.total++
    conn.hold()
    try {
      await this.#join(conn, await this.#dialler!.dial())
    } catch (error) {
      conn.abort()
      screen.trouble(this.#explained(error))
    } finally {
      this.#live.delete(conn)
      this.#counts.visitors--
    }
  }

  async #stdio(): Promise<'done'> {
    try {
      const far = await this.#dialler!.dial()
      const near = this.#world.terminal.stdio()
      this.#live.add(near)
      await this.#join(near, far)
      return 'done'
    } catch (error) {
      throw this.#explained(error)
    }
  }

  /** Carries bytes until both ends are closed. Throws `dial/refused` when the other end lets us not in. */
  #join(near: Conn, far: Conn): Promise<void> {
    return new Promise((resolve, reject) => {
      splice(near, far, ({ forth, back }, broke) => {
        this.#counts.bytesIn += back
        this.#counts.bytesOut += forth
        if (back === 0 && broke.b !== undefined) reject(broke.b)
        else resolve()
      })
      near.resume()
    })
  }

  #makeDialler(): Dialler {
    const { joining, screen, options } = this.#parts
    const { crypto, clock } = this.#world
    const { uplink } = this.#agent
    const trust = new Trust({
      crypto,
      clock,
      known: joining.profile.knownAgents(),
      withdrawals: joining.profile.knownWithdrawals(),
      statements: (key) => askStatements(uplink, key),
      followed: (pins) =>
        screen.tell(followedWords(crypto, pins), { event: 'followed', fields: { ...pins } }),
    })
    return new Dialler({
      world: this.#world,
      uplink,
      link: {
        clock: this.#world.clock,
        crypto,
        identity: joining.identity,
        relay: joining.relay,
        credential: joining.credential,
        group16: joining.group16,
        version: joining.version,
        labels: joining.labels,
        open: (url) => joining.open(url),
      },
      identity: () => this.#shown!.current,
      passports: joining.profile.knownPassports(),
      trust: async (name, candidates) => {
        const { trusted, first } = await trust.judge(name, candidates)
        const keys = trusted.map(({ key }) => key)
        if (first) {
          const prints = keys.map((key) => trust.print(key))
          screen.tell(
            `first contact with "${options.name}": ${prints.join(', ')} is pinned now`,
            { event: 'pinned', fields: { name, keys } },
          )
        }
        return keys
      },
    }, options.name)
  }

  /** What our passport must name, so that the other end knows us by it. */
  async #certificates(): Promise<Uint8Array[]> {
    const { joining, screen } = this.#parts
    this.#shown ??= await clientCertificate(this.#world, joining.profile, {
      key: formatKey(joining.identity.public),
      onChange: () => void this.#agent.republish().catch((error) => screen.tell(error.message)),
      onWarning: (line) => screen.tell(line),
    })
    return [this.#shown.current.fingerprint]
  }

  /**
   * The other end's alert says that we were not let in; what helps is on its side. Where we were
   * writing already the alert is lost, and all that shows is an end before the first byte.
   */
  #explained(error: unknown): TunnelError {
    const family = asTunnelError(error, 'dial/broken')
    const { joining, options } = this.#parts
    const refused = /access.denied|certificate.required|bad.certificate/i.test(describe(error))
    if (!refused && family.code !== 'dial/broken') return family
    const key = formatKey(joining.identity.public)
    const name = peerName(this.#world)
    return new TunnelError(
      refused ? 'dial/refused' : 'dial/broken',
      `Cannot connect to "${options.name}": ${
        refused
          ? 'its agent does not let this identity in'
          : 'it ended before anything came back; perhaps its agent does not let this identity in'
      }`,
      {
        hint: `Ask whoever runs it to type: sotto peers trust ${name} ${key} && ` +
          `sotto access allow ${name} connect`,
        cause: error,
      },
    )
  }
}

function describe(error: unknown): string {
  const { message, code, cause } = error as { message?: string; code?: string; cause?: unknown }
  return `${message} ${code} ${cause === undefined ? '' : describe(cause)}`
}

function peerName({ username }: World): string {
  // What the system says where it knows no name.
  if (username === 'unknown') return 'friend'
  return /^[a-z0-9][a-z0-9._-]{0,62}$/i.test(username) ? username : 'friend'
}

function exitCode(signal: AbortSignal): number {
  return (signal.reason as StopReason | undefined)?.exitCode ?? 0
}

export const connect = command({ page, read, check, run })
