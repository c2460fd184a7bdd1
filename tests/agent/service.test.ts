// seconds: 120
// needs: systemd-analyze plistutil socat
/**
 * What is written for each manager of services, read by that manager's own judges or by parsers of
 * its format; what is refused; and word to a manager, taken by a real unix datagram socket. The units
 * run under a real systemd in tests/e2e/service.test.ts.
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { installService } from '../../agent/service.ts'
import { launchdPlist } from '../../agent/service_launchd.ts'
import { notifySocket } from '../../agent/host/notify.ts'
import { keepAlive, tellReady, tellReloading } from '../../agent/service_notice.ts'
import { checkPlan, needsLowPort } from '../../agent/service_plan.ts'
import type { ServicePlan } from '../../agent/service_plan.ts'
import { quote, systemdUnit } from '../../agent/service_systemd.ts'
import { utf16, windowsTask, windowsWord } from '../../agent/service_windows.ts'
import { TunnelError } from '../../core/errors.ts'
import { testWorld } from '../support/agent_world.ts'
import { Place } from '../support/cli.ts'
import { rejection } from '../support/rejection.ts'

/** `systemd-analyze security`, 0 safe to 10 exposed: ours must be below. */
const EXPOSURE_MAX = 2
const TRUE = '/bin/true'

const AGENT: ServicePlan = {
  name: 'agent',
  kind: 'system',
  program: [TRUE],
  config: '/etc/sotto/sotto.yaml',
  flags: [],
  runAs: undefined,
}
const RELAY: ServicePlan = {
  ...AGENT,
  name: 'relay',
  flags: ['--domain', 'relay.example', '--tls-key=/etc/a key%20.pem', '--tls-cert', '/etc/x.pem'],
}

const test = suite('agent/service')
let dir: string
let place: Place

test.before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'sotto-service-'))
  place = await Place.make()
})
test.after(async () => {
  await place.close()
  rmSync(dir, { recursive: true, force: true })
})

function analyze(words: string[], unit: string, name: string) {
  const path = join(dir, `${name}.service`)
  writeFileSync(path, unit)
  const ran = spawnSync('systemd-analyze', [...words, path], { encoding: 'utf8', timeout: 30_000 })
  return { code: ran.status, said: ran.stdout + ran.stderr }
}

for (
  const [what, plan] of [
    ['the agent', AGENT],
    ['the agent of a person', { ...AGENT, kind: 'user' }],
    ['the agent as somebody', { ...AGENT, runAs: 'daemon' }],
    ['a relay', RELAY],
    ['a relay on a high port', { ...RELAY, flags: ['--port', '8443'] }],
  ] as const
) {
  test(`systemd reads the unit of ${what} without a word`, () => {
    const { code, said } = analyze(['verify', '--man=no'], systemdUnit(plan), 'sotto-verified')
    assert.is(said.replace(/^.*(?:is not executable|Command).*\n/gm, ''), '')
    assert.is(code, 0)
  })
  if (plan.kind === 'user') continue
  test(`systemd finds little to reach in the unit of ${what}`, () => {
    const threshold = `--threshold=${EXPOSURE_MAX * 10}`
    const words = ['security', '--offline=true', '--no-pager', threshold]
    const { code, said } = analyze(words, systemdUnit(plan), 'sotto-secured')
    assert.is(code, 0, said.split('\n').filter((line) => line.includes('✗')).join('\n'))
  })
}

test('only a relay on a low port gets a right, and only that one', () => {
  assert.match(systemdUnit(RELAY), /^CapabilityBoundingSet=CAP_NET_BIND_SERVICE$/m)
  for (const plan of [AGENT, { ...RELAY, flags: ['--port=8443'] }]) {
    assert.match(systemdUnit(plan), /^CapabilityBoundingSet=$/m)
  }
  for (
    const [flags, low] of [
      [[], false],
      [['--domain', 'x.example'], true],
      [['--domain', 'x.example', '--port', '0'], false],
      [['--domain=x.localhost'], false],
      [['--port', '443'], true],
      [['--public-ports', '1000-2000'], true],
    ] as const
  ) assert.is(needsLowPort({ ...RELAY, flags }), low, flags.join(' '))
})

