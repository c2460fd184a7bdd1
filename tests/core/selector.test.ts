// Selectors: what they choose, what they refuse, and that a slow twin agrees.
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isTunnelError } from '../../core/errors.ts'
import {
  formatSelector,
  parseSelector,
  SELECTOR_LENGTH_MAX,
  SELECTOR_TERMS_MAX,
  selects,
} from '../../core/selector.ts'

const selector = suite('core/selector')

const chosen = (text: string, labels: Record<string, string>): boolean =>
  selects(parseSelector(text), labels)

selector('all terms must hold; an absent label is unequal to every value', () => {
  const labels = { env: 'prod', region: 'us' }
  for (
    const [text, expected] of [
      ['', true],
      ['  ', true],
      ['env=prod', true],
      ['env=prod,region!=eu', true],
      [' env=prod , region!=eu ', true],
      ['env=prod,region=eu', false],
      ['env!=prod', false],
      ['tier!=gold', true],
      ['tier=gold', false],
      ['env=pro', false],
      ['env=prod,env=test', false],
    ] as const
  ) assert.is(chosen(text, labels), expected, text)
})

selector('what every object has is no label', () => {
  for (const key of ['constructor', 'tostring', 'valueof']) {
    assert.is(chosen(`${key}=x`, {}), false)
    assert.is(chosen(`${key}!=x`, {}), true)
  }
})

selector('parseSelector() refuses what cannot be meant, with a code', () => {
  const cases: [string, string][] = [
    ['env', 'selector/term'],
    ['=prod', 'selector/term'],
    ['!=prod', 'selector/term'],
    ['env=', 'selector/term'],
    ['env!=', 'selector/term'],
    ['env==prod', 'selector/term'],
    ['env=a=b', 'selector/term'],
    ['env=!a', 'selector/term'],
    ['Env=prod', 'selector/term'],
    ['env=a b', 'selector/term'],
    ['env=\u00e9', 'selector/term'],
    ['env=prod,', 'selector/term'],
    [',env=prod', 'selector/term'],
    ['a=1,'.repeat(SELECTOR_TERMS_MAX) + 'a=1', 'selector/terms'],
    ['a'.repeat(SELECTOR_LENGTH_MAX + 1), 'selector/length'],
  ]
  for (const [text, code] of cases) {
    try {
      parseSelector(text)
      assert.unreachable(text)
    } catch (error) {
      assert.ok(isTunnelError(error), String(error))
      assert.is(error.code, code, text)
    }
  }
  assert.is(parseSelector(Array(SELECTOR_TERMS_MAX).fill('a=1').join(',')).length, 16)
})

selector('formatSelector() is read back as the same, whatever the terms', () => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  console.log(`seed ${seed}`)
  const word = fc.stringMatching(/^[a-z0-9]{1,8}$/)
  const term = fc.record(
    { key: word, value: word, equal: fc.boolean() },
    { noNullPrototype: true },
  )
  const labels = fc.dictionary(word, word, { maxKeys: 6 })
  fc.assert(
    fc.property(fc.array(term, { maxLength: 16 }), labels, (terms, labels) => {
      const text = formatSelector(terms)
      assert.equal(parseSelector(text), terms)
      // The twin: term by term over the text, by string operations alone.
      const slow = text === '' || text.split(',').every((one) => {
        const [key, value] = one.split(/!?=/) as [string, string]
        const has = Object.entries(labels).some(([k, v]) => k === key && v === value)
        return one.includes('!') ? !has : has
      })
      assert.is(selects(terms, labels), slow)
    }),
    { seed, numRuns: 500 },
  )
})

selector.run()
