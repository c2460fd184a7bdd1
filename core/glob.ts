/**
 * Patterns over names and labels: `*` is any run of characters, `?` any one, all else itself.
 * Matched in time bounded by the product of both lengths, whatever the pattern: no regular
 * expression is built from what a person or a token says.
 */

/** Longest pattern, in UTF-16 units. */
export const PATTERN_LENGTH_MAX = 128

export function globMatches(pattern: string, text: string): boolean {
  let at = 0
  let inText = 0
  let star = -1
  let retry = 0
  while (inText < text.length) {
    if (pattern[at] === '*') {
      star = at++
      retry = inText
    } else if (at < pattern.length && (pattern[at] === '?' || pattern[at] === text[inText])) {
      at++
      inText++
    } else if (star >= 0) {
      // The last star takes one character more; earlier stars never need to change.
      at = star + 1
      inText = ++retry
    } else {
      return false
    }
  }
  while (pattern[at] === '*') at++
  return at === pattern.length
}