test('files of root are lent by the manager, whatever is in their names', () => {
  const unit = systemdUnit(RELAY)
  assert.match(unit, /^LoadCredential=tls-key:\/etc\/a key%%20\.pem$/m)
  assert.match(unit, /^ExecStart=.* "?--tls-key=%d\/tls-key"? --tls-cert %d\/tls-cert$/m)
})

test('words reach the program as they are', () => {
  assert.is(quote('a b'), '"a b"')
  assert.is(quote('50%'), '50%%')
  assert.is(quote('$HOME "x" \\'), '"$$HOME \\"x\\" \\\\"')
  assert.is(quote(''), '""')
  assert.is(windowsWord('C:\\Program Files\\x\\'), '"C:\\Program Files\\x\\\\"')
  assert.is(windowsWord('say "hi"'), '"say \\"hi\\""')
  assert.is(windowsWord('plain'), 'plain')
})

test('newer managers wait longer between starts', () => {
  assert.match(systemdUnit(AGENT, { version: 254 }), /^RestartSteps=6\nRestartMaxDelaySec=60$/m)
  assert.not.match(systemdUnit(AGENT, { version: 252 }), /RestartSteps/)
})

test('no key comes into a unit, and no line break', () => {
  for (const flags of [['--x', 'sk_abcdefghijklm'], ['--key=ak_abcdefgh']]) {
    assert.throws(() => checkPlan({ ...RELAY, flags }), /found a key among its flags/)
  }
  assert.throws(() => checkPlan({ ...RELAY, flags: ['--a\nExecStartPre=x'] }), /control character/)
  assert.throws(() => checkPlan({ ...RELAY, runAs: 'a b' }), /name of a user/)
})

