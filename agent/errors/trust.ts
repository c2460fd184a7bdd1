/** Pages about trust: pins, identities, what they sign, and who may do what. */
import { malformed, misused, tampered } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const TRUST: ErrorTable = {
  trust: {
    about: 'whether an identity is the one that was pinned',
    codes: {
      certificate: [
        'The certificate of the other agent is not the one that its signed passport names.',
        'Somebody sits between, or the other agent has just renewed its certificate.',
        'Try again in a minute. If it stays, ask the other side for its fingerprint before you go on.',
        'sotto peers verify NAME',
      ],
      changed: [
        'Another identity answers under a name that you have pinned.',
        'The other side made a new identity or was installed anew; or somebody, perhaps the relay, puts itself in its place.',
        'Ask the other side, not through this relay, for its fingerprint. Only if it is the one in the message, forget the old pin and trust the new one.',
        'sotto peers forget NAME',
      ],
      circle: tampered('The rotations of an identity lead back to itself.'),
      corrupt: [
        'A file of pins or withdrawals has a line that cannot be read.',
        'It was edited by hand, or cut by a full disk.',
        'Mend the line that the message names, or put # before it.',
        'sotto peers list',
      ],
      name: [
        'A name to be pinned has blanks or is empty.',
        'Quotes in the shell, or a copied line.',
        'Give the name as one word.',
        'sotto peers trust --help',
      ],
      none: [
        'Nobody serves that name now, so that there is nobody to trust.',
        'A typing error, the agent is not running, or it is not shown to your scope.',
        'Check the name, and that the other agent runs.',
        'sotto agents',
      ],
      revoked: [
        'The identity has revoked itself, for good.',
        'Its owner lost the key or no longer uses it.',
        'Do not trust it again. Ask the owner for the new identity and pair with it.',
        'sotto pair',
      ],
      split: tampered('Two different withdrawals were signed under one number.'),
      steps: tampered('An identity was rotated more often than is followed.'),
      unknown: [
        'Nobody on this machine has pinned the identity behind that name.',
        'The command trusts no first contact, so that a relay cannot choose who gets a message.',
        'Pair with it, or pin the fingerprint that the other side tells you.',
        'sotto peers trust NAME KEY',
      ],
    },
  },
  peers: {
    about: 'names in the list of pins',
    codes: {
      unknown: [
        'That name is not pinned.',
        'A typing error, or it was forgotten already.',
        'Look at the list of pins.',
        'sotto peers list',
      ],
    },
  },
  guests: {
    about: 'who may come in by --allow',
    codes: {
      allow: [
        'What was allowed is no whole fingerprint.',
        'A part of it was lost when it was copied.',
        'Give SHA256: and all that follows, or the name of a peer that is pinned.',
        'sotto peers list',
      ],
      unknown: [
        'A peer was allowed that is not pinned, so that nobody could tell who it is.',
        'A typing error, or it has not been paired yet.',
        'Pin it first, or pair with it.',
        'sotto peers trust NAME KEY',
      ],
    },
  },
  access: {
    about: 'rules of who may use which service here',
    codes: {
      rule: [
        'A rule of the access table cannot be read, so that nobody is let in by any.',
        'The file settings.json was edited by hand.',
        'Mend the rule that the message names: it is under "access" in settings.json.',
        'sotto access list',
      ],
      service: [
        'There is no such service to allow or deny.',
        'A typing error, or a service of another version.',
        'Choose one that the message lists.',
        'sotto access allow --help',
      ],
      unknown: [
        'No rule allows what was to be taken away.',
        'It was denied before, or it is allowed under another name.',
        'Look at the rules.',
        'sotto access list',
      ],
    },
  },
  identity: {
    about: 'the own identity',
    codes: {
      certificate: [
        'The file is a statement, but none that ends an identity.',
        'Another file was given.',
        'Give the file that "sotto identity revoke-certificate" made.',
        'sotto identity revoke --help',
      ],
    },
  },
  authority: {
    about: 'authorities that vouch for a fleet',
    codes: {
      exists: [
        'An authority of that name is there already.',
        'It was made before.',
        'Use it, or choose another name or --key-file.',
        'sotto authority list',
      ],
      full: [
        'No more vouches can be taken back: the list is full of some that have not run out.',
        'Vouches were signed for long times.',
        'Make a new authority, and sign for fewer days from now on.',
        'sotto authority init NAME',
      ],
      name: [
        'An authority cannot have that name.',
        'Capitals, dots or underscores.',
        'Use 1 to 63 of a-z, 0-9 and inner hyphens.',
        'sotto authority init --help',
      ],
      none: [
        'Nothing in the file is signed for this identity, so that there is nothing to publish.',
        'The file is for another machine.',
        'Take the file that was signed for the identity in the message.',
        'sotto identity',
      ],
      register: [
        'The register of what an authority has signed is gone.',
        'The key was copied without the file beside it.',
        'Restore it from a copy; without it serial numbers would be used twice.',
      ],
      serial: [
        'No vouch of that number was signed.',
        'A typing error, or another authority signed it.',
        'Look at the list.',
        'sotto authority list',
      ],
      unknown: [
        'There is no authority of that name here.',
        'A typing error, or its key is on another machine.',
        'Make it, or say where its key is by --key-file.',
        'sotto authority init NAME',
      ],
      which: [
        'It is not clear which authority is meant.',
        'There are several here, or none.',
        'Say --authority NAME.',
        'sotto authority list',
      ],
    },
  },
  passport: {
    about: 'what an agent signs about itself',
    codes: {
      cipher: misused('A passport names a cipher suite that is written wrongly.'),
      duplicate: malformed('A passport has an entry twice.'),
      early: clock('A passport is valid only from a later time on.'),
      expired: [
        'A passport has run out.',
        'The other agent has not run for long, or one of the two clocks is wrong.',
        'Start the other agent, which signs a new one, and check both clocks.',
        'sotto agents',
      ],
      flags: malformed('A passport has marks that this version does not know.'),
      forged: tampered('A passport is not signed by the identity that it names.'),
      length: malformed('A part of a passport has the wrong length.'),
      name: misused('A passport names something that is no lower-case label.'),
      order: malformed('A passport has entries out of order.'),
      range: malformed('A passport has a number that is too large.'),
      signer: tampered('The passport of another identity came than was asked for.'),
      size: malformed('A passport has a list that is too long.'),
      stale: [
        'An older passport came than was seen before.',
        'It was replayed, or the other agent was restored from a backup.',
        'If the other side was restored, let it sign anew by starting it once more; else trust nothing that came.',
        'sotto peers verify NAME',
      ],
      trailing: malformed('Bytes follow after the end of a passport.'),
      truncated: malformed('A passport ends before its time.'),
      validity: misused('A passport ends before it begins.'),
      version: older('A passport of another version came.'),
    },
  },
  statement: {
    about: 'vouches, withdrawals, rotations and revocations',
    codes: {
      authority: [
        'A vouch is signed by an authority that is not trusted here.',
        'The authority was not pinned on this machine, or another fleet is meant.',
        'Enroll this machine, or pin the authority by its fingerprint.',
        'sotto peers trust --help',
      ],
      duplicate: malformed('A statement has an entry twice.'),
      early: clock('A vouch is valid only from a later time on.'),
      expired: [
        'A vouch has run out.',
        'It was signed for some days, which are over, or a clock is wrong.',
        'Let the authority sign again.',
        'sotto authority sign --help',
      ],
      forged: tampered('A statement is not signed by whom it names.'),
      kind: malformed('A statement of an unknown kind came.'),
      length: malformed('A part of a statement has the wrong length.'),
      name: malformed('A statement names something that is no lower-case label.'),
      order: malformed('A statement has a list out of order.'),
      range: malformed('A statement has a number that is too large.'),
      self: [
        'An identity was to vouch for itself, or to follow itself.',
        'The same KEY was given twice.',
        'Give the KEY of the other machine.',
        'sotto identity',
      ],
      size: malformed('A statement has a list that is too long.'),
      stale: [
        'An older withdrawal came than was seen before.',
        'It was replayed, or the authority was restored from an old backup.',
        'If it was restored, let the authority withdraw once more, above the number in the message.',
        'sotto authority revoke --help',
      ],
      trailing: malformed('Bytes follow after the end of a statement.'),
      truncated: malformed('A statement ends before its time.'),
      validity: misused('A statement ends before it begins.'),
      version: older('A statement of another version came.'),
      withdrawn: [
        'The authority took its vouch back.',
        'The machine left the fleet, or its key was lost.',
        'Ask whoever runs the authority. With a new identity the machine can be enrolled again.',
        'sotto enroll',
      ],
    },
  },
  statements: {
    about: 'statements that the relay keeps',
    codes: {
      limit: [
        'The relay keeps no more statements of this identity.',
        'Many authorities vouch for it, or old ones were never replaced.',
        'Use fewer authorities, or a new identity.',
        'sotto authority list',
      ],
      publisher: [
        'The relay keeps a statement only from whom it is for.',
        'It was published from another machine.',
        'Publish it from the machine whose identity it names.',
        'sotto authority publish --help',
      ],
      quota: [
        'The relay keeps no more statements of your scope.',
        'The fleet is larger than the relay allows.',
        'Ask the operator, or spread the fleet over several scopes.',
      ],
      stale: [
        'The relay has a newer statement of that kind already.',
        'An old file was published.',
        'Nothing to do if the newer one is right; else sign again.',
        'sotto authority sign --help',
      ],
    },
  },
  verify: {
    about: 'comparing seven emoji by "sotto peers verify"',
    codes: {
      away: [
        'The other side does not answer.',
        'Its agent is not running, or nobody has typed the command there.',
        'Call each other, and type the command on both machines.',
        'sotto peers verify NAME',
      ],
      different: danger('The emoji differ: the two machines do not talk to each other.'),
      fault: [
        'The comparison broke off by an error.',
        'The connection was lost, or the other side has a fault.',
        'Nothing was changed. Start again on both machines.',
        'sotto peers verify NAME',
      ],
      late: [
        'The other side did not answer in time.',
        'The person there is away, or did not press a key.',
        'Nothing was changed. Start again on both machines.',
        'sotto peers verify NAME',
      ],
      unanswered: [
        'You gave no answer, so that nothing was marked as verified.',
        'The input ended, or the time ran out.',
        'Start again on both machines, at a terminal.',
        'sotto peers verify NAME',
      ],
      which: [
        'Several identities have that name.',
        'The name is a pool of machines.',
        'Say which one by its fingerprint.',
        'sotto peers list',
      ],
    },
  },
  sas: {
    about: 'the protocol under the seven emoji',
    codes: {
      answer: malformed('The other side gave an answer to the comparison that is none.'),
      commitment: danger('The other side showed another value than it had committed to.'),
      early: [
        'The other side answered before it was asked.',
        'Both sides began at once, or the other side has a fault.',
        'Start again on both machines.',
        'sotto peers verify NAME',
      ],
      fault: [
        'The comparison broke off by an error.',
        'The connection was lost, or the other side has a fault.',
        'Nothing was changed. Start again on both machines.',
        'sotto peers verify NAME',
      ],
      reflected: danger('The own value came back as if it were that of the other side.'),
      trailing: malformed('Bytes follow after the end of a message of the comparison.'),
      truncated: malformed('A message of the comparison ends before its time.'),
    },
  },
}

function clock(what: string): ErrorText {
  return [
    what,
    'One of the two clocks is wrong.',
    'Set both clocks, best by network time, and try again.',
  ]
}

function older(what: string): ErrorText {
  return [
    what,
    'The two machines run versions of sotto that are far apart.',
    'Update sotto on the older of the two.',
    'sotto --version',
  ]
}

function danger(what: string): ErrorText {
  return [
    what,
    'Somebody sits between the two machines, or a person read the wrong line.',
    'Trust nothing that came from there. Forget the pin on both sides, and pair anew over another network.',
    'sotto peers forget NAME',
  ]
}
