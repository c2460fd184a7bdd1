/**
 * Label selectors, the same at an agent and at a relay: `env=prod,region!=eu`.
 *
 *   selector  term, or several with commas between: all must hold
 *   term      key=value    the label is there and has that value
 *             key!=value   it has another value, or is not there
 *
 * Keys and values are compared as they are, with no patterns. Blanks around a term are skipped.
 */
import { TunnelError } from './errors.ts'
import { isName } from './key.ts'

export const SELECTOR_LENGTH_MAX = 1024
export const SELECTOR_TERMS_MAX = 16
/** Printable ASCII without comma, `=`, `!` and blanks: what can be typed without quoting. */
const VALUE = /^[\x21-\x7e]{1,128}$/
const SPECIAL = /[,=!]/

export interface Term {
  key: string
  value: string
  /** False: `!=`. */
  equal: boolean
}

/** In the order in which they were written; none selects everything. */
export type Selector = readonly Term[]

/** Throws `selector/length`, `selector/terms`, `selector/term`. */
export function parseSelector(text: string): Selector {
  if (text.length > SELECTOR_LENGTH_MAX) {
    throw new TunnelError(
      'selector/length',
      `Cannot read selector: found ${text.length} characters, expected at most ${SELECTOR_LENGTH_MAX}`,
    )
  }
  if (text.trim() === '') return []
  const words = text.split(',')
  if (words.length > SELECTOR_TERMS_MAX) {
    throw new TunnelError(
      'selector/terms',
      `Cannot read selector: found ${words.length} terms, expected at most ${SELECTOR_TERMS_MAX}`,
    )
  }
  return words.map((word) => parseTerm(word.trim()))
}

/** Canonical text, which `parseSelector` reads back. */
export function formatSelector(selector: Selector): string {
  return selector.map(({ key, value, equal }) => `${key}${equal ? '=' : '!='}${value}`).join(',')
}

export function selects(selector: Selector, labels: Readonly<Record<string, string>>): boolean {
  return selector.every(({ key, value, equal }) =>
    // Own properties alone: a label may be called like something that every object has.
    (Object.hasOwn(labels, key) && labels[key] === value) === equal
  )
}

function parseTerm(word: string): Term {
  const at = word.indexOf('=')
  const equal = word[at - 1] !== '!'
  const key = word.slice(0, equal ? at : at - 1)
  const value = word.slice(at + 1)
  if (at > 0 && isName(key) && VALUE.test(value) && !SPECIAL.test(value)) {
    return { key, value, equal }
  }
  throw new TunnelError(
    'selector/term',
    `Cannot read selector: found ${
      JSON.stringify(word.slice(0, 80))
    }, expected key=value or key!=value`,
    { hint: 'Several terms have commas between: env=prod,region!=eu' },
  )
}
