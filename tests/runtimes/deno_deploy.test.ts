// The relay on `Deno.serve`, as a process, its store in Deno KV.
// alone
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Edge, edgeClaims, pause } from '../support/edge_suite.ts'
import { startDenoDeploy } from '../support/worker_relay.ts'

const deploy = suite('runtimes/deno_deploy')
const edge = new Edge()

deploy.before(() => edge.start(() => startDenoDeploy()))
deploy.after(() => edge.close())

edgeClaims(deploy, edge)

deploy('a link that only pings is not taken for dead', async () => {
  const agent = await edge.link()
  const ping = setInterval(() => agent.socket.ping!(), 2000)
  await pause(20_000)
  clearInterval(ping)
  assert.is((await agent.request({ do: 'passport' }))['ok'], true)
  await agent.close()
})

deploy('identity, names and keys outlive the process', async () => {
  const home = await edge.link()
  await home.claim('kept')
  const told = async (): Promise<{ key: string }> =>
    await (await fetch(`${edge.relay.url}/v1/relay`)).json()
  const { key } = await told()
  await edge.relay.stop({ keep: true })
  const { data, adminKey } = edge.relay
  edge.relay = { ...await startDenoDeploy({ data }), adminKey }
  assert.is((await told()).key, key)
  assert.is((await fetch(`${edge.relay.url}/v1/names/kept`)).status, 200)
  const back = await edge.link({ identity: home.identity })
  assert.is((await back.claim('kept'))['ok'], true)
  await back.close()
})

deploy.run()
