/** The keys whose releases a built program believes: compile/release.pub, or another file for tests. */
import { decodeMinisignKey } from '../core/minisign.ts'

/**
 * The base64 of each public key in the text; lines that begin with "untrusted comment:" or "#" say
 * something to people. Several keys are one that signs now and one that will. Throws `minisign/key`.
 */
export function releaseKeysOf(text: string): string[] {
  return text.split(/\r?\n/).map((line) => line.trim())
    .filter((line) =>
      line !== '' && !line.startsWith('#') && !line.startsWith('untrusted comment:')
    )
    .map((line) => {
      decodeMinisignKey(line)
      return line
    })
}
