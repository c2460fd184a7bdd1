// `npm test` on a fresh machine: installs what is missing, then runs every suite. Plain JavaScript,
// since Node 20 runs it before anything is installed.
import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ensureInstalled, ROOT } from './setup.mjs'

/** Debian package by the program that the suites look for. */
const PACKAGES = {
  chromium: 'chromium',
  curl: 'curl',
  openssl: 'openssl',
  ssh: 'openssh-client',
  sshd: 'openssh-server',
  'redis-server': 'redis-server',
  'redis-cli': 'redis-tools',
  nft: 'nftables',
  ip: 'iproute2',
  tmux: 'tmux',
  minisign: 'minisign',
  debootstrap: 'debootstrap',
  'qemu-aarch64-static': 'qemu-user-static',
  pip3: 'python3-pip',
  unzip: 'unzip',
  zsh: 'zsh',
  fish: 'fish',
  wget: 'wget',
  shellcheck: 'shellcheck',
  'systemd-analyze': 'systemd',
  systemctl: 'systemd',
  unshare: 'util-linux',
  setpriv: 'util-linux',
  squid: 'squid',
  tinyproxy: 'tinyproxy',
  microsocks: 'microsocks',
  'nc.openbsd': 'netcat-openbsd',
  ncat: 'ncat',
  proxychains4: 'proxychains4',
  ping: 'iputils-ping',
  script: 'bsdutils',
  nsenter: 'util-linux',
  socat: 'socat',
  plistutil: 'libplist-utils',
  turnserver: 'coturn',
  promtool: 'prometheus',
  pebble: 'pebble',
  'pebble-challtestsrv': 'pebble',
  certutil: 'libnss3-tools',
  buildah: 'buildah',
  busybox: 'busybox',
  'wireguard-go': 'wireguard-go',
  wg: 'wireguard-tools',
  zbarimg: 'zbar-tools',
  iperf3: 'iperf3',
  // Brings nginx itself.
  nginx: 'libnginx-mod-stream',
  haproxy: 'haproxy',
}

/** Asked by Debian's packages before they start what they install: the suites start their own. */
const POLICY = '/usr/sbin/policy-rc.d'
const POLICY_TEXT = '#!/bin/sh\nexit 101\n'

function has(program) {
  return ['', '/usr/sbin/', '/sbin/'].some((folder) =>
    spawnSync('sh', ['-c', `command -v ${folder}${program}`]).status === 0
  )
}

function installPackages() {
  const absent = Object.keys(PACKAGES).filter((program) => !has(program))
  if (absent.length === 0) return
  const names = [...new Set(absent.map((program) => PACKAGES[program]))]
  if (process.getuid?.() !== 0 || !has('apt-get')) {
    console.log(
      `not installed: ${
        names.join(' ')
      }\nSuites that need them are named below. As root this installs them by itself.`,
    )
    return
  }
  console.log(`installing ${names.join(' ')}`)
  const quiet = {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  }
  const install = () =>
    spawnSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...names], quiet)
      .status === 0
  const own = !existsSync(POLICY)
  if (own) writeFileSync(POLICY, POLICY_TEXT, { mode: 0o755 })
  try {
    if (existsSync('/var/lib/apt/lists') && install()) return
    spawnSync('apt-get', ['update', '-qq'], quiet)
    if (!install()) console.log('apt-get could not install all of them')
  } finally {
    if (own) rmSync(POLICY)
  }
}

ensureInstalled()
installPackages()
const bun = join(ROOT, 'node_modules', '.bin', 'bun')
const result = spawnSync(bun, [join(ROOT, 'tests', 'run.ts'), ...process.argv.slice(2)], {
  stdio: 'inherit',
})
process.exitCode = result.status ?? 1
