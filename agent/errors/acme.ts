/** Pages about certificates of a CA. */
import { malformed } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const ACME: ErrorTable = {
  acme: {
    about: 'certificates of a CA; whatever happens here, the self-signed one goes on serving',
    codes: {
      account: [
        'The CA does not accept the account of this agent.',
        'The account was deactivated, or the CA has forgotten it.',
        'Look in the folder "acme" of the profile\'s state for the account of this CA. If it was deactivated on purpose, move that file away and a new account is made.',
        'sotto http 3000 --acme off',
      ],
      binding: [
        'The CA wants to know whose account this is, and was not told, or does not believe it.',
        'It gives certificates to its customers alone (external account binding).',
        'Make a key at the CA; give its id by --acme-eab-kid, and the key itself in SOTTO_ACME_EAB_KEY or a file.',
        'sotto http 3000 --acme-eab-kid ID --acme-eab-key-file PATH',
      ],
      caa: [
        'DNS says that another CA, or another account, may certify this name.',
        'A CAA record of the name or of a domain above it.',
        'Whoever holds the DNS can allow this CA in the CAA record; or choose the one that is allowed.',
        'sotto http 3000 --acme-directory URL',
      ],
      challenge: [
        'The CA offers no proof that an agent behind a relay can give.',
        'It does not know TLS-ALPN-01 (RFC 8737), or not for this name.',
        'Choose a CA that offers TLS-ALPN-01.',
        'sotto http 3000 --acme-directory URL',
      ],
      directory: [
        'What should be the directory of a CA is none, or leads somewhere without TLS.',
        'A mistyped --acme-directory.',
        'Compare the URL with the one that the CA publishes.',
        'sotto http 3000 --acme-directory URL',
      ],
      failed: [
        'The relay got no certificate from its CA.',
        'The CA could not reach the name at port 443, has had enough of it for now, or is not there; the message says what it said.',
        'Look at DNS and CAA records of the name and at what is between; the relay asks again at the time that its log names, and its own certificate serves meanwhile.',
        'sotto relay --help',
      ],
      fault: later('Something of this machine stood in the way, and the CA was not asked.'),
      limited: later('The CA has given as many certificates as it wants to for now.'),
      refused: later('The CA refused the order.'),
      stopped: [
        'The order was given up because the program was told to stop.',
        'Ctrl-C, a closed terminal, or a service manager.',
        'Nothing. The next start goes on.',
      ],
      timeout: later('The CA gave no verdict in time.'),
      unavailable: later('The CA has a fault of its own.'),
      unreachable: [
        'The CA could not be reached.',
        'This machine has no way to it, its certificate is not trusted here, or it is down.',
        'Nothing: it is asked again by itself, a little later each time. A CA of your own is trusted by --acme-ca.',
        'sotto http 3000 --acme-ca PATH',
      ],
      validation: [
        'The CA asked this name for the proof and did not find it.',
        'The name does not lead to the relay, its port 443 is closed to the internet, a CAA record forbids it, or another agent serves the same name.',
        'Look where the name leads. It is tried again by itself.',
        'sotto status',
      ],
      waiting: later('As much was asked of the CA as is wise; the reason is that of the last try.'),
    },
  },
  renewal: {
    about: 'when a certificate is renewed',
    codes: { info: malformed('What the CA suggested for the renewal could not be read.') },
  },
}

function later(what: string): ErrorText {
  return [
    what,
    'The sentence that came with it says what the CA said.',
    'Nothing: it is tried again by itself at the time that was named, and meanwhile the self-signed certificate serves.',
    'sotto status',
  ]
}
