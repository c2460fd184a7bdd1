/** Pages about pairing by a code, and about joining a fleet. */
import { malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const PAIRING: ErrorTable = {
  pair: {
    about: 'pairing two machines by a code',
    codes: {
      answer: malformed(
        'The relay answered the request for a code with something that is no answer.',
      ),
      envelope: malformed('A message of pairing came in an envelope that cannot be read.'),
      expired: again('Nobody typed the code in time.', 'A code is good for some minutes.'),
      forged: tampered('A message of pairing was not sealed by who knows the code.'),
      guessed: [
        'Somebody joined with a wrong code. The code is used up: one guess is all that anybody has.',
        'The code was mistyped on the other machine, or a stranger tried to guess it.',
        'Make a new code. If the other person typed nothing, a stranger tried: choose the way to tell the code with care.',
        'sotto pair',
      ],
      length: malformed('A message of pairing has a part of the wrong length.'),
      limit: [
        'Too many codes were made or tried from here in a short time.',
        'The relay slows guessing down, for each scope and address.',
        'Wait ten minutes and try again.',
        'sotto pair',
      ],
      lost: again(
        'The link to the relay broke, and the code went with it.',
        'The network changed, or the relay was restarted.',
      ),
      name: [
        'One side says a name that is none.',
        'The other side runs another version, or its name has blanks.',
        'Give the own name by --name, of a-z, 0-9 and hyphens.',
        'sotto pair --help',
      ],
      order: malformed('A message of pairing came where none may be.'),
      'own-room': [
        'The code was typed on the machine that made it.',
        'Two terminals of one machine share one identity.',
        'Type it on the other machine; to try it out on one, give the second its own SOTTO_HOME.',
        'sotto pair',
      ],
      range: malformed('A message of pairing has a number that is too large.'),
      reflected: tampered('The own message of pairing came back.'),
      refused: [
        'The other side refused to pair.',
        'The person there said no, or its command ended.',
        'Talk to each other, and start again with a new code.',
        'sotto pair',
      ],
      taken: [
        'The code was tried as often as it may be.',
        'Somebody may be guessing, or the command was started several times.',
        'Make a new code.',
        'sotto pair',
      ],
      timeout: again(
        'The other side did not answer in time.',
        'Its command ended, or its network is slow.',
      ),
      trailing: malformed('Bytes follow after the end of a message of pairing.'),
      truncated: malformed('A message of pairing ends before its time.'),
      'unknown-room': [
        'There is no code of that number at this relay.',
        'It has expired or was used, the number was mistyped, or the two machines use different relays.',
        'Check that both name the same relay, and make a new code.',
        'sotto status',
      ],
      version: [
        'The other side pairs by another version of the protocol.',
        'The two machines run versions that are far apart.',
        'Update sotto on the older of the two.',
        'sotto --version',
      ],
    },
  },
  pake: {
    about: 'the key agreement under pairing codes',
    codes: {
      element: tampered('A value of the key agreement is none that can be made from a code.'),
      length: malformed('A value of the key agreement has the wrong length.'),
      reflected: tampered('The own value of the key agreement came back.'),
      used: misused('One run of the key agreement was used twice.'),
    },
  },
  enroll: {
    about: 'machines that join a fleet',
    codes: {
      answer: malformed('The authority gave an answer that is none.'),
      away: [
        'Whoever showed the code waits for no machine here.',
        'It was a code of "sotto pair", it has run out, or the two are in different scopes.',
        'Ask for a code of "sotto authority enroll-code", or pair by the code.',
        'sotto pair --join',
      ],
      begun: [
        'Enrolment by that secret was begun before, with other terms.',
        '--count or --expires was given a second time.',
        'Leave them out to go on with it, or take another --secret-file.',
        'sotto authority enroll-code --help',
      ],
      book: [
        'The list of machines that have enrolled cannot be read.',
        'It was edited, or cut by a full disk.',
        'Restore it, or begin with another --secret-file.',
        'sotto authority enroll-code --help',
      ],
      count: over('As many machines have enrolled as the secret is good for.'),
      expired: over('The secret or code has expired.'),
      fault: [
        'The authority could not sign.',
        'Its key or its register cannot be read, or its disk is full.',
        'Look at the terminal of the authority, which says why.',
        'sotto authority list',
      ],
      name: [
        'The name under which the authority was to be pinned is pinned to another one.',
        'This machine is in another fleet, or the authority was made anew.',
        'Enroll with --as OTHER-NAME, or forget the old authority if you know that it was replaced.',
        'sotto enroll --help',
      ],
      names: [
        'The authority does not give the names that this machine asks for.',
        'Its --names has other patterns.',
        'Ask for names that it gives, or let its patterns be widened.',
        'sotto enroll --help',
      ],
      over: over('Nobody can enroll by that secret any more.'),
      proof: tampered('The other end does not know the secret.'),
      refused: [
        'The authority said no.',
        'The reason stands in the message.',
        'Ask whoever runs the authority.',
        'sotto enroll --help',
      ],
      request: malformed('The authority could not read what this machine asked.'),
      secret: [
        'The secret cannot be read.',
        'A part of it is missing.',
        'Give the whole file: "en_" and 32 letters and digits.',
        'sotto enroll --help',
      ],
      silent: [
        'The machine that had the code did not ask for its vouch.',
        '"sotto pair" was typed there in place of "sotto enroll".',
        'Make a new code, and type "sotto enroll" on the other machine.',
        'sotto authority enroll-code',
      ],
      taken: [
        'Another machine of the fleet has one of those names.',
        'Two machines were set up alike, or this one has a new identity.',
        'Choose another name, or let the vouch of the other be taken back.',
        'sotto authority list',
      ],
      terms: [
        'A new secret needs to say for how many machines and how long it is good.',
        '--count or --expires is missing.',
        'For example: --count 200 --expires 1h',
        'sotto authority enroll-code --help',
      ],
      timeout: [
        'No answer came in time.',
        'The authority is not running, or its network is slow.',
        'Check that "sotto authority enroll-code" runs there, and try again.',
        'sotto enroll',
      ],
    },
  },
}

function again(what: string, causes: string): ErrorText {
  return [what, causes, 'Start again with a new code; nothing was pinned.', 'sotto pair']
}

function over(what: string): ErrorText {
  return [
    what,
    'More machines came than were planned, or later than planned; or the secret is in the wrong hands.',
    'Compare the list with the machines that you know. Then take another --secret-file with --count and --expires.',
    'sotto authority list',
  ]
}
