/** Pages about `sotto.yaml`, and about talking to a running "sotto up". */
import type { ErrorTable } from './page.ts'

const CHECK = 'sotto config check'

export const CONFIG: ErrorTable = {
  config: {
    about: 'the file of "sotto up"',
    codes: {
      alias: [
        'An alias stands for nothing, or for what it is a part of.',
        'The anchor is misspelled, comes later in the file, or holds its own alias.',
        'Define the anchor (&name) before the alias (*name).',
        CHECK,
      ],
      conflict: [
        'Two fields exclude each other, or one needs another.',
        'A tunnel was put together from two examples.',
        'Leave out the one that the message points at, or add the one that it names.',
        CHECK,
      ],
      duplicate: [
        'A name is there twice.',
        'A block was copied and not renamed, or two tunnels have the same "name".',
        'Give each its own name.',
        CHECK,
      ],
      field: [
        'There is no field of that name.',
        'It is misspelled, stands too far to the left or right, or belongs to tunnels of another kind.',
        'Compare it with those that the message names, and with docs/config.md.',
        CHECK,
      ],
      foreign: [
        'The sotto.yaml of this folder belongs to another user.',
        'Anybody can put one into a folder such as /tmp; it would decide which relay gets your key and what of this machine is published.',
        'Look at it. If you mean it, name it.',
        'sotto up --config PATH',
      ],
      missing: [
        'A field that must be there is not.',
        'It was forgotten, or stands at the wrong depth.',
        'Add it where the message points.',
        CHECK,
      ],
      none: [
        'There is no configuration file.',
        'The command was started in another folder, or the path is wrong.',
        'Write a sotto.yaml in this folder, or name the file by --config.',
        'sotto up --config PATH',
      ],
      running: [
        'Another process runs the tunnels of this file already.',
        'It was started before, by hand or by the system.',
        'Nothing need be done: a change of the file is taken up by the one that runs. To end that one: sotto down.',
        'sotto status',
      ],
      secret: [
        'A secret stands in the file.',
        'An API key, a token or a private key was written into it, or a variable with one is used in another field.',
        'Put it into a file of mode 0600 that "api-key-file" names, or into a variable that "api-key-env" names. Revoke it if others could read the file.',
        'sotto relay keys revoke ID',
      ],
      'secret-file': [
        'The file that holds the API key cannot be used.',
        'It is not there, others can read it, or it holds more than one line.',
        'Write the key alone into it, and take the rights of others away: chmod 600 FILE.',
      ],
      size: [
        'The file is too large, nests too deep, or has too many entries.',
        'It is another file, or aliases repeat a block very often.',
        'Split the tunnels over two files, each with a "sotto up" of its own.',
        CHECK,
      ],
      syntax: [
        'The text is no YAML, or holds what this program does not take: tags, several documents, bytes that are no text.',
        'A bracket or a quote is not closed, lines do not stand below each other, or tabs are used to indent.',
        'Correct the line that the message points at, or the one before it.',
        CHECK,
      ],
      type: [
        'A value is of another kind than its field: a list in place of a text, a text in place of a number.',
        'A hyphen or a quote is missing, or is there in excess.',
        'Write what the message expects. A number that is meant as a text needs quotes.',
        CHECK,
      ],
      unknown: [
        'The file has no tunnel of that name.',
        'It is misspelled, or in another file.',
        'Use one of the names that the message lists.',
        'sotto status',
      ],
      value: [
        'A value is not one that its field takes.',
        'It is misspelled, or out of range.',
        'Write what the message expects.',
        CHECK,
      ],
      variable: [
        'A variable that the file names is not set, or "$" stands for itself without being doubled.',
        'The process was started by a service that has other variables, or the name is misspelled.',
        'Set the variable, give a default as in ${NAME:-default}, or write $$ for the sign.',
        CHECK,
      ],
    },
  },
  control: {
    about: 'talking to a running "sotto up"',
    codes: {
      broken: [
        'The running process went away while it was asked, or answered nonsense.',
        'It ended, or was replaced by another version.',
        'Ask again; if none runs, start it.',
        'sotto status',
      ],
      none: [
        'No "sotto up" runs under this profile.',
        'It was not started, has ended, or belongs to another user or SOTTO_HOME.',
        'Start it, or use the user and the profile that it runs under.',
        'sotto up',
      ],
      request: [
        'A request to the running process cannot be read.',
        'The two are of different versions.',
        'End the one that runs and start it anew.',
        'sotto down',
      ],
      several: [
        'More than one "sotto up" runs, and the command did not say which is meant.',
        'Two files are run under one profile.',
        'Name the file by --config.',
        'sotto status',
      ],
    },
  },
}
