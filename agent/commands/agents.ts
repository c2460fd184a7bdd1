/** `sotto agents`: the agents that this key sees, and what is known of them here. */
import { isTunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import { parseSelector } from '../../core/selector.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS } from '../cli/page.ts'
import { LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { printable, Screen } from '../cli/screen.ts'
import { Directory } from '../directory.ts'
import type { SeenAgent } from '../directory.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Presence } from '../presence.ts'
import type { StopReason, World } from '../world.ts'

/** How often `--watch` asks; nothing is sent while nothing changes. */
const WATCH_MS = 2000

interface AgentsOptions {
  selector: string
  watch: boolean
  choice: RelayChoice
  json: boolean
}

export const agents = command<AgentsOptions>({
  page: {
    name: 'sotto agents',
    summary: 'list the agents that you see, and what is known of them here',
    args: ['[SELECTOR]'],
    examples: [
      ['sotto agents', 'All of your scope, and what other scopes show to it.'],
      ["sotto agents 'env=prod,region!=eu'", 'Those with such labels; a comma means and.'],
      ['sotto agents --watch', 'And then a line whenever something changes.'],
    ],
    flags: [
      { name: 'watch', help: 'Go on, and say what changes.' },
      LABEL_FLAG,
      ...RELAY_FLAGS,
      JSON_FLAG,
    ],
    more: `TRUST: verified (compared by a person), pinned (and how), vouched (by which authority),
unknown, revoked, or self. Labels are those that a pinned authority signed; without one they are the
agent's own word.`,
  },
  read: (given) => ({
    selector: given.args[0] ?? '',
    watch: isSet(given, 'watch'),
    choice: readLabelled(given),
    json: isSet(given, 'json'),
  }),
  check({ selector, choice }) {
    parseSelector(selector)
    checkChoice(choice)
  },
  async run(options, world) {
    const screen = new Screen(world, options)
    const joining = await join(world, options.choice, (line) => screen.tell(line))
    const presence = await Presence.open(world, { joining, tell: (line) => screen.tell(line) })
    try {
      await presence.ready()
      const directory = new Directory({
        crypto: world.crypto,
        uplink: presence.agent.uplink,
        known: joining.profile.knownAgents(),
        trust: presence.trust,
        own: formatKey(joining.identity.public),
      })
      const first = (await directory.list(options.selector))!
      printList(world, {
        items: first.agents.map(options.json ? fieldsOf : rowOf),
        heads: {
          NAME: 'name',
          AGENT: 'agent',
          TRUST: 'trust',
          LABELS: 'labels',
          ONLINE: 'online',
          FINGERPRINT: 'fingerprint',
        },
        json: options.json,
        none: 'nobody is there that you see',
      })
      if (!options.watch) return 0
      await watch(world, { options, directory, first })
      return (world.signal.reason as StopReason).exitCode
    } finally {
      await presence.end()
      screen.close()
    }
  },
})

async function watch(
  world: World,
  { options, directory, first }: {
    options: AgentsOptions
    directory: Directory
    first: { agents: SeenAgent[]; etag: string }
  },
): Promise<void> {
  const { stdout } = world.terminal
  let seen = new Map(first.agents.map((agent) => [idOf(agent), agent]))
  let { etag } = first
  while (!world.signal.aborted) {
    await pause(world)
    if (world.signal.aborted) return
    // Pins change without the relay: what it said stays, and what is known of it is looked up anew.
    const next = await listed(directory, options.selector, etag)
    if (!next) continue
    etag = next.etag
    const now = new Map(next.agents.map((agent) => [idOf(agent), agent]))
    for (const [id, agent] of now) {
      const before = seen.get(id)
      if (before && JSON.stringify(before) === JSON.stringify(agent)) continue
      const event = before ? 'changed' : 'appeared'
      if (options.json) stdout.write(`${JSON.stringify({ event, ...fieldsOf(agent) })}\n`)
      else stdout.write(`${before ? '~' : '+'} ${lineOf(agent)}\n`)
    }
    for (const [id, agent] of seen) {
      if (now.has(id)) continue
      if (options.json) stdout.write(`${JSON.stringify({ event: 'gone', ...fieldsOf(agent) })}\n`)
      else stdout.write(`- ${lineOf(agent)}\n`)
    }
    seen = now
  }
}

/** Undefined when nothing changed, or there is no relay to ask now. */
async function listed(
  directory: Directory,
  selector: string,
  etag: string,
): Promise<{ agents: SeenAgent[]; etag: string } | undefined> {
  try {
    return await directory.list(selector, { etag })
  } catch (error) {
    if (isTunnelError(error) && error.code.startsWith('uplink/')) return undefined
    throw error
  }
}

function pause({ clock, signal }: World): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      timer.cancel()
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = clock.after(WATCH_MS, end)
    signal.addEventListener('abort', end, { once: true })
  })
}

function idOf({ key, scope }: SeenAgent): string {
  return `${key} ${scope}`
}

function rowOf(agent: SeenAgent): Record<string, unknown> {
  const { name, scope, names, labels, online, since, fingerprint } = agent
  return {
    name,
    agent: names.map((one) => `${scope}.${one.name}`),
    trust: trustWords(agent),
    labels,
    online: online ? since ?? 'yes' : 'no',
    fingerprint,
  }
}

function fieldsOf(agent: SeenAgent): Record<string, unknown> {
  const { key, fingerprint, scope, name, names, labels, online, since, standing, how } = agent
  return { key, fingerprint, scope, name, names, labels, online, since, trust: standing, how }
}

function lineOf(agent: SeenAgent): string {
  const { name, labels, online, fingerprint } = agent
  const words = Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(',') || '-'
  return printable(
    [name, trustWords(agent), words, online ? 'online' : 'away', fingerprint].join('  '),
  )
}

function trustWords({ standing, how }: SeenAgent): string {
  return how === undefined ? standing : `${standing} (${how})`
}
