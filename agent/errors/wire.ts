/** Pages about bytes between the machines: frames, links, tickets, keys and signatures. */
import { disorder, malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const WIRE: ErrorTable = {
  bytes: {
    about: 'bytes and text of every format',
    codes: {
      hex: malformed('Text that should be hex digits is none.'),
      range: misused('A text or a list is too long for its field.'),
      utf8: malformed('Bytes that should be text are no UTF-8.'),
    },
  },
  frame: {
    about: 'frames on the link between agent and relay',
    codes: {
      credit: malformed('A frame gives more credit than there may be.'),
      id: malformed('A frame has a stream number that it may not have.'),
      json: malformed('A frame that should be JSON is none.'),
      packet: malformed('A frame carries a packet without content.'),
      range: malformed('A frame has a number that is too large.'),
      size: malformed('A frame is shorter or longer than its type allows.'),
      trailing: malformed('Bytes follow after the end of a frame.'),
      truncated: malformed('A frame ends before its time.'),
      unknown: malformed('A frame of an unknown type came.'),
      visit: malformed('A visit of an unknown kind came.'),
    },
  },
  mux: {
    about: 'many streams on one link',
    codes: {
      closed: lost('The link is closed, and no stream can be opened on it.'),
      exhausted: lost('The link has used up all its stream numbers.'),
      flooded: disorder('The other side asks for answers faster than it reads them.'),
      frame: disorder('A frame came on the link that cannot be used.'),
      limit: [
        'The link carries as many streams as it may.',
        'Very many visitors at once, or a service that never ends its answers.',
        'Wait for some to end, or run a second process for the same name.',
        'sotto status',
      ],
      lost: lost('The link went away while something was being sent.'),
      order: disorder('A stream was opened with a number that is not next.'),
      parity: disorder('A stream was opened with a number that belongs to the other side.'),
      unknown: disorder('A frame came on a stream that was never opened.'),
    },
  },
  ticket: {
    about: 'tickets by which further connections find their link',
    codes: {
      class: malformed('A ticket is of a class that does not exist.'),
      forged: tampered('A ticket was not made with the key of its link.'),
      length: misused('A ticket was to be made with an id of the wrong length.'),
      magic: malformed('Bytes that should be a ticket are none.'),
      range: malformed('A ticket has a number that is too large.'),
      size: malformed('A ticket says a length that cannot be.'),
      trailing: malformed('Bytes follow after the end of a ticket.'),
      truncated: malformed('A ticket ends before its time.'),
    },
  },
  datagram: {
    about: 'sealed packets, which may be lost but never forged',
    codes: {
      ahead: tampered('A packet came with a number far ahead of the others.'),
      forged: tampered('A packet was not sealed by the other end.'),
      replayed: tampered('A packet came twice.'),
      size: [
        'A packet is too large to be sent in one piece.',
        'The program sends larger packets than the network carries.',
        'Let the program send smaller ones, often a setting called MTU.',
      ],
    },
  },
  crypto: {
    about: 'the cryptography under all of it',
    codes: {
      forged: tampered('Sealed bytes do not open under their key.'),
      kem: tampered('A post-quantum key came that no honest end makes.'),
      length: misused('Keys or texts of a length came that the algorithm does not take.'),
      zero: tampered('A public key came that gives no secret.'),
    },
  },
  noise: {
    about: 'the handshake of sessions',
    codes: {
      exhausted: [
        'A key was used as often as it may be.',
        'A session of an enormous number of records.',
        'Open a new session.',
      ],
      forged: tampered('A message of the handshake was not sealed by the other end.'),
      kem: tampered('A post-quantum key of the handshake is written in a way that it must not be.'),
      keys: misused('The handshake was given keys that it cannot use.'),
      order: misused('A step of the handshake was taken out of turn.'),
      point: tampered('A public key of the handshake gives no secret.'),
      size: malformed('A message of the handshake is too long or too short.'),
    },
  },
  minisign: {
    about: 'signatures of releases, in the format of minisign',
    codes: {
      comment: [
        'The trusted comment of a signature cannot be used.',
        'It is too long, or has other characters than printable ASCII.',
        'Sign with a shorter comment.',
      ],
      forged: download('The signature is not of this file.'),
      key: [
        'The secret key to sign with cannot be read.',
        'It is protected by a password, or is another file.',
        'Sign by the program minisign, or make a key without a password.',
      ],
      signature: download('The file of the signature cannot be read.'),
      unknown: download('The file is signed by a key that is not trusted here.'),
    },
  },
  release: {
    about: 'releases of sotto and their checksums',
    codes: {
      malformed: download('The list of checksums of a release cannot be read.'),
    },
  },
}

function lost(what: string): ErrorText {
  return [
    what,
    'The network changed, or the relay was restarted.',
    'An agent opens a new link by itself. Try again.',
    'sotto status',
  ]
}

/** Nothing that fails here may be installed. */
function download(what: string): ErrorText {
  return [
    what,
    'The download was cut, a mirror has a mixture of versions, or somebody changed the file.',
    'Do not use the file. Download it again, from another place if it repeats, and compare the key with the one in the documentation.',
  ]
}
