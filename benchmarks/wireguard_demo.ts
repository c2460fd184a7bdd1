/**
 * A LAN with a printer's web page behind one agent, and Chromium elsewhere that opens it by name through the
 * SOCKS5 proxy of `sotto wg socks5`, over a relay: no root for sotto, no TUN, nothing that listens on the LAN's side
 * but the printer. The namespaces that stand for the two places need root.
 *
 *     npm run demo:wg [-- FILE.png]
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Lab, which } from './lab.ts'
import { inFar, isWithin, LAN_ADDRESS, LAN_NETWORK, PRINTER_NAME, runWithin } from './spaces.ts'
import { openServed } from './wireguard_contenders.ts'

const HERE = fileURLToPath(import.meta.url)
const MAIN = fileURLToPath(new URL('../agent/main.ts', import.meta.url))
const PICTURE = fileURLToPath(new URL('../dist/demo-wg.png', import.meta.url))
const PRINTER_PORT = 80
const RELAY_PORT = 7_443
const BROWSER_MS_MAX = 60_000
const SIZE = '900,520'

const PAGE = `<!doctype html><meta charset="utf-8"><title>Office printer</title>
<style>body{font:18px system-ui;margin:48px;color:#222}h1{font-weight:600}td{padding:6px 32px 6px 0}
b{color:#17803d}</style>
<h1>Office printer, second floor</h1>
<table><tr><td>State<td><b>ready</b><tr><td>Paper, tray 1<td>A4, 212 sheets<tr><td>Toner<td>64 %
<tr><td>Address<td>${LAN_ADDRESS} port ${PRINTER_PORT}<tr><td>Asked by<td>ASKER</table>`

function say(text: string): void {
  console.log(text)
}

/** In the far namespace, on the LAN's address alone. */
function serve(): void {
  const server = Bun.serve({
    hostname: LAN_ADDRESS,
    port: PRINTER_PORT,
    fetch: (request, own) =>
      new Response(
        PAGE.replace(
          'ASKER',
          `${own.requestIP(request)?.address}, as ${new URL(request.url).host}`,
        ),
        { headers: { 'content-type': 'text/html; charset=utf-8' } },
      ),
  })
  console.log(`listens on ${server.port}`)
}

async function browse(lab: Lab, options: { proxy: string; picture: string }): Promise<void> {
  const { proxy, picture } = options
  rmSync(picture, { force: true })
  mkdirSync(dirname(picture), { recursive: true })
  const browser = lab.spawn('chromium', [
    ...['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run'],
    ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
    ...[`--user-data-dir=${lab.path('chromium')}`, `--proxy-server=socks5://${proxy}`],
    ...[`--window-size=${SIZE}`, `--screenshot=${picture}`, `http://${PRINTER_NAME}/`],
  ], { env: { HOME: lab.path('browser') } })
  const timer = setTimeout(() => void browser.stop(), BROWSER_MS_MAX)
  const code = await browser.ended
  clearTimeout(timer)
  if (code === 0 && existsSync(picture)) return
  throw new Error(`Chromium made no picture: ${browser.log().slice(-500)}`)
}

async function show(picture: string): Promise<void> {
  const lab = new Lab()
  try {
    const printer = lab.spawn('printer', [...inFar(), process.execPath, HERE, 'printer'])
    await lab.until(printer, 'listen', () => printer.log().includes('listens'))
    say(`the office   a printer's page at ${LAN_ADDRESS}, which nothing here leads to`)
    const { flags, env } = await openServed(lab, {
      name: 'demo',
      port: RELAY_PORT,
      udpPort: undefined,
    })
    say(`the office   sotto wg serve --name office --route ${LAN_NETWORK} --dns`)
    const port = await lab.freePort()
    const proxy = lab.spawn('proxy', [
      ...[process.execPath, MAIN, 'wg', 'socks5', 'office', '--listen', `127.0.0.1:${port}`],
      ...['--json', ...flags],
    ], { env })
    await lab.until(proxy, 'listen', () => proxy.log().includes('"event":"listening"'))
    say(`elsewhere    sotto wg socks5 office --listen 127.0.0.1:${port}`)
    const curl = (...args: string[]) =>
      Bun.spawnSync(['curl', '-sS', '-m', '10', ...args, `http://${PRINTER_NAME}/`])
    const [past, through] = [curl(), curl('--proxy', `socks5h://127.0.0.1:${port}`)]
    if (past.exitCode === 0) throw new Error('the printer can be reached past the tunnel')
    if (!through.stdout.toString().includes('Office printer')) {
      throw new Error(`curl got no page: ${through.stderr}${proxy.log().slice(-500)}`)
    }
    say(
      `elsewhere    curl --proxy socks5h://127.0.0.1:${port} http://${PRINTER_NAME}/ gets the page`,
    )
    await browse(lab, { proxy: `127.0.0.1:${port}`, picture })
    say(`elsewhere    chromium --proxy-server=socks5://127.0.0.1:${port} http://${PRINTER_NAME}/`)
    say(`picture      ${picture}`)
  } finally {
    await lab.close()
  }
}

async function main(): Promise<void> {
  const [what = PICTURE] = process.argv.slice(2)
  if (what === 'printer') return serve()
  if (isWithin()) {
    await show(resolve(what))
    process.exit(0)
  }
  const missing = ['ip', 'curl', 'chromium'].filter((program) => !which(program))
  if (missing.length > 0) throw new Error(`Cannot show it: no ${missing.join(', ')} here`)
  if (process.getuid?.() !== 0) throw new Error('Cannot make network namespaces: needs root')
  process.exit(await runWithin(process.argv.slice(1)))
}

await main()
