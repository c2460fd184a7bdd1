/**
 * A systemd of its own, as process 1 of name spaces of its own: the machine's files lie below, what is
 * written goes into memory, and no wire leads out. So units are installed, started and judged by the real
 * thing. Needs root, `unshare`, `nsenter` and overlayfs.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const BOOT_MS_MAX = 60_000
const RUN_MS_MAX = 90_000
const BUFFER_BYTES = 16_777_216

/** $1 is a folder; a control group of version 2 of its own first, so that systemd moves nobody else. */
const OUTER = `set -e
mount --make-rprivate /
mkdir "$1/groups" "$1/memory"
mount -t cgroup2 none "$1/groups"
mkdir "$1/groups/sotto-test-$$"
echo "$1/groups/sotto-test-$$" > "$1/group"
echo $$ > "$1/groups/sotto-test-$$/cgroup.procs"
exec unshare --cgroup --pid --fork --uts --ipc --net --kill-child sh -c "$INNER" sh "$1"`

const INNER = `set -e
mount -t tmpfs none "$1/memory"
mkdir "$1/memory/upper" "$1/memory/work" "$1/memory/root"
R="$1/memory/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/memory/upper,workdir=$1/memory/work" "$R"
mount -t proc none "$R/proc"
mount -t sysfs none "$R/sys"
mount -t tmpfs none "$R/sys/fs/cgroup" 2>/dev/null || true
mount -t cgroup2 none "$R/sys/fs/cgroup"
mount -t tmpfs none "$R/run"
mount -t tmpfs none "$R/tmp"
mount --rbind /dev "$R/dev"
mount -t tmpfs none "$R/dev/shm"
mkdir -p "$R/sotto" "$R/shared" "$R/old"
mount --bind "$SOURCES" "$R/sotto"
mount --bind "$1" "$R/shared"
rm -rf "$R"/etc/systemd/system/*.wants "$R/etc/sotto" "$R/var/lib/sotto" "$R/var/lib/private"
printf '[Unit]\\nDescription=test\\nRequires=basic.target systemd-journald.service\\nAfter=basic.target systemd-journald.service\\n' > "$R/etc/systemd/system/sotto-test.target"
ip link set lo up
cd "$R"
pivot_root . old
umount -l /old
mount --make-rshared /
echo up > /shared/booting
exec /lib/systemd/systemd --unit=sotto-test.target --log-target=console --show-status=no`

export class Systemd {
  /** Seen by both: here, and as /shared there. The sources are /sotto there. */
  readonly shared: string
  readonly #child: ChildProcess
  readonly #pid: number

  private constructor(shared: string, child: ChildProcess, pid: number) {
    this.shared = shared
    this.#child = child
    this.#pid = pid
  }

  static async boot(sources: string): Promise<Systemd> {
    const shared = mkdtempSync(join(tmpdir(), 'sotto-systemd-'))
    const child = spawn('unshare', ['--mount', 'sh', '-c', OUTER, 'sh', shared], {
      env: { ...process.env, INNER, SOURCES: sources, container: 'sotto' },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    child.stdout!.on('data', (bytes) => output += bytes)
    child.stderr!.on('data', (bytes) => output += bytes)
    const endMs = Date.now() + BOOT_MS_MAX
    // The outer process becomes `unshare`, whose one child is process 1 there.
    for (;;) {
      const pid = Number(
        readText(`/proc/${child.pid}/task/${child.pid}/children`).trim().split(' ')[0],
      )
      const made = new Systemd(shared, child, pid)
      if (
        pid > 0 && made.run(['systemctl', 'is-system-running', '--wait']).stdout === 'running\n'
      ) {
        return made
      }
      if (Date.now() > endMs || child.exitCode !== null) {
        await made.close()
        throw new Error(`systemd did not start: ${output}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }

  /** A command there, by root. */
  run(argv: string[], { input }: { input?: string } = {}) {
    const all = [
      '-t',
      `${this.#pid}`,
      '-m',
      '-p',
      '-C',
      '-u',
      '-i',
      '-n',
      '-r',
      '-w',
      '--',
      ...argv,
    ]
    const { status, stdout, stderr } = spawnSync('nsenter', all, {
      timeout: RUN_MS_MAX,
      killSignal: 'SIGKILL',
      encoding: 'utf8',
      maxBuffer: BUFFER_BYTES,
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/root' },
      ...(input === undefined ? {} : { input }),
    })
    return { code: status, stdout, stderr }
  }

  /** A file there, with its folders. */
  write(path: string, content: string, mode = '644'): void {
    writeFileSync(join(this.shared, 'given'), content)
    this.run(['install', '-D', '-m', mode, '/shared/given', path])
  }

  async close(): Promise<void> {
    const gone = this.#child.exitCode === null && this.#child.signalCode === null
      ? new Promise<void>((resolve) => this.#child.once('exit', () => resolve()))
      : undefined
    this.#child.kill('SIGKILL')
    await gone
    rmSync(this.shared, { recursive: true, force: true })
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
