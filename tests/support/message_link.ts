/** Two muxes joined in memory, for messages between agents, and a sink that keeps what came back. */
import * as assert from 'uvu/assert'
import { encodeRequest } from '../../agent/a2a.ts'
import type { AnswerSink, MessageRequest } from '../../agent/a2a.ts'
import { concat, EMPTY } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { decodeFrame } from '../../core/frame.ts'
import { Mux } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'

/** Two ends of one link; every frame takes a turn of the event loop. */
export function joined(): { open(request: MessageRequest): Stream; next(): Promise<Stream> } {
  const clock = new ManualClock()
  const waiting: ((stream: Stream) => void)[] = []
  const make = (side: 'agent' | 'relay', other: () => Mux): Mux =>
    new Mux({
      side,
      clock,
      buffered: () => 0,
      send: (frame) => {
        const copy = frame.slice()
        setTimeout(() => void other().receive(decodeFrame(copy)))
        return 'ok'
      },
      onOpen: (stream) => {
        stream.accept()
        waiting.shift()!(stream)
      },
      onProtocolError: (error) => assert.unreachable(error.message),
    })
  const near: Mux = make('agent', () => far)
  const far: Mux = make('relay', () => near)
  return {
    open: (request) =>
      near.open({
        kind: 'service',
        port: 0,
        address: '',
        endpoint: 'a2a',
        tail: encodeRequest(request),
      }),
    next: () => new Promise((resolve) => void waiting.push(resolve)),
  }
}

export class Sink implements AnswerSink {
  out: Uint8Array = EMPTY
  err: Uint8Array = EMPTY
  output(bytes: Uint8Array): void {
    this.out = concat(this.out, bytes)
  }
  errors(bytes: Uint8Array): void {
    this.err = concat(this.err, bytes)
  }
}
