// A relay that lies about who serves a name: it can withhold passports, and neither forge, swap nor
// wind back one that was seen.
import { readFile, stat, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { createServer } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { toBase64 } from '../../agent/agent.ts'
import { Dialler } from '../../agent/dial.ts'
import type { DialPorts } from '../../agent/dial.ts'
import { Profile } from '../../agent/profile.ts'
import { formatKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { encodePassport } from '../../core/passport.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { AGENT, OTHER_AGENT } from '../support/admission.ts'
import { serverIdentity, testWorld } from '../support/agent_world.ts'
import { fast, filled } from '../support/crypto.ts'

const dial = suite('agent/dial')

function passport(
  by: Identity,
  sequence: number,
  names = ['db'],
  certificate = filled(sequence),
): string {
  const notBefore = Date.now()
  return toBase64(encodePassport({
    identity: by.public,
    sequence,
    notBefore,
    notAfter: notBefore + 1e9,
    certificates: [certificate],
    names,
    ciphers: [],
  }, (message) => fast.ed25519Sign(by.seed, message)))
}

type Answer = { key: string; passport: string }[]

/** A dialler whose relay answers what `answers` holds, one after the other. */
function against(...answers: Answer[]): Dialler {
  const newest = new Map<string, number>()
  return dialler(answers, {
    passports: {
      newest: (key) => Promise.resolve(newest.get(key) ?? 0),
      keep: (key, sequence) => Promise.resolve(void newest.set(key, sequence)),
    },
  })
}

const allTrusted: DialPorts['trust'] = (_, candidates) =>
  Promise.resolve(candidates.map(({ key }) => key))

function dialler(answers: Answer[], ports: Pick<DialPorts, 'passports'> & Partial<DialPorts>) {
  return new Dialler({
    world: { crypto: fast, clock: systemClock },
    uplink: { request: () => Promise.resolve({ agents: answers.shift() }) },
    trust: allTrusted,
    ...ports,
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

dial('a passport that a run before has outdated is refused in the next', async () => {
  const t = await testWorld()
  const run = (sequence: number, trust = allTrusted) =>
    dialler([[{ key, passport: passport(AGENT, sequence) }]], {
      passports: new Profile(t.world).knownPassports(),
      trust,
    }).resolve()
  try {
    await run(5)
    assert.is(await codeOf(run(4)), 'passport/stale')
    await run(5)
    await run(6)
    assert.is(await codeOf(run(5)), 'passport/stale')
    // What a stranger shows moves nothing.
    await run(9, () => Promise.resolve([]))
    await run(6)
    const path = `${new Profile(t.world).configDir}/known_passports`
    assert.is(((await stat(path)).mode & 0o777).toString(8), '600')
    assert.is(await readFile(path, 'utf8'), `${key} 6\n`)
    await writeFile(path, `${key} x\n`)
    assert.is(await codeOf(run(7)), 'trust/corrupt', 'a file that cannot be read is not skipped')
  } finally {
    await t.close()
  }
})

dial(
  'two runs at once keep the newer number, and the number of identities is bounded',
  async () => {
    const t = await testWorld()
    try {
      const known = () => new Profile(t.world).knownPassports()
      await Promise.all([3, 9, 5, 7].map((sequence) => known().keep(key, sequence)))
      assert.is(await known().newest(key), 9)
      assert.is(await known().newest(formatKey(OTHER_AGENT.public)), 0)
      const path = `${new Profile(t.world).configDir}/known_passports`
      await writeFile(path, `${key} 9\n`.repeat(10_000))
      await known().keep(formatKey(OTHER_AGENT.public), 1)
      assert.is((await readFile(path, 'utf8')).split('\n').length - 1, 10_000)
    } finally {
      await t.close()
    }
  },
)

dial(
  'a certificate that came into use after the passport was asked for: asked once more',
  async () => {
    const t = await testWorld()
    const served = await serverIdentity(t.world)
    const { fingerprint } = t.world.tls.inspect(served)
    let connections = 0
    const server = createServer({ cert: served.cert, key: served.key }, (socket) => {
      socket.on('error', () => {})
      socket.end('hello')
    })
    server.on('tlsClientError', () => {})
    server.on('connection', () => connections++)
    const port = await new Promise<number>((resolve) => {
      server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port))
    })
    const dialTo = (...answers: Answer[]) => {
      connections = 0
      return dialler([], {
        world: t.world,
        uplink: {
          up: { welcome: { can: ['passthrough'], secure: 'secure.localhost' } },
          request: () => Promise.resolve({ agents: answers.shift() }),
        } as unknown as DialPorts['uplink'],
        link: { relay: new URL(`https://127.0.0.1:${port}`) } as unknown as DialPorts['link'],
        identity: () => served,
        passports: new Profile(t.world).knownPassports(),
      }).dial()
    }
    const before = [{ key, passport: passport(AGENT, 1) }]
    const after = [{ key, passport: passport(AGENT, 2, ['db'], fingerprint) }]
    const another = [{ key, passport: passport(AGENT, 3) }]
    try {
      const conn = await dialTo(before, after, [])
      assert.is(connections, 2)
      conn.abort()
      assert.is(await codeOf(dialTo(another, another, after)), 'trust/certificate')
      assert.is(connections, 1, 'no newer passport names it: not dialled again')
      assert.is(
        await codeOf(dialTo(another, after)),
        'trust/certificate',
        'an older one is a replay',
      )
      assert.is(connections, 1)
    } finally {
      await new Promise((resolve) => server.close(resolve))
      await t.close()
    }
  },
)

dial.run()
