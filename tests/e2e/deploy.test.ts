// seconds: 400
// alone
// needs: unshare nsenter systemctl root nft ip curl openssl pebble minisign socat
/**
 * docs/deploy.md, "A machine of your own", word for word: its blocks are read out of the document and run,
 * in order, on a machine with a systemd, a firewall and an address of its own. Around it a small internet: DNS with
 * the records of the document, a CA, a relay that hands out programs, and a person who logs in and serves.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { buildBinary, fileName } from '../../compile/binary.ts'
import { fileHash, runtimeFor } from '../../compile/runtimes.ts'
import type { TargetName } from '../../compile/runtimes.ts'
import { encodeMinisignKey, makeMinisignSecret, signMinisign } from '../../core/minisign.ts'
import { encodeSums, releaseComment } from '../../core/release.ts'
import { fast } from '../support/crypto.ts'
import { blockOf } from '../support/document.ts'
import { Systemd } from '../support/systemd.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'

const HERE: TargetName = process.arch === 'arm64' ? 'linux-arm64' : 'linux-x64'
const [OLD, NEW] = ['1.0.0', '1.1.0']
const SECRET = makeMinisignSecret(fast)
const RELEASE_KEY = encodeMinisignKey(SECRET).split('\n')[1]!
const CA_BUNDLE = '/etc/ssl/certs/ca-certificates.crt'
/** The rest of the internet. */
const OUTSIDE = '203.0.113.1'
const RELAY = '203.0.113.5'
const WAIT_MS_MAX = 60_000

const test = suite('e2e/deploy')
let world: E2eWorld
let machine: Systemd

const shared = (name: string): string => join(machine.shared, name)

/** What a shell on the machine says; throws with all of it where it fails. */
function shell(script: string, { may = false } = {}): string {
  const { code, stdout, stderr } = machine.run([
    'env',
    `SSL_CERT_FILE=${CA_BUNDLE}`,
    'bash',
    '-ec',
    script,
  ])
  if (code !== 0 && !may) throw new Error(`${script}: ${code}\n${stdout}${stderr}${journal()}`)
  return stdout + stderr
}

/** The same on a machine out there. */
function outside(script: string, options: { may?: boolean } = {}): string {
  writeFileSync(shared('script'), script)
  return shell('HOME=/root/ana ip netns exec outside bash -e /shared/script', options)
}

/** The same, which goes on; what it says is in a file of that name. */
function keepOutside(name: string, command: string): void {
  shell(
    `systemd-run -q --unit=test-${name} --setenv=HOME=/root/${
      name === 'hoster' ? name : 'ana'
    } --setenv=SSL_CERT_FILE=${CA_BUNDLE} ` +
      `--setenv=PEBBLE_VA_NOSLEEP=1 -p StandardOutput=file:/shared/${name} -p StandardError=file:/shared/${name} ` +
      `ip netns exec outside ${command}`,
  )
}

function journal(): string {
  return machine.run(['journalctl', '--no-pager', '--lines=60', '-u', 'sotto*']).stdout
}

const block = (name: string): string => blockOf('docs/deploy.md', name)
/** What a program out there has said so far. */
const said = (name: string): string =>
  existsSync(shared(name)) ? readFileSync(shared(name), 'utf8') : ''

function show(unit: string, property: string): string {
  return shell(`systemctl show --value --property=${property} ${unit}`).trim()
}

async function until<T>(find: () => T | undefined | false | null, what: string): Promise<T> {
  const late = Date.now() + WAIT_MS_MAX
  for (;;) {
    const found = find()
    if (found) return found
    if (Date.now() > late) throw new Error(`${what}: ${journal()}`)
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
}

function buildBoth(): void {
  const copy = world.path('sources')
  for (const part of ['agent', 'core', 'relay', 'compile', 'package.json', 'tsconfig.json']) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true })
  }
  symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'))
  for (const version of [OLD, NEW]) {
    writeFileSync(join(copy, 'agent/version.ts'), `export const VERSION = '${version}'\n`)
    const runtime = runtimeFor(HERE, { fetch: false })
    const outfile = shared(version)
    buildBinary({
      root: copy,
      bun: BUN,
      target: HERE,
      runtime,
      outfile,
      releaseKeys: [RELEASE_KEY],
    })
  }
}

function publish(version: string): void {
  mkdirSync(shared('release'), { recursive: true })
  cpSync(shared(version), shared(`release/${fileName(HERE)}`))
  const sums = encodeSums(new Map([[fileName(HERE), fileHash(shared(version))]]))
  const trustedComment = releaseComment(version)
  const bytes = new TextEncoder().encode(sums)
  writeFileSync(
    shared('release/SHA256SUMS.minisig'),
    signMinisign(bytes, { secret: SECRET, trustedComment, crypto: fast }),
  )
  writeFileSync(shared('release/SHA256SUMS'), sums)
}

