// An agent that shows a client certificate: chain by the relay's authority, proof of the leaf's key
// inside the sealed admission, scope from the common name; and the same with each part wrong.
import 'reflect-metadata'
import * as nodeCrypto from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
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
  notAfter = Date.now() + 1e8,
) {
  const keys = await pair()
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: '02',
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
      ['an expired leaf', star, await leaf(ca, 'ops', Date.now() - 1000)],
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

certificates.run()
