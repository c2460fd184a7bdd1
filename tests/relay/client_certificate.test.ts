// An agent that shows a client certificate: chain by the relay's authority, proof of the leaf's key
// inside the sealed admission, scope from the common name; and the same with each part wrong.
import 'reflect-metadata'
import * as nodeCrypto from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { RevokedCertificates, serialOf } from '../../relay/revoked_certificates.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { codeOf } from '../support/crypto.ts'
import { makeStar } from '../support/star.ts'

const P256 = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const pair = (): Promise<CryptoKeyPair> =>
  crypto.subtle.generateKey(P256, true, ['sign', 'verify']) as Promise<CryptoKeyPair>

async function authority() {
  const keys = await pair()
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: '01',
    name: 'CN=agents',
    notBefore: new Date(Date.now() - 1000),
    notAfter: new Date(Date.now() + 1e9),
    keys,
    signingAlgorithm: P256,
    extensions: [new x509.BasicConstraintsExtension(true, 1, true)],
  })
  return { keys, certificate }
}

async function leaf(
  by: Awaited<ReturnType<typeof authority>>,
  scope: string,
  { notAfter = Date.now() + 1e8, serial = '02' } = {},
) {
  const keys = await pair()
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial,
    subject: `CN=${scope}`,
    issuer: by.certificate.subject,
    notBefore: new Date(Date.now() - 1e9),
    notAfter: new Date(notAfter),
    publicKey: keys.publicKey,
    signingKey: by.keys.privateKey,
    signingAlgorithm: P256,
    extensions: [new x509.BasicConstraintsExtension(false, undefined, true)],
  })
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey))
  const key = nodeCrypto.createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' })
  return {
    kind: 'certificate' as const,
    chain: [new Uint8Array(certificate.rawData)],
    sign: (message: Uint8Array) =>
      new Uint8Array(nodeCrypto.sign('sha256', message, { key, dsaEncoding: 'ieee-p1363' })),
  }
}

const certificates = suite('relay/client_certificate')

certificates('the common name is the scope', async () => {
  const ca = await authority()
  const star = await makeStar({}, {}, ca.certificate.toString('pem'))
  try {
    const agent = await star.agent({ credential: await leaf(ca, 'ops') })
    assert.is(agent.welcome['scope'], 'ops')
    assert.is((await agent.claim('web'))['ok'], true)
  } finally {
    await star.close()
  }
})

certificates(
  'another authority, a foreign key, an expired leaf and a relay without authority refuse',
  async () => {
    const ca = await authority()
    const other = await authority()
    const star = await makeStar({}, {}, ca.certificate.toString('pem'))
    const bare = await makeStar()
    const good = await leaf(ca, 'ops')
    const cases = [
      ['another authority', star, await leaf(other, 'ops')],
      ["a key that is not the leaf's", star, { ...good, sign: (await leaf(ca, 'ops')).sign }],
      ['an expired leaf', star, await leaf(ca, 'ops', { notAfter: Date.now() - 1000 })],
      ['no authority here', bare, good],
    ] as const
    try {
      for (const [name, at, credential] of cases) {
        let message = ''
        await at.agent({ credential }).catch((error: Error) => void (message = error.message))
        assert.match(message, /closed 440[01]/, name)
      }
    } finally {
      await star.close()
      await bare.close()
    }
  },
)

certificates('a revoked one is refused, and its running link is closed', async () => {
  const ca = await authority()
  const star = await makeStar({}, {}, ca.certificate.toString('pem'))
  const stolen = await leaf(ca, 'ops', { serial: '00ab01' })
  try {
    const thief = await star.agent({ credential: stolen })
    const other = await star.agent({ credential: await leaf(ca, 'ops', { serial: 'ab02' }) })
    await star.revoked.revoke('AB:01', 'laptop stolen')
    assert.is((await thief.closed).code, 4403)
    assert.equal(thief.notices.map(({ code }) => code), ['relay/revoked'])
    let message = ''
    await star.agent({ credential: stolen }).catch((error: Error) => void (message = error.message))
    assert.match(message, /closed 4401 certificate\/revoked/)
    assert.is((await other.request({ do: 'passport' }))['ok'], true, 'others of the scope stay')
    assert.is(await star.revoked.restore('ab01'), true)
    assert.ok(await star.agent({ credential: stolen }))
  } finally {
    await star.close()
  }
})

certificates('a process sees what another on the same store revokes', async () => {
  const store = memoryStore()
  const clock = new ManualClock()
  const [here, there] = [
    await RevokedCertificates.open(store, clock),
    await RevokedCertificates.open(store, clock),
  ]
  const told = new Promise<string>((resolve) => here.onRevoked(({ serial }) => resolve(serial)))
  const watch = here.watch()
  await there.revoke('7', 'elsewhere')
  assert.is(here.find(['7']), undefined)
  clock.advance(500)
  assert.is(await told, '7')
  assert.is(here.find(['1', '7'])?.reason, 'elsewhere')
  watch.cancel()
})

certificates('serial numbers are one however they are written', () => {
  for (const words of ['0A1B', '0a:1b', '000a1b', 'A1B']) assert.is(serialOf(words), 'a1b')
  assert.is(serialOf('00'), '0')
  for (const words of ['', 'x', ':', '0x1', '1'.repeat(41)]) {
    assert.is(codeOf(() => serialOf(words)), 'certificate/serial', words)
  }
})

certificates.run()
