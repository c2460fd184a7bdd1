/** `sotto audit`: what this agent has kept of its sessions, and how to give it to others. */
import { verifyTrail } from '../../core/audit.ts'
import type { TrailReport } from '../../core/audit.ts'
import { hex } from '../../core/bytes.ts'
import { openCheckpoint } from '../../core/chain.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { readTrail, redactTrail, signerOf } from '../../core/trail.ts'
import type { Trail } from '../../core/trail.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, textOf } from '../cli/page.ts'
import { printable, Screen } from '../cli/screen.ts'
import { writeNew } from '../cli/statement_file.ts'
import {
  contentWords,
  faultWords,
  FINDINGS_SHOWN,
  Names,
  parseContent,
  peerOf,
  stateWords,
} from '../cli/trail_words.ts'
import type { ContentNumber } from '../cli/trail_words.ts'
import { Profile } from '../profile.ts'
import { TRAIL_BYTES_MAX } from '../trails.ts'
import type { KeptTrail, Trails } from '../trails.ts'
import type { World } from '../world.ts'

const LISTED = 50
const LISTED_MAX = 10_000
/** Of checkpoints and of contents, for people: the newest. */
const LINES_MAX = 100
const DIRECTIONS = ['sent', 'received'] as const

function trailsOf(world: World): Trails {
  // Nothing is written here, so that nothing can go wrong with it.
  return new Profile(world).trails(() => {})
}

export const listAudit = command<{ count: number; json: boolean }>({
  page: {
    name: 'sotto audit list',
    summary: 'list the sessions that this agent has kept',
    examples: [
      ['sotto audit list', 'Who it was, what for, and whether its end is there.'],
      ['sotto audit list --count 1000 --json', 'More of them, for programs.'],
    ],
    flags: [
      {
        name: 'count',
        value: 'COUNT',
        without: String(LISTED),
        help: 'How many, the newest first.',
      },
      JSON_FLAG,
    ],
    more:
      `STATE: complete (both sides have signed its end), open (it goes on), cut (the way or a process
was lost before the end), or how many faults: see "sotto audit verify".
Exit codes: 0, and 1 when something could not be read.`,
  },
  read: (given) => ({
    count: numberOf(given, 'count', { min: 1, max: LISTED_MAX }) ?? LISTED,
    json: isSet(given, 'json'),
  }),
  check() {},
  async run({ count, json }, world) {
    const names = await Names.of(world)
    const items: Record<string, unknown>[] = []
    for (const kept of await trailsOf(world).list(count)) {
      items.push(await rowOf(world, kept, { names, json }))
    }
    printList(world, {
      items,
      heads: {
        SESSION: 'session',
        WHEN: 'start',
        PEER: 'peer',
        SERVICE: 'service',
        SENT: 'sent',
        RECEIVED: 'received',
        STATE: 'state',
      },
      json,
      none: 'no session was kept yet',
    })
    return 0
  },
})

async function rowOf(
  world: World,
  kept: KeptTrail,
  { names, json }: { names: Names; json: boolean },
): Promise<Record<string, unknown>> {
  const { path, bytes, role, service, writing } = kept
  const content = await world.files.read(path, { bytesMax: TRAIL_BYTES_MAX })
  const report = content && judge(world, content, kept)
  const state = report ? stateWords(report) : 'unreadable'
  const peer = peerOf(kept)
  return {
    // People need no more to tell one from another.
    session: hex(kept.session).slice(0, json ? 32 : 12),
    start: new Date(kept.start).toISOString(),
    peer: names.name(peer),
    fingerprint: names.print(peer),
    service,
    role,
    sent: report?.records.sent,
    received: report?.records.received,
    state: state === 'cut' && writing ? 'open' : state,
    bytes,
    path,
  }
}

/** By the identities that the trail itself names: it was this agent that wrote them. */
function judge(
  world: World,
  bytes: Uint8Array,
  { initiator, responder }: Pick<KeptTrail, 'initiator' | 'responder'>,
): TrailReport | undefined {
  try {
    return verifyTrail(world.crypto, bytes, [initiator, responder])
  } catch (error) {
    if (!isTunnelError(error)) throw error
    return undefined
  }
}

export const showAudit = command<{ session: string; json: boolean }>({
  page: {
    name: 'sotto audit show',
    summary: 'show what is kept of one session: records, checkpoints, commitments',
    args: ['SESSION'],
    examples: [
      ['sotto audit show 5e0c', 'The beginning of its id will do.'],
      ['sotto audit show 5e0c --json', 'The same for programs.'],
    ],
    flags: [JSON_FLAG],
    more:
      `Contents are not kept, only what they are committed to by; "sent-0" and the like number them.
Exit codes: 0, and 1 when there is no such session or its trail has faults.`,
  },
  read: (given) => ({ session: given.args[0]!, json: isSet(given, 'json') }),
  check() {},
  async run(options, world) {
    const { path, bytes, writing } = await trailsOf(world).find(options.session)
    const trail = readTrail(bytes)
    const report = verifyTrail(world.crypto, bytes, [trail.initiator, trail.responder])
    const words = stateWords(report)
    const state = words === 'cut' && writing ? 'open' : words
    const shown = { trail, report, names: await Names.of(world), path, state }
    if (options.json) new Screen(world, options).event('session', fieldsOf(world, shown))
    else show(world, shown)
    return report.sound ? 0 : 1
  },
})

interface Shown {
  trail: Trail
  report: TrailReport
  names: Names
  path: string
  state: string
}

