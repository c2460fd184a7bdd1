/** Chromium for tests, which trusts no certificate but those whose keys it is told of. */
import { createHash, X509Certificate } from 'node:crypto'
import { chromium } from 'playwright-core'
import type { Browser } from 'playwright-core'

const EXECUTABLE = '/usr/bin/chromium'

/**
 * `spki`: SHA-256 of public keys, in base64, whose certificates need no authority. `local`: a pattern
 * of host names that lead to this machine, or to `address`. `home`: its `.pki/nssdb` holds the roots that are trusted.
 */
export function openBrowser(
  spki: readonly string[],
  { local, home, address = '127.0.0.1' }: { local?: string; home?: string; address?: string } = {},
): Promise<Browser> {
  return chromium.launch({
    executablePath: EXECUTABLE,
    timeout: 30_000,
    ...(home === undefined
      ? {}
      : { env: { ...process.env, HOME: home } as Record<string, string> }),
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--no-proxy-server',
      ...(local === undefined ? [] : [`--host-resolver-rules=MAP ${local} ${address}`]),
      ...(spki.length === 0 ? [] : [`--ignore-certificate-errors-spki-list=${spki.join(',')}`]),
    ],
  })
}

export function spkiOf(pem: string): string {
  const spki = new X509Certificate(pem).publicKey.export({ type: 'spki', format: 'der' })
  return createHash('sha256').update(spki).digest('base64')
}
