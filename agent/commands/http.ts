/** `sotto http`: a local HTTP service at a public https URL, its TLS ending here. */
import { readHostName } from '../../core/dns.ts'
import { TunnelError } from '../../core/errors.ts'
import { parseUpstream } from '../forward.ts'
import { join } from '../join.ts'
import type { World } from '../world.ts'
import { command, isSet, JSON_FLAG, listOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import {
  checkTunnel,
  defaultName,
  E2EE_FLAG,
  LABEL_FLAG,
  NAME_FLAG,
  PLAIN_FLAG,
  PROXY_FLAG,
  proxyOf,
  QR_FLAG,
  readTunnel,
} from '../cli/plan.ts'
import type { TunnelChoice } from '../cli/plan.ts'
import { ACME_FLAGS, acmePlan, checkAcme, readAcme } from '../cli/acme_flags.ts'
import type { AcmeFlags } from '../cli/acme_flags.ts'
import { publish } from '../cli/publish.ts'
import { Screen } from '../cli/screen.ts'

const page: Page = {
  name: 'sotto http',
  summary: 'give a local HTTP service a public https URL',
  args: ['UPSTREAM'],
  examples: [
    [
      'sotto http 3000',
      'Port 3000 of this machine; TLS ends in this agent, the relay reads nothing.',
    ],
    [
      'sotto http https://nas.local:8443 --name nas --host-header rewrite',
      'Another machine, by the name "nas", as a service that looks at the Host header wants it.',
    ],
  ],
  flags: [
    NAME_FLAG,
    {
      ...E2EE_FLAG,
      help: 'Whether TLS ends in this agent; false: at the relay, which can then read everything.',
    },
    {
      name: 'e2ee-cert',
      value: 'PATH',
      without: 'a self-signed certificate',
      help: 'PEM file: your own certificate and its chain, read again when it changes.',
    },
    { name: 'e2ee-key', value: 'PATH', help: 'PEM file: the key of that certificate.' },
    ...ACME_FLAGS,
    {
      name: 'domain',
      value: 'HOST',
      many: true,
      help: 'As --acme-domain, but with no certificate of a CA for it.',
    },
    {
      name: 'host-header',
      value: 'VALUE',
      without: 'passed on as it is',
      help: 'The Host header for the upstream: "rewrite" for its own name, or the value itself.',
    },
    PROXY_FLAG,
    LABEL_FLAG,
    ...RELAY_FLAGS,
    QR_FLAG,
    PLAIN_FLAG,
    JSON_FLAG,
  ],
  more: 'UPSTREAM is 3000, host:port, http://host:port, https://host[:port] or unix:/path.',
}

export interface HttpOptions extends TunnelChoice {
  certPath: string | undefined
  keyPath: string | undefined
  acme: AcmeFlags
  domains: string[]
  hostHeader: string | undefined
  proxyProtocol: 'v1' | 'v2' | undefined
  qr: boolean
}

function read(given: Given): HttpOptions {
  return {
    ...readTunnel(given),
    certPath: textOf(given, 'e2ee-cert'),
    keyPath: textOf(given, 'e2ee-key'),
    acme: readAcme(given),
    domains: listOf(given, 'domain').map(readHostName),
    hostHeader: textOf(given, 'host-header'),
    proxyProtocol: proxyOf(given),
    qr: isSet(given, 'qr'),
  }
}

function check(options: HttpOptions): void {
  const { e2ee, certPath, keyPath, hostHeader, proxyProtocol } = options
  checkTunnel(options)
  checkAcme(options.acme)
  if ((certPath === undefined) !== (keyPath === undefined)) {
    const [given, missing] = certPath
      ? ['--e2ee-cert', '--e2ee-key']
      : ['--e2ee-key', '--e2ee-cert']
    throw new TunnelError(
      'cli/certificate',
      `Cannot use ${given} alone: expected ${missing} as well`,
    )
  }
  if (!e2ee && certPath !== undefined) {
    throw conflict('--e2ee-cert', '--e2ee=false', 'TLS does not end here then')
  }
  if (!e2ee && options.domains.length > 0) {
    throw conflict('--domain', '--e2ee=false', 'the relay has no certificate for that name')
  }
  if (!e2ee && proxyProtocol) {
    throw conflict(
      '--proxy-protocol',
      '--e2ee=false',
      'the visitor is named by X-Forwarded-For then',
    )
  }
  if (!e2ee && hostHeader !== undefined) {
    throw conflict('--host-header', '--e2ee=false', 'the relay names the upstream itself then')
  }
  if (hostHeader !== undefined && proxyProtocol) {
    throw conflict(
      '--proxy-protocol',
      '--host-header',
      'the visitor is named by X-Forwarded-For then',
    )
  }
  if (hostHeader !== undefined && !/^[\x21-\x7e]{1,255}$/.test(hostHeader)) {
    throw new TunnelError('cli/host-header', 'Cannot use --host-header: found no host name')
  }
}

function conflict(one: string, other: string, reason: string): TunnelError {
  return new TunnelError('cli/conflict', `Cannot use ${one} together with ${other}: ${reason}`, {
    hint: `Leave out one of them.`,
  })
}

async function run(options: HttpOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const upstream = parseUpstream(options.upstream)
  const { certPath, keyPath, hostHeader, proxyProtocol, e2ee, domains } = options
  const acme = e2ee ? await acmePlan(options.acme, world) : undefined
  return await publish(world, {
    name: options.name ?? defaultName(upstream, joining.identity),
    kind: 'http',
    mode: options.e2ee ? 'verified' : 'inspectable',
    port: 0,
    upstream,
    qr: options.qr,
    ...(hostHeader === undefined ? {} : { hostHeader }),
    ...(proxyProtocol ? { proxyProtocol } : {}),
    ...(acme ? { acme } : {}),
    ...(e2ee ? { domains } : {}),
    ...(certPath && keyPath ? { certificate: { cert: certPath, key: keyPath } } : {}),
  }, { joining, screen })
}

export const http = command({ page, read, check, run })
