// seconds: 120
// needs: root mount
/**
 * Trails on a disk: of a process that is killed at any moment, on a disk that is full, too slow or
 * gone, and with more of them than there may be. What is there is always whole up to its end.
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { closeSync, openSync, unlinkSync, utimesSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openAppender } from '../../agent/host/appender.ts'
import { hostFiles } from '../../agent/host/files.ts'
import { Trails } from '../../agent/trails.ts'
import type { Recording, TrailPorts } from '../../agent/trails.ts'
import { verifyTrail } from '../../core/audit.ts'
import { readTrail } from '../../core/trail.ts'
import { fast, filled } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'
import { ALICE, BOB, Pair, SESSION, START } from '../support/transcripts.ts'
import { BUN } from '../support/world.ts'

const WRITER = fileURLToPath(new URL('../support/trail_writer.ts', import.meta.url))
const KILLS = 20
const IDS = [ALICE.public, BOB.public]

const test = suite('agent/trails')
const directory = mkdtempSync(join(tmpdir(), 'sotto-trails-'))
const disk = join(directory, 'disk')
test.before(() => {
  mkdirSync(disk)
  const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk])
  assert.is(status, 0, String(stderr))
})
test.after(() => {
  spawnSync('umount', ['-l', disk])
  rmSync(directory, { recursive: true, force: true })
})
let folders = 0
const fresh = (): string => join(directory, `${folders++}`)
const trailsIn = (dir: string): string[] =>
  readdirSync(dir).filter((name) => name.endsWith('.trail')).sort()

interface Kept {
  trails: Trails
  problems: string[]
  /** A session of this number, in which so many records passed. */
  session(number: number, records?: number): Promise<void>
  begin(number: number): { pair: Pair; recording: Recording }
}

function keeper(dir: string, ports: Partial<TrailPorts> = {}): Kept {
  const problems: string[] = []
  let now = START
  const trails = new Trails({
    dir,
    files: hostFiles,
    clock: { now: () => now += 1000 },
    crypto: fast,
    problem: ({ code, message }) => void problems.push(`${code} ${message}`),
    ...ports,
  })
  const begin = (number: number): { pair: Pair; recording: Recording } => {
    const ids = { session: filled(number, 16), initiator: ALICE.public, responder: BOB.public }
    const recording = trails.begin({ ...ids, role: 'initiator', service: 'a2a' })
    const pair = new Pair(undefined, (event, side) => side === 'alice' && recording.event(event))
    return { pair, recording }
  }
  const session = async (number: number, records = 20): Promise<void> => {
    const { pair, recording } = begin(number)
    for (let i = 0; i < records; i++) {
      pair.pass(i % 2 ? 'alice' : 'bob')
      if (i % 500 === 499) await new Promise((resolve) => setImmediate(resolve))
    }
    pair.close()
    recording.closed()
  }
  return { trails, problems, session, begin }
}

/** Runs the writer until `until` says that this line is enough, then kills it so many ms later. */
function write(dir: string, until: RegExp, delayMs: number, records?: number): Promise<string> {
  return new Promise((resolve) => {
    const child = spawn(BUN, [WRITER, dir, ...(records ? [String(records)] : [])])
    let said = ''
    child.stderr.on('data', (bytes: Uint8Array) => void (said += bytes))
    child.stdout.on('data', (bytes: Uint8Array) => {
      const before = until.test(said)
      said += bytes
      if (!before && until.test(said)) setTimeout(() => child.kill('SIGKILL'), delayMs)
    })
    child.on('close', () => resolve(said))
  })
}

