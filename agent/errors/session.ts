/** Pages about sessions between two agents, and about the streams inside them and on links. */
import { disorder, malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

/** Ends that streams and sessions have in common: the table of resets of docs/protocol.md. */
const ENDS: Readonly<Record<string, ErrorText>> = {
  aborted: [
    'One end gave up.',
    'A browser closed the page, a command was stopped, or a program crashed.',
    'Nothing, if it was you. Else look at the other end.',
  ],
  blocked: [
    'The operator of the relay cut it off.',
    'The name or the scope is blocked there.',
    'Ask the operator.',
    'sotto relay unblock --help',
  ],
  draining: [
    'The relay is going down.',
    'It is being upgraded or moved.',
    'Wait: agents reconnect by themselves when it is back.',
    'sotto status',
  ],
  gone: [
    'The link that carried it is lost.',
    'The network of the other side changed, or its agent was stopped.',
    'Try again: an agent that runs comes back by itself.',
    'sotto status',
  ],
  overdrawn: disorder('More was sent than the other side had room for.'),
  overload: [
    'A limit of memory or of streams was reached.',
    'Very many visitors at once, or a reader that does not read.',
    'Try again in a moment; share the load over several processes.',
    'sotto status',
  ],
  protocol: disorder('Something came that has no place at that moment.'),
  quota: [
    'A quota of the scope or the address is used up.',
    'More traffic than the operator allows for a time.',
    'Wait, or ask the operator for more.',
    'sotto status',
  ],
  refused: [
    'There is nothing of that name for you.',
    'The endpoint does not exist there, or your identity is not allowed to use it.',
    'Check the name. Tell the owner your fingerprint, so that it can be allowed.',
    'sotto identity',
  ],
  timeout: [
    'It was not answered in time.',
    'The service behind it hangs, or the network is very slow.',
    'Look at the service, and try again.',
    'sotto status',
  ],
  unreachable: [
    'The service behind the other end cannot be reached.',
    'It is not running, or listens on another port.',
    'Start it on the machine of the other end.',
    'sotto status',
  ],
}

export const SESSION: ErrorTable = {
  stream: {
    about: 'one connection of a visitor, and why it ended early',
    codes: {
      ...ENDS,
      unknown: [
        'It ended for a reason that this version does not know.',
        'The other side is newer.',
        'Update sotto.',
        'sotto --version',
      ],
    },
  },
  session: {
    about: 'sealed sessions between two agents',
    codes: {
      ...ENDS,
      ack: disorder('The other side confirms records that were never sent.'),
      closed: [
        'The session has been closed.',
        'One of the two ends was done with it.',
        'Open a new one.',
      ],
      envelope: malformed('A record has a type that does not exist.'),
      forged: tampered('A record was not sealed by the other end.'),
      frame: malformed('A frame came inside a record of another type.'),
      lost: [
        'The session could not be kept: no new connection for it was found in time.',
        'One of the two machines was offline for too long.',
        'Open a new one.',
        'sotto agents',
      ],
      opening: [
        'The session could not be opened.',
        'The message says why; often the other agent is away or the network is slow.',
        'Try again.',
        'sotto agents',
      ],
      order: disorder('A record came where it has no place.'),
      padding: tampered('A record is not filled up as it must be.'),
      passport: [
        'The passport of the other agent has no key for sessions.',
        'It runs an older version.',
        'Update sotto on the other machine.',
        'sotto agents',
      ],
      range: malformed('A record has a number that is too large.'),
      record: disorder('A record came that cannot be used.'),
      reflected: [
        'Both ends have the same identity.',
        'An agent was to reach itself, or a profile was copied to a second machine.',
        'Give each machine its own identity.',
        'sotto identity',
      ],
      rekey: [
        'One key was used for as much as it may be, and the other side did not change it.',
        'The other side is broken or very slow.',
        'Open a new session.',
      ],
      responder: [
        'The session was meant for another identity than answered.',
        'The name has moved to another machine, or somebody answers in its place.',
        'Look who serves the name now, and compare the fingerprint.',
        'sotto peers verify NAME',
      ],
      resume: tampered('Somebody wanted to go on with a session without its secret.'),
      send: [
        'Something could not be sent in the session, which was ended.',
        'The words of the message say why.',
        'Open a new one; if it stays, report it with the version.',
        'sotto --version',
      ],
      service: misused('A session was to be opened for a service whose name cannot be.'),
      size: misused('A record was to be sent that is larger than a record may be.'),
      suite: [
        'The two sides share no cipher suite.',
        'One of the two is much older, or allows less.',
        'Update sotto on the older of the two.',
        'sotto --version',
      ],
      trailing: malformed('Bytes follow after the end of a record.'),
      truncated: malformed('A record ends before its time.'),
      unacknowledged: [
        'Too much was sent that the other side has not confirmed.',
        'The other side is offline or reads slowly.',
        'Wait for it, or open a new session.',
        'sotto agents',
      ],
      unanswered: [
        'The other agent did not answer the opening of a session.',
        'It was stopped, or the connection broke at that moment.',
        'Try again.',
        'sotto agents',
      ],
      unconfirmed: [
        'The other side did not confirm the end of the session.',
        'It went away first, so that the last bytes may not have arrived.',
        'Ask the other side whether all arrived.',
      ],
      unknown: [
        'The other side knows no session of that name.',
        'It was restarted, or the session ran out.',
        'Open a new one.',
      ],
      version: [
        'The two sides speak different versions of sessions.',
        'One of the two is much older.',
        'Update sotto on the older of the two.',
        'sotto --version',
      ],
    },
  },
}
