/** How the values of settings are written: host names, addresses, ranges, quotas, keys; and words near others. */
import { parseNetwork } from '../core/address.ts'
import type { Network } from '../core/address.ts'
import { isName } from '../core/key.ts'
import { decodeMinisignKey } from '../core/minisign.ts'
import { QUOTA_DEFAULTS } from './quota.ts'

const DOMAIN_LENGTH_MAX = 190
/** Public ports that one relay may open. */
export const PUBLIC_PORTS_MAX = 10_000
/** Networks of proxies that are believed. */
export const NETWORKS_MAX = 64
const URL_LENGTH_MAX = 1024
/** A public key of minisign without the line above it. */
const RELEASE_KEY = /^[A-Za-z0-9+/]{56}$/

export function isDomain(value: string): boolean {
  return value.length <= DOMAIN_LENGTH_MAX && value.split('.').every(isName) &&
    // All digits at the end would be an address to every URL parser (WHATWG URL, "ends in a number").
    !/(^|\.)[0-9]+$/.test(value)
}

export function isHost(value: string): boolean {
  if (/^[0-9.]+$/.test(value)) {
    const parts = value.split('.')
    return parts.length === 4 && parts.every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part)) &&
      parts.every((part) => Number(part) <= 255)
  }
  if (!value.includes(':')) return value === 'localhost'
  // The URL parser knows the forms of IPv6 (RFC 4291 §2.2) better than a pattern would.
  return /^[0-9a-fA-F:.]+$/.test(value) && URL.canParse(`http://[${value}]/`)
}

/** `none` gives undefined, what is no range gives null. */
export function readRange(value: string): readonly [number, number] | undefined | null {
  if (value === 'none') return undefined
  const found = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(value)
  if (!found) return null
  const first = Number(found[1])
  const last = Number(found[2] ?? found[1])
  const fits = first >= 1 && last <= 65_535 && first <= last && last - first < PUBLIC_PORTS_MAX
  return fits ? [first, last] : null
}

/** `true` is a flag without a value, and means this machine; null is none. */
export function readNetworks(value: string): Network[] | undefined | null {
  if (value === 'none' || value === 'false') return undefined
  const words = value === 'true' ? '127.0.0.0/8,::1' : value
  const networks = words.split(',').map((text) => parseNetwork(text.trim()))
  if (networks.length > NETWORKS_MAX) return null
  return networks.every((network) => network !== undefined) ? networks : null
}

export function isHttpsUrl(value: string): boolean {
  return value.length <= URL_LENGTH_MAX && URL.canParse(value) &&
    new URL(value).protocol === 'https:'
}

/** Null on a name that is no quota, a number that is none, or one quota twice. */
export function readQuotas(value: string): Record<string, number> | null {
  const quotas: Record<string, number> = {}
  for (const part of value.split(',').map((text) => text.trim()).filter(Boolean)) {
    const found = /^([a-zA-Z][a-zA-Z.]{0,62})=([0-9]{1,15})$/.exec(part)
    if (!found || !Object.hasOwn(QUOTA_DEFAULTS, found[1]!)) return null
    if (Object.hasOwn(quotas, found[1]!)) return null
    quotas[found[1]!] = Number(found[2])
  }
  return quotas
}

/** One whose text is safe in a header, a script and a page as it is. */
export function isReleaseUrl(value: string): boolean {
  if (!/^https:\/\/[a-z0-9.-]+(:[0-9]{1,5})?(\/[A-Za-z0-9._~-]+)*\/?$/.test(value)) return false
  return value.length <= URL_LENGTH_MAX && URL.canParse(value)
}

export function isReleaseKey(value: string): boolean {
  try {
    return RELEASE_KEY.test(value) && decodeMinisignKey(value).public32.length > 0
  } catch {
    return false
  }
}

/** The known word at most two edits away. */
export function nearest(word: string, known: string[]): string | undefined {
  let best: string | undefined
  let fewest = 3
  for (const other of known) {
    if (Math.abs(other.length - word.length) > 2) continue
    const edits = distance(word, other)
    if (edits < fewest) [best, fewest] = [other, edits]
  }
  return best
}

/** Levenshtein's, over one row. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change))
    }
    row = next
  }
  return row[b.length]!
}
