// The package as strangers get it: packed, installed, and the example of its README run as it stands.
// needs: chromium npm tar
import { spawnSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openBrowser } from '../support/browser.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const PACKAGE = join(ROOT, 'agent', 'wireguard-wasm')
const EXPECTED = 'hello through WireGuard'
const test = suite('wireguard/package')
const folder = mkdtempSync(join(tmpdir(), 'wireguard-wasm-'))
const installed = join(folder, 'node_modules', 'wireguard-wasm')
const example = /```js\n([\s\S]*?)```/.exec(readFileSync(join(PACKAGE, 'README.md'), 'utf8'))![1]!

test.before(() => {
  const packed = spawnSync('npm', ['pack', '--pack-destination', folder], {
    cwd: PACKAGE,
    encoding: 'utf8',
  })
  assert.is(packed.status, 0, packed.stderr)
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'))!
  mkdirSync(installed, { recursive: true })
  spawnSync('tar', ['-xzf', join(folder, tarball), '-C', installed, '--strip-components=1'])
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  writeFileSync(join(folder, 'example.js'), example)
})
test.after(() => rmSync(folder, { recursive: true }))

test('it has what it needs, and no tests or build', () => {
  const names = readdirSync(installed)
  for (const name of ['dist', 'README.md', 'API.md', 'ABI.md', 'src', 'Cargo.lock']) {
    assert.ok(names.includes(name), name)
  }
  assert.not.ok(
    names.includes('target') || names.includes('tests') || names.includes('node_modules'),
  )
  assert.ok(statSync(join(installed, 'dist', 'wireguard.wasm')).size <= 400 * 1024)
  assert.ok(example.trim().split('\n').length <= 40)
})

for (const runtime of ['bun', 'node', 'deno run -A --quiet']) {
  test(`the example runs in ${runtime.split(' ')[0]}`, () => {
    const [name, ...args] = runtime.split(' ')
    const program = join(ROOT, 'node_modules', '.bin', name!)
    const { stdout, stderr, status } = spawnSync(program, [...args, join(folder, 'example.js')], {
      cwd: folder,
      encoding: 'utf8',
      timeout: 20_000,
    })
    assert.is(stdout.trim(), EXPECTED, stderr)
    assert.is(status, 0)
  })
}

test('the example runs in a browser', async () => {
  const map = {
    imports: {
      'wireguard-wasm': '/package/index.js',
      'wireguard-wasm/load': '/package/load_url.js',
    },
  }
  const page = `<script type="importmap">${JSON.stringify(map)}</script>
<script type="module" src="/example.js"></script>`
  const server = createServer((request, response) => {
    const path = request.url!
    const [type, body] = path === '/'
      ? ['text/html', page]
      : path === '/example.js'
      ? ['text/javascript', example]
      : path.startsWith('/package/')
      ? [
        path.endsWith('.wasm') ? 'application/wasm' : 'text/javascript',
        readFileSync(join(installed, 'dist', path.slice(9))),
      ]
      : ['text/plain', '']
    response.writeHead(200, { 'content-type': type }).end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const browser = await openBrowser([])
  try {
    const tab = await browser.newPage()
    const said = new Promise<string>((resolve, reject) => {
      tab.on('console', (message) => {
        if (message.text() === EXPECTED || message.type() === 'error') resolve(message.text())
      })
      tab.on('pageerror', reject)
    })
    await tab.goto(`http://127.0.0.1:${port}/`)
    assert.is(await said, EXPECTED)
  } finally {
    await browser.close()
    server.close()
  }
})

test.run()
