// No question leaves the machine of who browses by the proxy: in a namespace whose only resolver counts what
// it is asked, curl, proxychains4 and Chromium open a page by a name that only the far side knows.
// needs: root ip nft curl proxychains4 chromium
// seconds: 180
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ProxyServer } from '../../../agent/wireguard/proxy_server.ts'
import { bench } from '../../support/exit_bench.ts'
import { Namespace } from '../../support/namespace.ts'

const NAME = 'printer.office.test'
const test = suite('agent/wireguard/no_dns_leak')
const folder = mkdtempSync(join(tmpdir(), 'sotto-leak-'))
const web = createServer((_, response) => {
  response.setHeader('content-type', 'text/html')
  response.end('<title>Printer</title><p>paper tray empty</p>')
})
const sink = createSocket('udp4')
const asked: string[] = []
let space: Namespace
let proxy: ProxyServer
let url: string
const made = bench()

test.before(async () => {
  space = new Namespace('outside.test')
  sink.on('message', (bytes) => asked.push(bytes.subarray(12).toString('latin1')))
  await new Promise<void>((resolve) => sink.bind(53, space.outside, resolve))
  writeFileSync(
    `/etc/netns/${space.name}/resolv.conf`,
    `nameserver ${space.outside}\noptions timeout:1 attempts:1\n`,
  )
  await new Promise<void>((resolve) => web.listen(0, '127.0.0.1', resolve))
  url = `http://${NAME}:${(web.address() as AddressInfo).port}/`
  made.names.set(NAME, ['127.0.0.1'])
  proxy = await ProxyServer.open(made.ports, { host: space.outside, port: 0, http: true })
})

test.after(async () => {
  await proxy.close()
  web.close()
  sink.close()
  space.close()
  rmSync(folder, { recursive: true, force: true })
})

function inside(command: string[]): Promise<string> {
  const [program, ...args] = [...space.within, ...command]
  return new Promise((resolve, reject) => {
    const child = spawn(program!, args, { env: { PATH: process.env['PATH'], HOME: folder } })
    const late = setTimeout(() => child.kill('SIGKILL'), 60_000)
    let output = ''
    child.stdout.on('data', (bytes) => output += bytes)
    child.stderr.on('data', (bytes) => output += bytes)
    child.on('error', reject)
    child.on('close', () => {
      clearTimeout(late)
      resolve(output)
    })
  })
}

test('the resolver counts: a client that resolves by itself is seen', async () => {
  const by = `${space.outside}:${proxy.port}`
  await inside(['curl', '-sS', '-m', '10', '--socks5', by, url])
  assert.ok(asked.some((one) => one.includes('printer')), 'the control must see a question')
  asked.length = 0
})

test('curl by socks5h and by HTTP, and proxychains4, ask nothing here', async () => {
  const by = `${space.outside}:${proxy.port}`
  const config = join(folder, 'proxychains.conf')
  writeFileSync(
    config,
    `strict_chain\nproxy_dns\n[ProxyList]\nsocks5 ${space.outside} ${proxy.port}\n`,
  )
  for (
    const command of [
      ['curl', '-sS', '-m', '10', '--proxy', `socks5h://${by}`, url],
      ['curl', '-sS', '-m', '10', '--proxy', `http://${by}`, url],
      ['curl', '-sS', '-m', '10', '-p', '--proxy', `http://${by}`, url],
      ['proxychains4', '-q', '-f', config, 'curl', '-sS', '-m', '10', url],
    ]
  ) assert.match(await inside(command), /paper tray empty/, command.join(' '))
  assert.equal(asked, [])
  assert.equal([...new Set(made.asked)], [NAME])
})

test('Chromium by a SOCKS5 proxy, and by an HTTP one, opens the page and asks nothing here', async () => {
  const by = `${space.outside}:${proxy.port}`
  for (const kind of ['socks5', 'http']) {
    const output = await inside([
      'chromium',
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      `--user-data-dir=${join(folder, kind)}`,
      `--proxy-server=${kind}://${by}`,
      '--timeout=30000',
      '--dump-dom',
      url,
    ])
    assert.match(output, /paper tray empty/, output.slice(0, 2_000))
  }
  assert.equal(asked, [])
  assert.ok(proxy.counts.served >= 5)
})

test.run()
