/**
 * Every pattern that the published vectors use (Noise revision 34, §7.4, §7.5, §18.1), by its name:
 * more than sotto speaks, so that the machine is proven and not one row of its table.
 */
import type { Pattern, Role, Token } from '../../core/noise.ts'

const MESSAGES: Readonly<Record<string, string>> = {
  N: 'e es',
  K: 'e es ss',
  X: 'e es s ss',
  NN: 'e | e ee',
  NK: 'e es | e ee',
  NX: 'e | e ee s es',
  XN: 'e | e ee | s se',
  XK: 'e es | e ee | s se',
  XX: 'e | e ee s es | s se',
  KN: 'e | e ee se',
  KK: 'e es ss | e ee se',
  KX: 'e | e ee se s es',
  IN: 'e s | e ee se',
  IK: 'e es s ss | e ee se',
  IX: 'e s | e ee se s es',
  NK1: 'e | e ee es',
  NX1: 'e | e ee s | es',
  X1N: 'e | e ee | s | se',
  X1K: 'e es | e ee | s | se',
  XK1: 'e | e ee es | s se',
  X1K1: 'e | e ee es | s | se',
  X1X: 'e | e ee s es | s | se',
  XX1: 'e | e ee s | es s se',
  X1X1: 'e | e ee s | es s | se',
  K1N: 'e | e ee | se',
  K1K: 'e es | e ee | se',
  KK1: 'e | e ee se es',
  K1K1: 'e | e ee es | se',
  K1X: 'e | e ee s es | se',
  KX1: 'e | e ee se s | es',
  K1X1: 'e | e ee s | se es',
  I1N: 'e s | e ee | se',
  I1K: 'e es s | e ee | se',
  IK1: 'e s | e ee se es',
  I1K1: 'e s | e ee es | se',
  I1X: 'e s | e ee s es | se',
  IX1: 'e s | e ee se s | es',
  I1X1: 'e s | e ee s | se es',
}

/** The pattern of a name such as `XX`, `IKhfs`, `NNpsk0+psk2`. */
export function patternNamed(name: string): Pattern {
  const [, base, hfs, psks] = /^([NKXI][NKXI1]*?)(hfs)?((?:\+?psk\d)*)$/.exec(name)!
  const messages = MESSAGES[base!]!.split(' | ').map((text) => text.split(' ') as Token[])
  if (hfs !== undefined) addKem(messages)
  for (const [, digit] of psks!.matchAll(/psk(\d)/g)) {
    if (digit === '0') messages[0]!.unshift('psk')
    else messages[Number(digit) - 1]!.push('psk')
  }
  const known: Role[] = []
  if (base!.startsWith('K')) known.push('initiator')
  if (isOneWay(name) || /^..?K/.test(base!)) known.push('responder')
  return { name, known, messages }
}

/** Who writes transport messages too is the initiator alone (Noise §7.4). */
export function isOneWay(name: string): boolean {
  return /^[NKX](psk\d)?$/.test(name)
}

/** KEM-based Hybrid Forward Secrecy for Noise, §5, read as rules and not as its table. */
function addKem(messages: Token[][]): void {
  const first = messages[0]!
  const dh = first.findIndex((token) => /^[es][es]$/.test(token))
  first.splice((dh < 0 ? first.indexOf('e') : dh) + 1, 0, 'e1')
  const answer = messages.find((tokens) => tokens.includes('ee'))!
  answer.splice(answer.indexOf('ee') + 1, 0, 'ekem1')
}
