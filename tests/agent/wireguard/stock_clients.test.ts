// The list of stock clients: who is in it, who may come to it, and that nothing is leased to whoever may not.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Profile } from '../../../agent/profile.ts'
import { StockClients } from '../../../agent/wireguard/stock_clients.ts'
import type { StockClientEntry } from '../../../agent/wireguard/stock_clients.ts'
import { isTunnelError } from '../../../core/errors.ts'
import { testWorld } from '../../support/agent_world.ts'
import type { TestWorld } from '../../support/agent_world.ts'

const test = suite('agent/wireguard/stock_clients')
const CLIENTS_MAX = 256
let t: TestWorld
let clients: StockClients
let leased: string[]

test.before.each(async () => {
  t = await testWorld()
  clients = new StockClients(t.world, new Profile(t.world), 'office')
  leased = []
})
test.after.each(() => t.close())

function entry(name: string, number = 0): StockClientEntry {
  const key = btoa(String.fromCharCode(...new Uint8Array(32).fill(number & 255)))
  return { name, key, presharedKey: key, sinceMs: 1 }
}

async function add(name: string, number?: number): Promise<string> {
  return await clients.add(entry(name, number), () => {
    leased.push(name)
    return Promise.resolve(`address of ${name}`)
  })
}

async function refusal(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(() => undefined, (thrown) => thrown)
  return isTunnelError(error) ? error.code : String(error)
}

test('add() gives what was leased, and list() has it', async () => {
  assert.is(await add('phone'), 'address of phone')
  assert.equal(await clients.list(), [entry('phone')])
  assert.ok(await clients.remove('phone'))
  assert.not.ok(await clients.remove('phone'))
  assert.equal(await clients.list(), [])
})

test('add() leases nothing to a name that is taken, nor where there are as many as may be', async () => {
  await add('phone')
  assert.is(await refusal(add('phone', 7)), 'stock/taken')
  assert.equal(leased, ['phone'])
  assert.equal(await clients.list(), [entry('phone')])
  for (let i = 1; i < CLIENTS_MAX; i++) await add(`client-${i}`, i)
  assert.is(await refusal(add('one-more')), 'stock/full')
  assert.is(leased.length, CLIENTS_MAX)
  assert.is((await clients.list()).length, CLIENTS_MAX)
})

test('add() keeps nobody who got no address', async () => {
  const failing = clients.add(entry('phone'), () => Promise.reject(new Error('no room')))
  assert.is(await refusal(failing), 'Error: no room')
  assert.equal(await clients.list(), [])
})

test('a file of another shape is told, not written over', async () => {
  await t.world.files.write(clients.path, new TextEncoder().encode('{"clients":[{"name":"../x"}]}'))
  assert.is(await refusal(clients.list()), 'stock/corrupt')
  assert.is(await refusal(add('phone')), 'stock/corrupt')
  assert.equal(leased, [])
})

test.run()
