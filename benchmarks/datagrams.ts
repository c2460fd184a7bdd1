/**
 * Datagrams one way, as fast as they can be sent, in processes of their own.
 *
 *     bun datagrams.ts sink                          → {"udp":PORT,"tcp":PORT}; a connection to `tcp` is told
 *                                                      what has come since the last one asked: {"count":N,"seconds":N}
 *     bun datagrams.ts flood HOST PORT --ms N [--rate N] [--bytes N]  → {"sent":N}
 */
import { parseArgs } from 'node:util'

const BATCH = 16
const BYTES = 1_200
const TICK_MS = 1

async function sink(): Promise<void> {
  let [count, firstMs, lastMs] = [0, 0, 0]
  const socket = await Bun.udpSocket({
    hostname: '0.0.0.0',
    port: 0,
    socket: {
      data() {
        lastMs = performance.now()
        if (count++ === 0) firstMs = lastMs
      },
    },
  })
  const server = Bun.listen({
    hostname: '0.0.0.0',
    port: 0,
    socket: {
      open(asker) {
        asker.end(JSON.stringify({ count, seconds: (lastMs - firstMs) / 1000 }))
        count = 0
      },
      data() {},
    },
  })
  console.log(JSON.stringify({ udp: socket.port, tcp: server.port }))
}

/** `rate` a second, in small batches each tick; what the socket does not take counts as sent, and is lost. */
async function flood(
  to: { hostname: string; port: number },
  options: { ms: number; rate: number; bytes: number },
): Promise<void> {
  const socket = await Bun.udpSocket({ connect: to })
  const batch = Array.from({ length: BATCH }, () => new Uint8Array(options.bytes).fill(0x5a))
  const began = performance.now()
  let sent = 0
  for (;;) {
    const passed = performance.now() - began
    if (passed >= options.ms) break
    const owed = Math.floor(options.rate * passed / 1000) - sent
    for (let left = owed; left >= BATCH; left -= BATCH) {
      socket.sendMany(batch)
      sent += BATCH
    }
    await Bun.sleep(TICK_MS)
  }
  console.log(JSON.stringify({ sent }))
  socket.close()
}

const { values, positionals: [what, hostname, port] } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: {
    ms: { type: 'string', default: '1000' },
    rate: { type: 'string', default: '100000' },
    bytes: { type: 'string', default: `${BYTES}` },
  },
})
if (what === 'sink') await sink()
else if (what === 'flood') {
  await flood({ hostname: hostname!, port: Number(port) }, {
    ms: Number(values.ms),
    rate: Number(values.rate),
    bytes: Number(values.bytes),
  })
} else throw new Error(`Cannot send datagrams: found ${what}, expected sink or flood`)
