/**
 * A development server as Vite 8 is one, in what a tunnel meets of it: it refuses host names that it
 * does not know, also for WebSockets, and its page learns of changed files by a WebSocket at `/` with
 * the sub-protocol `vite-hmr` and a token. Without Vite's build, which is none of a tunnel's business.
 *
 *   node dev_server.ts FOLDER PORT
 */
import { randomUUID } from 'node:crypto'
import { readFileSync, watch } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { WebSocketServer } from 'ws'

const [folder, port] = process.argv.slice(2) as [string, string]
const token = randomUUID()

/** `server.allowedHosts` left as it is: localhost, names under it, and addresses. */
function isAllowed(host: string | undefined): boolean {
  const name = (host ?? '').replace(/:\d+$/, '')
  return name === 'localhost' || name.endsWith('.localhost') || /^[\d.]+$|^\[/.test(name)
}

const CLIENT = `
const socket = new WebSocket('wss://' + location.host + '/?token=${token}', 'vite-hmr')
socket.onmessage = ({ data }) => {
  const { type, path, timestamp } = JSON.parse(data)
  if (type === 'connected') document.documentElement.dataset.hmr = 'connected'
  if (type === 'update') import(path + '?t=' + timestamp)
}
`

const server = createServer((request, response) => {
  if (!isAllowed(request.headers.host)) {
    response.writeHead(403, { 'content-type': 'text/plain' })
    return void response.end(
      `Blocked request. This host ("${request.headers.host}") is not allowed.`,
    )
  }
  const path = request.url!.split('?')[0]!
  if (path === '/@vite/client') {
    response.writeHead(200, { 'content-type': 'text/javascript' })
    return void response.end(CLIENT)
  }
  const name = path === '/' ? 'index.html' : 'main.js'
  const type = path === '/' ? 'text/html' : 'text/javascript'
  response.writeHead(200, { 'content-type': `${type}; charset=utf-8`, 'cache-control': 'no-cache' })
  const own = path === '/' ? '<script type="module" src="/@vite/client"></script>' : ''
  response.end(own + readFileSync(join(folder, name), 'utf8'))
})

const sockets = new WebSocketServer({ noServer: true, handleProtocols: () => 'vite-hmr' })
server.on('upgrade', (request, socket, head) => {
  const url = new URL(request.url!, 'http://localhost')
  const good = request.headers['sec-websocket-protocol'] === 'vite-hmr' && url.pathname === '/' &&
    url.searchParams.get('token') === token && isAllowed(request.headers.host)
  if (!good) return void socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
  sockets.handleUpgrade(
    request,
    socket,
    head,
    (ws) => ws.send(JSON.stringify({ type: 'connected' })),
  )
})

watch(folder, (_, name) => {
  if (name !== 'main.js') return
  const update = { type: 'update', path: '/main.js', timestamp: Date.now() }
  for (const ws of sockets.clients) ws.send(JSON.stringify(update))
})

server.listen(Number(port), '127.0.0.1', () => console.log(`Local: http://localhost:${port}/`))
