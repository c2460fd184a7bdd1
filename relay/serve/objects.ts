/** Who is who among the Durable Objects, and what every one of them is given. */
import type { ObjectNamespace } from 'cloudflare:workers'
import * as nodeCrypto from 'node:crypto'
import type { Crypto } from '../../core/crypto.ts'
import { fastCrypto } from '../../core/crypto.ts'
import type { DirectoryObject } from './directory_object.ts'
import { readEdge } from './edge.ts'
import type { Edge, Variables } from './edge.ts'
import type { HubObject } from './hub_object.ts'

export interface WorkerEnv extends Variables {
  HUBS: ObjectNamespace<HubObject>
  DIRECTORY: ObjectNamespace<DirectoryObject>
}

export function objects({ HUBS, DIRECTORY }: WorkerEnv) {
  const directory = (name: string): DirectoryObject => DIRECTORY.get(DIRECTORY.idFromName(name))
  return {
    name: (name: string) => directory(`name:${name}`),
    scope: (scope: string) => directory(`scope:${scope}`),
    index: () => directory('index'),
    hub: (key: string) => HUBS.get(HUBS.idFromName(key)),
  }
}

let chosen: Crypto | undefined

/** Chosen when it is first asked for: nothing may be computed at random while a worker loads. */
export function fast(): Crypto {
  return chosen ??= fastCrypto(nodeCrypto)
}

const edges = new WeakMap<WorkerEnv, Edge>()

export function edgeOf(env: WorkerEnv): Edge {
  let edge = edges.get(env)
  if (!edge) edges.set(env, edge = readEdge(env, fast()))
  return edge
}
