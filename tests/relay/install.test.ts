/**
 * What installs the program, as the relay's app hands it out: which scripts, with which words in them;
 * which files, to whom, how many at once; and what a folder holds beside a release stays there.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isTunnelError } from '../../core/errors.ts'
import { encodeMinisignKey, makeMinisignSecret } from '../../core/minisign.ts'
import {
  DOWNLOAD_STALL_MS,
  DOWNLOADS_MAX,
  DOWNLOADS_PER_ADDRESS_MAX,
} from '../../relay/downloads.ts'
import type { ReleaseFiles } from '../../relay/downloads.ts'
import { releaseFolder } from '../../relay/serve/release_folder.ts'
import { readSettings } from '../../relay/settings.ts'
import { fast } from '../support/crypto.ts'
import { problemCode, testRelay } from '../support/relay_app.ts'

const test = suite('relay/install')
const KEY = encodeMinisignKey(makeMinisignSecret(fast)).split('\n')[1]!
const WINDOWS = 'Mozilla/5.0 (Windows NT 10.0; Win64; x64)'
const SIZE = 200_000
const PROGRAM = Uint8Array.from({ length: SIZE }, (_, i) => i % 251)

let root: string
let folder: string
let files: ReleaseFiles
/** Files that were opened and not closed. */
let open = 0

test.before(async () => {
  root = mkdtempSync(join(tmpdir(), 'sotto-install-'))
  folder = join(root, 'release')
  mkdirSync(join(folder, 'sotto-folder'), { recursive: true })
  writeFileSync(join(folder, 'sotto-linux-x64'), PROGRAM)
  writeFileSync(join(folder, 'SHA256SUMS'), 'sums\n')
  writeFileSync(join(folder, 'sotto-empty'), '')
  writeFileSync(join(folder, 'secret.key'), 'secret')
  writeFileSync(join(folder, '.sotto-hidden'), 'secret')
  writeFileSync(join(root, 'identity'), 'secret')
  symlinkSync(join(root, 'identity'), join(folder, 'sotto-link'))
  const real = await releaseFolder(folder)
  files = {
    async open(name) {
      const file = await real.open(name)
      if (!file) return undefined
      open++
      return {
        bytes: file.bytes,
        modifiedMs: file.modifiedMs,
        read: (offset, length) => file.read(offset, length),
        close() {
          open--
          return file.close()
        },
      }
    },
  }
})

test.after(() => rmSync(root, { recursive: true, force: true }))
test.after.each(() => assert.is(open, 0, 'every file that was opened is closed'))

test('without files: no script, no file, and a page that offers none', async () => {
  const { request } = await testRelay()
  for (const path of ['/install.sh', '/install.ps1', '/download/SHA256SUMS']) {
    const response = await request(path)
    assert.is(response.status, 404, path)
    assert.is(await problemCode(response), 'install/none')
  }
  assert.not.match(await (await request('/')).text(), /install\.(sh|ps1)/)
})

