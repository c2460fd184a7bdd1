// Connections that the exit dials: taken over by callbacks, with all that a connection must do, also once the
// collector has been; given up as a whole.
import { createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { dialOut } from '../../../agent/host/dial_out.ts'
import { NativeConn } from '../../../core/native_conn.ts'
import { isTunnelError } from '../../../core/errors.ts'
import type { Conn } from '../../../core/socket.ts'
import { until } from '../../support/exit_bench.ts'

const test = suite('agent/host/dial_out')
const SIZE = 16_000_000

async function served(
  accepted: (socket: Socket) => void,
  run: (port: number) => Promise<void>,
): Promise<void> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {})
    accepted(socket)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  await run((server.address() as AddressInfo).port)
  await new Promise((resolve) => server.close(resolve))
}

interface Heard {
  bytes: number
  ended: boolean
  closed: Error | true | undefined
  drains: number
}

function listenTo(conn: Conn): Heard {
  const heard: Heard = { bytes: 0, ended: false, closed: undefined, drains: 0 }
  conn.handle({
    data: (bytes) => void (heard.bytes += bytes.length),
    drain: () => void heard.drains++,
    end: () => void (heard.ended = true),
    closed: (error) => void (heard.closed = error ?? true),
  })
  return heard
}

test('it is a callback connection here, and says who is at the other end', async () => {
  await served((socket) => socket.end(), async (port) => {
    const conn = await dialOut({ host: '127.0.0.1', port })
    assert.instance(conn, NativeConn)
    assert.is(conn.remoteAddress, '127.0.0.1')
    const heard = listenTo(conn)
    await until(() => heard.ended)
    conn.end()
    await until(() => heard.closed !== undefined)
    assert.is(heard.closed, true)
  })
})

test('bytes pass both ways with half-close, backpressure and drain, over collections of garbage', async () => {
  let came = 0
  await served((socket) => {
    socket.on('data', (bytes) => came += bytes.length)
    socket.on('end', () => socket.end(new Uint8Array(SIZE)))
  }, async (port) => {
    const conn = await dialOut({ host: '127.0.0.1', port })
    const heard = listenTo(conn)
    for (let sent = 0; sent < SIZE; sent += 1_000_000) {
      const drains = heard.drains
      if (conn.write(new Uint8Array(1_000_000)) === 'queued') {
        Bun.gc(true)
        await until(() => heard.drains > drains)
      }
    }
    conn.end()
    await until(() => heard.closed !== undefined)
    assert.is(came, SIZE)
    assert.is(heard.bytes, SIZE)
    assert.ok(heard.ended)
    assert.is(heard.closed, true)
  })
})

test('what came before there was a handler waits for it; a reset is told as an error', async () => {
  let far: Socket | undefined
  await served((socket) => {
    far = socket
    socket.write('early')
  }, async (port) => {
    const conn = await dialOut({ host: '127.0.0.1', port })
    await until(() => far !== undefined && far.bytesWritten === 5)
    const heard = listenTo(conn)
    await until(() => heard.bytes === 5)
    far!.resetAndDestroy()
    await until(() => heard.closed !== undefined)
    assert.instance(heard.closed, Error)
  })
})

test('pause() stops the far end, resume() lets it go on', async () => {
  let sent = 0
  await served((socket) => {
    const chunk = new Uint8Array(65_536)
    const push = (): void => {
      while (sent < SIZE && socket.write(chunk)) sent += chunk.length
      if (sent >= SIZE) socket.end()
    }
    socket.on('drain', () => {
      sent += chunk.length
      push()
    })
    push()
  }, async (port) => {
    const conn = await dialOut({ host: '127.0.0.1', port })
    const heard = listenTo(conn)
    conn.pause()
    // As long as the system's buffers take something.
    let before = -1
    while (sent > before) {
      before = sent
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    assert.ok(sent < SIZE)
    const kept = heard.bytes
    conn.resume()
    await until(() => heard.ended)
    assert.ok(heard.bytes >= SIZE && kept < SIZE)
    conn.end()
    await until(() => heard.closed !== undefined)
  })
})

test('refusals are those of every connection', async () => {
  let free = 0
  await served(() => {}, (port) => {
    free = port
    return Promise.resolve()
  })
  const error = await dialOut({ host: '127.0.0.1', port: free }).catch((thrown) => thrown)
  assert.ok(isTunnelError(error, 'net/refused'), String(error))
})

test.run()
