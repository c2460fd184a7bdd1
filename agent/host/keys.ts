/**
 * Single keys while a command runs. The terminal is in raw mode only between `keys` and its end, and
 * is put back whatever ends the process but SIGKILL. A process in the background leaves the terminal
 * alone: it is not its to set, and trying would stop it.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

const PS_MS_MAX = 500
/** Ctrl-Z: the shell has let the program go on in the foreground. */
const CAME_BACK = '\x1a'

/** `Terminal.keys`. */
export function keys(pressed: (key: string) => void): (() => void) | undefined {
  const { stdin } = process
  if (!stdin.isTTY || !isForeground()) return undefined
  let over = false
  let isRaw = false
  const setRaw = (raw: boolean): void => {
    if (raw === isRaw) return
    isRaw = raw
    stdin.setRawMode(raw)
  }
  const restore = (): void => setRaw(false)
  const typed = (bytes: string | Uint8Array): void => {
    const text = typeof bytes === 'string' ? bytes : new TextDecoder().decode(bytes)
    // Arrows and other keys of several bytes, or a paste: no key of ours.
    if (text.startsWith('\x1b') || [...text].length > 8) return
    for (const key of text) {
      if (over) return
      if (key === '\x03') process.kill(process.pid, 'SIGINT')
      else if (key === '\x1c') leave('SIGQUIT')
      else if (key === '\x1a' && process.platform !== 'win32') suspend()
      else pressed(key)
    }
  }
  const leave = (signal: NodeJS.Signals): void => {
    stop()
    process.kill(process.pid, signal)
  }
  const suspend = (): void => {
    restore()
    process.kill(process.pid, 'SIGTSTP')
  }
  const continued = (): void => {
    if (over || !isForeground()) return
    setRaw(true)
    pressed(CAME_BACK)
  }
  const stop = (): void => {
    if (over) return
    over = true
    stdin.off('data', typed)
    process.off('exit', restore)
    if (process.platform !== 'win32') process.off('SIGCONT', continued)
    restore()
    stdin.pause()
    stdin.unref?.()
  }
  process.on('exit', restore)
  if (process.platform !== 'win32') process.on('SIGCONT', continued)
  setRaw(true)
  stdin.on('data', typed)
  stdin.resume()
  return stop
}

/** Whether the terminal is at this process's disposal. */
function isForeground(): boolean {
  try {
    if (process.platform === 'win32') return true
    if (process.platform === 'linux') {
      // proc(5): after the name in brackets come state, ppid, pgrp, session, tty, tpgid.
      const stat = readFileSync('/proc/self/stat', 'latin1')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return fields[2] === fields[5]
    }
    const { stdout } = spawnSync('ps', ['-o', 'pgid=,tpgid=', '-p', String(process.pid)], {
      encoding: 'utf8',
      timeout: PS_MS_MAX,
    })
    const [group, foreground] = stdout.trim().split(/\s+/)
    return group !== undefined && group === foreground
  } catch {
    return false
  }
}
