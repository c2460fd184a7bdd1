/**
 * A long way as a program: `bun delay_proxy.ts PORT MS` listens on loopback and hands every byte on to
 * PORT of this machine MS milliseconds later, both ways, in order, ends included. What is under way is
 * bounded as on a real path; a sender that has filled it waits.
 */
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'

/** Under way in one direction of one connection. */
const UNDER_WAY_BYTES_MAX = 8_388_608

function hand(from: Socket, to: Socket, delayMs: number): void {
  let underWay = 0
  let full = false
  const later = (run: () => void): void => void setTimeout(run, delayMs)
  const check = (): void => {
    const blocked = underWay > UNDER_WAY_BYTES_MAX || to.writableLength > 1_048_576
    if (blocked === full) return
    full = blocked
    if (full) from.pause()
    else from.resume()
  }
  from.on('data', (bytes) => {
    underWay += bytes.length
    check()
    later(() => {
      underWay -= bytes.length
      if (to.writable) to.write(bytes)
      check()
    })
  })
  to.on('drain', check)
  from.on('end', () => later(() => to.end()))
  from.on('error', () => {})
  from.on('close', () => later(() => to.destroy()))
}

function main(port: number, delayMs: number): void {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
    const far = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
    hand(near, far, delayMs)
    hand(far, near, delayMs)
  })
  server.listen(0, '127.0.0.1', () => {
    const { port } = server.address() as AddressInfo
    process.stdout.write(`${JSON.stringify({ event: 'listening', port })}\n`)
  })
}

main(Number(process.argv[2]), Number(process.argv[3]))
