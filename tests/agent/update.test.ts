// seconds: 180
/**
 * `sotto update` against servers that mean harm: what is believed is the key that was compiled in, and
 * whatever is sent in place of a release ends with the old program where it was, and nothing beside it.
 */
import { createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ownProgram } from '../../agent/host/own_program.ts'
import type { OwnProgram } from '../../agent/own_program.ts'
import { ageWarning, fetchProgram, fetchRelease, judge, tryProgram } from '../../agent/update.ts'
import type { Judged } from '../../agent/update.ts'
import { fetchSmall } from '../../agent/update_fetch.ts'
import type { Fetching } from '../../agent/update_fetch.ts'
import { ownerOf } from '../../agent/update_owner.ts'
import { isTunnelError } from '../../core/errors.ts'
import { encodeMinisignKey, makeMinisignSecret, signMinisign } from '../../core/minisign.ts'
import { encodeSums, releaseComment } from '../../core/release.ts'
import type { Release } from '../../core/release.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { Place } from '../support/cli.ts'
import { fast } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'

const SECRET = makeMinisignSecret(fast)
const STRANGER = makeMinisignSecret(fast)
const TARGET = 'linux-x64'
const FILE = `sotto-${TARGET}`
const OLD = '#!/bin/sh\necho 1.0.0\n'

/** What a path is answered with: a file, or whatever a server may do. */
type Answer = string | Uint8Array | ((socket: Socket, head: string) => void)

let root: string
let bench: TestWorld
let server: ReturnType<typeof createServer>
let base: URL
let answers: Map<string, Answer>
let asked: string[]
let own: OwnProgram
let counter = 0
const sockets = new Set<Socket>()

const test = suite('agent/update')
// Timers of the world keep nothing alive.
const alive = setInterval(() => {}, 60_000)