function fieldsOf(world: World, shown: Shown): Record<string, unknown> {
  const { trail, report, names, path, state } = shown
  const peer = peerOf(trail)
  const { faults, faultCount, covered } = report
  return {
    session: hex(trail.session),
    start: new Date(trail.start).toISOString(),
    peer: names.name(peer),
    fingerprint: names.print(peer),
    service: trail.service,
    role: trail.role,
    state,
    sent: typesOf(trail, 'sent'),
    received: typesOf(trail, 'received'),
    covered,
    checkpoints: checkpointsOf(world, trail),
    contents: commitmentsOf(trail),
    faults,
    faultCount,
    path,
  }
}

function show(world: World, { trail, report, names, path, state }: Shown): void {
  const { stdout } = world.terminal
  const say = (name: string, words: string): void =>
    stdout.write(`${name.padEnd(12)} ${printable(words)}\n`)
  const { covered, faults, faultCount, records } = report
  say('session', hex(trail.session))
  say('start', new Date(trail.start).toISOString())
  say('peer', names.full(peerOf(trail)))
  say('service', trail.service)
  say('role', trail.role)
  say('state', state)
  for (const direction of DIRECTIONS) {
    const types = Object.entries(typesOf(trail, direction))
    const words = types.map(([name, count]) => `${count} ${name}`).join(', ')
    say(direction, `${records[direction]} records: ${words || 'none'}`)
  }
  say('signed', `by the peer up to ${covered.sent} sent, ${covered.received} received`)
  for (const { direction, time, final } of checkpointsOf(world, trail).slice(-LINES_MAX)) {
    say('checkpoint', `${direction} ${time}${final ? ', the last' : ''}`)
  }
  for (const { name, content } of commitmentsOf(trail).slice(-LINES_MAX)) {
    say('content', `${name}  ${content ? `SHA-256 ${content}` : 'not read'}`)
  }
  for (const fault of faults.slice(0, FINDINGS_SHOWN)) say('fault', faultWords(fault))
  if (faultCount > FINDINGS_SHOWN) say('fault', `and ${faultCount - FINDINGS_SHOWN} more`)
  say('kept in', path)
}

interface ShownCheckpoint {
  direction: string
  time: string
  final: boolean
}

function checkpointsOf(world: World, trail: Trail): ShownCheckpoint[] {
  return trail.checkpoints.flatMap(({ direction, bytes }) => {
    try {
      const role = signerOf(trail, direction)
      const { time, final } = openCheckpoint(world.crypto, bytes, { context: trail, role })
      return [{ direction, time: new Date(time).toISOString(), final }]
    } catch (error) {
      // One that is forged is among the faults.
      if (!isTunnelError(error)) throw error
      return []
    }
  })
}

function commitmentsOf(trail: Trail): { name: string; commitment: string; content?: string }[] {
  return DIRECTIONS.flatMap((direction) => {
    const contents = new Map(
      trail.openings[direction].map(({ index, content }) => [index, hex(content)]),
    )
    return trail.commitments[direction].map(({ index, value }) => {
      const content = contents.get(index)
      const name = contentWords({ direction, index })
      return { name, commitment: hex(value), ...(content === undefined ? {} : { content }) }
    })
  })
}

function typesOf(trail: Trail, direction: 'sent' | 'received'): Record<string, number> {
  const names = new Map<number, string>(
    Object.entries(ENVELOPE).map(([name, number]) => [number, name]),
  )
  const counts: Record<string, number> = {}
  for (const { type } of trail.records[direction]) {
    const name = names.get(type) ?? `type ${type}`
    counts[name] = (counts[name] ?? 0) + 1
  }
  return counts
}

interface ExportOptions {
  session: string
  path: string
  open: readonly ContentNumber[]
  json: boolean
}

export const exportAudit = command<ExportOptions>({
  page: {
    name: 'sotto audit export',
    summary: 'write the trail of one session into a file, to be verified elsewhere',
    args: ['SESSION'],
    examples: [
      ['sotto audit export 5e0c -o mine.trail', 'Nothing in it tells what was said.'],
      ['sotto audit export 5e0c -o mine.trail --open sent-0', 'But this one can be shown.'],
    ],
    flags: [
      { name: 'output', short: 'o', value: 'FILE', help: 'A new file.' },
      {
        name: 'open',
        value: 'CONTENT',
        many: true,
        help: 'Keep what opens this content, such as sent-0: for whom has it, it can be no other.',
      },
      JSON_FLAG,
    ],
    more:
      `Exit codes: 0, and 1 when there is no such session or content, or FILE is there already.`,
  },
  read: (given) => ({
    session: given.args[0]!,
    path: textOf(given, 'output') ?? '',
    open: listOf(given, 'open').map(parseContent),
    json: isSet(given, 'json'),
  }),
  check({ path }) {
    if (path !== '') return
    throw new TunnelError('cli/usage', 'Cannot export: expected a file, -o FILE')
  },
  async run(options, world) {
    const { bytes } = await trailsOf(world).find(options.session)
    const trail = readTrail(bytes)
    for (const one of options.open) {
      if (trail.openings[one.direction].some(({ index }) => index === one.index)) continue
      throw new TunnelError(
        'audit/opening',
        `Cannot open ${contentWords(one)}: found nothing by which it could be`,
        { hint: 'See "sotto audit show".' },
      )
    }
    const redacted = redactTrail(
      bytes,
      (direction, index) =>
        options.open.some((one) => one.direction === direction && one.index === index),
    )
    await writeNew(world, options.path, redacted)
    const { length } = options.open
    const fields = { session: hex(trail.session), path: options.path, opened: length }
    const words = length === 0
      ? 'no content can be opened by it'
      : `${length} of its contents can be opened by it`
    new Screen(world, options).tell(`wrote ${options.path}; ${words}`, {
      event: 'exported',
      fields,
    })
    return 0
  },
})
