// Every decoder of network bytes against 300,000 mutated messages; `npm run fuzz` drives 10 million.
// runtimes: bun
// seconds: 300
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fuzz } from '../support/fuzzer.ts'

const RUNS = Number(process.env['SOTTO_FUZZ_RUNS'] ?? 300_000)
const SEED = Number(process.env['SOTTO_FUZZ_SEED'] ?? Math.floor(Math.random() * 2 ** 32))

const fuzzing = suite('core/fuzz')

fuzzing(`no decoder throws outside the error family on ${RUNS} mutated messages`, () => {
  console.log(`seed ${SEED}`)
  const { findings, byTarget } = fuzz(SEED, RUNS)
  console.log(JSON.stringify(byTarget))
  assert.equal(findings, [], `seed ${SEED}`)
  for (const [name, { runs, taken }] of Object.entries(byTarget)) {
    assert.ok(runs > RUNS / 200, `${name} was hardly driven`)
    // A fuzzer whose every message is refused at the first byte tests nothing.
    if (name === 'frame' || name === 'client_hello' || name === 'ticket') assert.ok(taken > 0, name)
  }
})

fuzzing('the fuzzer finds a decoder that throws something else', () => {
  const planted = {
    name: 'planted',
    seeds: [new Uint8Array(8)],
    run(bytes: Uint8Array): void {
      if (bytes.length > 8) throw new RangeError('planted')
    },
  }
  assert.ok(fuzz(1, 2000, [planted]).findings.every(({ target }) => target === 'planted'))
  assert.ok(fuzz(1, 2000, [planted]).findings.length > 0)
})

fuzzing.run()
