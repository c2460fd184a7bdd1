// runtimes: bun node deno
// needs: openssl
/**
 * Client certificates, made here and by openssl, and every way that a chain can be wrong.
 */
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { certificateGrant, certificateVerifier } from '../../relay/client_ca.ts'
import { codeOf } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'

const P256 = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const P384 = { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' }
const ED25519 = { name: 'Ed25519' }
const RSA = (hash: string, modulusLength = 2048): RsaHashedKeyGenParams => ({
  name: 'RSASSA-PKCS1-v1_5',
  hash,
  modulusLength,
  publicExponent: new Uint8Array([1, 0, 1]),
})
const NOW = 1_800_000_000_000
const DAY_MS = 86_400_000
const MESSAGE = utf8('sotto agent certificate v1, this very link')

const test = suite('relay/client_ca')
const clock = new ManualClock(NOW)

interface Made {
  certificate: x509.X509Certificate
  keys: CryptoKeyPair
}

interface Wanted {
  name: string
  by?: Made
  algorithm?: { name: string }
  ca?: boolean | undefined
  pathLength?: number
  usages?: number
  uses?: string[]
  more?: x509.Extension[]
  from?: number
  to?: number
}

async function make(wanted: Wanted): Promise<Made> {
  const { name, by, algorithm = P256, ca, pathLength, usages, uses, more = [] } = wanted
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']) as CryptoKeyPair
  const signer = by?.keys.privateKey ?? keys.privateKey
  const signing = by ? by.keys.privateKey.algorithm as { name: string } : algorithm
  const certificate = await x509.X509CertificateGenerator.create({
    subject: name,
    issuer: by?.certificate.subject ?? name,
    notBefore: new Date(wanted.from ?? NOW - DAY_MS),
    notAfter: new Date(wanted.to ?? NOW + DAY_MS),
    publicKey: keys.publicKey,
    signingKey: signer,
    signingAlgorithm: { hash: 'SHA-256', ...signing } as unknown as EcdsaParams,
    extensions: [
      ...(ca === undefined ? [] : [new x509.BasicConstraintsExtension(ca, pathLength, true)]),
      ...(usages === undefined ? [] : [new x509.KeyUsagesExtension(usages, true)]),
      ...(uses ? [new x509.ExtendedKeyUsageExtension(uses)] : []),
      ...more,
    ],
  })
  return { certificate, keys }
}

async function sign({ keys }: Made, message = MESSAGE): Promise<Uint8Array> {
  const { name } = keys.privateKey.algorithm
  const how = name === 'ECDSA' ? { name, hash: 'SHA-256' } : { name }
  return new Uint8Array(await crypto.subtle.sign(how, keys.privateKey, message.slice()))
}

const der = ({ certificate }: Made): Uint8Array => new Uint8Array(certificate.rawData)
const pem = (...made: Made[]): string =>
  made.map(({ certificate }) => certificate.toString('pem')).join('\n')

const root = await make({ name: 'CN=Root', ca: true })
const verify = certificateVerifier(pem(root), clock)

/** The code with which a leaf below `root`, or a chain, is refused. */
async function refusal(wanted: Partial<Wanted>, above: Made[] = []): Promise<string | undefined> {
  const leaf = await make({ name: 'CN=alice', by: above[0] ?? root, ...wanted })
  return rejection(verify([leaf, ...above].map(der), MESSAGE, await sign(leaf)))
}

for (const [kind, algorithm] of [['P-256', P256], ['Ed25519', ED25519]] as const) {
  test(`a ${kind} leaf of the authority is its common name's scope`, async () => {
    const leaf = await make({ name: 'CN=alice, O=Example', by: root, algorithm })
    const certified = await verify([der(leaf)], MESSAGE, await sign(leaf))
    assert.is(certified.scope, 'alice')
    assert.is(certified.expiresAt, NOW + DAY_MS)
    const grant = certificateGrant(certified)
    assert.equal([grant.kind, grant.scope, grant.admin], ['certificate', 'alice', false])
    assert.match(grant.id, /^[0-9a-f]{64}$/)
  })
}

for (
  const [kind, algorithm] of [['P-384', P384], ['Ed25519', ED25519], [
    'RSA',
    RSA('SHA-256'),
  ]] as const
) {
  test(`an authority with a ${kind} key is followed`, async () => {
    const other = await make({ name: 'CN=Other', ca: true, algorithm })
    const leaf = await make({ name: 'CN=bob', by: other })
    const certified = await certificateVerifier(pem(root, other), clock)(
      [der(leaf)],
      MESSAGE,
      await sign(leaf),
    )
    assert.is(certified.scope, 'bob')
  })
}

test('an intermediate leads there, with and without the root in the chain', async () => {
  const middle = await make({
    name: 'CN=Middle',
    by: root,
    ca: true,
    pathLength: 0,
    to: NOW + 5000,
  })
  const leaf = await make({
    name: 'CN=alice',
    by: middle,
    uses: [x509.ExtendedKeyUsage.clientAuth],
  })
  for (const chain of [[leaf, middle], [leaf, middle, root]]) {
    const certified = await verify(chain.map(der), MESSAGE, await sign(leaf))
    assert.is(certified.scope, 'alice')
    assert.is(certified.expiresAt, NOW + 5000, 'the first to expire ends the grant')
  }
  assert.is(await rejection(verify([der(leaf)], MESSAGE, await sign(leaf))), 'certificate/chain')
})

test('refuses a leaf of another authority, also one of the same name', async () => {
  const stranger = await make({ name: 'CN=Root', ca: true })
  assert.is(await refusal({ by: stranger }), 'certificate/chain')
  assert.is(await refusal({}, [stranger]), 'certificate/chain')
  const alone = await make({ name: 'CN=alice' })
  assert.is(await rejection(verify([der(alone)], MESSAGE, await sign(alone))), 'certificate/chain')
})

test('refuses a leaf that signs another leaf', async () => {
  const agent = await make({ name: 'CN=alice', by: root })
  assert.is(await refusal({ name: 'CN=mallory', by: agent }, [agent]), 'certificate/chain')
  const claims = await make({ name: 'CN=alice', by: root, ca: false })
  assert.is(await refusal({ name: 'CN=mallory', by: claims }, [claims]), 'certificate/chain')
  const bound = await make({
    name: 'CN=Bound',
    by: root,
    ca: true,
    usages: x509.KeyUsageFlags.cRLSign,
  })
  assert.is(await refusal({ name: 'CN=mallory', by: bound }, [bound]), 'certificate/chain')
})

test('refuses more authorities than a path length allows', async () => {
  const first = await make({ name: 'CN=First', by: root, ca: true, pathLength: 0 })
  const second = await make({ name: 'CN=Second', by: first, ca: true })
  const leaf = await make({ name: 'CN=alice', by: second })
  const shown = verify([leaf, second, first].map(der), MESSAGE, await sign(leaf))
  assert.is(await rejection(shown), 'certificate/chain')
})

test('refuses what is not valid now: leaf, intermediate, root', async () => {
  assert.is(await refusal({ to: NOW - 1000 }), 'certificate/validity')
  assert.is(await refusal({ from: NOW + 1000 }), 'certificate/validity')
  const old = await make({ name: 'CN=Old', by: root, ca: true, to: NOW - 1000 })
  assert.is(await refusal({ by: old }, [old]), 'certificate/validity')
  const ancient = await make({ name: 'CN=Ancient', ca: true, to: NOW - 1000 })
  const leaf = await make({ name: 'CN=alice', by: ancient })
  const shown = certificateVerifier(pem(ancient), clock)([der(leaf)], MESSAGE, await sign(leaf))
  assert.is(await rejection(shown), 'certificate/validity')
})

test('refuses other purposes and what it does not understand', async () => {
  assert.is(await refusal({ ca: true }), 'certificate/purpose')
  assert.is(await refusal({ uses: [x509.ExtendedKeyUsage.serverAuth] }), 'certificate/purpose')
  assert.is(await refusal({ usages: x509.KeyUsageFlags.keyAgreement }), 'certificate/purpose')
  const unknown = (critical: boolean): x509.Extension =>
    new x509.Extension('2.5.29.30', critical, new Uint8Array([0x30, 0]))
  assert.is(await refusal({ more: [unknown(true)] }), 'certificate/purpose')
  assert.is(await refusal({ more: [unknown(false)] }), undefined)
  assert.is(await refusal({ more: [unknown(false), unknown(false)] }), 'certificate/format')
})

test('refuses common names that are no scope', async () => {
  const names = ['O=Example', 'CN=Alice', 'CN=a.b', 'CN=a, CN=b', 'CN=admin', 'CN=-a', 'CN=a/b']
  for (const name of names) assert.is(await refusal({ name }), 'certificate/scope', name)
})

test('refuses old hashes, small keys, and leaves of other kinds', async () => {
  const weak = await make({ name: 'CN=Weak', ca: true, algorithm: RSA('SHA-256', 1024) })
  const sha1 = await make({ name: 'CN=Sha1', ca: true, algorithm: RSA('SHA-1') })
  for (const authority of [weak, sha1]) {
    const leaf = await make({ name: 'CN=alice', by: authority })
    const shown = certificateVerifier(pem(authority), clock)([der(leaf)], MESSAGE, await sign(leaf))
    assert.is(await rejection(shown), 'certificate/chain')
  }
  assert.is(await refusal({ algorithm: P384 }), 'certificate/signature')
  assert.is(await refusal({ algorithm: RSA('SHA-256') }), 'certificate/signature')
})

test('refuses a signature over another message, by another key, of another length', async () => {
  const leaf = await make({ name: 'CN=alice', by: root })
  const other = await make({ name: 'CN=alice', by: root })
  const good = await sign(leaf)
  const wrong = [
    await sign(leaf, utf8('another link')),
    await sign(other),
    good.subarray(0, 63),
    new Uint8Array(64),
    new Uint8Array(0),
    new Uint8Array([...good, 0]),
  ]
  for (const signature of wrong) {
    assert.is(await rejection(verify([der(leaf)], MESSAGE, signature)), 'certificate/signature')
  }
  assert.is(await rejection(verify([der(leaf)], MESSAGE, good)), undefined)
})

test('refuses any bytes that are no chain, always within the family', async () => {
  const leaf = await make({ name: 'CN=alice', by: root })
  const whole = der(leaf)
  const signature = await sign(leaf)
  const wrong: Uint8Array[][] = [
    [],
    Array.from({ length: 5 }, () => whole),
    [new Uint8Array(8193)],
    [new Uint8Array(0)],
    [utf8('-----BEGIN CERTIFICATE-----')],
  ]
  for (let cut = 1; cut < whole.length; cut += 7) wrong.push([whole.subarray(0, cut)])
  for (let at = 0; at < whole.length; at += 3) {
    const bent = whole.slice()
    bent[at]! ^= 0x41
    wrong.push([bent])
  }
  for (const chain of wrong) {
    const code = await rejection(verify(chain, MESSAGE, signature))
    assert.match(String(code), /^certificate\//, `${chain[0]?.length}`)
  }
})

test('reads an authority only when it is one', async () => {
  const leaf = await make({ name: 'CN=alice', by: root })
  for (
    const text of [
      '',
      'nothing',
      pem(leaf),
      '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n',
    ]
  ) {
    assert.is(codeOf(() => certificateVerifier(text, clock)), 'certificate/authority')
  }
})

test('follows a chain that openssl made', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'sotto-ca-'))
  const openssl = (...words: string[]): void =>
    void execFileSync('openssl', words, { cwd: directory, stdio: 'pipe' })
  try {
    openssl(
      ...'req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 3'.split(' '),
      '-subj',
      '/CN=Example CA',
    )
    openssl(...'ecparam -name prime256v1 -genkey -noout -out leaf.key'.split(' '))
    openssl('req', '-new', '-key', 'leaf.key', '-out', 'leaf.csr', '-subj', '/O=Example/CN=carol')
    writeFileSync(
      join(directory, 'leaf.cnf'),
      'extendedKeyUsage = clientAuth\nbasicConstraints = CA:FALSE\n',
    )
    openssl(
      ...'x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2'.split(' '),
      '-extfile',
      'leaf.cnf',
      '-outform',
      'DER',
      '-out',
      'leaf.der',
    )
    openssl(...'pkcs8 -topk8 -nocrypt -in leaf.key -outform DER -out leaf.p8'.split(' '))
    const read = (name: string): Uint8Array => new Uint8Array(readFileSync(join(directory, name)))
    const key = await crypto.subtle.importKey('pkcs8', read('leaf.p8').slice(), P256, false, [
      'sign',
    ])
    const signature = await crypto.subtle.sign(
      { name: 'ECDSA', hash: 'SHA-256' },
      key,
      MESSAGE.slice(),
    )
    const today = certificateVerifier(
      readFileSync(join(directory, 'ca.pem'), 'utf8'),
      new ManualClock(Date.now() + 60_000),
    )
    const certified = await today([read('leaf.der')], MESSAGE, new Uint8Array(signature))
    assert.is(certified.scope, 'carol')
  } finally {
    rmSync(directory, { recursive: true })
  }
})

test.run()
