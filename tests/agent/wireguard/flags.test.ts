// What is read out of the flags of private networks: refusals before anything is opened, no password on a line.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  FORWARD_FLAGS,
  PROXY_PASSWORD_VARIABLE,
  readForwards,
  readProxy,
  readRules,
  SERVE_FLAGS,
  SOCKS_FLAGS,
} from '../../../agent/cli/private_network_flags.ts'
import type { Given } from '../../../agent/cli/page.ts'
import { routeText } from '../../../agent/wireguard/exit_policy.ts'
import { isTunnelError } from '../../../core/errors.ts'

const test = suite('agent/wireguard/flags')
const given = (flags: Given['flags']): Given => ({ args: [], flags })
const env = { [PROXY_PASSWORD_VARIABLE]: 'pw' }

test('readProxy() is SOCKS on this machine alone, unless more is asked for', () => {
  assert.equal(readProxy(given({}), {}), { host: '127.0.0.1', port: 1080, http: false })
  assert.equal(readProxy(given({ listen: '0.0.0.0:9', user: 'ann', http: true }), env), {
    host: '0.0.0.0',
    port: 9,
    http: true,
    login: { user: 'ann', password: 'pw' },
  })
  const cases: [Given['flags'], typeof env | Record<string, never>, string][] = [
    [{ listen: '0.0.0.0:9' }, env, 'socks/open'],
    [{ listen: 'x' }, env, 'socks/listen'],
    [{ user: 'ann' }, {}, 'socks/login'],
    [{ user: 'a'.repeat(256) }, env, 'socks/login'],
  ]
  for (const [flags, variables, code] of cases) {
    assert.throws(
      () => readProxy(given(flags), variables),
      (error: unknown) => isTunnelError(error, code as 'socks/open'),
      code,
    )
  }
})

test('readRules() and readForwards() read lists; nothing is offered by default', () => {
  const rules = readRules(given({ route: ['192.168.1.7/24', 'fd00::/64'], 'allow-self': true }))
  assert.equal(rules.routes.map(routeText), ['192.168.1.0/24', 'fd00::/64'])
  assert.equal([rules.loopback, rules.linkLocal, rules.own], [false, false, true])
  assert.equal(readRules(given({})).routes, [])
  const forwards = readForwards(
    given({ reverse: ['1:a:2'], tcp: ['3:b:4', '5:c:6'], udp: ['7:d:8'] }),
  )
  assert.equal(forwards.map(({ kind, listen }) => `${kind} ${listen.port}`), [
    'tcp 3',
    'tcp 5',
    'udp 7',
    'reverse 1',
  ])
})

test('no flag is there twice, and no switch of one letter is', () => {
  for (const flags of [SERVE_FLAGS, SOCKS_FLAGS, FORWARD_FLAGS]) {
    const names = flags.flatMap(({ name, short }) => short === undefined ? [name] : [name, short])
    assert.is(new Set(names).size, names.length)
  }
})

test.run()
