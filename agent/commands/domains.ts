/** `sotto domains check`: whether a domain is ready to lead here, and which records to set. */
import { dnsServer, readHostName } from '../../core/dns.ts'
import { TunnelError } from '../../core/errors.ts'
import { Resolver } from '../../core/resolver.ts'
import { LETS_ENCRYPT } from '../acme.ts'
import { AcmeStore } from '../acme_store.ts'
import { command, isSet, JSON_FLAG, listOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { printable } from '../cli/screen.ts'
import { dnsExchange } from '../dns.ts'
import { caaNameOf, checkDomain } from '../domain_check.ts'
import type { Finding } from '../domain_check.ts'
import { checkChoice, hostOf, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { RelayApi } from '../relay_api.ts'
import type { World } from '../world.ts'

const HEADS: Readonly<Record<Finding['what'], string>> = {
  way: 'visitors come to the relay',
  claim: 'the relay may give it to you',
  caa: 'which CAs may vouch for it',
}
const DNS_MAX = 4

interface CheckOptions {
  domain: string
  name: string | undefined
  directory: string
  ca: string | undefined
  dns: string[]
  choice: RelayChoice
  json: boolean
}

export const checkDomains = command<CheckOptions>({
  page: {
    name: 'sotto domains check',
    summary: 'whether a domain of your own is ready to lead to an endpoint',
    args: ['DOMAIN'],
    examples: [
      ['sotto domains check app.example.com', 'What its DNS says, and which records to set.'],
      ['sotto domains check app.example.com --name web', 'For the endpoint "web".'],
    ],
    flags: [
      {
        name: 'name',
        value: 'NAME',
        without: 'NAME',
        help: "The endpoint's name, in the records.",
      },
      {
        name: 'acme-directory',
        value: 'URL',
        without: "Let's Encrypt",
        help: 'The CA that is to vouch for it.',
      },
      {
        name: 'caa-name',
        value: 'DOMAIN',
        without: "that CA's own, where it is known",
        help: 'What the CA is called in CAA records.',
      },
      {
        name: 'dns',
        value: 'ADDRESS',
        many: true,
        without: "the machine's",
        help: 'A resolver to ask, such as 9.9.9.9.',
      },
      ...RELAY_FLAGS,
      JSON_FLAG,
    ],
    more: 'Exit code 1 where it is not ready. docs/domains.md says what the records mean.',
  },
  read: (given) => ({
    domain: readHostName(given.args[0]!),
    name: textOf(given, 'name'),
    directory: textOf(given, 'acme-directory') ?? LETS_ENCRYPT,
    ca: textOf(given, 'caa-name'),
    dns: listOf(given, 'dns'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check({ choice, dns, directory, ca }) {
    checkChoice(choice)
    const wrong = dns.find((one) => dnsServer(one) === undefined)
    if (wrong !== undefined || dns.length > DNS_MAX) {
      throw new TunnelError('cli/usage', `Cannot read --dns: expected at most ${DNS_MAX} addresses`)
    }
    if (!URL.canParse(directory) || (ca ?? caaNameOf(directory)) === undefined) {
      throw new TunnelError('cli/usage', 'Cannot tell how that CA is called in CAA records', {
        hint: "Say --caa-name, as the CA's documentation has it.",
      })
    }
  },
  run,
})

async function run(options: CheckOptions, world: World): Promise<number> {
  const { domain, json, directory, dns } = options
  const { stdout, stderr } = world.terminal
  const joining = await join(world, options.choice, (line) => stderr.write(`${line}\n`))
  const { profile } = joining
  const exchange = await dnsExchange(world, dns)
  // What was changed a moment ago is to be seen.
  const resolver = new Resolver({ ...world, exchange }, { keeps: false })
  const findings = await checkDomain(resolver, {
    domain,
    ...await relayFacts(world, joining),
    label: options.name ?? 'NAME',
    ca: options.ca ?? caaNameOf(directory)!,
    account: await accountOf(new AcmeStore(world, { profile, directory }), world),
  })
  const isReady = findings.every(({ state }) => state !== 'fail')
  if (json) {
    for (const finding of findings) {
      stdout.write(`${JSON.stringify({ event: 'finding', domain, ...finding })}\n`)
    }
    stdout.write(`${JSON.stringify({ event: 'checked', domain, ready: isReady })}\n`)
  } else stdout.write(pageOf(domain, findings, isReady))
  return isReady ? 0 : 1
}

function pageOf(domain: string, findings: readonly Finding[], isReady: boolean): string {
  const lines = findings.map(({ what, state, found }) =>
    `${state.padEnd(8)} ${HEADS[what]}: ${printable(found)}\n`
  )
  const needed = findings.filter(({ state }) => state === 'fail').flatMap(({ set }) => set)
  const better = findings.filter(({ state }) => state === 'warning').flatMap(({ set }) => set)
  const block = (head: string, records: readonly string[]): string =>
    records.length === 0
      ? ''
      : `\n${head}\n${[...new Set(records)].map((one) => `  ${one}\n`).join('')}`
  return lines.join('') + block('set (of a CNAME and a TXT one is enough to claim it):', needed) +
    block('set, so that no other account of that CA, nor another CA, may vouch for it:', better) +
    `\n${isReady ? `${domain} is ready.` : `${domain} is not ready.`}\n`
}

/** What the relay tells those who have a key; guessed by custom for all others. */
async function relayFacts(
  world: World,
  joining: Joining,
): Promise<{ relay: string; secure: string; scope: string | undefined }> {
  const { credential } = joining
  const host = hostOf(joining.relay)
  if (!('secret' in credential)) return { relay: host, secure: `secure.${host}`, scope: undefined }
  const api = new RelayApi(world, joining, credential.secret)
  const relay = await api.call('GET', '/relay') as { domain: string; secure: string }
  const grant = await api.call('GET', '/grant') as { scope: string }
  return { relay: relay.domain, secure: relay.secure, scope: grant.scope }
}

/** The account at the CA, where this profile has one already; none is made. */
async function accountOf(store: AcmeStore, { files }: World): Promise<string | undefined> {
  return await files.info(store.accountPath) ? (await store.account()).url : undefined
}
