/** Domains of others: led to an endpoint where DNS says so and TLS passes through, refused by name elsewhere. */
import * as assert from 'uvu/assert'
import { hello, serverNames, supportedVersions } from '../../support/hello.ts'
import { makeKey } from '../../support/client.ts'
import { DnsServer } from '../../support/dns.ts'
import type { Cases } from '../bed.ts'

const DOMAIN = 'app.example.org'

export const domainCases: Cases = (test, bed) => {
  if (!bed.can.raw) {
    test('a domain cannot be claimed where no visitor brings TLS of his own', async () => {
      const agent = await bed.agent()
      const name = bed.name()
      const reply = await agent.request({ do: 'domain', domain: DOMAIN, name })
      assert.is((reply['error'] as { code: string }).code, 'domains/closed')
    })
    return
  }

  test('a domain is claimed by its DNS, led to the endpoint, and to nobody else', async () => {
    const dns = await DnsServer.start()
    bed.after(() => dns.close())
    const relay = await bed.another({ flags: { dns: dns.address, 'log-level': 'warn' } })
    const agent = await bed.agent({}, relay)
    const other = await bed.agent({ scope: 'bob' }, relay)
    const [mine, theirs] = [bed.name(), bed.name()]
    await agent.claim(mine)
    await other.claim(theirs)
    const ask = async (who: typeof agent, name: string): Promise<unknown> => {
      const { ok, error, by } = await who.request({ do: 'domain', domain: DOMAIN, name })
      return ok === true ? by : (error as { code: string }).code
    }
    dns.set(DOMAIN, { type: 'CNAME', data: `${mine}.secure.localhost` })
    assert.is(await ask(other, theirs), 'domains/unproven')
    assert.is(await ask(other, mine), 'domains/endpoint')
    assert.is(await ask(agent, bed.name()), 'domains/endpoint')
    assert.is(await ask(agent, mine), 'cname')
    const reader = await bed.dial(undefined, relay)
    const first = hello({ extensions: [serverNames(DOMAIN), supportedVersions(0x0304, 0x0303)] })
    reader.conn.write(first)
    const stream = await agent.opened()
    assert.is(stream.visit.endpoint, mine)
  })

  test('a fleet token for some names takes no domain of its scope by a TXT', async () => {
    const dns = await DnsServer.start()
    bed.after(() => dns.close())
    const relay = await bed.another({ flags: { dns: dns.address, 'log-level': 'warn' } })
    const text = 'sotto-scope=alice; relay=localhost'
    dns.set(`_sotto.${DOMAIN}`, { type: 'TXT', data: text })
    const fleet = { path: 'tokens', scope: 'alice', names: ['edge-*'] }
    const agent = await bed.agent({ secret: (await makeKey(relay, fleet)).secret }, relay)
    await agent.claim('edge-1')
    const ask = async (): Promise<unknown> =>
      await agent.request({ do: 'domain', domain: DOMAIN, name: 'edge-1' })
    const { error } = await ask() as { error: { code: string } }
    assert.is(error.code, 'domains/restricted')
  })

  test('a relay that wants no domains takes none', async () => {
    const relay = await bed.another({ flags: { 'custom-domains': 'false', 'log-level': 'warn' } })
    const agent = await bed.agent({}, relay)
    const name = bed.name()
    await agent.claim(name)
    const reply = await agent.request({ do: 'domain', domain: DOMAIN, name })
    assert.is((reply['error'] as { code: string }).code, 'domains/closed')
  })
}
