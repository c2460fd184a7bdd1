/** `sotto up`: all tunnels of a file, in one process, over one link. */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint } from '../../core/key.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { columns, Screen, waitWords } from '../cli/screen.ts'
import type { AcmeChoice } from '../acme.ts'
import { acmeChoice } from '../acme_choice.ts'
import { configWorld, findConfig, loadConfig } from '../config.ts'
import type { Config, TunnelConfig } from '../config.ts'
import { openControl } from '../control.ts'
import type { Answer } from '../control.ts'
import { EventLog } from '../event_log.ts'
import { checkChoice, join } from '../join.ts'
import { isFinal } from '../joined_agent.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import type { TunnelState } from '../served_tunnel.ts'
import { keepAlive, tellReady, tellReloading } from '../service_notice.ts'
import { TunnelSet } from '../tunnel_set.ts'
import type { Applied } from '../tunnel_set.ts'
import type { UplinkState } from '../uplink.ts'
import type { StopReason, World } from '../world.ts'

/** What "sotto logs" gets of what was before, where it asks for no number. */
const LOGS_DEFAULT = 100
const LOGS_MAX = 1000

const page: Page = {
  name: 'sotto up',
  summary: 'run the tunnels of a file, in one process over one link',
  args: ['[NAME...]'],
  examples: [
    ['sotto up', 'All tunnels of ./sotto.yaml; a change of the file is taken up when it is saved.'],
    ['sotto up web db --config /etc/sotto/sotto.yaml', 'Two of another file.'],
  ],
  flags: [
    {
      name: 'config',
      value: 'PATH',
      without: "./sotto.yaml, that of the profile's folder, /etc/sotto/sotto.yaml",
      help: 'The file.',
    },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `A tunnel whose name is refused stops no other. What did not change in the file is not touched when
it is read again, on save or on SIGHUP; a file that is wrong is told, and what runs goes on. "sotto
status" and "sotto logs" show what runs, "sotto down" or Ctrl-C ends it.`,
}

export interface UpOptions {
  names: readonly string[]
  config: string | undefined
  choice: RelayChoice
  /** Named on the line, which beats the file. */
  profile: string | undefined
  json: boolean
}

function read(given: Given): UpOptions {
  return {
    names: given.args,
    config: textOf(given, 'config'),
    choice: readLabelled(given),
    profile: textOf(given, 'profile'),
    json: isSet(given, 'json'),
  }
}

async function run(options: UpOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const path = await findConfig(world, options.config)
  const config = await loadConfig(world, path)
  const tunnels = chosen(config, options.names)
  const own = await configWorld(world, config, options.profile)
  const { choice } = options
  const joining = await join(own, {
    ...choice,
    relay: choice.relay ?? config.relay,
    fingerprint: choice.fingerprint ?? config.relayFingerprint,
    ...(config.ca === undefined || choice.ca !== undefined ? {} : { ca: config.ca }),
    // Of one name the last counts.
    labels: [...config.labels, ...choice.labels ?? []],
  }, (line) => screen.tell(line))
  // Where other commands look for it, which do not know what profile the file names.
  const { stateDir } = new Profile(world)
  const ca = await acmeChoice(own, config.acme ?? {}, 'acme.')
  return await new Up(own, { options, screen, config, joining, ca, stateDir }).run(tunnels)
}

/** Throws `config/unknown` on a name that the file does not have. */
function chosen({ tunnels, path }: Config, names: readonly string[]): readonly TunnelConfig[] {
  for (const name of names) {
    if (tunnels.some(({ key }) => key === name)) continue
    throw new TunnelError(
      'config/unknown',
      `Cannot run "${name}": ${path} has no tunnel of that name`,
      { hint: `It has: ${tunnels.map(({ key }) => key).join(', ')}.` },
    )
  }
  return names.length === 0 ? tunnels : tunnels.filter(({ key }) => names.includes(key))
}

interface UpParts {
  options: UpOptions
  screen: Screen
  config: Config
  joining: Joining
  ca: AcmeChoice
  stateDir: string
}

class Up {
  readonly #world: World
  readonly #parts: UpParts
  readonly #log: EventLog
  readonly #set: TunnelSet
  readonly #sinceMs: number
  #config: Config
  #link: { state: 'connecting' | 'up' | 'down'; reason?: string } = { state: 'connecting' }
  #told = false
  #wasUp = false
  #reloading: Promise<void> | undefined
  #again = false
  #end!: (error?: TunnelError) => void

  constructor(world: World, parts: UpParts) {
    this.#world = world
    this.#parts = parts
    this.#config = parts.config
    this.#log = new EventLog(world.clock)
    this.#sinceMs = world.clock.now()
    this.#set = new TunnelSet(world, {
      joining: parts.joining,
      log: this.#log,
      unopened: (error) => {
        if (isFinal(error, this.#wasUp)) this.#end(error)
      },
      onState: (state) => this.#state(state),
      onTunnel: (state) => this.#tunnel(state),
      ca: parts.ca,
      onNews: (tunnel, { event, words, hint, fields }) =>
        parts.screen.tell(`${tunnel}: ${words}`, {
          event,
          fields: { tunnel, ...fields },
          ...(hint === undefined ? {} : { hint }),
        }),
    })
  }

  async run(tunnels: readonly TunnelConfig[]): Promise<number> {
    const { signal, files } = this.#world
    const { screen, config, stateDir } = this.#parts
    const ended = new Promise<void>((resolve, reject) => {
      this.#end = (error) => error ? reject(error) : resolve()
    })
    ended.catch(() => {})
    const stopped = (): void => this.#end()
    signal.addEventListener('abort', stopped, { once: true })
    if (signal.aborted) stopped()
    const control = await openControl(this.#world, {
      stateDir,
      path: config.path,
      handler: (request, answer) => this.#answer(request, answer),
    })
    const stops = [
      keepAlive(this.#world),
      files.watch(config.path, () => this.#reload()),
      this.#world.onHangup(() => this.#reload()),
    ]
    try {
      await this.#set.apply(tunnels)
      this.#set.start()
      await ended
    } finally {
      signal.removeEventListener('abort', stopped)
      for (const stop of stops) stop()
      screen.close()
      await control.close()
      this.#set.close()
    }
    screen.event('stopped', {})
    return (signal.reason as StopReason | undefined)?.exitCode ?? 0
  }

  #state(state: UplinkState): void {
    const { screen, joining } = this.#parts
    switch (state.kind) {
      case 'connecting':
        return
      case 'up':
        this.#link = { state: 'up' }
        if (!this.#wasUp) this.#show()
        else if (this.#told) screen.tell('relay is back, same addresses', { again: true })
        this.#log.add('link', 'the link to the relay is up')
        screen.event('link', { state: 'up' })
        this.#wasUp = true
        this.#told = false
        this.#ready()
        return
      case 'refused':
        return this.#end(state.error)
      case 'down': {
        const { reason, retryInMs } = state
        this.#link = { state: 'down', reason }
        screen.event('link', { state: 'down', reason, retryInMs })
        if (this.#told) return
        this.#told = true
        this.#ready()
        this.#log.add('link', `the link to the relay is lost: ${reason}`, { reason })
        screen.tell(
          this.#wasUp
            ? `relay lost (${reason}), reconnecting in ${waitWords(retryInMs)}`
            : `cannot reach the relay ${joining.relay.host} yet (${reason}); trying again`,
          { again: true },
        )
      }
    }
  }

  /** The table of addresses, once the relay has answered for all of them. */
  #show(): void {
    const { screen, joining } = this.#parts
    const { states } = this.#set
    const line = columns(
      ['TUNNEL', 'ADDRESS', 'LEADS TO'],
      states.map((state) => [
        state.tunnel,
        state.state === 'up' ? addressOf(state) : state.state,
        state.upstream,
      ]),
    ).trimEnd()
    screen.show('ready', [
      { name: 'tunnels', value: states.length },
      { name: 'relay', value: joining.relay.origin },
      { name: 'config', value: this.#config.path },
      { name: 'up', value: states.filter(({ state }) => state === 'up').length, line, whole: true },
    ])
    screen.follow(() => this.#status())
  }

  #tunnel(state: TunnelState): void {
    const { screen } = this.#parts
    const { tunnel, error } = state
    screen.event('tunnel', { ...state })
    if (error) {
      screen.tell(`${tunnel}: ${error.message}`, {
        ...(error.hint === undefined ? {} : { hint: error.hint }),
      })
    } else if (this.#wasUp) screen.tell(`${tunnel} is up at ${addressOf(state)}`)
  }

  /** A service manager need not wait for a relay that is away: who comes back by itself is running. */
  #ready(): void {
    void tellReady(this.#world, this.#status())
  }

  #status(): string {
    if (this.#link.state !== 'up') return 'reconnecting'
    const { states } = this.#set
    const up = states.filter(({ state }) => state === 'up').length
    const now = states.reduce((sum, { visitors }) => sum + visitors, 0)
    return `${up} of ${states.length} tunnels up · ${now} ${now === 1 ? 'visitor' : 'visitors'} now`
  }

  /** One at a time; what is saved meanwhile is read after it. */
  #reload(): void {
    if (this.#reloading) {
      this.#again = true
      return
    }
    this.#reloading = tellReloading(this.#world).then(() => this.#reloadNow()).catch((error) => {
      this.#end(asTunnelError(error, 'cli/fault'))
    }).finally(() => {
      this.#reloading = undefined
      this.#ready()
      if (!this.#again) return
      this.#again = false
      this.#reload()
    })
  }

  async #reloadNow(): Promise<void> {
    const { screen, options } = this.#parts
    let next: Config
    let tunnels: readonly TunnelConfig[]
    try {
      next = await loadConfig(this.#world, this.#config.path)
      const { names } = options
      // Of those that were asked for by name, some may be gone.
      tunnels = next.tunnels.filter(({ key }) => names.length === 0 || names.includes(key))
    } catch (error) {
      // An editor may have half of it on the disk: what runs goes on.
      const family = asTunnelError(error, 'cli/fault')
      this.#log.add('kept', `the file was not taken, what runs goes on: ${family.message}`, {
        code: family.code,
      })
      screen.event('kept', family.toJSON())
      const lines = family.message.split('\n')
      if (family.hint !== undefined) lines.push(family.hint)
      for (const line of [...lines, 'The file was not taken; what runs goes on.']) {
        screen.tell(line, { again: true })
      }
      return
    }
    if (settled(next) !== settled(this.#config)) {
      screen.tell('what the file says of the relay and this agent holds from the next start on', {
        event: 'restart',
        fields: {},
      })
    }
    this.#config = next
    const applied = await this.#set.apply(tunnels)
    this.#log.add('reloaded', `the file was read again: ${appliedWords(applied)}`, { ...applied })
    screen.tell(`read again: ${appliedWords(applied)}`, {
      event: 'reloaded',
      fields: { ...applied },
      again: true,
    })
  }

  async #answer(request: Record<string, unknown>, answer: Answer): Promise<void> {
    switch (request['do']) {
      case 'status':
        answer.line({ event: 'process', ...this.#process() })
        for (const state of this.#set.states) answer.line({ event: 'tunnel', ...state })
        return answer.end()
      case 'logs':
        return await this.#logs(request, answer)
      case 'reload':
        this.#reload()
        await this.#reloading
        return answer.end()
      case 'down':
        answer.end()
        this.#world.later(() => this.#end())
        return
      default:
        throw new TunnelError('control/request', 'Cannot answer: found an unknown "do"')
    }
  }

  #process(): Record<string, unknown> {
    const { joining } = this.#parts
    return {
      config: this.#config.path,
      pid: this.#world.pid,
      since: new Date(this.#sinceMs).toISOString(),
      relay: joining.relay.origin,
      link: this.#link.state,
      ...(this.#link.reason === undefined ? {} : { reason: this.#link.reason }),
      identity: fingerprint(this.#world.crypto, joining.identity.public),
    }
  }

  async #logs(request: Record<string, unknown>, answer: Answer): Promise<void> {
    const { tunnel, follow, last = LOGS_DEFAULT } = request
    const name = typeof tunnel === 'string' ? tunnel : undefined
    if (name !== undefined && !this.#set.states.some((state) => state.tunnel === name)) {
      throw new TunnelError(
        'config/unknown',
        `Cannot show logs of "${name}": no tunnel of that name runs`,
      )
    }
    const count = Math.min(LOGS_MAX, Math.max(0, Math.floor(Number(last)) || 0))
    for (const { event, ...fields } of this.#log.last(count, name)) {
      answer.line({ event: 'log', kind: event, ...fields })
    }
    if (follow !== true) return answer.end()
    const stop = this.#log.follow(({ event, ...fields }) => {
      if (name === undefined || fields.tunnel === name) {
        answer.line({ event: 'log', kind: event, ...fields })
      }
    })
    await answer.left
    stop()
  }
}

function addressOf({ url, address, name }: TunnelState): string {
  return url ?? (address === undefined ? name : `sotto connect ${name}`)
}

/** What only a new start takes up. */
function settled({ tunnels: _, path: __, ...rest }: Config): string {
  return JSON.stringify(rest)
}

function appliedWords({ added, changed, removed, kept }: Applied): string {
  const some = (words: string, names: readonly string[]): string[] =>
    names.length === 0 ? [] : [`${words} ${names.length > 8 ? names.length : names.join(', ')}`]
  return [
    ...some('added', added),
    ...some('changed', changed),
    ...some('removed', removed),
    `${kept} as before`,
  ].join('; ')
}

export const up = command<UpOptions>({
  page,
  read,
  check: ({ choice }) => checkChoice(choice),
  run,
})
