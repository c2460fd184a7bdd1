/** `sotto audit verify`, `compare` and `open`: what exported trails prove, offline, to anybody. */
import { judgeTrail, verifyTrail } from '../../core/audit.ts'
import type { TrailReport } from '../../core/audit.ts'
import { equal, hex } from '../../core/bytes.ts'
import { openCheckpoint } from '../../core/chain.ts'
import { compareTrails } from '../../core/compare.ts'
import type { Comparison, Difference } from '../../core/compare.ts'
import { TunnelError } from '../../core/errors.ts'
import { readTrail, signerOf } from '../../core/trail.ts'
import type { Trail } from '../../core/trail.ts'
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import type { Flag } from '../cli/page.ts'
import { printable, Screen } from '../cli/screen.ts'
import {
  checkIdentities,
  contentWords,
  expectedIdentities,
  faultWords,
  FINDINGS_SHOWN,
  IDENTITY_FLAG,
  Names,
  parseContent,
  readIdentities,
  readTrailFile,
  reportFields,
  stateWords,
} from '../cli/trail_words.ts'
import type { ContentNumber } from '../cli/trail_words.ts'
import type { World } from '../world.ts'

/** Of a content that is shown: no message is longer. */
const CONTENT_BYTES_MAX = 67_108_864

const FLAGS: readonly Flag[] = [IDENTITY_FLAG, JSON_FLAG]

interface FileOptions {
  path: string
  identities: readonly string[]
  json: boolean
}

export const verifyAudit = command<FileOptions>({
  page: {
    name: 'sotto audit verify',
    summary: 'verify one trail: that it still says what both sides have signed',
    args: ['FILE'],
    examples: [
      ['sotto audit verify mine.trail', 'On the machine of one of the two.'],
      ['sotto audit verify mine.trail --identity SHA256:… --identity SHA256:…', 'Anywhere.'],
    ],
    flags: FLAGS,
    more:
      `Works offline. What comes behind the last signature of the other side is the word of whoever
kept the trail; the trails of both show more: sotto audit compare.
Exit codes: 0 sound, 1 not sound, not a trail, or of other identities.`,
  },
  read: (given) => ({
    path: given.args[0]!,
    identities: readIdentities(given),
    json: isSet(given, 'json'),
  }),
  check: ({ identities }) => checkIdentities(identities),
  async run(options, world) {
    const bytes = await readTrailFile(world, options.path)
    const expected = await expectedIdentities(world, readTrail(bytes), options.identities)
    const report = verifyTrail(world.crypto, bytes, expected)
    const names = await Names.of(world)
    const screen = new Screen(world, options)
    if (options.json) screen.event('verified', reportFields(report, names))
    else sayReport(world, report, names)
    return report.sound ? 0 : 1
  },
})

function sayReport(world: World, report: TrailReport, names: Names): void {
  const { stdout } = world.terminal
  const say = (line: string): void => stdout.write(`${line}\n`)
  const { records, covered, initiator, responder, role, sound, complete } = report
  say(sound ? 'sound: it says what both have signed' : `NOT SOUND: ${stateWords(report)}`)
  sayFaults(say, report)
  say(`session      ${hex(report.session)}, ${report.service}`)
  say(`initiator    ${names.full(initiator)}${role === 'initiator' ? ', who kept this' : ''}`)
  say(`responder    ${names.full(responder)}${role === 'responder' ? ', who kept this' : ''}`)
  say(`records      ${records.sent} sent, ${records.received} received`)
  const end = complete ? '; its end is there' : '; its end is not there'
  say(`signed       up to ${covered.sent} sent, ${covered.received} received${end}`)
}

function sayFaults(say: (line: string) => void, { faults, faultCount }: TrailReport): void {
  for (const fault of faults.slice(0, FINDINGS_SHOWN)) say(`  ${faultWords(fault)}`)
  if (faultCount > FINDINGS_SHOWN) say(`  and ${faultCount - FINDINGS_SHOWN} more`)
}

