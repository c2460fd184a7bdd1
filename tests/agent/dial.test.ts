// A relay that lies about who serves a name: it can withhold passports, and neither forge, swap nor
// wind back one that was seen.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { toBase64 } from '../../agent/agent.ts'
import { Dialler } from '../../agent/dial.ts'
import type { DialPorts } from '../../agent/dial.ts'
import { formatKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { encodePassport } from '../../core/passport.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { AGENT, OTHER_AGENT } from '../support/admission.ts'
import { fast, filled } from '../support/crypto.ts'

const dial = suite('agent/dial')

function passport(by: Identity, sequence: number, names = ['db']): string {
  const notBefore = Date.now()
  return toBase64(encodePassport({
    identity: by.public,
    sequence,
    notBefore,
    notAfter: notBefore + 1e9,
    certificates: [filled(sequence)],
    names,
    ciphers: [],
  }, (message) => fast.ed25519Sign(by.seed, message)))
}

/** A dialler whose relay answers what `answers` holds, one after the other. */
function against(...answers: { key: string; passport: string }[][]): Dialler {
  return new Dialler({
    world: { crypto: fast, clock: systemClock },
    uplink: { request: () => Promise.resolve({ agents: answers.shift() }) },
    trust: (_: string, keys: string[]) => Promise.resolve(keys),
  } as unknown as DialPorts, 'db')
}

async function codeOf(run: Promise<unknown>): Promise<string> {
  return await run.then(() => 'none', (error) => String(error.code))
}

const key = formatKey(AGENT.public)

dial('resolve() gives the certificates of a good passport', async () => {
  const [served] = await against([{ key, passport: passport(AGENT, 2) }]).resolve()
  assert.equal(served, { key, certificates: [filled(2)] })
})

dial('resolve() takes the same passport again and refuses an older one', async () => {
  const now = [{ key, passport: passport(AGENT, 2) }]
  const dialler = against(now, now, [{ key, passport: passport(AGENT, 1) }])
  await dialler.resolve()
  await dialler.resolve()
  assert.is(await codeOf(dialler.resolve()), 'passport/stale')
})

dial(
  "resolve() refuses another identity's passport, a changed one, and one for another name",
  async () => {
    const changed = Uint8Array.from(atob(passport(AGENT, 2)), (letter) => letter.charCodeAt(0))
    changed[70]! ^= 1
    const cases: [string, string][] = [
      [passport(OTHER_AGENT, 2), 'passport/signer'],
      [toBase64(changed), 'passport/forged'],
      [passport(AGENT, 2, ['web']), 'dial/passport'],
    ]
    for (const [lie, code] of cases) {
      assert.is(await codeOf(against([{ key, passport: lie }]).resolve()), code)
    }
    assert.is(await codeOf(against([]).resolve()), 'dial/unknown')
  },
)

dial.run()
