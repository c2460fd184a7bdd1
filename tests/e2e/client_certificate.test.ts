// seconds: 60
/**
 * An agent that is let in by a client certificate in place of a key: authority, certificate and key
 * made by openssl, the relay started with `--client-ca`.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { E2eWorld } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

let world: E2eWorld
let relay: Relay

const test = suite('e2e/client_certificate')

const CURVE = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']

async function openssl(...args: string[]): Promise<void> {
  const { code, stderr } = await world.run('openssl', args)
  assert.is(code, 0, stderr)
}

/** A certificate authority, and a certificate of it for `scope`. */
async function certify(name: string, scope: string): Promise<void> {
  const at = (file: string): string => world.path(`${name}.${file}`)
  await openssl(
    'req',
    '-x509',
    ...CURVE,
    '-keyout',
    at('ca.key'),
    '-out',
    at('ca.pem'),
    '-subj',
    '/CN=agents',
    '-addext',
    'basicConstraints=critical,CA:TRUE',
  )
  await openssl('req', ...CURVE, '-keyout', at('key'), '-out', at('csr'), '-subj', `/CN=${scope}`)
  await openssl(
    'x509',
    '-req',
    '-in',
    at('csr'),
    '-CA',
    at('ca.pem'),
    '-CAkey',
    at('ca.key'),
    '-out',
    at('pem'),
  )
}

const shown = (name: string): Record<string, string> => ({
  SOTTO_API_KEY: '',
  SOTTO_CLIENT_CERT: world.path(`${name}.pem`),
  SOTTO_CLIENT_KEY: world.path(`${name}.key`),
})

test.before(async () => {
  world = new E2eWorld()
  await certify('ours', 'ops')
  await certify('theirs', 'ops')
  relay = await world.relay(['--client-ca', world.path('ours.ca.pem')])
})

test.after(() => world.close())

test('the certificate of the authority lets the agent in', async () => {
  const agent = world.sotto(['http', '9', '--name', 'web', '--json'], {
    env: { ...world.joins(relay), ...shown('ours') },
  })
  const up = await agent.event('up')
  assert.is(up['name'], 'web')
  await agent.stop()
})

test('a revoked one is cut off at once and let in no more', async () => {
  const env = { ...world.joins(relay), ...shown('ours') }
  const agent = world.sotto(['http', '9', '--name', 'web', '--json'], { env })
  await agent.event('up')
  const { stdout: serial } = await world.run('openssl', [
    'x509',
    '-noout',
    '-serial',
    '-in',
    world.path('ours.pem'),
  ])
  const operate = (...words: string[]) =>
    world.sotto(['relay', 'certificates', ...words], {
      env: { ...world.joins(relay), SOTTO_ADMIN_KEY: relay.adminKey },
    }).ended
  assert.is((await operate('revoke', serial.trim(), '--reason', 'stolen')).code, 0)
  assert.is((await agent.ended).code, 1)
  const again = world.sotto(['http', '9', '--name', 'web'], { env })
  await again.says(/revoked/)
  assert.is((await again.ended).code, 1)
  assert.is((await operate('restore', serial.trim())).code, 0)
  const back = world.sotto(['http', '9', '--name', 'web', '--json'], { env })
  await back.event('up')
  await back.stop()
})

test('one of another authority with the same names does not', async () => {
  const agent = world.sotto(['http', '9', '--name', 'other', '--json'], {
    env: { ...world.joins(relay), ...shown('theirs') },
  })
  const { code } = await agent.ended
  assert.is(code, 1)
})

test("a key that is not the certificate's is refused before anything is sent", async () => {
  const agent = world.sotto(['http', '9', '--name', 'other'], {
    env: { ...world.joins(relay), ...shown('ours'), SOTTO_CLIENT_KEY: world.path('theirs.key') },
  })
  await agent.says(/key that is not the one it names/)
  assert.is((await agent.ended).code, 1)
})

test.run()
