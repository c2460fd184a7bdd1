/** Flags about certificates of a CA: which CA, by whose account, for which names besides the own. */
import { normaliseHostName } from '../../core/client_hello.ts'
import { TunnelError } from '../../core/errors.ts'
import { acmeChoice, checkDirectory, DIRECTORY_VARIABLE, KEY_VARIABLE } from '../acme_choice.ts'
import type { AcmeWords } from '../acme_choice.ts'
import type { World } from '../world.ts'
import { listOf, textOf } from './page.ts'
import type { Flag, Given } from './page.ts'
import type { AcmePlan } from '../endpoint_names.ts'

/** Host names besides the endpoint's own. */
const DOMAINS_MAX = 16

export const ACME_FLAGS: readonly Flag[] = [
  {
    name: 'acme',
    value: 'SWITCH',
    without: 'on where the relay allows it',
    help: 'Get a certificate that browsers trust; off: the self-signed one stays.',
  },
  {
    name: 'acme-domain',
    value: 'HOST',
    many: true,
    help: 'A host name of yours that leads to the relay, served here as well.',
  },
  {
    name: 'acme-directory',
    value: 'URL',
    without: `${DIRECTORY_VARIABLE}, else Let's Encrypt`,
    help: 'The CA; to use it is to agree to its terms.',
  },
  {
    name: 'acme-contact',
    value: 'EMAIL',
    without: 'none',
    help: 'Where the CA may write to.',
  },
  {
    name: 'acme-ca',
    value: 'PATH',
    without: 'SSL_CERT_FILE, else the CAs that come with sotto',
    help: "PEM file: CAs to trust for the directory's own address.",
  },
  {
    name: 'acme-eab-kid',
    value: 'ID',
    without: 'none',
    help: `External account binding: the key's id; the key is in ${KEY_VARIABLE} or a file.`,
  },
  {
    name: 'acme-eab-key-file',
    value: 'PATH',
    without: KEY_VARIABLE,
    help: 'File with the HMAC key that the CA gave you, in base64url.',
  },
]

export interface AcmeFlags extends AcmeWords {
  off: boolean
  domains: string[]
}

/** Throws `cli/acme`. */
export function readAcme(given: Given): AcmeFlags {
  const words = textOf(given, 'acme')
  const off = words === undefined ? false : SWITCHES.get(words)
  if (off === undefined) throw wrong('--acme', words!, 'on or off')
  return {
    off,
    domains: listOf(given, 'acme-domain'),
    directory: textOf(given, 'acme-directory'),
    contact: textOf(given, 'acme-contact'),
    caPath: textOf(given, 'acme-ca'),
    eabId: textOf(given, 'acme-eab-kid'),
    eabKeyPath: textOf(given, 'acme-eab-key-file'),
  }
}

const SWITCHES: ReadonlyMap<string, boolean> = new Map([
  ['on', false],
  ['true', false],
  ['off', true],
  ['false', true],
])

/** Throws `cli/acme`, `cli/conflict`. */
export function checkAcme(flags: AcmeFlags): void {
  const { off, domains, directory, contact, eabKeyPath, eabId } = flags
  if (off && domains.length > 0) {
    throw new TunnelError(
      'cli/conflict',
      'Cannot use --acme-domain together with --acme off: nothing would vouch for that name',
    )
  }
  if (directory !== undefined) checkDirectory(directory, '--acme-directory')
  for (const domain of domains) {
    const name = normaliseHostName(domain)
    if (name === undefined || !name.includes('.')) {
      throw wrong('--acme-domain', domain, 'a host name such as app.example.com')
    }
  }
  if (domains.length > DOMAINS_MAX) {
    throw wrong('--acme-domain', `${domains.length} of them`, `at most ${DOMAINS_MAX}`)
  }
  if (contact !== undefined && !/^[^\s@,?]{1,64}@[^\s@,?]{1,253}$/.test(contact)) {
    throw wrong('--acme-contact', contact, 'one e-mail address')
  }
  if (eabKeyPath !== undefined && eabId === undefined) {
    throw wrong('--acme-eab-key-file', 'no --acme-eab-kid', 'both')
  }
}

function wrong(flag: string, found: string, expected: string): TunnelError {
  return new TunnelError(
    'cli/acme',
    `Cannot read ${flag}: found "${found.slice(0, 200)}", expected ${expected}`,
  )
}

/** What a publication needs; undefined where it is switched off. Throws `cli/acme`, `ca/file`, `files/…`. */
export async function acmePlan(flags: AcmeFlags, world: World): Promise<AcmePlan | undefined> {
  if (flags.off) return undefined
  return {
    choice: await acmeChoice(world, flags, '--acme-'),
    domains: flags.domains.map((domain) => normaliseHostName(domain)!),
  }
}
