/**
 * Codes that people read to each other: `7-three-word-code`, the number of a room at the relay and
 * three words of 2,048, which is a secret of 33 bits. The relay knows the room and never the words.
 * docs/protocol.md §13.
 */
import { wordlist } from '@scure/bip39/wordlists/english.js'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const CODE_WORDS = 3
/** No two words of the list begin with the same four letters. */
export const WORD_PREFIX_LENGTH = 4
export const ROOM_MAX = 999_999_999

// Our own choices.
/** Longest text that is read as a code. */
const CODE_LENGTH_MAX = 128
/** More letters than this and the nearest word is a guess. */
const SUGGEST_CHANGES_MAX = 3
const COMPLETIONS_MAX = 32

/** Blanks and every dash that a phone makes of a hyphen. */
const SEPARATORS = /[\s\u002d\u2010-\u2015\u2212]+/
const ROOM = /^[1-9][0-9]{0,8}$/

export interface Code {
  room: number
  /** Lower case, joined by hyphens: what CPace is given. */
  words: string
}

/** Three words, 33 random bits. */
export function makeWords(crypto: Crypto): string {
  const bytes = crypto.randomBytes(2 * CODE_WORDS)
  const words: string[] = []
  for (let i = 0; i < CODE_WORDS; i++) {
    // 2,048 divides 65,536: each word is as likely as any other.
    words.push(wordlist[(bytes[2 * i]! << 8 | bytes[2 * i + 1]!) % wordlist.length]!)
  }
  return words.join('-')
}

/** `7-three-word-code`. Throws `code/format` on a room or words that `parseCode` would not read. */
export function formatCode(room: number, words: string): string {
  const text = `${room}-${words}`
  const code = parseCode(text)
  if (code.room !== room || code.words !== words) throw wrongCode('words that are not in full')
  return text
}

/**
 * Reads a code as people type it: any case, blanks or hyphens between, words in full or by their
 * first four letters. Throws `code/format`, and `code/word` with the nearest word as its hint.
 */
export function parseCode(text: string): Code {
  if (text.length > CODE_LENGTH_MAX) throw wrongCode(`${text.length} characters`)
  const parts = split(text)
  const [room = '', ...words] = parts
  if (!ROOM.test(room)) throw wrongCode('no number at its beginning')
  if (words.length !== CODE_WORDS) throw wrongCode(`${words.length} words`)
  return { room: Number(room), words: words.map(findWord).join('-') }
}

/**
 * Every way to go on with the last word of `text`, as whole texts, at most 32; none where nothing
 * or too much could follow. For tab completion.
 */
export function completeCode(text: string): string[] {
  if (text.length > CODE_LENGTH_MAX) return []
  const parts = text.normalize('NFKC').toLowerCase().trimStart().split(SEPARATORS)
  const [room = '', ...words] = parts
  const begun = words.pop()
  if (!ROOM.test(room) || !begun || words.length >= CODE_WORDS) return []
  const whole: string[] = []
  for (const word of words) {
    const found = lookUp(word)
    if (!found) return []
    whole.push(found)
  }
  const last = whole.length === CODE_WORDS - 1
  return wordlist.filter((word) => word.startsWith(begun)).slice(0, COMPLETIONS_MAX)
    .map((word) => [room, ...whole, word].join('-') + (last ? '' : '-'))
}

function split(text: string): string[] {
  return text.normalize('NFKC').toLowerCase().split(SEPARATORS).filter((part) => part !== '')
}

function findWord(typed: string): string {
  const found = lookUp(typed)
  if (found) return found
  const near = nearest(typed)
  throw new TunnelError(
    'code/word',
    `Cannot read code: found the word ${JSON.stringify(typed)}, which is not in the list`,
    near ? { hint: `Did you mean ${JSON.stringify(near)}?` } : {},
  )
}

function lookUp(typed: string): string | undefined {
  if (wordlist.includes(typed)) return typed
  if (typed.length < WORD_PREFIX_LENGTH) return undefined
  return wordlist.find((word) => word.startsWith(typed))
}

function nearest(typed: string): string | undefined {
  let best: string | undefined
  let fewest = SUGGEST_CHANGES_MAX + 1
  for (const word of wordlist) {
    if (Math.abs(word.length - typed.length) >= fewest) continue
    const changes = distance(typed, word)
    if (changes < fewest) {
      best = word
      fewest = changes
    }
  }
  return best
}

/** Letters to add, drop, change or swap with their neighbour (optimal string alignment). */
function distance(a: string, b: string): number {
  let before: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      let best = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + same)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        best = Math.min(best, before[j - 2]! + 1)
      }
      row.push(best)
    }
    before = last
    last = row
  }
  return last[b.length]!
}

function wrongCode(found: string): TunnelError {
  return new TunnelError(
    'code/format',
    `Cannot read code: found ${found}, expected a number and three words`,
    { hint: 'A code looks like 7-crop-lamp-vivid, as the other side shows it.' },
  )
}
