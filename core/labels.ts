/**
 * What an agent says of itself at admission, for people and for the patterns of fleet tokens: a few
 * words such as `role=web`. They are claims, checked against the credential and shown by the relay.
 *
 *   count 1 ‖ (name 1+n ‖ value 1+n) each, names strictly ascending
 *
 * docs/protocol.md §3.
 */
import type { ByteReader, ByteWriter } from './bytes.ts'
import { TunnelError } from './errors.ts'
import { isName } from './key.ts'

// Specification constants.
export const LABELS_MAX = 16
/** Of a name, and of a value. */
export const LABEL_LENGTH_MAX = 63

const VALUE = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/

/** Name → value, both in lower case. */
export type Labels = Readonly<Record<string, string>>

/** Throws `labels/count`, `labels/form`. */
export function checkLabels(labels: Labels): void {
  const entries = Object.entries(labels)
  if (entries.length > LABELS_MAX) {
    throw new TunnelError(
      'labels/count',
      `Cannot use labels: found ${entries.length}, expected at most ${LABELS_MAX}`,
    )
  }
  for (const [name, value] of entries) {
    if (isName(name) && typeof value === 'string' && VALUE.test(value)) continue
    throw new TunnelError(
      'labels/form',
      `Cannot use label ${
        JSON.stringify(`${name}=${value}`.slice(0, 160))
      }: expected NAME=VALUE, each ` +
        `1 to ${LABEL_LENGTH_MAX} of a-z 0-9 and inner hyphens, values dots and underscores too`,
      { hint: 'One like "role=web" or "site=berlin-1".' },
    )
  }
}

/** `NAME=VALUE` each; of one name the last counts. Throws what `checkLabels` throws. */
export function parseLabels(words: readonly string[]): Labels {
  const labels: Record<string, string> = {}
  for (const word of words) {
    const at = word.indexOf('=')
    const one = at < 0 ? { [word]: '' } : { [word.slice(0, at)]: word.slice(at + 1) }
    checkLabels(one)
    Object.assign(labels, one)
  }
  checkLabels(labels)
  return labels
}

/** Throws what `checkLabels` throws. */
export function writeLabels(writer: ByteWriter, labels: Labels): ByteWriter {
  checkLabels(labels)
  const names = Object.keys(labels).sort()
  writer.u8(names.length)
  for (const name of names) writer.text8(name).text8(labels[name]!)
  return writer
}

/** Throws `labels/count`, `labels/form`, `labels/order`, and what the reader throws. */
export function readLabels(reader: ByteReader): Labels {
  const count = reader.u8()
  const labels: Record<string, string> = {}
  let before = ''
  for (let left = count; left > 0; left--) {
    const name = reader.text8()
    if (name <= before) {
      throw new TunnelError('labels/order', 'Cannot read labels: found names that do not ascend')
    }
    before = name
    labels[name] = reader.text8()
    // Now, so that a list of any length is not read to its end.
    checkLabels({ [name]: labels[name] })
  }
  checkLabels(labels)
  return labels
}
