/** Pages about messages between agents, and about the trails that prove what was said. */
import { malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const MESSAGES: ErrorTable = {
  a2a: {
    about: 'messages between agents',
    codes: {
      away: [
        'The message could not be delivered in time.',
        'The other agent is not running, or its relay cannot be reached.',
        'Send it again with a longer --wait, or start the other agent.',
        'sotto agents',
      ],
      broken: unsure('The connection ended before the result came.'),
      busy: [
        'The other agent holds as many messages, or runs as many programs, as it takes at once.',
        'Others send to it too, or its work takes long.',
        'Send again later; whoever runs it may allow more.',
        'sotto a2a listen --help',
      ],
      commitment: tampered('Nothing binds a message or its answer to who sent it.'),
      exec: [
        'The other agent runs a program for each message, and may not for this peer.',
        'The service "a2a" is allowed there and "a2a exec" is not.',
        'Whoever runs it may allow that.',
        'sotto access allow --help',
      ],
      fault: [
        'Sending or taking the message met an error that has no page of its own.',
        'The words of the message say which.',
        'Try again; if it stays, report it with the version.',
        'sotto --version',
      ],
      gone: [
        'The sender went away before the message was worked on to its end.',
        'Its command was stopped or its network broke.',
        'Nothing to do here: the sender may send again.',
      ],
      handler: [
        'The service behind --handler could not be asked.',
        'It is not running, or broke the connection off.',
        'Start it, and check the address.',
        'sotto a2a listen --help',
      ],
      length: malformed('A message has another length than it said.'),
      nobody: [
        'There was nobody to send to.',
        'The selection fits no agent that you see, or all of them are away.',
        'Look who is there; --wait holds a message for those who are away.',
        'sotto agents',
      ],
      output: [
        'The program or service gave a longer answer than a message may be.',
        'It prints its log, or a whole file.',
        'Let it print less, or write the result where the sender can fetch it.',
        'sotto a2a listen --help',
      ],
      protocol: malformed('A message or its answer cannot be read.'),
      range: malformed('A message has a number that is too large.'),
      refused: [
        'The other agent does not take such messages of you.',
        'You are not pinned there, or its rules do not allow the service.',
        'Ask whoever runs it to allow your identity.',
        'sotto identity',
      ],
      request: malformed('The head of a message cannot be read.'),
      size: [
        'The message is larger than a message may be.',
        'A file was sent as a message.',
        'Send less, or where the file can be fetched.',
        'sotto a2a send --help',
      ],
      stopped: [
        'The work on messages was stopped.',
        'The command was told to end.',
        'Nothing. What was not taken may be sent again.',
      ],
      time: [
        'The program or service took longer than it may.',
        'The work is large, or it hangs.',
        'Allow more time where the messages are taken, or find out why it hangs.',
        'sotto a2a listen --help',
      ],
      timeout: unsure('No result came in time.'),
      trailing: malformed('Bytes follow after the end of a message.'),
      truncated: malformed('A message ends before its time.'),
    },
  },
  exchange: {
    about: 'requests and answers inside a session',
    codes: {
      head: malformed('The head of a request or an answer cannot be used.'),
      length: malformed('A body has another length than its head says.'),
      record: malformed('A part came that has no place in a request or an answer.'),
      size: misused('The head of a request or an answer is too large.'),
      truncated: malformed('A request or an answer ends before its time.'),
    },
  },
  audit: {
    about: 'trails that are kept of sessions',
    codes: {
      ambiguous: [
        'Several trails fit what was typed.',
        'Only the beginning of an id was given.',
        'Give more of the id.',
        'sotto audit list',
      ],
      file: [
        'The file of a trail is not there.',
        'A typing error, or it is on the other machine.',
        'Give a file that was exported.',
        'sotto audit export --help',
      ],
      identities: [
        'The trail is not of this agent and one that it has pinned, so that nobody here knows who they are.',
        'It was made elsewhere, or the pin was forgotten.',
        'Give both fingerprints by --identity, as the two machines print them.',
        'sotto audit verify --help',
      ],
      opening: [
        'What was said cannot be shown: nothing that would open the record was kept.',
        'The record carried no message, or its content was not kept.',
        'Look which records of the session can be opened.',
        'sotto audit show --help',
      ],
      open: [
        'The trail of a session could not be begun.',
        'The disk is full, or the state folder may not be written.',
        'Make room, or move the state folder by SOTTO_HOME or XDG_STATE_HOME.',
      ],
      size: [
        'The trail of a session is as large as a trail may be.',
        'The session carries very many records.',
        'The session goes on without it. A new session has a new trail.',
      ],
      unsigned: [
        'The maker of a record did not sign that far.',
        'The session was cut before its next checkpoint.',
        'Ask the other side for its trail, which may have more.',
        'sotto audit export --help',
      ],
      unsound: [
        'The trail is not sound, so that nothing in it proves anything.',
        'The file was cut or changed, or one of the ends was at fault.',
        'See what is wrong with it, and export it again from where it was kept.',
        'sotto audit verify --help',
      ],
      unknown: [
        'There is no trail of that session here.',
        'A typing error, it was removed, or trails were off.',
        'Check the id, and on which of the two machines you are.',
        'sotto audit list',
      ],
    },
  },
  trail: {
    about: 'files in which a session is written down',
    codes: {
      entry: broken('The trail has an entry of an unknown kind.'),
      identities: [
        'The trail is of a session between other agents than was expected.',
        'Another file was given, or the fingerprints belong to other machines.',
        'Compare the fingerprints with both sides.',
        'sotto identity',
      ],
      length: misused('A trail was to be written with ids of the wrong length.'),
      magic: [
        'The file is no trail.',
        'Another file was given.',
        'Give a file that was exported as a trail.',
        'sotto audit export --help',
      ],
      pair: [
        'The two trails are not the two sides of one session.',
        'They are of two sessions, or both are of the same side.',
        'Export one from each machine, for the same session.',
        'sotto audit export --help',
      ],
      range: broken('The trail has a number that is too large.'),
      role: broken('The trail says of its writer something that is no role.'),
      trailing: broken('Bytes follow after an entry of the trail.'),
      truncated: broken('The trail ends in the middle of an entry.'),
    },
  },
  transcript: {
    about: 'what both ends sign of the session as they saw it',
    codes: {
      commitment: tampered('A message was not committed to as it must be.'),
      count: tampered('A checkpoint counts records that cannot be.'),
      counter: misused('A record was written down out of turn.'),
      final: tampered('A checkpoint came after the one that was the last.'),
      flags: malformed('A checkpoint has marks that this version does not know.'),
      forged: tampered('A checkpoint is not signed by the other end for this session.'),
      length: malformed('A part of a checkpoint has the wrong length.'),
      mismatch: [
        'The two ends do not agree on what was said in the session, and it was ended.',
        'One end is broken, or lies about what it sent or received.',
        'Keep the trails of both sides: together they show the first record that differs.',
        'sotto audit compare --help',
      ],
      range: malformed('A checkpoint has a number that is too large.'),
      silent: [
        'The other end signed no checkpoint for too many records.',
        'It is broken, or does not want to be held to what it said.',
        'The session was ended. Update sotto on the other machine and open a new one.',
        'sotto --version',
      ],
      trace: tampered('The search for the first difference met an answer that cannot be.'),
      trailing: malformed('Bytes follow after the end of a checkpoint.'),
      truncated: malformed('A checkpoint ends before its time.'),
    },
  },
}

/** Whether it arrived is not known. */
function unsure(what: string): ErrorText {
  return [
    what,
    'The network broke, the other side was stopped, or its work takes longer than --timeout.',
    'It may have been taken: ask the other side before you send again what must not happen twice.',
    'sotto a2a send --help',
  ]
}

function broken(what: string): ErrorText {
  return [
    what,
    'The file was cut or changed, or a newer version of sotto wrote it.',
    'Export it again from the machine where it was written.',
    'sotto --version',
  ]
}
