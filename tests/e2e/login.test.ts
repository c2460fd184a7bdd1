// seconds: 240
// needs: tmux chromium
/**
 * A person's first login, with real programs: a fresh relay, a terminal that shows a code, and the two
 * ways to let it in. A browser at the relay's page; the relay's host at another terminal.
 */
import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { mkdirSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openBrowser, spkiOf } from '../support/browser.ts'
import { Terminal } from '../support/tmux.ts'
import { E2eWorld } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

const CODE = /enter the code +([A-Z]{4}-[A-Z]{4})$/m
/** Where pictures of the pages go, for a person to look at. */
const PICTURES = process.env['SOTTO_PICTURES']

const test = suite('e2e/login')

let world: E2eWorld
test.before.each(() => void (world = new E2eWorld()))
test.after.each(() => world.close())

async function browserFor(relay: Relay) {
  const { cert } = JSON.parse(
    await readFile(`${world.path('relay')}/state/relay/certificate.json`, 'utf8'),
  ) as { cert: string }
  assert.ok(new X509Certificate(cert).subject !== '')
  const browser = await openBrowser([spkiOf(cert)])
  world.defer(() => browser.close())
  const page = await (await browser.newContext({ viewport: { width: 900, height: 1000 } }))
    .newPage()
  page.setDefaultTimeout(15_000)
  const faults: string[] = []
  page.on('console', (message) => void (message.type() === 'error' && faults.push(message.text())))
  const picture = async (name: string): Promise<void> => {
    if (!PICTURES) return
    mkdirSync(PICTURES, { recursive: true })
    await page.screenshot({ path: `${PICTURES}/login-${name}.png` })
  }
  return { page, faults, picture, url: relay.origin }
}

test('the host of a fresh relay lets a second machine in, with nothing but what is on the screens', async () => {
  const host = new Terminal(world, { home: 'relay', env: {}, columns: 100 })
  host.run('sotto relay --port 0')
  const [, address] = await host.until(/there {2}sotto login (\S+)$/m)
  const ana = new Terminal(world, { home: 'ana', env: {}, columns: 100, rows: 50 })
  ana.run(`sotto login ${address}`)
  const [, code] = await ana.until(CODE)
  await ana.until(/[▀▄█]{10}/)
  await ana.until(/waiting for 10 minutes/)
  const second = new Terminal(world, { home: 'relay', env: {}, columns: 100 })
  second.run(`sotto relay approve ${code}`)
  await second.until(/identity SHA256:/)
  await second.until(/\[y\/N\]/)
  second.run('y')
  const [, scope] = await second.until(/let in \S+ at \S+, as scope (\S+)/)
  await ana.until(new RegExp(`logged in to https://${address}, scope ${scope}`))
  assert.is(await ana.left(), 0)
  ana.clear()
  ana.run('sotto logout')
  await ana.until(/its key is revoked/)
})

test('a key that is typed is not to be seen', async () => {
  const relay = await world.relay()
  const ana = new Terminal(world, { home: 'ana', env: {} })
  ana.run(`sotto login ${relay.origin} --prompt-key`)
  await ana.until(/^API key:/m)
  ana.type(relay.apiKey)
  ana.press('Enter')
  await ana.until(/logged in to/)
  assert.not.match(ana.screen, /sk_/)
})

test('the page: the code of the link, who asks, the admin key, and the terminal goes on', async () => {
  const relay = await world.relay()
  const login = world.sotto(['login', relay.origin, '--json'], { home: 'ana' })
  const told = await login.event('code')
  const { page, faults, picture } = await browserFor(relay)
  await page.goto(told['pageWithCode'])
  assert.is(await page.inputValue('#code'), told['code'])
  await picture('code')
  await page.click('button')
  await page.waitForSelector('#key')
  const words = await page.innerText('main')
  assert.ok(words.includes(told['code']))
  assert.match(words, /SHA256:/)
  await picture('confirm')
  await page.fill('#key', 'ak_admin_wrong')
  await page.fill('#scope', 'ana')
  await page.click('button[value=approve]')
  await page.waitForSelector('[role=alert]')
  await picture('wrong')
  await page.fill('#key', relay.adminKey)
  await page.fill('#scope', 'ana')
  await page.click('button[value=approve]')
  await page.waitForFunction(() => /may come in/.test(document.body.innerText))
  await picture('done')
  const done = await login.event('login')
  assert.is(done['scope'], 'ana')
  assert.equal(faults.filter((fault) => !/status of 40\d/.test(fault)), [])
  assert.not.ok(page.url().includes('key'))
})

test('--open-signup: a person lets their own machine in, and serves from it', async () => {
  const relay = await world.relay(['--open-signup', 'true'])
  const login = world.sotto(['login', relay.origin, '--json'], { home: 'bob' })
  const told = await login.event('code')
  const { page, picture } = await browserFor(relay)
  await page.goto(told['page'])
  await page.fill('#code', String(told['code']).toLowerCase().replace('-', ' '))
  await page.click('button')
  await page.waitForSelector('button[value=signup]')
  await picture('signup')
  await page.click('button[value=signup]')
  const done = await login.event('login')
  assert.match(done['scope'], /-[a-z]{4}$/)
  const http = world.sotto(['http', '9', '--json'], { home: 'bob' })
  const up = await http.event('up')
  assert.match(up['url'], /^https:/)
})

test('another site cannot let its own machine in by the browser of somebody at the page', async () => {
  const relay = await world.relay(['--open-signup', 'true'])
  const login = world.sotto(['login', relay.origin, '--json'], { home: 'eve' })
  const told = await login.event('code')
  const { page } = await browserFor(relay)
  await page.goto(told['page'])
  // Another origin of the same browser: the cookie of the page is there, and is not sent.
  await page.goto('data:text/html,<title>evil</title>')
  const fields = `<input name=step value=signup><input name=code value=${told['code']}>` +
    '<input name=form value=x>'
  const answered = page.waitForResponse((response) => response.url().endsWith('/device'))
  await page.setContent(
    `<form id=f method=post action="${relay.origin}/device">${fields}</form>` +
      '<script>document.forms[0].submit()</script>',
  )
  assert.is((await answered).status(), 403)
  assert.is(
    (await world.sottoRun(['relay', 'approve', told['code'], '--deny', '--yes'], {
      home: 'relay',
    })).code,
    0,
    'it still waits',
  )
  await login.ended
  assert.is(login.over!.code, 1)
})

test.run()