test('a property list is one, and says the same', () => {
  for (
    const plan of [AGENT, { ...RELAY, kind: 'user' as const, flags: ['--domain', '<&">.example'] }]
  ) {
    const text = launchdPlist(plan, '/Users/me')
    const path = join(dir, 'sotto.plist')
    writeFileSync(path, text)
    const binary = join(dir, 'sotto.bin')
    assert.is(spawnSync('plistutil', ['-i', path, '-o', binary, '-f', 'bin']).status, 0)
    const again = spawnSync('plistutil', ['-i', binary, '-f', 'xml'], { encoding: 'utf8' }).stdout
    assert.match(again, plan.name === 'agent' ? /<string>up<\/string>/ : /&lt;&amp;"&gt;\.example/)
    assert.match(again, /<key>KeepAlive<\/key>\s*<true\/>/)
  }
})

test('a task of Windows is well-formed, in UTF-16', () => {
  const plan = {
    ...RELAY,
    program: ['C:\\Program Files\\sotto\\sotto.exe'],
    flags: ['--a', 'b & c'],
  }
  const text = windowsTask(plan, 'PC\\me')
  assert.match(text, /<Command>C:\\Program Files\\sotto\\sotto\.exe<\/Command>/)
  assert.match(text, /<Arguments>relay --a &quot;b &amp; c&quot;<\/Arguments>/)
  assert.match(windowsTask({ ...plan, kind: 'user' }, 'PC\\me'), /<UserId>PC\\me<\/UserId>/)
  const bytes = utf16(text)
  assert.equal([...bytes.subarray(0, 4)], [0xff, 0xfe, 0x3c, 0])
  assert.is(new TextDecoder('utf-16le').decode(bytes), text)
  // Every element that is opened is closed, in order.
  const open: string[] = []
  for (const [, end, name, single] of text.matchAll(/<(\/?)([A-Za-z]+)[^<>]*?(\/?)>/g)) {
    if (single === '/') continue
    if (end === '/') assert.is(open.pop(), name)
    else open.push(name!)
  }
  assert.equal(open, [])
})

/** What a unix datagram socket at `address` takes while `run` runs. */
async function received(address: string, run: () => Promise<void>, messages = 1): Promise<string> {
  const where = address.startsWith('@')
    ? `ABSTRACT-RECV:${address.slice(1)}`
    : `UNIX-RECV:${address}`
  const child = spawn('socat', ['-d', '-d', '-u', where, 'STDOUT'])
  let said = ''
  await new Promise<void>((resolve, reject) => {
    child.once('exit', () => reject(new Error(`socat ended: ${said}`)))
    child.stderr.on('data', (bytes) => {
      said += bytes
      if (said.includes('starting data transfer loop')) resolve()
    })
  })
  let text = ''
  let count = 0
  const all = new Promise<void>((resolve) => {
    child.stdout.on('data', (bytes) => {
      text += bytes
      count++
      if (count >= messages) resolve()
    })
  })
  await run()
  await all
  child.kill('SIGKILL')
  return text
}

test('attack: a manager that takes nothing more holds up nobody', async () => {
  const address = join(dir, 'stuck')
  const child = spawn('socat', ['-d', '-d', '-u', `UNIX-RECV:${address}`, 'STDOUT'])
  await new Promise<void>((resolve) => {
    let said = ''
    child.stderr.on('data', (bytes) => {
      said += bytes
      if (said.includes('starting data transfer loop')) resolve()
    })
  })
  child.kill('SIGSTOP')
  // The system's own queue, of net.unix.max_dgram_qlen and a few, and then it is full.
  let taken = 0
  while (taken < 10_000 && await notifySocket(address, ['WATCHDOG=1'])) taken++
  assert.ok(taken > 0 && taken < 10_000, String(taken))
  const waiting = notifySocket(address, ['READY=1'])
  child.kill('SIGCONT')
  assert.is(await waiting, true, 'and it is told once it takes something again')
  child.kill('SIGKILL')
})

for (const kind of ['a path', 'the abstract name space'] as const) {
  test(`word reaches a manager at ${kind}`, async () => {
    const address = kind === 'a path' ? join(dir, 'notify') : `@sotto-test-${process.pid}`
    const text = await received(address, async () => {
      assert.is(await notifySocket(address, ['READY=1', 'STATUS=äöü']), true)
    })
    assert.is(text, 'READY=1\nSTATUS=äöü\n')
  })
}

test('where nobody listens nothing happens', async () => {
  for (
    const address of [
      undefined,
      '',
      'relative',
      join(dir, 'nobody'),
      '@nobody-x',
      `/${'x'.repeat(200)}`,
    ]
  ) {
    assert.is(await notifySocket(address, ['READY=1']), false)
  }
})

test('attack: no service of the whole machine runs what a person without rights can change', async () => {
  const { world, close, dir } = await testWorld()
  const program = `${dir}/sotto`
  await world.files.write(program, new Uint8Array(1), { mode: 0o755 })
  const plan = { name: 'relay', kind: 'system', program: [program], flags: [] } as const
  const install = (info: { system: boolean; mode: number }): Promise<unknown> =>
    rejection(installService({
      ...world,
      system: { ...world.system, platform: 'darwin', uid: 0 },
      programs: { start: () => Promise.reject(new TunnelError('program/start', 'none')) },
      files: {
        ...world.files,
        info: async (path) => {
          const found = await world.files.info(path)
          return found && { ...found, ...info }
        },
        write: () => Promise.resolve(),
      },
    }, { ...plan, config: '', runAs: undefined }))
  assert.is(await install({ system: false, mode: 0o755 }), 'service/foreign')
  assert.is(await install({ system: true, mode: 0o777 }), 'service/foreign')
  assert.is(await install({ system: true, mode: 0o755 }), 'service/manager', 'asks the manager')
  await close()
})

test('readiness is one line of words; reloading names the time of the manager', async () => {
  const { world, close } = await testWorld()
  const told: string[][] = []
  const listening = {
    ...world,
    system: {
      ...world.system,
      notify: (lines: readonly string[]) => {
        told.push([...lines])
        return Promise.resolve(true)
      },
    },
  }
  await tellReady(listening, 'two\nlines\tof words')
  assert.equal(told.pop(), ['READY=1', 'STATUS=two lines of words'])
  await tellReloading(listening)
  const [reloading, time] = told.pop()!
  assert.is(reloading, 'RELOADING=1')
  const uptime = Number(
    spawnSync('cut', ['-d', ' ', '-f1', '/proc/uptime'], { encoding: 'utf8' }).stdout,
  )
  const us = Number(/^MONOTONIC_USEC=(\d+)$/.exec(time!)?.[1])
  assert.ok(Math.abs(us / 1e6 - uptime) < 60, `${us} µs, ${uptime} s`)
  await close()
})

test('signs of life come three times as often as they must, until the end', async () => {
  const { world, close } = await testWorld({ WATCHDOG_USEC: '30000' })
  const signs: string[] = []
  let enough!: () => void
  const five = new Promise<void>((resolve) => void (enough = resolve))
  const system = {
    ...world.system,
    notify: (lines: readonly string[]) => {
      signs.push(...lines)
      if (signs.length === 5) enough()
      return Promise.resolve(true)
    },
  }
  // The world's timers hold no process.
  const alive = setInterval(() => {}, 1000)
  const started = performance.now()
  const end = keepAlive({ ...world, system })
  await five
  end()
  clearInterval(alive)
  assert.ok(performance.now() - started >= 35)
  assert.equal([...new Set(signs)], ['WATCHDOG=1'])
  const none = keepAlive({ ...world, system, env: { WATCHDOG_USEC: '30000', WATCHDOG_PID: '1' } })
  assert.is(signs.length, 5)
  none()
  await close()
})

test('--print changes nothing and needs no manager', async () => {
  const made = await place.run('a', [
    'service',
    'install',
    'relay',
    '--system',
    '--print',
    '--',
    '--port',
    '8443',
  ])
  assert.is(made.code, 0, made.stderr.text)
  assert.match(made.stdout.text, /^ExecStart=.* relay --port 8443$/m)
  const user = await place.run('a', ['service', 'install', '--user', '--print', '--json'])
  const [{ path, content }] = user.stdout.objects as [{ path: string; content: string }]
  assert.match(path, /\.config\/systemd\/user\/sotto\.service$/)
  assert.match(content, /^WantedBy=default\.target$/m)
})

test('what cannot be is refused in words, with a remedy', async () => {
  for (
    const [argv, pattern] of [
      [['install', 'both'], /found "both", expected agent or relay/],
      [['install', '--', '--domain', 'x'], /Cannot give flags to the agent/],
      [['install', '--system', '--user'], /one or the other/],
      [['install', '--config', 'sotto.yaml'], /expected a whole path/],
      [['install', 'relay', '--', '--x=sk_abcdefghijklmnop'], /readable|found a key/],
    ] as const
  ) {
    const { code, stderr } = await place.run('a', ['service', ...argv])
    assert.is.not(code, 0)
    assert.match(stderr.text, pattern)
    assert.ok(stderr.lines.length >= 2)
  }
  // The suites run in a container or a small machine; where systemd runs it would be asked.
  if (spawnSync('test', ['-d', '/run/systemd/system']).status === 0) return
  for (const verb of ['install', 'uninstall', 'status', 'logs']) {
    const { code, stderr } = await place.run('a', ['service', verb, 'relay', '--system'])
    assert.is(code, 1)
    assert.match(stderr.text, /systemd does not run here/)
  }
})

test.run()
