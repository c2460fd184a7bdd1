/**
 * What members wait for takes no thread of the runtime's pool, of which there are as many as processors: whoever
 * asks for dead hosts and names that nobody answers must not keep the serving agent from its files, where
 * rights are written that were taken back.
 */
// needs: ip nft
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../../support/namespace.ts'

const ROOT = fileURLToPath(new URL('../../..', import.meta.url))
const RUN_MS_MAX = 60_000
const test = suite('agent/wireguard/pool')
let space: Namespace

test.before(() => {
  space = new Namespace('outside.test')
  spawnSync('ip', [
    'netns',
    'exec',
    space.name,
    'sysctl',
    '-qw',
    'net.ipv4.ping_group_range=0 2147483647',
  ])
  writeFileSync(`/etc/netns/${space.name}/resolv.conf`, `nameserver ${space.outside}\n`)
  space.cut('in')
})
test.after(() => space.close())

/** What `script` prints inside, where nobody answers. */
function within(script: string): string {
  const [program, ...args] = [...space.within, process.execPath, '-e', script]
  const { stdout, stderr } = spawnSync(program!, args, { cwd: ROOT, timeout: RUN_MS_MAX })
  return `${stdout}${stderr}`.trim()
}

const READS = `
  const { readFile } = await import('node:fs/promises')
  const read = Promise.all(Array.from({ length: 16 }, () => readFile('package.json')))
  console.log(await Promise.race([read.then(() => 'read first'), ...waits.map((one) =>
    one.then((found) => 'found ' + found, ({ code }) => code))]))
  process.exit()`

test('echoes that nobody answers', () => {
  const said = within(`
    const { socketPing } = await import('./agent/host/ping.ts')
    const waits = Array.from({ length: 8 }, () =>
      socketPing('${space.outside}', { timeoutMs: 5000, bytes: 56 }))
    await new Promise((resolve) => setTimeout(resolve, 100))
    ${READS}`)
  assert.is(said, 'read first')
})

test('an echo that nobody answers ends in time', () => {
  const said = within(`
    const { socketPing } = await import('./agent/host/ping.ts')
    const waits = [socketPing('${space.outside}', { timeoutMs: 50, bytes: 56 })]
    console.log(await waits[0].catch(({ code }) => code))`)
  assert.is(said, 'net/timeout')
})

test('names that nobody answers', () => {
  const said = within(`
    const { lookupAside } = await import('./agent/host/names.ts')
    const waits = Array.from({ length: 64 }, (_, i) => lookupAside('name' + i + '.test'))
    await new Promise((resolve) => setTimeout(resolve, 100))
    ${READS}`)
  assert.is(said, 'read first')
})

test('names that the system alone can find, which are one at a time', () => {
  const said = within(`
    const { lookupAside } = await import('./agent/host/names.ts')
    const waits = Array.from({ length: 8 }, (_, i) => lookupAside('name' + i + '.local'))
    const more = Array.from({ length: 8 }, () => lookupAside('x.local'))
    for (const one of more) one.catch(() => {})
    console.log(await lookupAside('x.local').catch(({ code }) => code))
    ${READS}`)
  assert.is(said, 'exit/busy\nread first')
})

test('a name of the hosts file is found, and an address is no name', () => {
  const said = within(`
    const { lookupAside } = await import('./agent/host/names.ts')
    console.log(await lookupAside('outside.test'))
    console.log(await lookupAside('127.0.0.1'), await lookupAside('[::1]'))`)
  assert.is(said, `[ "${space.outside}" ]\n[ "127.0.0.1" ] [ "::1" ]`)
})

test.run()
