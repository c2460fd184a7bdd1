// Command lines that are refused before anything is opened: exit code 2 for words that cannot be read,
// 1 for what the machine or the relay refuses, and in each case a sentence with what to do about it.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { VERSION } from '../../agent/version.ts'
import { Place } from '../support/cli.ts'

const KEY = 'a'.repeat(51) + 'a'
const test = suite('agent/program')
let place: Place

test.before(async () => void (place = await Place.make()))
test.after(() => place.close())

/** Command line, exit code, what the sentence says. */
const REFUSED: [line: string, code: number, says: RegExp][] = [
  ['quux', 2, /"sotto quux": there is no such command\n"sotto --help" lists the commands/],
  ['htp 3000', 2, /Did you mean "sotto http"\?/],
  ['relay aprove', 2, /Did you mean "sotto relay approve"\?/],
  ['relay quux', 2, /"sotto relay --help" lists the commands/],
  ['relay keys bogus', 2, /create, list, revoke/],
  ['http', 2, /missing required argument 'UPSTREAM'\nSee "sotto http --help"/],
  ['http 3000 4000', 2, /too many arguments/],
  ['http 3000 --nmae web', 2, /unknown option '--nmae' \(Did you mean --name\?\)/],
  ['http 3000 --name', 2, /argument missing/],
  ['a2a listen --once --exec', 2, /--exec needs PROGRAM ARGS…/],
  ['a2a listen --shell x --exec y --json', 2, /expected one of --exec, --shell and --handler/],
  ['a2a listen --handler http://example.com/', 2, /http:\/\/ on this machine or https/],
  ['a2a listen --handler http://u:p@localhost/', 2, /Cannot read --handler/],
  ['a2a listen --time 5', 2, /Cannot read --time: found "5"/],
  ['a2a send', 2, /expected PEER or --to SELECTOR/],
  ['a2a send --to role=x hello more', 2, /--to together with PEER/],
  ['a2a send --to role', 2, /Cannot read selector/],
  ['agents role', 2, /Cannot read selector/],
  ['http 70000', 2, /port 70000, outside 1 to 65535/],
  ['http example.com', 2, /no port/],
  ['http ftp://example.com', 2, /the scheme ftp/],
  ['http 3000 --name Web', 2, /Cannot use the name "Web"/],
  ['http 3000 --name -web', 2, /Cannot use the name "-web"/],
  ['http 3000 --e2ee=maybe', 2, /--e2ee: found "maybe", expected true or false/],
  ['http 3000 --e2ee-cert a.pem', 2, /--e2ee-cert alone: expected --e2ee-key/],
  ['http 3000 --e2ee-key a.pem', 2, /--e2ee-key alone: expected --e2ee-cert/],
  [
    'http 3000 --e2ee=false --e2ee-cert a --e2ee-key b',
    2,
    /--e2ee-cert together with --e2ee=false/,
  ],
  ['http 3000 --e2ee=false --proxy-protocol v1', 2, /together with --e2ee=false/],
  ['http 3000 --e2ee=false --host-header rewrite', 2, /together with --e2ee=false/],
  ['http 3000 --host-header rewrite --proxy-protocol v2', 2, /together with --host-header/],
  ['http 3000 --proxy-protocol v3', 2, /found "v3", expected v1 or v2/],
  ['http 3000 --relay http://relay.example', 2, /http to another machine/],
  ['http 3000 --relay https://me:secret@relay.example', 2, /a URL with a secret in it/],
  ['http 3000 --relay https://relay.example/x', 2, /a URL with a path/],
  ['http 3000 --relay ftp://relay.example', 2, /expected https/],
  ['http 3000 --relay-fingerprint SHA256:short', 2, /Cannot read fingerprint/],
  ['http 3000', 1, /none is named\nLog in to one: sotto login RELAY/],
  ['tcp 5432 --allow alice --public', 2, /--allow together with --public/],
  ['tcp 5432 --allow SHA256:x', 2, /no whole fingerprint/],
  ['tcp 5432 --e2ee=false --public', 2, /--public together with --e2ee=false/],
  ['tcp 5432 --e2ee=false --allow alice', 2, /--allow together with --e2ee=false/],
  ['tcp 5432 --public-port 20000', 2, /--public-port alone[^]*--e2ee=false/],
  ['tcp 5432 --e2ee=false --public-port 0', 2, /from 1 to 65535/],
  ['tcp 5432 --e2ee=false --public-port 65536', 2, /from 1 to 65535/],
  ['udp 51820', 2, /packets pass the relay as they are\nAdd --e2ee=false/],
  ['udp https://host --e2ee=false', 2, /expected a port or host:port/],
  ['connect', 2, /missing required argument 'NAME'/],
  ['connect Db', 2, /expected the name of an endpoint/],
  ['connect db --stdio --listen 5432', 2, /--listen together with --stdio/],
  ['connect db --listen nowhere', 2, /expected a port or host:port/],
  ['connect db --listen 65536', 2, /expected a port or host:port/],
  ['relay --port 65536', 2, /--port: found "65536"/],
  ['relay --domain x --secure-domain y --apps-domain y', 2, /--apps-domain/],
  ['relay keys create --expires soon', 2, /--expires: found "soon"/],
  ['relay keys revoke sk_home_abc', 2, /expected an id[^]*A secret is not an id/],
  ['relay tokens create --max-agents 0', 2, /from 1 to/],
  ['relay tokens create --agent-label site', 2, /NAME=PATTERN/],
  ['relay block Web', 2, /expected 1 to 63/],
  ['relay names list --relay https://localhost:1', 1, /no admin key is set\n.*SOTTO_ADMIN_KEY/],
  ['peers trust alice', 2, /missing required argument 'KEY'/],
  ['peers trust alice nokey', 2, /expected a KEY of 52/],
  [`peers trust a#b ${'A'.repeat(52)}`, 2, /expected a KEY/],
  ['peers forget nobody', 1, /it is not pinned/],
  ['demo 3000 --state here', 2, /expected a whole path/],
]

