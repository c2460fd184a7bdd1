/** Pages about logins. */
import { tampered } from './page.ts'
import type { ErrorTable } from './page.ts'

export const LOGIN: ErrorTable = {
  login: {
    about: 'logging in to a relay and out of it',
    codes: {
      answer: [
        'The relay answered a login with something that this program does not know.',
        'The relay is older than logins, or what answers is no relay of sotto.',
        'Have the relay updated, or log in with a key that its operator made.',
        'sotto login RELAY --prompt-key',
      ],
      client: [
        'A program asked for a login under a name that the relay does not know.',
        'It is not sotto that asked, or one that is much older or newer.',
        'Use sotto, in a version that fits the relay.',
        'sotto --version',
      ],
      code: [
        'The code leads to no login that waits.',
        'A typing error, a code that is older than ten minutes or was used, one of another relay, or one that was burned by three wrong tries.',
        'Run "sotto login" again and type the new code at that same relay.',
        'sotto login RELAY',
      ],
      denied: [
        'The login was turned away.',
        'Whoever may let you in said no, or wrong codes were tried too often.',
        'Ask the operator, then run "sotto login" again.',
        'sotto login RELAY',
      ],
      expired: [
        'Nobody approved the login within ten minutes.',
        'The code was not entered, or the relay was restarted on another store.',
        'Run "sotto login" again.',
        'sotto login RELAY',
      ],
      forged: tampered('What came as the answer to a login was not signed by the relay for it.'),
      form: [
        'The page for codes got a form that is not its own.',
        'Cookies are blocked, the page was open for long, or another site tried to send the form for you.',
        'Open the page again and enter the code there.',
      ],
      limit: [
        'The relay takes no more logins for now.',
        'Too many were begun, or codes entered, from one address or in all.',
        'Wait ten minutes.',
      ],
      none: [
        'The profile holds no key that could be revoked.',
        'You are logged out already, or another profile is meant.',
        'Look at the profiles and name the right one by --profile.',
        'sotto profiles',
      ],
      'not-revoked': [
        'The key could not be revoked at its relay.',
        'The relay cannot be reached, or refuses it; the message says which.',
        'Try again when it is there. To forget the key on this machine alone, use the command below; then have the operator revoke it.',
        'sotto logout --local',
      ],
      'other-relay': [
        'The profile has a key for another relay.',
        'One profile is of one relay.',
        'Give the second relay a profile of its own, or log out first.',
        'sotto login RELAY --profile NAME',
      ],
      refused: [
        'The relay refused the login.',
        'The message holds what it said.',
        'If it does not help, ask the operator of the relay.',
        'sotto status',
      ],
      request: [
        'The relay could not read a request for a login, or it was signed for another relay.',
        'Program and relay differ in version, or somebody hands a request of one relay on to another.',
        'Update both, the relay first. If the relay that you log in to is not one that you trust, stop.',
        'sotto --version',
      ],
      scope: [
        'The login cannot be approved for that scope.',
        'A scope is one label of a-z, 0-9 and hyphens, and "admin" is taken.',
        'Choose another one.',
        'sotto relay approve CODE --scope NAME',
      ],
      stopped: [
        'The login was stopped before anybody approved it.',
        'Ctrl-C, or a signal.',
        'The code is worth nothing without the program that waits for it. Begin again when you like.',
        'sotto login RELAY',
      ],
      unconfirmed: [
        'Nobody was let in, since the question was not answered with yes.',
        'No, nothing, or an input that ended.',
        'Approve only a code that you see on the machine that asks.',
        'sotto relay approve CODE',
      ],
    },
  },
}
