/** Pages about the machine: services, and what `sotto doctor` looks at. */
import { malformed, misused } from './page.ts'
import type { ErrorTable } from './page.ts'

export const MACHINE: ErrorTable = {
  doctor: {
    about: 'what "sotto doctor" found, or could not look at',
    codes: {
      check: [
        'A check met an error that it does not know.',
        'An error of the system that has no page of its own.',
        'Read the message: it holds the words of the system. Look at what stands above it first.',
        'sotto doctor',
      ],
      silence: [
        'The relay was asked over HTTP and said nothing.',
        'It closed the connection, is overloaded, or a firewall or a wrong MTU loses packets on the way.',
        'Try again, then from another network. If small questions are answered and large ones are not, lower the MTU.',
        'sotto doctor',
      ],
      stun: [
        'A STUN server of --stun cannot be read, or there are too many.',
        'It is a URL with more in it than host and port.',
        'Write host:port, such as stun.example.com:3478; at most four.',
        'sotto doctor --help',
      ],
      timeout: [
        'A check did not end in time.',
        'Something on the way drops packets without a word, often a firewall.',
        'Look at what else failed, and try from another network.',
        'sotto doctor',
      ],
    },
  },
  service: {
    about: 'the agent or a relay as a service',
    codes: {
      config: [
        'The file by which the agent would run is not there.',
        'It was not written yet, or is elsewhere.',
        'Write /etc/sotto/sotto.yaml and try it with "sotto up --config PATH", or name yours by --config.',
        'sotto service install --config /etc/sotto/sotto.yaml',
      ],
      flags: [
        'Flags were given for the service of the agent, which takes none.',
        'They were meant for a relay, or for a single tunnel.',
        'Write the tunnels into sotto.yaml. For a relay say "relay" before the two dashes.',
        'sotto service install relay -- --domain relay.example.com',
      ],
      foreign: [
        'A service of the whole machine would run a program that somebody else than root can change.',
        'The program belongs to a person, or all may write to it; whoever changes it has the rights of the service.',
        'Put the program into /usr/local/bin as root, which the installer does for root.',
      ],
      hidden: [
        "The service could not see its program or its file, because homes are hidden from a machine's services.",
        'The program is installed in a home, such as ~/.local/bin, or its file is there.',
        'Put the program into /usr/local/bin (the installer does so for root) and the file into /etc/sotto.',
      ],
      logs: [
        'What the service printed was kept by nobody.',
        'The Task Scheduler of Windows keeps no output of programs.',
        'Run it in a terminal to see what it says.',
        'sotto up',
      ],
      manager: [
        'There is no manager of services here that sotto knows.',
        'A container, another init than systemd, or a user without a session of systemd.',
        'Let whatever starts programs there run "sotto up" or "sotto relay"; both stop on SIGTERM. --print shows a unit as a pattern.',
        'sotto service install --print',
      ],
      name: [
        'There is no such service.',
        'A name was mistyped.',
        'Say agent or relay, or nothing for the agent.',
        'sotto service status relay',
      ],
      path: [
        'The path of --config does not begin at the root.',
        'A service starts in no folder of yours, so a relative path would lead nowhere.',
        'Write the whole path.',
      ],
      permissions: [
        'The file with the secrets of the service is readable to others.',
        'It was made with the usual permissions.',
        'Take the rights away with "chmod 600 /etc/sotto/sotto.env", and change the keys if others use this machine.',
      ],
      refused: [
        'The manager of services refused what it was asked.',
        'Its own words are in the message: a unit that is masked, a bus that is not reachable, no rights.',
        'Mend what it says. For a service of your own, sign in as that user instead of su or sudo.',
        'sotto service install --print',
      ],
      rights: [
        'A service of the machine was to be changed without the right to it.',
        'You are not root.',
        'Run the command with sudo, or leave out --system for a service of your own.',
        'sotto service install',
      ],
      secret: [
        'A key stood among the flags of a service. Nothing was installed.',
        'Units and command lines are readable to every user of the machine.',
        'Put it as NAME=VALUE into /etc/sotto/sotto.env or relay.env with mode 0600. Change the key if others saw it.',
      ],
      start: [
        'The service is installed and did not become ready.',
        'Its configuration is wrong, the relay refuses it, or its port is taken.',
        'Read what it printed. It is tried again by itself, so that a relay that comes back is enough.',
        'sotto service logs',
      ],
      user: [
        'The name of --run-as is no name of a user.',
        'It was mistyped, or is a number.',
        'Give the name as "id -un" prints it.',
      ],
      word: [
        'A path or a flag of the service holds a control character. Nothing was installed.',
        'A line break was pasted with it.',
        'Type it again without.',
      ],
    },
  },
  stun: {
    about: 'questions to STUN servers, and their answers',
    codes: {
      fingerprint: malformed('The checksum of a STUN message is wrong.'),
      malformed: malformed('What came is no STUN message.'),
      size: misused('A STUN message was to be larger than a datagram should be.'),
      truncated: malformed('A STUN message breaks off.'),
    },
  },
}