test(`a process is killed ${KILLS} times at random: each trail holds up to its end`, async () => {
  const seed = Math.floor(Math.random() * 2 ** 32)
  let random = seed
  const next = (): number => (random = (random * 1_664_525 + 1_013_904_223) % 2 ** 32) / 2 ** 32
  let trails = 0
  let complete = 0
  let records = 0
  for (let kill = 0; kill < KILLS; kill++) {
    const dir = fresh()
    const session = new RegExp(`begun ${1 + Math.floor(next() * 5)}`)
    const said = await write(dir, session, next() * 30)
    for (const name of trailsIn(dir)) {
      const bytes = readFileSync(join(dir, name))
      const place = `seed ${seed}, kill ${kill}, ${name}: ${said}`
      if (bytes.length === 0) continue
      trails++
      const report = verifyTrail(fast, bytes, IDS)
      assert.equal(report.faults, [], place)
      assert.ok(report.tornBytes < 235, place)
      records += report.records.sent + report.records.received
      if (report.complete) complete++
    }
    assert.is(statSync(dir).mode & 0o777, 0o700)
  }
  assert.ok(trails > KILLS, `${trails} trails`)
  assert.ok(records > 1000, `${records} records`)
  assert.ok(complete > 0 && complete < trails, `${complete} of ${trails} are complete`)
})

test('a session is kept from its first record, also those that come before the file is open', async () => {
  const dir = fresh()
  const { trails, session, problems } = keeper(dir)
  await session(1)
  await trails.close()
  const [name, ...others] = trailsIn(dir)
  assert.match(name!, /^20231114221321-0101010101010101[01]+-i-[0-9a-f]{8}\.trail$/)
  assert.equal(others, [])
  assert.is(statSync(join(dir, name!)).mode & 0o777, 0o600)
  const trail = readTrail(readFileSync(join(dir, name!)))
  assert.is(trail.records.received.length, 12)
  assert.equal(problems, [])
  assert.equal(readdirSync(dir), [name], 'no lock is left')
})

test('a full disk is told once, the trail ends at a whole entry, and the next has room again', async () => {
  const filler = join(disk, 'filler')
  writeFileSync(filler, new Uint8Array(900_000))
  const dir = join(disk, 'trails')
  const { trails, session, problems, begin } = keeper(dir)
  const { pair, recording } = begin(SESSION[0]!)
  for (let i = 0; i < 8000; i++) {
    pair.pass('alice')
    if (i % 10 === 9) pair.check('alice')
    if (i % 10 === 9) pair.check('bob')
    if (i % 100 === 99) await new Promise((resolve) => setTimeout(resolve))
  }
  recording.closed()
  fill(filler)
  await session(2)
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.is(problems.length, 1, problems.join())
  assert.match(problems[0]!, /^files\/append Cannot append to .*: the disk is full$/)
  const [name] = trailsIn(dir)
  const report = verifyTrail(fast, readFileSync(join(dir, name!)), IDS)
  assert.equal(report.faults, [])
  assert.is(report.tornBytes, 0)
  assert.ok(report.records.sent > 100 && report.records.sent < 8000, `${report.records.sent}`)
  unlinkSync(filler)
  await session(3)
  await trails.close()
  assert.is(problems.length, 1)
  const { bytes } = await keeper(dir).trails.find('0303')
  assert.is(readTrail(bytes).records.received.length, 12)
  rmSync(dir, { recursive: true })
})

/** Takes all that is left of the disk, to the last byte. */
function fill(path: string): void {
  const file = openSync(path, 'a')
  try {
    for (const size of [65_536, 4096, 1]) {
      try {
        while (writeSync(file, new Uint8Array(size)) === size);
      } catch (error) {
        assert.is((error as { code?: string }).code, 'ENOSPC')
      }
    }
  } finally {
    closeSync(file)
  }
}

test('what a full disk took in part is cut off behind the last whole piece', async () => {
  const path = join(disk, 'pieces')
  fill(join(disk, 'all'))
  unlinkSync(join(disk, 'all'))
  writeFileSync(join(disk, 'most'), new Uint8Array(900_000))
  const appender = await openAppender(path)
  for (let i = 0; i < 3000; i++) appender.write(filled(i % 256, 100))
  await appender.sync()
  assert.match(appender.error!.message, /the disk is full/)
  assert.match(appender.error!.hint!, /Make room/)
  appender.write(filled(1, 100))
  await appender.close()
  const { size } = statSync(path)
  assert.ok(size > 0 && size % 100 === 0, `${size} bytes`)
  assert.is(await rejection(openAppender(path)), 'files/append', 'never one that is there')
  for (const name of ['most', 'pieces']) unlinkSync(join(disk, name))
})

