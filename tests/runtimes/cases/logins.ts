/** Logins by a code that a person approves, through the runtime's own HTTP and store. */
import * as assert from 'uvu/assert'
import { INTERVAL_SECONDS } from '../../../relay/device.ts'
import { api, ask } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import { DevicePage, LoginDevice } from '../../support/login.ts'
import type { Send } from '../../support/login.ts'
import type { Bed, Cases } from '../bed.ts'

/** The relay's own HTTP as a `Response`. */
function sender(bed: Bed): Send {
  return async (path, { method = 'GET', headers = {}, body }) => {
    const answer = await ask(bed.relay, path, {
      method,
      headers: headers as Record<string, string>,
      ...(body === undefined ? {} : { body: String(body) }),
    })
    const kept = new Headers()
    for (const [name, value] of Object.entries(answer.headers)) {
      for (const one of [value ?? []].flat()) kept.append(name, one)
    }
    return new Response(answer.text, { status: answer.status, headers: kept })
  }
}

export const loginCases: Cases = (test, bed) => {
  const device = async (): Promise<LoginDevice> => {
    const { key } = (await ask(bed.relay, '/v1/relay')).json()
    const made = new LoginDevice(fast, sender(bed), String(key))
    await made.begin()
    return made
  }

  test('a login is approved by the API, once, and its key admits an agent', async () => {
    const one = await device()
    assert.is((await one.poll())['error'], 'authorization_pending')
    assert.is((await one.poll())['error'], 'slow_down', `before ${INTERVAL_SECONDS} s`)
    const body = { code: one.userCode, scope: 'visitors' }
    assert.is((await api(bed.relay, '/logins/look', { body })).status, 400, 'a field too many')
    const approvals = await Promise.all(
      [1, 2, 3].map(() => api(bed.relay, '/logins/approve', { body })),
    )
    assert.equal(approvals.map(({ status }) => status).sort(), [200, 404, 404])
    const answers = await Promise.all([one.poll(), one.poll()])
    const good = answers.filter(({ status }) => status === 200)
    assert.is(good.length, 1)
    const secret = one.open(good[0]!)
    const agent = await bed.agent({ secret })
    assert.is(agent.welcome['scope'], 'visitors')
    // What `sotto logout` asks.
    const { id } = (await api(bed.relay, '/grant', { key: secret })).json()
    const gone = await api(bed.relay, `/keys/${id}`, { method: 'DELETE', key: secret })
    assert.is(gone.status, 204)
    assert.is((await api(bed.relay, '/grant', { key: secret })).status, 401)
  })

  test('a login is approved on the page with the admin key, and turned away on it', async () => {
    const [one, other] = [await device(), await device()]
    const page = new DevicePage(sender(bed))
    await page.open(one.userCode)
    assert.is(page.status, 200)
    await page.submit({ step: 'look', code: one.userCode })
    assert.match(page.html, /ana@laptop/)
    await page.submit(
      { step: 'approve', code: one.userCode, key: bed.relay.adminKey, scope: 'paged' },
      { 'sec-fetch-site': 'cross-site' },
    )
    assert.is(page.status, 403)
    await page.submit({
      step: 'approve',
      code: one.userCode,
      key: bed.relay.adminKey,
      scope: 'paged',
    })
    assert.is(page.status, 200)
    assert.match(one.open(await one.poll()), /^sk_paged_/)
    await page.submit({ step: 'deny', code: other.userCode })
    assert.is((await other.poll())['error'], 'access_denied')
  })

  test('without --open-signup nobody approves for himself', async () => {
    const one = await device()
    const page = new DevicePage(sender(bed))
    await page.open()
    await page.submit({ step: 'signup', code: one.userCode })
    assert.is((await one.poll())['error'], 'authorization_pending')
  })
}
