/** Who is who among the Durable Objects, and what every one of them is given. */
import type { ObjectContext, ObjectNamespace } from 'cloudflare:workers'
import * as nodeCrypto from 'node:crypto'
import type { Crypto } from '../../core/crypto.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { durableStore } from '../store/durable.ts'
import type { Store } from '../store/store.ts'
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
    rooms: () => directory('rooms'),
    logins: () => directory('logins'),
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

/**
 * The store of an object, made with its first commit: whoever asks for a name, a scope or a key that
 * nobody has makes an object for a moment, and must leave nothing behind that is kept and paid for.
 */
export function lazyStore({ storage }: ObjectContext): Store {
  const { kv } = storage
  let made: Store | undefined
  const known = (): Store | undefined =>
    made ??= kv.get('made') === undefined ? undefined : durableStore(storage)
  return {
    get: async (key) => await known()?.get(key),
    list: async (prefix, options) => await known()?.list(prefix, options) ?? [],
    async commit(commit) {
      if (!known()) {
        kv.put('made', 1)
        made = durableStore(storage)
      }
      return await made!.commit(commit)
    },
    close: async () => await made?.close(),
  }
}
