// runtimes: bun node deno
/**
 * Certificates of a running relay whose files change: what comes from then on gets the new one, what
 * is open goes on, and a pair that does not fit is not taken.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hex } from '../../core/bytes.ts'
import { certificateHash, makeCertificate } from '../../relay/certificate.ts'
import type { CertificatePair } from '../../relay/certificate.ts'
import { readSettings } from '../../relay/settings.ts'
import type { RunningRelay } from '../../relay/serve/host.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('relay/renewal')
const NAMES = ['localhost', '*.apps.localhost']
const native = 'Bun' in globalThis
const { startRelay } = await import(`../../relay/serve/${native ? 'bun' : 'node'}.ts`) as {
  startRelay: typeof import('../../relay/serve/node.ts').startRelay
}

async function dial(relay: RunningRelay, servername = 'localhost'): Promise<TLSSocket> {
  const socket = connect({
    host: '127.0.0.1',
    port: relay.port,
    servername,
    rejectUnauthorized: false,
  })
  await once(socket, 'secureConnect')
  return socket
}

/** SHA-256 of the certificate that a new connection gets. */
async function shown(relay: RunningRelay, servername?: string): Promise<string> {
  const socket = await dial(relay, servername)
  const { raw } = socket.getPeerCertificate()
  socket.destroy()
  return createHash('sha256').update(raw).digest('hex')
}

async function isHealthy(socket: TLSSocket): Promise<boolean> {
  const answer = once(socket, 'data')
  socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
  return String((await answer)[0]).startsWith('HTTP/1.1 200')
}

test('another pair is served to whoever comes, and what is open goes on', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'sotto-renewal-'))
  const at = (file: string): string => join(folder, file)
  const [one, two] = [
    await makeCertificate(NAMES, Date.now()),
    await makeCertificate(NAMES, Date.now()),
  ]
  const hashOf = async ({ cert }: CertificatePair) => hex(await certificateHash(cert))
  await writeFile(at('cert.pem'), one.cert)
  await writeFile(at('key.pem'), one.key)
  const lines: string[] = []
  const relay = await startRelay(
    readSettings({
      flags: {
        port: '0',
        data: at('data'),
        'tls-cert': at('cert.pem'),
        'tls-key': at('key.pem'),
      },
    }),
    { write: (line) => void lines.push(line) },
  )
  try {
    const before = await dial(relay)
    assert.ok(await isHealthy(before))
    assert.is(await shown(relay), await hashOf(one))
    assert.is(await relay.renew(), false, 'nothing has changed')
    await writeFile(at('cert.pem'), two.cert)
    assert.is(await rejection(relay.renew()), 'relay/certificate', 'a key of another certificate')
    await writeFile(at('key.pem'), 'torn')
    assert.is(await rejection(relay.renew()), 'relay/certificate', 'half a file')
    assert.is(await shown(relay), await hashOf(one))
    await writeFile(at('key.pem'), two.key)
    assert.is(await relay.renew(), true)
    for (const name of ['localhost', 'web.apps.localhost']) {
      assert.is(await shown(relay, name), await hashOf(two), name)
    }
    // Agents that dialled the old one are in admission still: the challenge names both.
    assert.equal(relay.relay.identity.certificates.map(hex), [await hashOf(two), await hashOf(one)])
    assert.ok(await isHealthy(before), 'the connection of before goes on')
    assert.is(await relay.renew(), false)
    before.destroy()
    assert.ok(lines.some((line) => line.includes('certificate renewed')))
  } finally {
    await relay.stop()
    await rm(folder, { recursive: true })
  }
})

test.run()