function wire(): void {
  shell(`
    ip netns add outside
    ip link add wan type veth peer name inet netns outside
    ip address add ${RELAY}/24 dev wan
    ip link set wan up
    ip -n outside address add ${OUTSIDE}/24 dev inet
    ip -n outside link set inet up
    ip -n outside link set lo up
    rm -rf /etc/resolv.conf /usr/local/bin/sotto /root/.config/sotto /root/.local/state/sotto
    echo nameserver ${OUTSIDE} > /etc/resolv.conf
    echo '127.0.0.1 localhost' > /etc/hosts
    mkdir -p /root/ana /etc/sotto
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=outside \
      -addext subjectAltName=DNS:sotto.example.net,DNS:ca.example.net \
      -keyout /shared/outside.key -out /shared/outside.pem
    cat /shared/outside.pem >> ${CA_BUNDLE}
    cp /shared/outside.pem /etc/sotto/ca.pem
    umask 077
    echo SOTTO_RELAY_ACME_DIRECTORY=https://ca.example.net:14000/dir > /etc/sotto/relay.env
    echo SOTTO_RELAY_ACME_CA=/etc/sotto/ca.pem >> /etc/sotto/relay.env`)
}

test.before(async () => {
  world = new E2eWorld()
  machine = await Systemd.boot(ROOT)
  buildBoth()
  publish(OLD)
  wire()
  const names = ['sotto.example.net', 'ca.example.net'].map((name) => `${name}. A ${OUTSIDE}\n`)
  writeFileSync(shared('zone'), block('dns') + names.join(''))
  writeFileSync(
    shared('pebble.json'),
    JSON.stringify({
      pebble: {
        listenAddress: `${OUTSIDE}:14000`,
        managementListenAddress: `${OUTSIDE}:15000`,
        certificate: '/shared/outside.pem',
        privateKey: '/shared/outside.key',
        httpPort: 80,
        tlsPort: 443,
        ocspResponderURL: '',
        externalAccountBindingRequired: false,
      },
    }),
  )
  keepOutside(
    'dns',
    `/sotto/node_modules/.bin/bun /sotto/tests/support/dns_zone.ts /shared/zone ${OUTSIDE}`,
  )
  await until(() => said('dns').includes('listening'), 'no DNS')
  keepOutside('ca', `pebble -config /shared/pebble.json -dnsserver ${OUTSIDE}:53 -strict`)
  keepOutside(
    'hoster',
    `/shared/${OLD} relay --domain sotto.example.net --host ${OUTSIDE} --data /shared/hoster-data ` +
      `--tls-cert /shared/outside.pem --tls-key /shared/outside.key --downloads /shared/release --release-key ${RELEASE_KEY} --json`,
  )
  await until(() => said('hoster').includes('"listening"'), 'no relay that hands out programs')
  await until(() => said('ca').includes('Listening on'), 'no CA')
  outside(`curl -fsSk https://${OUTSIDE}:15000/roots/0 >> ${CA_BUNDLE}`)
})

test.after(async () => {
  await machine?.close()
  await world.close()
})

test('the firewall: nftables takes it, what is meant to pass passes, and nothing else does', async () => {
  machine.write('/etc/nftables.conf', block('firewall'))
  shell(block('firewall-start'))
  for (const port of [8081, 20_000]) {
    shell(`systemd-run -q --unit=test-${port} socat TCP-LISTEN:${port},fork SYSTEM:'echo hello'`)
    await until(
      () => shell(`curl -s --http0.9 localhost:${port}`, { may: true }) === 'hello\n',
      'up',
    )
  }
  assert.is(outside(`curl -s --http0.9 ${RELAY}:20000`), 'hello\n')
  // Dropped, not refused: it waits until it has had enough.
  const dropped = outside(`curl -s --max-time 2 ${RELAY}:8081 || echo $?`)
  assert.is(dropped, '28\n')
  shell('systemctl stop test-8081 test-20000')
  assert.is(shell('systemctl is-enabled nftables'), 'enabled\n')
})