interface CompareOptions {
  paths: readonly [string, string]
  identities: readonly string[]
  json: boolean
}

export const compareAudit = command<CompareOptions>({
  page: {
    name: 'sotto audit compare',
    summary: "compare both sides' trails of one session",
    args: ['FILE', 'OTHER'],
    examples: [
      ['sotto audit compare mine.trail theirs.trail', 'On the machine of one of the two.'],
      [
        'sotto audit compare a.trail b.trail --identity SHA256:… --identity SHA256:…',
        'Anywhere.',
      ],
    ],
    flags: FLAGS,
    more:
      `Works offline. Says which records or commitments were modified, dropped, injected, reordered or
truncated between the two, or in one of the files: there the signatures do not hold.
Exit codes: 0 both are sound and the same to their ends, 1 any difference or fault.`,
  },
  read: (given) => ({
    paths: [given.args[0]!, given.args[1]!],
    identities: readIdentities(given),
    json: isSet(given, 'json'),
  }),
  check: ({ identities }) => checkIdentities(identities),
  async run(options, world) {
    const [one, other] = options.paths
    const files = [await readTrailFile(world, one), await readTrailFile(world, other)] as const
    const expected = await expectedIdentities(world, readTrail(files[0]), options.identities)
    const comparison = compareTrails(world.crypto, files, expected)
    const names = await Names.of(world)
    if (options.json) {
      const { reports, ...rest } = comparison
      new Screen(world, options).event('compared', {
        ...rest,
        initiator: reportFields(reports.initiator, names),
        responder: reportFields(reports.responder, names),
      })
    } else sayComparison(world, comparison, names)
    return comparison.same ? 0 : 1
  },
})

function sayComparison(
  world: World,
  { same, differences, differenceCount, reports }: Comparison,
  names: Names,
): void {
  const { stdout } = world.terminal
  const say = (line: string): void => stdout.write(`${line}\n`)
  const { initiator, responder } = reports
  const { session, service, records, complete } = initiator
  const ends = complete && responder.complete ? 'to the end' : 'as far as they go'
  const total = records.sent + records.received
  say(same ? `the same ${ends}: ${total} records of both sides` : 'DIFFERENT')
  const name = (role: 'initiator' | 'responder'): string => names.name(initiator[role])
  for (const one of differences.slice(0, FINDINGS_SHOWN)) say(`  ${differenceWords(one, name)}`)
  if (differenceCount > FINDINGS_SHOWN) say(`  and ${differenceCount - FINDINGS_SHOWN} more`)
  for (const report of [initiator, responder]) {
    if (report.sound) continue
    say(`the trail of ${names.name(report[report.role])} is not what was signed:`)
    sayFaults(say, report)
  }
  say(`session      ${hex(session)}, ${service}`)
  say(`initiator    ${names.full(initiator.initiator)}`)
  say(`responder    ${names.full(initiator.responder)}`)
}

function differenceWords(
  { kind, subject, from, number, count, at }: Difference,
  name: (role: 'initiator' | 'responder') => string,
): string {
  const which = count === 1
    ? `${subject} ${number}`
    : `${subject}s ${number} to ${number + count - 1}`
  const where = at === undefined ? '' : `: the trail of ${name(at)} ends before`
  return `${kind}: ${which} from ${name(from)}${where}`
}

interface OpenOptions extends FileOptions {
  content: ContentNumber
  contentPath: string | undefined
}

