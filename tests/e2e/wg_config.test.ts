// `sotto wg config` as a person meets it: on a terminal with its QR code, which a reader of such codes reads; in a file; and
// when it cannot be.
// seconds: 120
// needs: script zbarimg
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseQuickConfig } from '../../agent/wireguard/quick_config.ts'
import { routeText } from '../../agent/wireguard/exit_policy.ts'
import { freePorts } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const test = suite('e2e/wg_config')
let world: E2eWorld
let relay: Relay
let served: Program
let range: string

test.before(async () => {
  world = new E2eWorld()
  const [first = 0] = await freePorts(1)
  range = `${first}-${Math.min(first + 9, 65_535)}`
  relay = await world.relay(['--public-ports', range])
  served = serve(['--udp', '0', '--dns', '--mtu', '1300', '--route', '192.0.2.0/24'])
  await served.event('serving')
})

test.after(() => world.close())

function serve(flags: string[], name = 'office'): Program {
  return world.sotto(['wg', 'serve', '--name', name, '--json', ...flags], {
    env: world.joins(relay),
  })
}

const sotto = (...args: string[]) => world.sottoRun(['wg', ...args])

/** Pixels of the code that is drawn on a terminal; four to a module, as a camera would see them. */
function pixels(lines: readonly string[]): Uint8Array {
  const scale = 4
  const rows = lines.flatMap((line) => {
    const modules = [...line]
    const upper = modules.map((one) => one === '█' || one === '▀')
    const lower = modules.map((one) => one === '█' || one === '▄')
    return [upper, lower]
  })
  const width = rows[0]!.length * scale
  const head = new TextEncoder().encode(`P5 ${width} ${rows.length * scale} 255\n`)
  const image = new Uint8Array(head.length + width * rows.length * scale)
  image.set(head)
  for (const [y, row] of rows.entries()) {
    for (const [x, isDark] of row.entries()) {
      for (let dy = 0; dy < scale; dy++) {
        const at = head.length + (y * scale + dy) * width + x * scale
        image.fill(isDark ? 0 : 255, at, at + scale)
      }
    }
  }
  return image
}

function decoded(image: Uint8Array): string {
  const { status, stdout, stderr } = spawnSync('zbarimg', ['-q', '--raw', '--oneshot', '-'], {
    input: image,
    encoding: 'utf8',
    timeout: 20_000,
    killSignal: 'SIGKILL',
  })
  assert.is(status, 0, stderr)
  return stdout
}

test('on a terminal: the file, and a QR code of the same, which a reader reads', async () => {
  const words = `${world.sottoWords} wg config office --new phone --endpoint vpn.example.com:51820`
  const terminal = world.start('script', ['-qefc', words, '/dev/null'], {
    home: 'agent',
    env: {
      SOTTO_HOME: world.path('agent'),
      TERM: 'xterm-256color',
      LANG: 'C.UTF-8',
      NO_COLOR: undefined,
      FORCE_COLOR: undefined,
    },
  })
  assert.is((await terminal.ended).code, 0, terminal.stdout)
  const lines = terminal.stdout.replaceAll('\r\n', '\n').split('\n')
  const code = lines.filter((line) => /[█▀▄]/.test(line))
    // deno-lint-ignore no-control-regex
    .map((line) => line.replaceAll(/\x1b\[[0-9;]*m/g, ''))
  assert.ok(code.length > 20, terminal.stdout)
  const config = lines.slice(0, lines.findIndex((line) => line.includes('\x1b'))).join('\n')
  assert.is(decoded(pixels(code)).trim(), config.trim())
  const { peers: [peer], mtu, dns } = parseQuickConfig(config)
  assert.equal(peer!.endpoint, { host: 'vpn.example.com', port: 51820 })
  assert.is(mtu, 1300)
  assert.is(dns.length, 1)
  assert.ok(peer!.allowed.map(routeText).includes('192.0.2.0/24'))
})

test('a name that is taken is refused, and leases nothing; released, it may be given again', async () => {
  const before = await sotto('release', 'office', '--json')
  const again = await sotto('config', 'office', '--new', 'phone')
  assert.is(again.code, 1)
  assert.match(again.stderr, /Cannot make a client "phone": there is one of that name/)
  assert.match(again.stderr, /sotto wg release office phone/)
  assert.is((await sotto('release', 'office', '--json')).stdout, before.stdout)
  assert.is((await sotto('release', 'office', 'phone')).code, 0)
  assert.is((await sotto('release', 'office', '--json')).stdout, '')
  const last = await sotto('release', 'office', 'phone')
  assert.is(last.code, 1)
  const made = await sotto('config', 'office', '--new', 'phone', '--json')
  assert.is(made.code, 0, made.stderr)
})

test('a network that is not served, or without UDP, is named; nothing is left behind', async () => {
  const none = await sotto('config', 'garden', '--new', 'phone')
  assert.is(none.code, 1)
  assert.match(none.stderr, /not served on this machine now/)
  const plain = serve([], 'plain')
  await plain.event('serving')
  const { code, stderr } = await sotto('config', 'plain', '--new', 'phone')
  assert.is(code, 1)
  assert.match(stderr, /it is served without UDP/)
  assert.match(stderr, /--udp 51820 .*--public-udp 0/)
  assert.is((await sotto('release', 'plain', '--json')).stdout, '')
  await plain.stop()
})

test("with --public-udp the relay's port is the endpoint, the same when it is served again", async () => {
  const endpoints: string[] = []
  for (const client of ['one', 'two']) {
    const program = serve(['--public-udp', '0'], 'public')
    await program.event('serving')
    const made = await sotto('config', 'public', '--new', client, '--json')
    assert.is(made.stderr, '')
    endpoints.push(JSON.parse(made.stdout).endpoint)
    await program.stop()
  }
  assert.match(endpoints[0]!, /^localhost:\d+$/)
  assert.is(endpoints[1], endpoints[0])
})

test('words that cannot be are refused before anything is asked', async () => {
  for (
    const [args, words] of [
      [['office'], /expected --new CLIENT/],
      [['office', '--new', 'a b'], /Cannot make a client "a b"/],
      [['office', '--new', 'x', '--endpoint', 'host'], /Cannot use the endpoint "host"/],
      [['office', '--new', 'x', '--route', '10.0.0.0/33'], /10\.0\.0\.0\/33/],
      [['no_name', '--new', 'x'], /no_name/],
    ] as const
  ) {
    const { code, stderr } = await sotto('config', ...args)
    assert.is(code, 2, stderr)
    assert.match(stderr, words)
  }
})

test.run()