test('a disk that does not keep up ends the trail, and takes no more memory', async () => {
  const appender = await openAppender(join(fresh(), 'slow'))
  for (let i = 0; i < 9; i++) appender.write(new Uint8Array(1_000_000))
  assert.match(appender.error!.message, /does not keep up/)
  await appender.close()
})

test('the oldest go when all are too much, and none that is being written, here or elsewhere', async () => {
  const dir = fresh()
  const other = keeper(dir, { crypto: { randomBytes: (count) => filled(0xee, count) } })
  const early = other.begin(0xaa)
  early.pair.pass('alice')
  const killed = keeper(dir, { crypto: { randomBytes: (count) => filled(0xdd, count) } })
  await killed.session(0xbb)
  await killed.trails.close()
  const { trails, session, begin, problems } = keeper(dir, { bytesMax: 20_000 })
  const open = begin(1)
  open.pair.pass('alice')
  for (let i = 2; i < 30; i++) await session(i)
  await new Promise((resolve) => setTimeout(resolve, 50))
  const before = trailsIn(dir).length
  await trails.prune()
  const sessions = trailsIn(dir).map((name) => name.slice(15, 17))
  assert.ok(before > sessions.length, `${before} trails, then ${sessions.length}`)
  assert.ok(sessions.includes('aa'), 'of another process')
  assert.ok(sessions.includes('01'), 'of this one')
  assert.not(sessions.includes('bb'), 'of a process that is gone')
  assert.not(sessions.includes('02'), 'the oldest')
  assert.ok(sessions.includes('1d'), 'the newest')
  const bytes = trailsIn(dir).reduce((sum, name) => sum + statSync(join(dir, name)).size, 0)
  assert.ok(bytes <= 20_000, `${bytes} bytes`)
  open.pair.pass('alice')
  await trails.close()
  assert.is(readTrail((await trails.find('0101')).bytes).records.sent.length, 2)
  assert.equal(problems, [])
  early.recording.closed()
  await other.trails.close()
})

test('one trail has its end too, and the session goes on', async () => {
  const dir = fresh()
  const { trails, session, problems } = keeper(dir, { trailBytesMax: 1000 })
  await session(1, 100)
  await trails.close()
  assert.is(problems.length, 1)
  assert.match(problems[0]!, /^audit\/size/)
  const { bytes } = await trails.find('01')
  assert.ok(bytes.length <= 1000 && bytes.length > 900)
  assert.is(readTrail(bytes).tornBytes, 0)
})

test('locks of processes that were killed are swept up, once they are old', async () => {
  const dir = fresh()
  await write(dir, /begun 3/, 0)
  const lock = readdirSync(dir).find((name) => name.endsWith('.lock'))!
  assert.ok(lock)
  const { trails } = keeper(dir, { clock: { now: () => Date.now() }, bytesMax: -1 })
  await trails.prune()
  assert.equal(trailsIn(dir), [])
  assert.ok(readdirSync(dir).includes(lock))
  utimesSync(join(dir, lock), 1, 1)
  await trails.prune()
  assert.equal(readdirSync(dir), [])
})

test('sessions are found by the beginning of their id, and listed with the newest first', async () => {
  const dir = fresh()
  const { trails, session, begin } = keeper(dir)
  await session(0x11)
  await session(0x12)
  const { recording } = begin(0x12)
  recording.closed()
  await trails.close()
  writeFileSync(join(dir, 'notes.txt'), 'mine')
  writeFileSync(join(dir, '20231114221321-' + '13'.repeat(16) + '-i-00000000.trail'), 'torn')
  const listed = await trails.list()
  assert.equal(listed.map(({ session }) => session[0]), [0x12, 0x12, 0x11])
  assert.is(listed[0]!.service, 'a2a')
  assert.is((await trails.find('11')).bytes[8], 0x11)
  assert.is(await rejection(trails.find('1')), 'audit/ambiguous')
  assert.is(await rejection(trails.find('12'.repeat(16) + '-r')), 'audit/unknown')
  for (const session of ['', '../x', '99', 'zz']) {
    assert.is(await rejection(trails.find(session)), 'audit/unknown', session)
  }
})

test.run()