export const openAudit = command<OpenOptions>({
  page: {
    name: 'sotto audit open',
    summary: 'show what a single content was committed to by, and that it is this one',
    args: ['FILE', 'CONTENT'],
    examples: [
      ['sotto audit open mine.trail sent-0', 'The SHA-256 of the first content that was sent.'],
      ['sotto audit open mine.trail sent-0 --content message.txt', 'Whether it was this file.'],
    ],
    flags: [
      { name: 'content', value: 'PATH', help: 'What is said to be the content.' },
      ...FLAGS,
    ],
    more:
      `Works offline, on a file that was exported with --open CONTENT. Of a message the content is the
message, of its answer the standard output, then the standard error, where there were any.
Exit codes: 0, and 1 when it is another content, is not signed, or cannot be opened by this file.`,
  },
  read: (given) => ({
    path: given.args[0]!,
    content: parseContent(given.args[1]!),
    contentPath: textOf(given, 'content'),
    identities: readIdentities(given),
    json: isSet(given, 'json'),
  }),
  check: ({ identities }) => checkIdentities(identities),
  async run(options, world) {
    const { content } = options
    const trail = readTrail(await readTrailFile(world, options.path))
    const expected = await expectedIdentities(world, trail, options.identities)
    const report = judgeTrail(world.crypto, trail, expected)
    if (!report.sound) {
      throw new TunnelError('audit/unsound', `Cannot open ${options.path}: it is not sound`, {
        hint: `See: sotto audit verify ${options.path}`,
      })
    }
    const opening = openingOf(world, trail, content)
    const signer = signedBy(world, trail, content)
    const given = options.contentPath === undefined
      ? undefined
      : await hashOf(world, options.contentPath)
    const matches = given && equal(given, opening.content)
    const names = await Names.of(world)
    const sha256 = hex(opening.content)
    if (options.json) {
      new Screen(world, options).event('opened', {
        content: contentWords(content),
        sha256,
        salt: hex(opening.salt),
        signedBy: names.print(signer),
        ...(given && { given: hex(given), matches }),
      })
      return matches === false ? 1 : 0
    }
    const say = (line: string): void => world.terminal.stdout.write(`${printable(line)}\n`)
    if (given && matches) say(`it is this content: ${options.contentPath}`)
    else if (given) say(`NOT this content: the SHA-256 of ${options.contentPath} is ${hex(given)}`)
    say(`content      ${contentWords(content)}`)
    say(`SHA-256      ${sha256}`)
    say(`salt         ${hex(opening.salt)}`)
    say(`signed by    ${names.full(signer)}`)
    return matches === false ? 1 : 0
  },
})

function openingOf(
  world: World,
  trail: Trail,
  { direction, index }: ContentNumber,
): { salt: Uint8Array; content: Uint8Array } {
  const name = contentWords({ direction, index })
  const opening = trail.openings[direction].find((one) => one.index === index)
  const commitment = trail.commitments[direction].find((one) => one.index === index)
  if (!opening || !commitment) {
    throw new TunnelError(
      'audit/opening',
      `Cannot open ${name}: found ${
        commitment ? 'nothing by which it could be' : 'no such content'
      }`,
      { hint: `Whoever kept it exports it by: sotto audit export SESSION -o FILE --open ${name}` },
    )
  }
  if (equal(world.crypto.hmacSha256(opening.salt, opening.content), commitment.value)) {
    return opening
  }
  throw new TunnelError('audit/opening', `Cannot open ${name}: found another commitment`)
}

/** Who has signed this commitment: its maker, or nobody yet. */
function signedBy(
  world: World,
  trail: Trail,
  { direction, index }: ContentNumber,
): Uint8Array {
  const role = signerOf(trail, direction)
  for (const { direction: from, bytes } of trail.checkpoints) {
    if (from !== direction) continue
    const { sentCommitments } = openCheckpoint(world.crypto, bytes, { context: trail, role })
    if (sentCommitments > index) return trail[role]
  }
  throw new TunnelError(
    'audit/unsigned',
    `Cannot open ${contentWords({ direction, index })}: found no signature of its maker over it`,
    { hint: 'The session was cut before; the other side may have more.' },
  )
}

async function hashOf(world: World, path: string): Promise<Uint8Array> {
  const content = await world.files.read(path, { bytesMax: CONTENT_BYTES_MAX })
  if (content) return world.crypto.sha256(content)
  throw new TunnelError('audit/file', `Cannot read ${path}: it is not there`)
}
