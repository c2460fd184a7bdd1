/**
 * What a row of the tables says, and how one is played: once without the attack, which must go well
 * and deliver everything, and once with it, which must end in one of the names that the row allows,
 * said by somebody honest, within 5 s, with nothing delivered that was not sent.
 */
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { SERVICE, Stage } from './stage.ts'
import type { ActorOptions } from './stage.ts'

/** Within which the honest side must have said it. */
const NAMED_MS_MAX = 5000
/** A run without an attack, and whatever is left to happen after a name was said. */
const PATIENCE_MS = 20_000
const SETTLE_MS = 20

export interface Scene {
  /** Who is there, and what they know; the usual two where absent. */
  set?(stage: Stage, row: Row): Promise<void>
  /** What honest people do; resolves when it went well. */
  act(stage: Stage): Promise<void>
  /** What must hold after a run without an attack; that all was delivered where absent. */
  went?(stage: Stage): void
}

export interface Row {
  name: string
  /** Which part of the stack stops it. */
  layer: string
  /** Codes; one of them must be heard. */
  says: string[]
  /** Lies at least; default 1. */
  lies?: number
  scene?: Scene
  /** How long the agents' own time has to pass for it, in ms; default none. */
  passes?: number
  alice?: ActorOptions
  bob?: ActorOptions
  /** What happened before: where somebody has seen what the relay later keeps back. */
  before?(stage: Stage): Promise<void>
  /** Sets the relay up to lie, before the scene; what it gives back runs beside the scene. */
  attack(stage: Stage): void | (() => Promise<void>)
  /** What else must hold in the end. */
  holds?: ((stage: Stage) => void | Promise<void>) | undefined
}

/** Alice opens a session with Bob, says something long and hears it come back, twice. */
export const MESSAGE: Scene = {
  async act(stage) {
    const { session } = await stage.open()
    await stage.say(session)
    await stage.say(session)
  },
}

export async function play(row: Row): Promise<void> {
  await playHonestly(row)
  const stage = await Stage.open()
  try {
    await set(stage, row)
    await row.before?.(stage)
    const startMs = performance.now()
    const beside = row.attack(stage)
    const { act } = row.scene ?? MESSAGE
    let isOver = false
    const acted = act(stage).then(() => void (isOver = true), (error) => {
      stage.hear('alice', 'act', error)
    })
    const deed = beside?.().catch((error) => stage.hear('relay', 'deed', error))
    const named = (): boolean =>
      stage.heard.some(({ who, code }) => stage.isHonest(who) && row.says.includes(code))
    while (!named() && performance.now() - startMs < NAMED_MS_MAX) {
      await stage.turn()
      const lied = stage.relay.interventions >= (row.lies ?? 1)
      if (row.passes && lied) await stage.pass(row.passes, named)
    }
    const heard = stage.heard.map(({ who, where, code }) => `${who} ${where} ${code}`).join(', ')
    assert.ok(named(), `${row.says.join(' or ')} was not said, but: ${heard}; over: ${isOver}`)
    await stage.turn(SETTLE_MS)
    stage.relay.hooks = {}
    isTrueAndSealed(stage)
    const { interventions } = stage.relay
    assert.ok(interventions >= (row.lies ?? 1), `${interventions} lies were told`)
    await row.holds?.(stage)
    for (const { presence } of stage.actors) presence.close()
    await Promise.race([Promise.all([acted, deed]), stage.turn(SETTLE_MS)])
    isTrueAndSealed(stage)
  } finally {
    await stage.close()
  }
}

async function playHonestly(row: Row): Promise<void> {
  const stage = await Stage.open()
  try {
    await set(stage, row)
    const scene = row.scene ?? MESSAGE
    let late: ReturnType<typeof setTimeout> | undefined
    await Promise.race([
      scene.act(stage),
      new Promise((_, reject) => {
        late = setTimeout(() => reject(new Error('the honest run did not end')), PATIENCE_MS)
      }),
    ]).finally(() => clearTimeout(late))
    if (scene.went) scene.went(stage)
    else assert.ok(stage.complete, 'everything arrived without the attack')
    isTrueAndSealed(stage)
    assert.equal(stage.heard, [], 'nobody complained without the attack')
    assert.is(stage.relay.interventions, 0)
    // The search does find what passes in clear.
    assert.ok(stage.relay.saw(utf8(scene.went ? '"do":"claim"' : SERVICE)))
  } finally {
    await stage.close()
  }
}

function isTrueAndSealed(stage: Stage): void {
  const [untrue, leaked] = [stage.untrue(), stage.leaked()]
  assert.ok(untrue === undefined, untrue)
  assert.ok(leaked === undefined, `${leaked} crossed the relay in clear`)
}

async function set(stage: Stage, row: Row): Promise<void> {
  if (row.scene?.set) return await row.scene.set(stage, row)
  const bob = await stage.enter('bob', row.bob ?? {})
  const alice = await stage.enter('alice', row.alice ?? {})
  await stage.introduce(alice, bob)
  stage.serveEcho(bob)
}