test.before(async () => {
  root = mkdtempSync(join(tmpdir(), 'sotto-update-'))
  bench = await testWorld()
  server = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => {})
    let head = ''
    socket.on('data', (part) => {
      const before = head.includes('\r\n\r\n')
      head += part
      if (!before && head.includes('\r\n\r\n')) answer(socket, head)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  base = new URL(`https://127.0.0.1:${(server.address() as AddressInfo).port}/download/`)
})

test.after(async () => {
  clearInterval(alive)
  for (const socket of sockets) socket.destroy()
  await new Promise((resolve) => server.close(resolve))
  await bench.close()
  rmSync(root, { recursive: true, force: true })
})

test.before.each(() => {
  const folder = join(root, String(counter++))
  mkdirSync(folder)
  writeFileSync(join(folder, 'sotto'), OLD, { mode: 0o755 })
  own = ownProgram({
    path: join(folder, 'sotto'),
    target: TARGET,
    releaseKeys: [encodeMinisignKey(SECRET).split('\n')[1]!],
  })
  asked = []
  publish('1.2.3')
})

function answer(socket: Socket, head: string): void {
  const path = head.split(' ')[1]!
  asked.push(path)
  const found = answers.get(path)
  if (found === undefined) {
    socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n')
  } else if (typeof found === 'function') found(socket, head)
  else {
    socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${Buffer.byteLength(found)}\r\n\r\n`)
    socket.end(found)
  }
}

function publish(version: string, more: { program?: string; sums?: string; sign?: string } = {}) {
  const program = more.program ?? programOf(version)
  const sums = more.sums ?? encodeSums(new Map([[FILE, sha256(program)]]))
  answers = new Map<string, Answer>([
    ['/download/SHA256SUMS', sums],
    ['/download/SHA256SUMS.minisig', more.sign ?? sign(sums, releaseComment(version))],
    [`/download/${FILE}`, program],
  ])
}

/** A program that says its version and passes its own test. */
function programOf(version: string): string {
  return `#!/bin/sh\nif [ "$1" = self-test ]; then echo "sotto ${version}: ok"; else echo ${version}; fi\n`
}

function sha256(content: string): string {
  return createHash('sha256').update(content).digest('hex')
}

function sign(sums: string, trustedComment: string, secret = SECRET): string {
  return signMinisign(new TextEncoder().encode(sums), { secret, trustedComment, crypto: fast })
}

/** TLS is left out: what is proven here holds whoever the server is. */
function fetching(limits: Partial<Fetching['limits'] & object> = {}): Fetching {
  return {
    clock: bench.world.clock,
    signal: bench.world.signal,
    limits: { stallMs: 10_000, pace: { bytes: 1, ms: 60_000 }, pauseMs: 1, ...limits },
    connect: (url) => bench.world.net.connect({ host: url.hostname, port: Number(url.port) }),
  }
}

const HERE: Judged = {
  installed: '1.0.0',
  hash: sha256(OLD),
  newest: undefined,
  wanted: undefined,
  allowDowngrade: false,
}

async function manifest(limits = {}): Promise<Release> {
  return await fetchRelease(base, { ...fetching(limits), own, crypto: fast })
}

/** All of it, as the command does it. */
async function update(given: Partial<Judged> = {}, limits = {}): Promise<void> {
  const choice = judge(await manifest(limits), TARGET, { ...HERE, ...given })
  const staged = await fetchProgram(base, choice, { ...fetching(limits), own, progress: () => {} })
  await staged.allow()
  await tryProgram(bench.world, staged.path)
  await own.replace(staged.path)
}

async function refuses(code: string, given: Partial<Judged> = {}, limits = {}): Promise<void> {
  let thrown: unknown
  try {
    await update(given, limits)
  } catch (error) {
    thrown = error
  }
  assert.ok(isTunnelError(thrown), String(thrown))
  assert.is(thrown.code, code, thrown.message)
  assert.is(readFileSync(own.path!, 'utf8'), OLD)
  assert.equal(left(), ['sotto'], thrown.message)
}

function left(): string[] {
  return readdirSync(join(own.path!, '..')).sort()
}

test('a newer release takes the place; the one before stays, and comes back', async () => {
  writeFileSync(join(own.path!, '..', '.sotto.update.of-one-that-was-killed'), 'half')
  await update()
  assert.is(readFileSync(own.path!, 'utf8'), programOf('1.2.3'))
  assert.is(statSync(own.path!).mode & 0o777, 0o755)
  assert.equal(left(), ['.sotto.previous', 'sotto'])
  assert.is(readFileSync(own.previous!, 'utf8'), OLD)
  await own.restore()
  assert.is(readFileSync(own.path!, 'utf8'), OLD)
  assert.is(readFileSync(own.previous!, 'utf8'), programOf('1.2.3'))
  publish('1.2.4')
  await update()
  // One is kept, the last.
  assert.is(readFileSync(own.previous!, 'utf8'), OLD)
  assert.equal(left(), ['.sotto.previous', 'sotto'])
})

test('attack: a version before this one that another user put there is none', async () => {
  writeFileSync(own.previous!, OLD, { mode: 0o755 })
  assert.ok(await own.isPreviousOurs())
  chmodSync(own.previous!, 0o777)
  assert.not.ok(await own.isPreviousOurs(), 'all may write to it')
  chmodSync(own.previous!, 0o755)
  if (process.getuid?.() === 0) {
    chownSync(own.previous!, 1234, 0)
    assert.not.ok(await own.isPreviousOurs(), 'another owner')
  }
  rmSync(own.previous!)
  symlinkSync(own.path!, own.previous!)
  assert.not.ok(await own.isPreviousOurs(), 'a link')
  rmSync(own.previous!)
  assert.is(await rejection(own.isPreviousOurs()), 'files/failed')
})

test('attack: manifests of others, none, two, cut, or of another program', async () => {
  const sums = answers.get('/download/SHA256SUMS') as string
  const good = answers.get('/download/SHA256SUMS.minisig') as string
  const rows: [code: string, sums: string, signature: string][] = [
    ['minisign/unknown', sums, sign(sums, releaseComment('1.2.3'), STRANGER)],
    // The right id on the wrong key.
    ['minisign/forged', sums, sign(sums, releaseComment('1.2.3'), { ...STRANGER, id: SECRET.id })],
    ['minisign/forged', sums, sign(`${sums}\n`, releaseComment('1.2.3'))],
    ['minisign/forged', sums, good.replace('sotto 1.2.3', 'sotto 9.9.9')],
    // Two signatures in one file: a reader of the first and one of the last would not agree.
    ['minisign/signature', sums, good + sign(sums, releaseComment('9.9.9'), STRANGER)],
    ['minisign/signature', sums, good.slice(0, good.length / 2)],
    ['minisign/signature', sums, ''],
    ['release/malformed', sums, sign(sums, 'other 1.2.3')],
    ['release/malformed', sums, sign(sums, 'sotto 1.2')],
    ['minisign/forged', sums.slice(0, -10), good],
  ]
  // Signed, and wrong all the same.
  for (
    const bad of [
      sums.slice(0, -1),
      `${sha256('x')}  ../../.bashrc\n`,
      `${sha256('x')}  /etc/passwd\n`,
      sums + sums,
      'no sums\n',
    ]
  ) rows.push(['release/malformed', bad, sign(bad, releaseComment('1.2.3'))])
  for (const [code, theirs, signature] of rows) {
    publish('1.2.3', { sums: theirs, sign: signature })
    await refuses(code)
  }
  answers.delete('/download/SHA256SUMS.minisig')
  await refuses('update/refused')
  own = ownProgram({ path: own.path, target: TARGET, releaseKeys: [] })
  await refuses('update/no-keys')
})

test('attack: an old release, one that was newer before, the same with another content', async () => {
  await refuses('update/downgrade', { installed: '1.2.4' })
  await refuses('update/downgrade', { installed: '1.2.4', wanted: '1.2.3' })
  await refuses('update/rolled-back', { newest: '1.3.0' })
  await refuses('update/different', { installed: '1.2.3' })
  await refuses('update/version', { wanted: '1.2.4', allowDowngrade: true })
  publish('1.2.3-rc.1')
  await refuses('update/downgrade', { installed: '1.2.3' })
  const same = judge(await manifest(), TARGET, {
    ...HERE,
    installed: '1.2.3-rc.1',
    hash: sha256(programOf('1.2.3-rc.1')),
  })
  assert.is(same.differs, false)
  await update({ installed: '2.0.0', newest: '3.0.0', wanted: '1.2.3-rc.1', allowDowngrade: true })
  assert.is(readFileSync(own.path!, 'utf8'), programOf('1.2.3-rc.1'))
})

test('what was signed long ago is told, and taken; today, and before days were signed, nothing is', async () => {
  const DAY_MS = 86_400_000
  const now = bench.world.clock.now()
  const said = async (signedMs: number | undefined): Promise<string | undefined> => {
    const sums = encodeSums(new Map([[FILE, sha256(programOf('1.2.3'))]]))
    publish('1.2.3', { sums, sign: sign(sums, releaseComment('1.2.3', signedMs)) })
    return ageWarning(await manifest(), now)
  }
  assert.is(await said(undefined), undefined)
  assert.is(await said(now), undefined)
  assert.is(await said(now - 179 * DAY_MS), undefined)
  assert.match(
    (await said(now - 182 * DAY_MS))!,
    /was signed 18[123] days ago .* publish a newer one/,
  )
  assert.match((await said(now + 3 * DAY_MS))!, /clock says .*: set the clock/)
  await update()
  assert.is(readFileSync(own.path!, 'utf8'), programOf('1.2.3'))
})

test('attack: another file than was signed, none for this machine, one that does not run', async () => {
  answers.set(`/download/${FILE}`, `${programOf('1.2.3')}#`)
  await refuses('update/hash')
  publish('1.2.3', { sums: `${sha256('x')}  sotto-darwin-arm64\n` })
  await refuses('update/no-file')
  for (const program of ['#!/bin/sh\nexit 1\n', '#!/nowhere\n', '#!/bin/sh\necho 1.2.3\n', '']) {
    publish('1.2.3', { program })
    const choice = judge(await manifest(), TARGET, HERE)
    const staged = await fetchProgram(base, choice, { ...fetching(), own, progress: () => {} })
    // Nobody may run it before its hash is known.
    assert.is(statSync(staged.path).mode & 0o777, 0o600)
    await staged.allow()
    try {
      await tryProgram(bench.world, staged.path)
      assert.unreachable(program)
    } catch (error) {
      assert.ok(isTunnelError(error, 'update/self-test'), String(error))
    }
    await staged.discard()
    assert.equal(left(), ['sotto'])
  }
})

test('attack: lengths beyond all bounds, said or not, in heads, lines and chunks', async () => {
  const endless = (head: string, piece: string): Answer => (socket) => {
    socket.write(head)
    const more = (): void => {
      while (!socket.destroyed && socket.write(piece)) { /* as much as it takes */ }
    }
    socket.on('drain', more)
    more()
  }
  const ok = 'HTTP/1.1 200 OK\r\n'
  const big = 'x'.repeat(65_536)
  const rows: [code: string, answer: Answer][] = [
    ['update/size', endless(`${ok}Content-Length: 70000\r\n\r\n`, big)],
    ['update/size', endless(`${ok}Content-Length: 99999999999999999999\r\n\r\n`, big)],
    ['update/size', endless(`${ok}Content-Length: -1\r\n\r\n`, big)],
    [
      'update/size',
      endless(`${ok}Transfer-Encoding: chunked\r\n\r\n`, `8000\r\n${big.slice(0, 32_768)}\r\n`),
    ],
    ['update/refused', endless(`${ok}Transfer-Encoding: chunked\r\n\r\n`, 'fffffffffff\r\n')],
    ['update/refused', endless(`${ok}\r\n`, big)],
    ['update/refused', endless(ok, `x: ${'y'.repeat(500)}\r\n`)],
    ['update/refused', endless('', big)],
    ['update/refused', endless(`${ok}Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n`, big)],
    ['update/refused', endless('HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n\r\n', big)],
  ]
  for (const [code, bad] of rows) {
    answers.set('/download/SHA256SUMS', bad)
    await refuses(code)
  }
})

test('attack: redirects in a circle, to plain http, to a file, with a secret', async () => {
  const to = (location: string): Answer => (socket) =>
    socket.end(`HTTP/1.1 302 Found\r\nLocation: ${location}\r\nContent-Length: 0\r\n\r\n`)
  const path = '/download/SHA256SUMS'
  const sums = answers.get(path)!
  for (
    const [location, count] of [
      [path, 6],
      ['http://127.0.0.1/x', 1],
      ['file:///etc/passwd', 1],
      ['https://me:secret@127.0.0.1/x', 1],
      ['https://[', 1],
      ['x'.repeat(3000), 1],
    ] as const
  ) {
    asked = []
    answers.set(path, to(location))
    await refuses('update/refused')
    assert.is(asked.length, count, location)
  }
  answers.set(path, to('/elsewhere'))
  answers.set('/elsewhere', sums)
  await update()
  assert.ok(asked.includes('/elsewhere'))
})

test('attack: a server that drips, one that falls silent', async () => {
  answers.set('/download/SHA256SUMS', (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n')
    const drip = setInterval(() => socket.write('x'), 5)
    socket.on('close', () => clearInterval(drip))
  })
  await refuses('update/slow', {}, { pace: { bytes: 5_000, ms: 300 } })
  asked = []
  answers.set('/download/SHA256SUMS', (socket) => void socket.write('HTTP/1.1 200 OK\r\n'))
  await refuses('update/broken', {}, { stallMs: 50 })
  assert.is(asked.length, 5)
})

test('a download that breaks off goes on where it was; one that changed begins again', async () => {
  const program = programOf('1.2.3') + '#'.repeat(300_000)
  publish('1.2.3', { program })
  const ranges: string[] = []
  let etag = '"a"'
  answers.set(`/download/${FILE}`, (socket, head) => {
    const from = Number(/^range: bytes=(\d+)-$/im.exec(head)?.[1] ?? 0)
    const same = /^if-range: (.*)\r$/im.exec(head)?.[1] === etag
    ranges.push(`${from} ${same}`)
    const part = Buffer.from(program).subarray(same ? from : 0)
    socket.write(
      same
        ? `HTTP/1.1 206 Partial\r\nETag: ${etag}\r\nContent-Length: ${part.length}\r\n` +
          `Content-Range: bytes ${from}-${program.length - 1}/${program.length}\r\n\r\n`
        : `HTTP/1.1 200 OK\r\nETag: ${etag}\r\nContent-Length: ${part.length}\r\n\r\n`,
    )
    if (ranges.length === 3) etag = '"b"'
    if (ranges.length < 5) socket.end(part.subarray(0, 50_000))
    else socket.end(part)
  })
  await update()
  assert.is(readFileSync(own.path!, 'utf8'), program)
  assert.equal(ranges, ['0 false', '50000 true', '100000 true', '150000 false', '50000 true'])
})

test('stopping it ends it at once', async () => {
  const stop = new AbortController()
  answers.set('/download/SHA256SUMS', () => stop.abort())
  try {
    await fetchSmall(new URL('SHA256SUMS', base), {
      ...fetching(),
      signal: stop.signal,
      bytesMax: 1000,
    })
    assert.unreachable()
  } catch (error) {
    assert.ok(isTunnelError(error, 'update/stopped'), String(error))
  }
})

test('Windows: the running program is moved away, and comes back if the new one cannot take its place', async () => {
  const windows = ownProgram(own, { windows: true })
  assert.match(windows.previous!, /\.exe$/)
  const next = join(own.path!, '..', 'next')
  writeFileSync(next, 'next')
  await windows.replace(next)
  assert.is(readFileSync(own.path!, 'utf8'), 'next')
  assert.is(readFileSync(windows.previous!, 'utf8'), OLD)
  await windows.replace(next).then(() => assert.unreachable(), () => {})
  assert.is(readFileSync(own.path!, 'utf8'), 'next')
})

test('what a manager of packages keeps is left to it; sources are no program', async () => {
  for (
    const [path, manager] of [
      ['/nix/store/abc-sotto-1.2.3/bin/sotto', 'Nix'],
      ['/opt/homebrew/Cellar/sotto/1.2.3/bin/sotto', 'Homebrew'],
      ['/home/a/project/node_modules/.bin/sotto', 'npm'],
      ['/bin/sh', 'dpkg'],
    ] as const
  ) {
    assert.is((await ownerOf(bench.world, path))?.manager, manager, path)
  }
  chmodSync(own.path!, 0o755)
  assert.is(await ownerOf(bench.world, own.path!), undefined)
  const place = await Place.make()
  const { code, stderr } = await place.run('me', ['update'])
  assert.is(code, 1, stderr.text)
  assert.match(stderr.text, /this sotto runs from its sources/)
  for (const words of [['--allow-downgrade'], ['--rollback', '--check'], ['--from', 'http://x/']]) {
    assert.is((await place.run('me', ['update', ...words])).code, 2)
  }
  const tried = await place.run('me', ['self-test'])
  assert.match(tried.stdout.text, /^sotto \S+: ok\n$/)
  await place.close()
})

test.run()
