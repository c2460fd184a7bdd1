/** Which CA is meant, by whose account: from flags or a file, the environment, and what they name. */
import { text } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import { LETS_ENCRYPT } from './acme.ts'
import type { AcmeChoice } from './acme.ts'
import { environmentCa, readCa } from './outward.ts'
import type { World } from './world.ts'

export const KEY_VARIABLE = 'SOTTO_ACME_EAB_KEY'
export const DIRECTORY_VARIABLE = 'SOTTO_ACME_DIRECTORY'
const KEY_BYTES_MAX = 4096

/** As the person gave it. */
export interface AcmeWords {
  readonly directory: string | undefined
  readonly contact: string | undefined
  readonly caPath: string | undefined
  readonly eabId: string | undefined
  readonly eabKeyPath: string | undefined
}

/** `from` is where it was given: `--acme-`, or `acme.` of a file. Throws `cli/acme`, `ca/file`, `files/…`. */
export async function acmeChoice(
  world: World,
  words: Partial<AcmeWords>,
  from: string,
): Promise<AcmeChoice> {
  const { contact, caPath, eabId, eabKeyPath } = words
  const directory = words.directory ?? (world.env[DIRECTORY_VARIABLE] || LETS_ENCRYPT)
  checkDirectory(directory, DIRECTORY_VARIABLE)
  const ca = caPath === undefined
    ? await environmentCa(world)
    : await readCa(world, caPath, `${from}ca`)
  if (eabId === undefined) return { directory, contact, eab: undefined, ca }
  const content = eabKeyPath === undefined
    ? undefined
    : await world.files.read(eabKeyPath, { bytesMax: KEY_BYTES_MAX })
  const key = (content === undefined ? world.env[KEY_VARIABLE] : text(content))?.trim()
  if (!key || !/^[A-Za-z0-9_+/=-]+$/.test(key)) {
    throw new TunnelError(
      'cli/acme',
      `Cannot use ${from}eab-kid: found no key in ${eabKeyPath ?? KEY_VARIABLE}`,
      {
        hint: `The CA gives an id and an HMAC key; the key comes from a file or ${KEY_VARIABLE}.`,
      },
    )
  }
  return { directory, contact, eab: { id: eabId, key }, ca }
}

/** Throws `cli/acme`. */
export function checkDirectory(directory: string, from = DIRECTORY_VARIABLE): void {
  let url: URL | undefined
  try {
    url = new URL(directory)
  } catch {
    // Told below.
  }
  if (url?.protocol === 'https:' && url.username === '' && url.password === '') return
  throw new TunnelError(
    'cli/acme',
    `Cannot read ${from}: found "${directory.slice(0, 200)}", expected an https URL`,
  )
}