test('the program by its one line, and the relay as a service with a certificate of the CA', async () => {
  const installed = shell(block('program'))
  assert.match(installed, /signature/i)
  assert.is(shell('sotto --version'), `${OLD}\n`)
  const served = shell(block('service'))
  assert.match(served, /installed \/etc\/systemd\/system\/sotto-relay\.service/)
  assert.match(served, /listens on port 443 as relay\.example\.com/)
  await until(
    () => outside('curl -fsS https://relay.example.com/healthz', { may: true }) === 'ok\n',
    'no certificate',
  )
  const looked = outside(block('look'))
  assert.match(looked, /^ok +DNS +relay\.example\.com is 203\.0\.113\.5/m)
  assert.match(looked, /^ok +TLS /m)
  assert.not.match(looked, /^FAIL/m)
})

test('the first login, and a visitor by the wildcard name', async () => {
  shell(block('admin'))
  assert.is(shell('stat -c %a /root/admin.key'), '600\n')
  keepOutside('login', block('login').trim())
  const [code] = await until(() => /[A-Z]{4}-[A-Z]{4}/.exec(said('login')), 'no code')
  const approve = block('approve')
  assert.match(approve, /WDJB-MJHT/)
  shell(approve.replace('WDJB-MJHT', code))
  await until(() => /logged in to https:\/\/relay\.example\.com/.test(said('login')), 'no login')
  writeFileSync(
    shared('upstream.ts'),
    "Bun.serve({ port: 3000, hostname: '127.0.0.1', fetch: () => new Response('hello\\n') })\n",
  )
  keepOutside('upstream', '/sotto/node_modules/.bin/bun /shared/upstream.ts')
  keepOutside('agent', 'sotto http 3000 --name web')
  await until(() => /https:\/\/web\.secure\.relay\.example\.com\//.test(said('agent')), 'no URL')
  await until(() => visit() === 'hello\n', 'no visit')
})

function visit(): string {
  return outside('curl -sk --max-time 15 https://web.secure.relay.example.com/', { may: true })
}

test('an upgrade while visitors come: none is turned away', async () => {
  publish(NEW)
  const before = show('sotto-relay', 'MainPID')
  writeFileSync(
    shared('walk'),
    `while [ ! -e /shared/enough ]; do
       curl -sk --max-time 15 https://web.secure.relay.example.com/ || echo "failed $?"
     done`,
  )
  keepOutside('walker', 'bash /shared/walk')
  await until(() => said('walker').includes('hello'), 'nobody comes')
  shell(block('upgrade'))
  await until(
    () =>
      show('sotto-relay', 'MainPID') !== before &&
      show('sotto-relay', 'ActiveState') === 'active' &&
      show('sotto-relay-next', 'ActiveState') === 'inactive',
    'the upgrade does not end',
  )
  writeFileSync(shared('enough'), '')
  await until(() => show('test-walker', 'ActiveState') === 'inactive', 'they do not stop')
  const visits = said('walker').trim().split('\n')
  const failed = visits.filter((line) => line !== 'hello')
  console.log(
    `upgrade by systemd: ${visits.length} visits one after another, ${failed.length} failed`,
  )
  assert.equal(failed, [])
  assert.is(shell('sotto --version'), `${NEW}\n`)
  const main = show('sotto-relay', 'MainPID')
  assert.not.match(shell(`readlink /proc/${main}/exe`), /previous|deleted/)
  assert.is(show('sotto-relay-next', 'Result'), 'success')
})

test('a backup, and the same relay on a machine that has nothing but it', async () => {
  const identity = fingerprint()
  shell(block('backup'))
  assert.is(shell('stat -c %a /root/relay.backup'), '600\n')
  shell('sotto service uninstall relay; rm -rf /var/lib/sotto-relay /var/lib/private/sotto-relay')
  shell(block('restore'))
  shell(block('service'))
  assert.is(fingerprint(), identity)
  // The agent that was logged in before is let in again, and its name leads to it.
  await until(() => visit() === 'hello\n', 'the agent is not back')
})

/** Of the relay's identity, as it says. */
function fingerprint(): string {
  const answer = outside('curl -sk https://relay.example.com/v1/relay')
  return (JSON.parse(answer) as { fingerprint: string }).fingerprint
}

test('another identity: agents refuse it until they are told its fingerprint, once', async () => {
  const before = fingerprint()
  shell(block('identity'))
  const after = fingerprint()
  assert.is.not(after, before)
  shell('systemctl stop test-agent', { may: true })
  const refused = outside('sotto status', { may: true })
  assert.match(refused, /Cannot trust relay relay\.example\.com/)
  assert.ok(refused.includes(after) && refused.includes(before), refused)
  const told = block('identity-agent')
  assert.match(told, /SHA256:NEW/)
  outside(told.replace('SHA256:NEW', after))
  outside('sotto status')
})

test.run()
