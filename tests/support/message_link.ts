/**
 * Two muxes joined in memory, with the two transcripts of one session, for messages between agents,
 * and a sink that keeps what came back.
 */
import * as assert from 'uvu/assert'
import { encodeRequest } from '../../agent/a2a.ts'
import type { AnswerSink, MessageRequest, Witness } from '../../agent/a2a.ts'
import { concat, EMPTY } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { decodeFrame } from '../../core/frame.ts'
import { Mux } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'
import type { Transcript } from '../../core/transcript.ts'
import { readTrail } from '../../core/trail.ts'
import type { Trail } from '../../core/trail.ts'
import { Pair, trailOf } from './transcripts.ts'

export interface MessageLink {
  open(request: MessageRequest): Stream
  next(): Promise<Stream>
  /** Of whoever opens, and of the other. */
  near: Witness
  far: Witness
  /** What both could show of contents later, near first. */
  trails(): Trail[]
}

/** Two ends of one link; every frame takes a turn of the event loop. */
export function joined(): MessageLink {
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
  const { alice, bob } = new Pair()
  return {
    near: witness(alice.transcript, bob.transcript),
    far: witness(bob.transcript, alice.transcript),
    trails: () => [alice, bob].map((end) => readTrail(trailOf(end))),
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

/** A session's part in it: what one side commits to is at the other before anything else. */
function witness(transcript: Transcript, peer: Transcript): Witness {
  return {
    transcript,
    commit: (content32) => {
      const { index, value } = transcript.commit(content32)
      peer.commitReceived(value)
      return index
    },
    check: (index, content32) => transcript.openReceived(index, content32),
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
