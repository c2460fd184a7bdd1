// seconds: 300
// needs: unshare nsenter systemctl root
/**
 * Services under a real systemd, which runs as process 1 of name spaces of its own: installed by the
 * command, started in all their walls, ready when they say so, back after they were killed or hung,
 * reached on port 443 without being root, and gone again. What no journal may hold is looked for in it.
 */
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Systemd } from '../support/systemd.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const SOTTO = ['/sotto/node_modules/.bin/bun', '/sotto/agent/main.ts']
const RELAY = [
  'relay',
  '--',
  '--domain',
  'relay.test',
  '--host',
  '127.0.0.1',
  '--log-level',
  'info',
]

const test = suite('e2e/service')
let machine: Systemd
let mainPid = ''

test.before(async () => void (machine = await Systemd.boot(ROOT)))
test.after(() => machine?.close())

function sotto(...argv: string[]) {
  return machine.run([...SOTTO, ...argv])
}

function shown(unit: string, property: string): string {
  return machine.run(['systemctl', 'show', '--value', `--property=${property}`, unit]).stdout.trim()
}

async function until(holds: () => boolean, what: string): Promise<void> {
  for (let attempt = 0; attempt < 300; attempt++) {
    if (holds()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`${what}: ${machine.run(['journalctl', '--no-pager', '--lines=40']).stdout}`)
}

test('install refuses an agent without its file, and a file with secrets that others read', () => {
  const without = sotto('service', 'install')
  assert.is(without.code, 1)
  assert.match(without.stderr, /there is no \/etc\/sotto\/sotto\.yaml/)
  machine.write('/etc/sotto/relay.env', 'SOTTO_RELAY_LOG_FORMAT=text\n', '644')
  const wide = sotto('service', 'install', ...RELAY)
  assert.is(wide.code, 1)
  assert.match(wide.stderr, /readable to others\nchmod 600 \/etc\/sotto\/relay\.env/)
  machine.run(['chmod', '600', '/etc/sotto/relay.env'])
  assert.is(shown('sotto-relay', 'LoadState'), 'not-found')
})

test('a relay is installed, ready, on port 443, and by no means root', () => {
  const made = sotto('service', 'install', ...RELAY)
  assert.is(made.code, 0, made.stderr + machine.run(['journalctl', '--no-pager']).stdout)
  assert.match(made.stdout, /installed \/etc\/systemd\/system\/sotto-relay\.service/)
  assert.is(shown('sotto-relay', 'ActiveState'), 'active')
  assert.is(shown('sotto-relay', 'UnitFileState'), 'enabled')
  assert.is(shown('sotto-relay', 'StatusText'), 'listens on port 443 as relay.test')
  mainPid = shown('sotto-relay', 'MainPID')
  const status = machine.run(['cat', `/proc/${mainPid}/status`]).stdout
  assert.not.match(status, /^Uid:\s+0\s/m)
  assert.match(status, /^NoNewPrivs:\s+1$/m)
  assert.match(status, /^Seccomp:\s+2$/m)
  // CAP_NET_BIND_SERVICE alone: bit 10.
  assert.match(status, /^CapBnd:\s+0000000000000400$/m)
  const answer = machine.run([
    'curl',
    '-sk',
    '--max-time',
    '10',
    '--resolve',
    'relay.test:443:127.0.0.1',
    'https://relay.test/healthz',
  ])
  assert.is(answer.stdout, 'ok\n')
  assert.is(
    machine.run(['stat', '-c', '%a', '/etc/systemd/system/sotto-relay.service']).stdout,
    '644\n',
  )
})

test('its walls hold: homes and the system are out of reach, and its state is its own', () => {
  const within = ['nsenter', '-t', mainPid, '-m', '--']
  assert.is.not(machine.run([...within, 'touch', '/usr/sotto']).code, 0)
  assert.is(machine.run([...within, 'sh', '-c', 'ls -A /root /home | grep -v :']).stdout.trim(), '')
  const user = ['-S', shown('sotto-relay', 'UID'), '-G', shown('sotto-relay', 'GID')]
  const asUser = ['nsenter', '-t', mainPid, '-m', ...user, '--', 'touch']
  assert.is.not(machine.run([...asUser, '/etc/sotto/x']).code, 0)
  assert.is(machine.run([...asUser, '/var/lib/sotto-relay/x']).code, 0)
  assert.is(
    machine.run(['stat', '-L', '-c', '%a', '/var/lib/sotto-relay']).stdout,
    '700\n',
  )
})

test('no key is in the journal, in the unit, or on the command line; the keys are kept 0600', () => {
  const settings = '/var/lib/sotto-relay/settings.json'
  assert.is(machine.run(['stat', '-L', '-c', '%a', settings]).stdout, '600\n')
  const { apiKey, adminKey } = JSON.parse(machine.run(['cat', settings]).stdout)
  const seen = [
    machine.run(['journalctl', '--no-pager', '--output=verbose']).stdout,
    machine.run(['systemctl', 'show', 'sotto-relay']).stdout,
    machine.run(['cat', '/etc/systemd/system/sotto-relay.service']).stdout,
  ].join('\n')
  for (const secret of [apiKey, adminKey]) {
    assert.ok(secret.length > 20)
    assert.not.ok(seen.includes(secret))
  }
  assert.match(seen, /are kept in \/var\/lib\/sotto-relay\/settings\.json/)
})

test('a relay that is killed comes back', async () => {
  machine.run(['kill', '-KILL', mainPid])
  await until(
    () =>
      shown('sotto-relay', 'NRestarts') === '1' && shown('sotto-relay', 'ActiveState') === 'active',
    'it does not come back',
  )
  assert.is.not(shown('sotto-relay', 'MainPID'), mainPid)
})

test('a relay that hangs is found by its watchdog', async () => {
  machine.write(
    '/etc/systemd/system/sotto-relay.service.d/quick.conf',
    '[Service]\nWatchdogSec=2\nRestartSec=0\n',
  )
  machine.run(['systemctl', 'daemon-reload'])
  machine.run(['systemctl', 'restart', 'sotto-relay'])
  const pid = shown('sotto-relay', 'MainPID')
  const signs = new Set<string>()
  await until(
    () => signs.add(shown('sotto-relay', 'WatchdogTimestampMonotonic')).size > 5,
    'there are no signs of life',
  )
  assert.is(shown('sotto-relay', 'MainPID'), pid)
  machine.run(['kill', '-STOP', pid])
  await until(
    () =>
      shown('sotto-relay', 'NRestarts') === '1' && shown('sotto-relay', 'ActiveState') === 'active',
    'it is not found',
  )
  assert.is.not(shown('sotto-relay', 'MainPID'), pid)
})

test('status and logs say how it is; stopping is told', () => {
  const status = sotto('service', 'status', 'relay')
  assert.is(status.code, 0)
  assert.match(status.stdout, /Active: active \(running\)[\s\S]*listens on port 443/)
  const facts = JSON.parse(sotto('service', 'status', 'relay', '--json').stdout)
  assert.is(facts.running, true)
  assert.is(facts.ActiveState, 'active')
  assert.match(sotto('service', 'logs', 'relay', '--lines', '500').stdout, /relay\.test/)
  machine.run(['systemctl', 'stop', 'sotto-relay'])
  assert.is(shown('sotto-relay', 'Result'), 'success')
  assert.is(sotto('service', 'status', 'relay').code, 3)
})

test('a certificate that root alone may read reaches the relay as a credential', () => {
  machine.run([
    'openssl',
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-days',
    '2',
    '-subj',
    '/CN=relay.test',
    '-addext',
    'subjectAltName=DNS:relay.test,DNS:*.apps.relay.test',
    '-keyout',
    '/etc/sotto/relay.key',
    '-out',
    '/etc/sotto/relay.pem',
  ])
  machine.run(['chmod', '600', '/etc/sotto/relay.key', '/etc/sotto/relay.pem'])
  const flags = ['--tls-cert', '/etc/sotto/relay.pem', '--tls-key=/etc/sotto/relay.key']
  const made = sotto('service', 'install', ...RELAY, ...flags)
  assert.is(
    made.code,
    0,
    made.stderr + machine.run(['journalctl', '--no-pager', '--lines=30']).stdout,
  )
  const answer = machine.run([
    'curl',
    '-s',
    '--max-time',
    '10',
    '--cacert',
    '/etc/sotto/relay.pem',
    '--resolve',
    'relay.test:443:127.0.0.1',
    'https://relay.test/healthz',
  ])
  assert.is(answer.stdout, 'ok\n', answer.stderr)
})

test('an agent is ready when its tunnels are up, its key from a file of root alone', async () => {
  machine.run(['sh', '-c', 'echo 127.0.0.1 relay.test >> /etc/hosts'])
  const kept = JSON.parse(machine.run(['cat', '/var/lib/sotto-relay/settings.json']).stdout)
  const known = machine.run(['cat', '/var/lib/sotto-relay/known_relays']).stdout
  machine.run(['mkdir', '-p', '/var/lib/sotto'])
  machine.write('/var/lib/sotto/known_relays', known, '600')
  machine.write('/etc/sotto/sotto.env', `SOTTO_API_KEY=${kept.apiKey}\n`, '600')
  machine.write(
    '/etc/sotto/sotto.yaml',
    'relay: https://relay.test\ntunnels:\n  web: { http: 3000 }\n',
  )
  const made = sotto('service', 'install')
  const journal = (): string => machine.run(['journalctl', '--no-pager', '-u', 'sotto']).stdout
  assert.is(made.code, 0, made.stderr + journal())
  await until(() => /^1 of 1 tunnels up/.test(shown('sotto', 'StatusText')), 'no tunnel is up')
  const pid = shown('sotto', 'MainPID')
  assert.is(machine.run(['systemctl', 'reload', 'sotto']).code, 0)
  assert.is(shown('sotto', 'ActiveState'), 'active')
  assert.is(shown('sotto', 'MainPID'), pid)
  assert.match(machine.run(['cat', `/proc/${pid}/status`]).stdout, /^CapBnd:\s+0000000000000000$/m)
  assert.not.ok(journal().includes(kept.apiKey))
  assert.is(sotto('service', 'uninstall').code, 0)
})

test('uninstall leaves nothing but configuration and state, twice', () => {
  assert.is(sotto('service', 'uninstall', 'relay').code, 0)
  assert.is(shown('sotto-relay', 'ActiveState'), 'inactive')
  assert.is.not(machine.run(['test', '-e', '/etc/systemd/system/sotto-relay.service']).code, 0)
  assert.is(machine.run(['test', '-e', '/var/lib/sotto-relay/settings.json']).code, 0)
  const again = sotto('service', 'uninstall', 'relay')
  assert.is(again.code, 0)
  assert.match(again.stdout, /was not there/)
})

test.run()