test('pages are as wide as the terminal, and lose no word', async () => {
  const words = (text: string): string => text.split(/\s+/).join(' ')
  for (const argv of [['--help'], ['relay', '--help'], ['http', '--help'], ['doctor', '--help']]) {
    const wide = (await place.run('wide', argv)).stdout
    for (const columns of [40, 80]) {
      const { text } = (await place.run('wide', argv, { columns })).stdout
      assert.is(words(text), words(wide.text), argv.join(' '))
      for (const line of text.split('\n')) {
        // What is typed stays whole.
        if (/^ {2}\S/.test(line)) continue
        assert.ok(line.length <= columns, `${columns}: ${line}`)
      }
    }
  }
})

test('each wrong command line gets its exit code, its sentence and nothing on standard output', async () => {
  for (const [line, expected, says] of REFUSED) {
    const { code, stdout, stderr } = await place.run('refused', line.split(' '))
    assert.is(code, expected, `${line}: ${stderr.text}`)
    assert.match(stderr.text, says, line)
    assert.is(stdout.text, '', line)
  }
})

test('--json and --stdio cannot share standard output', async () => {
  const { code, stderr } = await place.run('refused', ['connect', 'db', '--stdio', '--json'])
  assert.is(code, 2)
  assert.match(stderr.text, /--json together with --stdio/)
})

test('with --json the error is an object on standard output as well', async () => {
  const { code, stdout } = await place.run('refused', ['http', '3000', '--json'])
  assert.is(code, 1)
  assert.equal(stdout.objects, [{
    event: 'error',
    code: 'relay/none',
    message: 'Cannot join a relay: none is named',
    hint: 'Log in to one: sotto login RELAY. Or run one of your own: sotto relay',
  }])
})

test('an API key that is none is refused without being repeated', async () => {
  const { code, stderr } = await place.run('refused', ['http', '3000'], {
    env: { SOTTO_RELAY: 'https://localhost:1', SOTTO_API_KEY: 'hunter2-very-secret' },
  })
  assert.is(code, 1)
  assert.match(stderr.text, /begins with none of sk_, ft_ and ak_/)
  assert.not.match(stderr.text, /hunter2/)
})

test('a secret given in place of an id is not repeated either', async () => {
  const secret = `sk_home_${'x'.repeat(43)}`
  const { stderr } = await place.run('refused', ['relay', 'keys', 'revoke', secret])
  assert.not.match(stderr.text, new RegExp(secret))
})

test('the version is that of package.json', async () => {
  const manifest = fileURLToPath(new URL('../../package.json', import.meta.url))
  assert.is(JSON.parse(readFileSync(manifest, 'utf8')).version, VERSION)
  for (const flag of ['--version', '-V']) {
    const { code, stdout } = await place.run('refused', [flag])
    assert.equal([code, stdout.text], [0, `${VERSION}\n`])
  }
})

test('help is found by every way that people try', async () => {
  const overview = (await place.run('refused', [])).stdout.text
  assert.match(overview, /^sotto: private tunnels/)
  for (const line of ['--help', '-h', 'help']) {
    assert.is((await place.run('refused', [line])).stdout.text, overview, line)
  }
  const http = (await place.run('refused', ['http', '--help'])).stdout.text
  for (const line of ['http -h', 'help http', 'http 3000 --name web --help']) {
    assert.is((await place.run('refused', line.split(' '))).stdout.text, http, line)
  }
})

test('identity is made once, and peers are pinned, listed and forgotten', async () => {
  const first = (await place.run('own', ['identity', '--json'])).stdout.objects[0]!
  const again = (await place.run('own', ['identity', '--json'])).stdout.objects[0]!
  assert.equal(first, again)
  assert.match(first['key'], /^[a-z2-7]{52}$/)
  assert.match(first['fingerprint'], /^SHA256:/)
  assert.is((await place.run('own', ['peers', 'list'])).stderr.text, 'nobody is pinned\n')
  const trusted = await place.run('own', ['peers', 'trust', 'alice', KEY])
  assert.is(trusted.code, 0)
  assert.match(trusted.stderr.text, /^pinned alice to SHA256:/)
  const [pin] = (await place.run('own', ['peers', 'list', '--json'])).stdout.objects
  assert.equal([pin!['name'], pin!['key'], pin!['how']], ['alice', KEY, 'manual'])
  const table = (await place.run('own', ['peers', 'list'])).stdout.lines
  assert.match(table[0]!, /^NAME +FINGERPRINT +HOW +WHEN +VERIFIED +ONLINE +LABELS$/)
  assert.match(table[1]!, /^alice +SHA256:\S+ +manual +\d{4}-\d\d-\d\d \d\d:\d\d +- +- +-$/)
  assert.is((await place.run('own', ['peers', 'forget', 'alice'])).code, 0)
  assert.is((await place.run('own', ['peers', 'list', '--json'])).stdout.text, '')
})

test.run()
