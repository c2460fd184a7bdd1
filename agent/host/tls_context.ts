/**
 * Certificates and keys as the runtime's TLS wants them: read, checked to belong together, and kept as
 * one context for each use.
 */
import { constants, createPrivateKey, X509Certificate } from 'node:crypto'
import * as tls from 'node:tls'
import { TunnelError } from '../../core/errors.ts'
import type { TlsIdentity } from '../world.ts'

/** One context for each certificate and use, so that tickets of one connection resume another. */
const contexts = new WeakMap<TlsIdentity, Map<boolean, tls.SecureContext>>()

/** `asks`: for a server that asks for client certificates. Throws `tls/certificate`. */
export function contextOf(identity: TlsIdentity, asks: boolean): tls.SecureContext {
  let uses = contexts.get(identity)
  if (!uses) contexts.set(identity, uses = new Map())
  let context = uses.get(asks)
  if (!context) {
    leafAndKey(identity)
    try {
      context = tls.createSecureContext({
        cert: identity.cert,
        key: identity.key,
        minVersion: asks ? 'TLSv1.3' : 'TLSv1.2',
        ...(asks
          ? { secureOptions: constants.SSL_OP_NO_TICKET }
          // The stack looks for issuers of a lone leaf in each handshake: here, and not on the disk.
          : { ca: identity.cert }),
      })
    } catch (cause) {
      throw new TunnelError(
        'tls/certificate',
        'Cannot use certificate: found a pair of certificate and key that do not work together',
        { cause },
      )
    }
    uses.set(asks, context)
  }
  return context
}

/** The leaf, once it is sure that the key is its own: the stack itself finds out only in a handshake. */
export function leafAndKey(identity: TlsIdentity): X509Certificate {
  try {
    const leaf = new X509Certificate(identity.cert)
    if (leaf.checkPrivateKey(createPrivateKey(identity.key))) return leaf
  } catch (cause) {
    throw new TunnelError('tls/certificate', 'Cannot use certificate: found no readable PEM pair', {
      cause,
      hint: 'Expected a certificate (chain) and its unencrypted private key, both in PEM',
    })
  }
  throw new TunnelError(
    'tls/certificate',
    'Cannot use certificate: found a key that is not the one it names',
  )
}