test('the scripts name this relay and its keys, as text that nobody keeps', async () => {
  for (const path of ['/install.sh', '/install.ps1']) {
    const { request } = await testRelay({
      ports: { files },
      flags: { 'release-key': KEY, port: '8443' },
    })
    const response = await request(path)
    assert.is(response.status, 200)
    assert.is(response.headers.get('content-type'), 'text/plain; charset=utf-8')
    assert.is(response.headers.get('cache-control'), 'no-cache')
    const words = await response.text()
    assert.match(words, 'https://relay.example.com:8443/download/')
    assert.match(words, `'${KEY}'`)
    assert.not.match(words, /undefined|\$\{origin|\[object/)
    assert.is((await request(path, { method: 'POST' })).status, 405)
    assert.is((await request(path, { method: 'HEAD' })).status, 200)
  }
})

test('the page shows the line for the system of the visitor first', async () => {
  const { request } = await testRelay({ ports: { files } })
  const shell = 'curl -fsSL https://relay.example.com/install.sh | sh'
  const power = 'irm https://relay.example.com/install.ps1 | iex'
  for (
    const [agent, first, second] of [[WINDOWS, power, shell], ['curl/8', shell, power]] as const
  ) {
    const page = await (await request('/', { headers: { 'user-agent': agent } })).text()
    assert.ok(page.indexOf(first) > 0 && page.indexOf(first) < page.indexOf(second), agent)
  }
  // Attack: what a browser says of itself is in no page.
  const odd = await request('/', { headers: { 'user-agent': 'Windows<script>alert(1)</script>' } })
  assert.not.match(await odd.text(), /<script|alert/)
})

test('attack: a domain or a key that is more than a word is put into no script', async () => {
  const { settings } = (await testRelay()).ports
  const odd = ["a';rm -rf ~;'", 'a.b$(id)', 'a b', 'a\nid', 'a`id`', '-a.b/', "x'"]
  for (const path of ['/install.sh', '/install.ps1']) {
    for (const word of odd) {
      for (const wrong of [{ domain: word }, { releaseKeys: [word] }]) {
        const { request } = await testRelay({
          ports: { files, settings: { ...settings, ...wrong } },
        })
        const response = await request(path)
        assert.is(response.status, 500, JSON.stringify(wrong))
        assert.is(await problemCode(response), 'install/unsafe')
      }
    }
    // The Host header of a visitor is in none either.
    const { request } = await testRelay({ ports: { files } })
    const words = await (await request(`https://evil.example${path}`)).text()
    assert.not.match(words, /evil/)
  }
})

test('settings: what is no URL or no key is refused with what was expected', () => {
  for (
    const flags of [
      { 'release-url': 'http://a.b/' },
      { 'release-url': 'https://a.b/?x=1' },
      { 'release-url': "https://a.b/'" },
      { 'release-url': 'https://u:p@a.b/' },
      { 'release-url': 'https://a.b/\r\nx: y' },
      { 'release-key': "x'" },
      { 'release-key': KEY.slice(1) },
      { 'release-key': `${KEY},` },
      { 'release-key': Array(5).fill(KEY).join(',') },
      { downloads: '' },
      { downloads: 'a', 'release-url': 'https://a.b' },
    ]
  ) {
    try {
      readSettings({ flags })
      assert.unreachable(JSON.stringify(flags))
    } catch (error) {
      assert.ok(isTunnelError(error, 'settings/invalid'), String(error))
      assert.match(error.message, /expected/)
    }
  }
  const good = readSettings({ flags: { 'release-url': 'https://a.b/x', 'release-key': KEY } })
  assert.equal([good.releaseUrl, good.releaseKeys], ['https://a.b/x', [KEY]])
})

test('/download hands out the bytes, with a tag by which nobody loads them twice', async () => {
  const { request } = await testRelay({ ports: { files } })
  const path = '/download/sotto-linux-x64'
  const whole = await request(path)
  assert.is(whole.status, 200)
  assert.is(whole.headers.get('content-length'), String(SIZE))
  assert.is(whole.headers.get('content-type'), 'application/octet-stream')
  assert.is(whole.headers.get('cache-control'), 'no-cache')
  assert.is(whole.headers.get('x-content-type-options'), 'nosniff')
  assert.equal(new Uint8Array(await whole.arrayBuffer()), PROGRAM)
  const etag = whole.headers.get('etag')!
  const again = await request(path, { headers: { 'if-none-match': etag } })
  assert.is(again.status, 304)
  const head = await request(path, { method: 'HEAD' })
  assert.is(head.headers.get('content-length'), String(SIZE))
  assert.is((await (await request('/download/sotto-empty')).arrayBuffer()).byteLength, 0)
  assert.is((await request(path, { method: 'DELETE' })).status, 405)
})

test('one range is served, bounded by the file; more in one request are none', async () => {
  const { request } = await testRelay({ ports: { files } })
  const path = '/download/sotto-linux-x64'
  const etag = (await request(path, { method: 'HEAD' })).headers.get('etag')!
  const rows: [range: string, status: number, first: number, end: number][] = [
    ['bytes=0-0', 206, 0, 1],
    ['bytes=70000-', 206, 70_000, SIZE],
    ['bytes=-5', 206, SIZE - 5, SIZE],
    ['bytes=-999999999', 206, 0, SIZE],
    ['bytes=199999-999999999999', 206, SIZE - 1, SIZE],
    ['bytes=200000-', 416, 0, 0],
    ['bytes=-0', 416, 0, 0],
    ['bytes=5-2', 200, 0, SIZE],
    ['bytes=0-1,5-6', 200, 0, SIZE],
    ['bytes=-', 200, 0, SIZE],
    ['bytes=0x1-2', 200, 0, SIZE],
    ['items=0-1', 200, 0, SIZE],
    [`bytes=${'9'.repeat(400)}-`, 200, 0, SIZE],
  ]
  for (const [range, status, first, end] of rows) {
    const response = await request(path, { headers: { range, 'if-range': etag } })
    assert.is(response.status, status, range)
    if (status === 416) {
      assert.is(response.headers.get('content-range'), `bytes */${SIZE}`)
      assert.is(await problemCode(response), 'download/range')
      continue
    }
    if (status === 206) {
      assert.is(response.headers.get('content-range'), `bytes ${first}-${end - 1}/${SIZE}`)
    }
    assert.equal(new Uint8Array(await response.arrayBuffer()), PROGRAM.slice(first, end), range)
  }
  // What was begun of another file is not gone on with.
  const other = await request(path, { headers: { range: 'bytes=1-', 'if-range': '"other"' } })
  assert.is(other.status, 200)
  await other.body!.cancel()
})

test('attack: nothing but files of a release leaves the folder, whatever the path says', async () => {
  const { request } = await testRelay({ ports: { files } })
  for (
    const name of [
      'secret.key',
      '.sotto-hidden',
      'sotto-link',
      'sotto-folder',
      'sotto-absent',
      'identity',
      '..%2Fidentity',
      '%2e%2e%2fidentity',
      'sotto-..%2F..%2Fidentity',
      'sotto-x%00',
      'SHA256SUMS%00.minisig',
      'SHA256SUMS%2F..%2Fsecret.key',
      '..%5Cidentity',
      '%2Fetc%2Fpasswd',
      'SOTTO-LINUX-X64',
      `sotto-${'a'.repeat(200)}`,
      '%',
      '%ff',
    ]
  ) {
    const response = await request(`/download/${name}`)
    assert.is(response.status, 404, name)
    assert.not.match(await response.text(), /^secret/, name)
  }
  for (const path of ['/download/', '/download', '/download/../identity', '/download/a/b']) {
    assert.is((await request(path)).status, 404, path)
  }
})

test('with a release elsewhere: sent on to it, for names of a release alone', async () => {
  const { request } = await testRelay({ flags: { 'release-url': 'https://files.example/v1/' } })
  const sent = await request('/download/SHA256SUMS.minisig')
  assert.is(sent.status, 302)
  assert.is(sent.headers.get('location'), 'https://files.example/v1/SHA256SUMS.minisig')
  assert.is((await request('/install.sh')).status, 200)
  for (const name of ['..%2Fx', '%0d%0ax', 'other', '%2F%2Fevil.example']) {
    const refused = await request(`/download/${name}`)
    assert.is(refused.status, 404, name)
    assert.is(refused.headers.get('location'), null)
  }
})

test('attack: so many at once from one address, and from all; who reads nothing is let go', async () => {
  const { request, clock } = await testRelay({
    ports: { files },
    limits: { 'address.requestsBurst': 1000 },
  })
  const path = '/download/sotto-linux-x64'
  const held: Response[] = []
  for (let i = 0; i < DOWNLOADS_MAX; i++) {
    const from = `192.0.2.${Math.floor(i / DOWNLOADS_PER_ADDRESS_MAX)}`
    held.push(await request(path, { from }))
    assert.is(held[i]!.status, 200)
    if (i !== DOWNLOADS_PER_ADDRESS_MAX - 1) continue
    const mine = await request(path, { from })
    assert.is(mine.status, 503)
    assert.is(mine.headers.get('retry-after'), '10')
    assert.is(await problemCode(mine), 'download/busy')
  }
  assert.is((await request(path, { from: '203.0.113.1' })).status, 503)
  assert.is(open, DOWNLOADS_MAX)
  // One goes away, and its place is another's at once.
  await held.pop()!.body!.cancel()
  const next = await request(path, { from: '203.0.113.1' })
  assert.is(next.status, 200)
  await next.arrayBuffer()
  clock.advance(DOWNLOAD_STALL_MS)
  while (open > 0) await new Promise((done) => setImmediate(done))
  for (const { body } of held) {
    const reader = body!.getReader()
    try {
      while (!(await reader.read()).done);
      assert.unreachable('a download that was let go has no end')
    } catch (error) {
      assert.match((error as Error).message, /nobody reads/)
    }
  }
  assert.is(clock.pending, 0)
})

test('a file that becomes shorter while it is read breaks off, and does not end', async () => {
  const short: ReleaseFiles = {
    open: () =>
      Promise.resolve({
        bytes: 10,
        modifiedMs: 0,
        read: (offset) => Promise.resolve(offset === 0 ? Uint8Array.of(1, 2) : new Uint8Array(0)),
        close: () => Promise.resolve(),
      }),
  }
  const { request } = await testRelay({ ports: { files: short } })
  const response = await request('/download/SHA256SUMS')
  let words = ''
  await response.arrayBuffer().catch((error) => void (words = error.message))
  assert.match(words, /shorter/)
})

test('a folder that is not there is told before anything listens', async () => {
  for (const path of [join(root, 'nowhere'), join(root, 'identity')]) {
    try {
      await releaseFolder(path)
      assert.unreachable()
    } catch (error) {
      assert.ok(isTunnelError(error, 'relay/downloads'), String(error))
    }
  }
})

test.run()
