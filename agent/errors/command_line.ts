/** Pages about what was typed, and about what is around the program: files, profile, programs. */
import { malformed, misused } from './page.ts'
import type { ErrorTable, ErrorText } from './page.ts'

export const COMMAND_LINE: ErrorTable = {
  cli: {
    about: 'what was typed on the command line',
    codes: {
      acme: typed(
        'What was said about certificates of a CA cannot be used.',
        'A mistyped URL, host name or address, or the key of an external account binding is missing.',
        'The message names the flag. The key goes into SOTTO_ACME_EAB_KEY or a file, never on the command line.',
        'sotto http --help',
      ),
      argument: typed(
        'The command takes no such argument, because it would be read by every user of the machine.',
        'A secret or a code was typed as an argument.',
        'Leave it out; the command asks for it, or reads a file or a variable that its page names.',
      ),
      certificate: typed(
        'One half of a certificate and its key was given, and the other is missing.',
        'A flag was forgotten.',
        'Give both the certificate and the key, as PEM files.',
        'sotto http --help',
      ),
      client: typed(
        'A stock client needs a name.',
        '--new was left out, or the name has other letters than a-z, 0-9 and hyphens.',
        'Name it, such as --new laptop.',
        'sotto wg config --help',
      ),
      conflict: typed(
        'Two flags were given that exclude each other.',
        'A line was put together from two examples.',
        'Leave out one of the two that the message names.',
      ),
      duration: typed(
        'A length of time cannot be read.',
        'The unit is missing, or the time is none or above seven days.',
        'Write a whole number and ms, s, m or h, such as 30s, 5m or 1h.',
      ),
      e2ee: typed(
        'A UDP port was to be end to end encrypted, which it cannot be.',
        'Packets of a public UDP port pass the relay as they are.',
        'Add --e2ee=false if the protocol encrypts by itself, as WireGuard and QUIC do; else use a private tunnel.',
        'sotto udp --help',
      ),
      endpoint: typed(
        'That is no place where a client could send to.',
        'The port is missing, or an IPv6 address has no brackets.',
        'Write HOST:PORT, such as vpn.example.com:51820.',
        'sotto wg config --help',
      ),
      expires: typed(
        'The end of a credential cannot be read.',
        'The unit is missing, or the date has passed.',
        'Write 90m, 12h, 30d, or a date that is to come.',
      ),
      fault: [
        'The program met an error that it does not know.',
        'A fault of sotto, or an error of the system that has no page of its own.',
        'Read the message: it holds the words of the system. If it names no cause, report it with the version.',
        'sotto --version',
      ],
      file: typed(
        'A file that the line names cannot be read.',
        'It is not there, its path is wrong, or it is a folder or too large.',
        'Check the path. "-" reads standard input where the page says so.',
      ),
      handler: typed(
        'The address of --handler is none that messages may be given to.',
        'It is not a URL, or plain http to another machine, which anybody between could read.',
        'Give http:// on this machine, or https://.',
        'sotto a2a listen --help',
      ),
      'host-header': typed(
        'The value of --host-header is no host name.',
        'It is empty, a URL, or holds blanks.',
        'Give the bare name that the upstream expects, such as app.test or app.test:8080.',
        'sotto http --help',
      ),
      host: typed(
        'That is no host.',
        'Letters that names of hosts do not have.',
        'Write an address or a name, such as 192.168.1.1.',
        'sotto wg ping --help',
      ),
      id: typed(
        'A credential is revoked by its id, and this is none.',
        'The secret was pasted in place of the id.',
        'List the credentials and copy the id of 20 hex digits. A secret that was typed is in your shell history: revoke it.',
        'sotto relay keys list',
      ),
      identity: typed(
        '--identity cannot be used: it takes the identities of both agents, or none.',
        'One of the two is missing, or a part was lost when it was copied.',
        'Give --identity twice, each a KEY or SHA256:… as that agent prints it.',
        'sotto audit verify --help',
      ),
      key: typed(
        'An identity was given that is neither a KEY nor a fingerprint.',
        'A part was lost when it was copied.',
        'Copy the whole KEY (52 characters) or the whole fingerprint (SHA256:…) that the other side prints.',
        'sotto identity',
      ),
      label: typed(
        'A label or the pattern of one cannot be read.',
        'The equals sign is missing, or there are characters that labels do not have.',
        'Write NAME=VALUE of a-z, 0-9 and hyphens, such as role=web.',
      ),
      listen: typed(
        'The address to listen on is none.',
        'It is neither a port nor host:port.',
        'Give a port such as 5432, host:port such as 127.0.0.1:5432, or 0 for any free port.',
        'sotto connect --help',
      ),
      name: typed(
        'The name is none that an endpoint, agent or authority can have.',
        'It has capitals, dots, underscores, a hyphen at an end, or more than 63 characters.',
        'Use 1 to 63 of a-z, 0-9 and inner hyphens, such as web or api-2.',
      ),
      number: typed(
        'A flag takes a whole number within bounds, and got something else.',
        'It is no number, has a fraction or a unit, or is too small or too large.',
        'Give a whole number within the bounds that the message names.',
      ),
      password: typed(
        'A user was named and no password.',
        'A password on the command line would be seen by other users of the machine.',
        'Set the variable SOTTO_PROXY_PASSWORD.',
        'sotto wg socks5 --help',
      ),
      pattern: typed(
        'The pattern of names cannot be used.',
        'It has characters that names do not have, or is empty or too long.',
        'Write names of a-z, 0-9 and hyphens; * stands for any run of them and ? for one.',
        'sotto authority enroll-code --help',
      ),
      'proxy-protocol': typed(
        'There is no such version of the PROXY protocol.',
        'The value is neither v1 nor v2.',
        'Give v1 (text) or v2 (binary), whichever the upstream is set to read.',
      ),
      record: typed(
        'The number of a record cannot be read.',
        'Its direction is missing: both sides count for themselves.',
        'Write sent-NUMBER or received-NUMBER, as the list of the session has them.',
        'sotto audit show --help',
      ),
      scope: typed(
        'It is not clear whose agents are meant.',
        '--to SCOPE was left out, or the admin key was used, which belongs to no scope.',
        'Say the scope to which the names are shown by --to.',
        'sotto relay grants add --help',
      ),
      serial: typed(
        'The serial number of the certificate cannot be read.',
        'It has blanks or other characters, or is the fingerprint.',
        'Give the hex digits that "openssl x509 -noout -serial -in FILE" prints after serial=.',
        'sotto relay certificates revoke --help',
      ),
      shell: typed(
        'There is no completion for that shell.',
        'A typing error, or another shell.',
        'Choose bash, zsh, fish or powershell.',
        'sotto completions --help',
      ),
      state: typed(
        'The folder of --state is not a whole path.',
        'It is relative, which depends on where the program is started.',
        'Give a path that begins with /.',
        'sotto demo --help',
      ),
      statement: typed(
        'The file or text is no statement.',
        'It is of another kind, or a part was lost when it was copied.',
        'Give the whole line of base64 that sotto printed.',
      ),
      switch: typed(
        'A switch was given something else than true or false.',
        'Words such as yes, on or 1.',
        'Write --flag, --flag=true or --flag=false.',
      ),
      unknown: typed(
        'There is no command of that name.',
        'A typing error, or the command belongs to another version of sotto.',
        'Look at the list of commands.',
      ),
      usage: typed(
        'The line cannot be read: a flag or argument is unknown, missing or one too many.',
        'A typing error, a missing value, or a value with blanks that was not quoted.',
        'Look at the page of the command; it has examples that work.',
      ),
    },
  },
  explain: {
    about: 'the command that prints these pages',
    codes: {
      unknown: [
        'There is no error code of that name in this version.',
        'A typing error, or the code came from a relay or an agent that is newer.',
        'Look at the list of modules, or update sotto.',
        'sotto explain',
      ],
    },
  },
  code: {
    about: 'codes that people read to each other',
    codes: {
      descriptor: [
        'The code was to be read from a file descriptor, which is not open.',
        'The shell did not open it for this command.',
        'Open it on the same line: sotto pair --code-fd 3 3< FILE',
        'sotto pair --help',
      ],
      format: [
        'What was typed is no code: it takes a number and three words.',
        'A word was left out, or it was the whole sentence around the code.',
        'Type it as the other side shows it, such as 7-crop-lamp-vivid. Blanks do as well as hyphens.',
        'sotto pair',
      ],
      none: [
        'A code is needed and none was given.',
        'The input ended, as in a script without a terminal.',
        'Type it at the prompt, set SOTTO_CODE, or use --code-fd.',
        'sotto pair --help',
      ],
      word: [
        'A word of the code is not in the list of words.',
        'It was misheard or mistyped.',
        'Take the word that the message offers if it fits, or ask for the word again. Nothing was tried yet.',
      ],
    },
  },
  key: {
    about: 'identities and fingerprints as text',
    codes: {
      format: [
        'A KEY or a fingerprint cannot be read.',
        'A character was lost or changed when it was copied.',
        'Copy it as a whole from what the other side prints.',
        'sotto identity',
      ],
      length: misused('A key to be written has the wrong number of bytes.'),
    },
  },
  labels: {
    about: 'labels of agents, such as role=web',
    codes: {
      count: [
        'There are more labels than an agent may have.',
        'Labels of the profile and of the command line were added up.',
        'Leave some out: those of the profile are in settings.json.',
        'sotto status',
      ],
      form: [
        'A label is not NAME=VALUE of the allowed characters.',
        'Capitals, dots, underscores or blanks.',
        'Use a-z, 0-9 and inner hyphens on both sides of the equals sign.',
      ],
      order: malformed('A list of labels came that is not sorted.'),
    },
  },
  selector: {
    about: 'selections of agents by label',
    codes: {
      length: selected('The selection is too long to be read.'),
      term: selected('A term of the selection is not key=value or key!=value.'),
      terms: selected('The selection has too many terms.'),
    },
  },
  upstream: {
    about: 'the local service that a tunnel leads to',
    codes: {
      failed: [
        'The local service broke the connection off.',
        'It crashed, was restarted, or has a limit of its own.',
        'Look into its log. The next visitor is connected anew.',
        'sotto status',
      ],
      format: [
        'What follows the command is no port or address.',
        'A path of a web page, a port above 65535, or a missing host.',
        'Give a port such as 3000, host:port, a URL, or unix:/path/to.sock.',
        'sotto http --help',
      ],
      unreachable: [
        'The local service does not answer.',
        'It is not running, listens on another port, or on another address than 127.0.0.1.',
        'Start it, and check the port that it prints. The tunnel stays up meanwhile.',
        'sotto status',
      ],
    },
  },
  files: {
    about: 'files that could not be read or written',
    codes: {
      append: [
        'A file could not be added to.',
        'The disk is full, the folder is gone, or a file of that name is there already.',
        'Make room, or move the state folder by SOTTO_HOME or XDG_STATE_HOME.',
      ],
      denied: [
        'Your user may not read or write the file.',
        'It belongs to another user, often because sotto was run once by sudo, or the disk is read-only.',
        'Give the file back to your user (chown), or choose another folder by SOTTO_HOME.',
      ],
      failed: [
        'The system could not read or write the file.',
        'A damaged disk, a network drive that is away, or a folder where a file was expected.',
        "Read the word in the message, which is the system's own, and check the path.",
      ],
      full: [
        'The disk, or your share of it, is full.',
        'No space is left where the file is kept.',
        'Free some space and try again. What was there before is unchanged.',
      ],
      size: [
        'The file is larger than sotto reads.',
        'It is another file than was meant.',
        'Check the path.',
      ],
    },
  },
  profile: {
    about: 'what this agent keeps: identity, settings, pins',
    codes: {
      busy: [
        'Another process holds a file of the profile for too long.',
        'Another sotto hangs, or a crashed one left its lock on a network drive.',
        'End the other sotto and try again.',
        'sotto status',
      ],
      default: [
        'The profile "default" cannot be removed.',
        'It is the one that is there without any word about profiles.',
        'To take its key away, log out.',
        'sotto logout',
      ],
      key: [
        'The profile still holds a key for its relay.',
        'You have not logged out of it.',
        'Log out first, so that the key is revoked; --force leaves it good.',
        'sotto logout --profile NAME',
      ],
      name: [
        'A profile cannot be called that.',
        'A capital letter, a blank or a slash in --profile, SOTTO_PROFILE or the file current_profile.',
        'Use 1 to 63 of a-z, 0-9 and hyphens inside.',
        'sotto profiles',
      ],
      unknown: [
        'There is no profile of that name.',
        'A typing error, or nobody has logged in with it yet.',
        'Look at those that there are, or make it by logging in.',
        'sotto profiles',
      ],
      corrupt: [
        'A file of the profile holds something else than it should.',
        'It was edited by hand, or cut by a full disk or a copy.',
        'Mend the place that the message names, or restore the file from a backup. A new identity means to pair anew.',
        'sotto identity',
      ],
      home: [
        'SOTTO_HOME is not a whole path.',
        'It is relative or holds "~" that no shell has replaced.',
        'Set it to a path that begins with /.',
      ],
      permissions: [
        'The file of the secret identity may be read by other users.',
        'It was copied, or restored from an archive.',
        'If nobody can have read it, chmod 600 the file; else move to a new identity.',
        'sotto identity rotate',
      ],
    },
  },
  program: {
    about: 'programs that sotto starts',
    codes: {
      start: [
        'A program could not be started.',
        'It is not installed, not on PATH, or may not be executed.',
        'Say its whole path, and run it once by hand as the same user.',
        'sotto a2a listen --help',
      ],
    },
  },
  agent: {
    about: 'values inside answers of the relay',
    codes: {
      base64: malformed('The relay gave bytes as text that is no base64.'),
    },
  },
  host: {
    about: 'what the runtime under sotto can do',
    codes: {
      unsupported: [
        'The library was asked for something that only the command does.',
        'Tunnels, terminals and relays are not part of the library.',
        'Run the command "sotto" for that.',
        'sotto --help',
      ],
    },
  },
  library: {
    about: 'sotto used by a program',
    codes: {
      listening: [
        'A handler listens for messages already.',
        'The method listen() was called twice on one agent.',
        'Close the first, or let one handler do both.',
      ],
    },
  },
  world: {
    about: 'the end of the program',
    codes: {
      stopped: [
        'The work was given up because the program was told to stop.',
        'Ctrl-C, a closed terminal, or a service manager.',
        'Nothing. Start it again when you want to go on.',
      ],
    },
  },
}

/** Refused before anything was opened. */
function typed(what: string, causes: string, remedy: string, command = 'sotto --help'): ErrorText {
  return [`${what} Nothing was done.`, causes, remedy, command]
}

function selected(what: string): ErrorText {
  return [
    what,
    'A missing equals sign, or a list that was meant for several commands.',
    'Write terms with commas between, such as env=prod,role!=db; all of them must hold.',
    'sotto agents --help',
  ]
}
