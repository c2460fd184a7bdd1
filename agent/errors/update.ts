/** Pages about bringing the program up to date. */
import type { ErrorTable } from './page.ts'

const AGAIN = 'Nothing was changed. Try again; if it stays so, tell the host of the relay.'

export const UPDATE: ErrorTable = {
  update: {
    about: 'bringing this program up to date',
    codes: {
      broken: [
        'The download broke off, again and again.',
        'The network, or a server that is too busy.',
        AGAIN,
        'sotto update',
      ],
      denied: [
        'The folder of the program cannot be written to.',
        'Another user installed it, such as root into /usr/local/bin, or the disk is read-only.',
        'Run the update as that user, or install another into a folder of your own.',
        'sotto update',
      ],
      different: [
        'The same version is handed out with another content than the one here.',
        'This program was built by hand or changed since; or a version was signed twice, which nobody honest does.',
        'Compare SHA256SUMS with what the makers of sotto publish elsewhere. To have the signed one in any case, name the version and allow it.',
        'sotto update --version VERSION --allow-downgrade',
      ],
      downgrade: [
        'The version that is handed out is older than this one.',
        'The relay has not been given the newest release yet; or somebody wants you to run one whose faults are known.',
        'Nothing was changed. Name the version and allow it if you mean it.',
        'sotto update --version VERSION --allow-downgrade',
      ],
      fault: [
        'A program found that it does not work on this machine when it tried itself.',
        'A damaged file, or a machine without what the program needs.',
        'Report it with the version and the kind of machine.',
        'sotto --version',
      ],
      hash: [
        'The download is not the file that was signed.',
        'It was changed on its way or where it is kept.',
        AGAIN,
        'sotto update',
      ],
      managed: [
        'Something else keeps this program up to date.',
        'It was installed by a manager of packages, which would lose track of the file.',
        'Run the command that the message names.',
      ],
      'no-file': [
        'The release has no program for this kind of machine.',
        'It was built for fewer systems.',
        'Ask the host of the relay for it, or name another place.',
        'sotto update --from https://HOST/FOLDER',
      ],
      'no-keys': [
        'This program knows no key whose releases it may believe.',
        'It was built from sources without compile/release.pub.',
        'Install a release in its place, or build it with the key of those whom you trust.',
      ],
      foreign: [
        'The version before this one is a file that others can have put there.',
        'The program lies in a folder that others may write to, and the file is not of its owner, is a link, or may be written to by all.',
        'Look whose it is, and remove it; keep programs where nobody else may write.',
        'sotto update --version VERSION --allow-downgrade',
      ],
      'no-previous': [
        'There is no version before this one to go back to.',
        'The program was never brought up to date by itself, or the file was removed.',
        'Name the version that you want.',
        'sotto update --version VERSION --allow-downgrade',
      ],
      refused: [
        'The server answered with something that is no file of a release.',
        'The relay hands out nothing, a redirect leads astray, or something in between answers in its place.',
        'Nothing was changed. Open the page of the relay in a browser; its host can set --downloads or --release-url.',
        'sotto update --from https://HOST/FOLDER',
      ],
      'rolled-back': [
        'A newer version than this one has been handed out before.',
        'The host of the relay took a release back, or somebody hides the newest one from you.',
        'Nothing was changed. Ask the host why; name the version and allow it if you mean it.',
        'sotto update --version VERSION --allow-downgrade',
      ],
      'self-test': [
        'The new program failed its own test here, or is not the version that was signed.',
        'It needs what this system lacks, or programs in that folder may not be run (noexec).',
        'Nothing was changed. Report it with the version and the kind of machine.',
        'sotto --version',
      ],
      size: [
        'A file of the release is larger than any can be.',
        'The server hands out something else, or wants to fill the disk.',
        AGAIN,
      ],
      slow: [
        'The server sends so slowly that the download would never end.',
        'A very bad network, or a server that means to hold you up.',
        AGAIN,
        'sotto update',
      ],
      source: [
        'There is no program to replace: this sotto runs from its sources.',
        'It was started by Bun or Node from a checkout.',
        'Bring the sources up to date as you got them, such as by git pull and npm install.',
      ],
      stopped: [
        'The download was stopped before its end.',
        'You stopped the program, or the system did.',
        'Nothing was changed. Run it again when it suits.',
        'sotto update',
      ],
      unreachable: [
        'The server of the release cannot be reached.',
        'The network, its name, or its certificate; the message says which.',
        'Look at the connection and try again.',
        'sotto update',
      ],
      version: [
        'Another version is handed out than the one that was asked for.',
        'A relay has the files of one release at a time.',
        'Name the place of that version.',
        'sotto update --version VERSION --from https://HOST/FOLDER',
      ],
    },
  },
}
