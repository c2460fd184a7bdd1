// seconds: 90
// needs: pebble pebble-challtestsrv openssl
/**
 * More tunnels of one file than a CA is asked for: the first names get certificates, the others keep their
 * own, and the passport, which names 16, names each certificate that a visitor is shown.
 */
import * as nodeCrypto from 'node:crypto'
import { X509Certificate } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ACME_NAMES_MAX } from '../../agent/config_table.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { parseKey } from '../../core/key.ts'
import { openPassport, PASSPORT_CERTIFICATES_MAX } from '../../core/passport.ts'
import { startPebble } from '../support/pebble.ts'
import { E2eWorld } from '../support/world.ts'

const TUNNELS = 12

const test = suite('e2e/acme_many')
let world: E2eWorld
test.before(() => void (world = new E2eWorld()))
test.after(() => world.close())

function shown(host: string, port: number): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const at = { host: '127.0.0.1', port, servername: host, rejectUnauthorized: false }
    const socket = connect(at, () => {
      resolve(new X509Certificate(socket.getPeerCertificate().raw))
      socket.destroy()
    })
    socket.on('error', reject)
  })
}

test('the first names of a file get certificates, and each that is shown is in the passport', async () => {
  const relay = await world.relay(['--agents-acme=true'])
  const pebble = await startPebble({ tlsPort: relay.port })
  world.defer(() => pebble.close())
  const folder = world.path('many')
  mkdirSync(folder)
  const names = Array.from({ length: TUNNELS }, (_, i) => `web${i}`)
  writeFileSync(
    `${folder}/sotto.yaml`,
    `relay: ${relay.origin}\napi-key-env: TEST_KEY\n` +
      `acme: {directory: "${pebble.directory}", ca: ${pebble.serverCaPath}}\ntunnels:\n` +
      names.map((name) => `  ${name}: {http: 1}\n`).join(''),
  )
  const env = { TEST_KEY: relay.apiKey }
  const program = world.sotto(['up', '--json'], { cwd: folder, env })
  await program.until(() => {
    const issued = program.lines.filter(({ state }) => state === 'issued')
    return issued.length === ACME_NAMES_MAX || undefined
  }, 'all certificates')
  const { stdout } = await world.sottoRun(['logs', '--last', '1000'])
  assert.match(stdout, new RegExp(`${TUNNELS - ACME_NAMES_MAX} tunnels stay with certificates`))

  const key = JSON.parse((await world.sottoRun(['identity', '--json'])).stdout).key as string
  const answer = await fetch(`${relay.origin}/v1/passports/${key}`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  const bytes = new Uint8Array(await answer.arrayBuffer())
  const { certificates } = openPassport(fastCrypto(nodeCrypto), bytes, {
    now: Date.now(),
    identity: parseKey(key),
  })
  assert.ok(certificates.length <= PASSPORT_CERTIFICATES_MAX)
  const known = certificates.map((one) => Buffer.from(one).toString('hex'))
  for (const [i, name] of names.entries()) {
    const leaf = await shown(`${name}.secure.localhost`, relay.port)
    assert.is(leaf.issuer === leaf.subject, i >= ACME_NAMES_MAX, name)
    const print = leaf.fingerprint256.replaceAll(':', '').toLowerCase()
    assert.ok(known.includes(print), `${name} is not in the passport`)
  }
  await program.stop()
})

test.run()
