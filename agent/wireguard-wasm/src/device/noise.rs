//! Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s: the symmetric state, and the two messages of the
//! handshake over it (Noise revision 34; whitepaper §5.4.2 and §5.4.3). Prologue and payloads are
//! the caller's, so the published vector runs through the same code as WireGuard does.

use super::crypto::{self, Key, Secret, TAG_BYTES};
use zeroize::Zeroizing;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
pub const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// Ephemeral and encrypted static key of the first message; the payload follows.
pub const FIRST_BYTES: usize = 32 + 32 + TAG_BYTES;
pub const SECOND_BYTES: usize = 32;

/// The running hash and chaining key.
#[derive(Clone)]
pub struct Symmetric {
    pub hash: Key,
    chain: Secret,
}

/// The two keys of a session, as the initiator names them.
pub struct Split {
    pub initiator: Secret,
    pub responder: Secret,
}

impl Symmetric {
    /// Starts for a responder whose public key is known beforehand (IK's pre-message).
    pub fn new(prologue: &[u8], responder: &Key) -> Symmetric {
        let chain = crypto::hash(&[CONSTRUCTION]);
        let hash = crypto::hash(&[&crypto::hash(&[&chain, prologue]), responder]);
        Symmetric { hash, chain: Zeroizing::new(chain) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = crypto::hash(&[&self.hash, data]);
    }

    fn mix_key(&mut self, input: &Key) -> Secret {
        let [chain, key] = crypto::kdf(&self.chain[..], input);
        self.chain = chain;
        key
    }

    /// A public ephemeral key, mixed into both (the psk modifier asks for the second).
    fn mix_ephemeral(&mut self, public: &Key) {
        self.mix_hash(public);
        let [chain] = crypto::kdf(&self.chain[..], public);
        self.chain = chain;
    }

    fn mix_psk(&mut self, psk: &Key) -> Secret {
        let [chain, temporary, key] = crypto::kdf(&self.chain[..], psk);
        self.chain = chain;
        self.mix_hash(&temporary[..]);
        key
    }

    /// Encrypts all of `into` but its last 16 bytes, which become the tag.
    fn encrypt(&mut self, key: &Key, into: &mut [u8]) {
        let (body, tag) = into.split_at_mut(into.len() - TAG_BYTES);
        tag.copy_from_slice(&crypto::seal(key, 0, &self.hash, body));
        self.mix_hash(into);
    }

    fn decrypt(&mut self, key: &Key, sealed: &[u8], into: &mut [u8]) -> Option<()> {
        let (body, tag) = sealed.split_at_checked(into.len())?;
        into.copy_from_slice(body);
        if !crypto::open(key, 0, &self.hash, into, tag.try_into().ok()?) {
            return None;
        }
        self.mix_hash(sealed);
        Some(())
    }

    pub fn split(&self) -> Split {
        let [initiator, responder] = crypto::kdf(&self.chain[..], &[]);
        Split { initiator, responder }
    }
}

/// e, es, s, ss, payload. `into` holds FIRST_BYTES, then the payload and room for its tag.
pub fn write_first(
    state: &mut Symmetric,
    ephemeral: &Key,
    public: &Key,
    remote: &Key,
    static_static: &Key,
    into: &mut [u8],
) -> Option<()> {
    let shared = crypto::dh(ephemeral, remote)?;
    let (head, payload) = into.split_at_mut(FIRST_BYTES);
    let (first, second) = head.split_at_mut(32);
    first.copy_from_slice(&crypto::public_key(ephemeral));
    state.mix_ephemeral((&*first).try_into().ok()?);
    let key = state.mix_key(&shared);
    second[..32].copy_from_slice(public);
    state.encrypt(&key, second);
    let key = state.mix_key(static_static);
    state.encrypt(&key, payload);
    Some(())
}

/// What the responder learns of the initiator before it looks the initiator up.
pub struct Stranger {
    pub ephemeral: Key,
    pub public: Key,
}

/// The first half of reading the first message: e, es, s.
pub fn read_first(state: &mut Symmetric, private: &Key, message: &[u8]) -> Option<Stranger> {
    let ephemeral: Key = message.get(..32)?.try_into().ok()?;
    state.mix_ephemeral(&ephemeral);
    let key = state.mix_key(&*crypto::dh(private, &ephemeral)?);
    let mut public = [0; 32];
    state.decrypt(&key, message.get(32..FIRST_BYTES)?, &mut public)?;
    Some(Stranger { ephemeral, public })
}

/// The second half: ss, payload.
pub fn read_payload(
    state: &mut Symmetric,
    static_static: &Key,
    sealed: &[u8],
    into: &mut [u8],
) -> Option<()> {
    let key = state.mix_key(static_static);
    state.decrypt(&key, sealed, into)
}

/// e, ee, se, psk, payload. `into` holds 32 bytes, then the payload and room for its tag.
pub fn write_second(
    state: &mut Symmetric,
    ephemeral: &Key,
    stranger: &Stranger,
    psk: &Key,
    into: &mut [u8],
) -> Option<()> {
    let ee = crypto::dh(ephemeral, &stranger.ephemeral)?;
    let se = crypto::dh(ephemeral, &stranger.public)?;
    let (first, payload) = into.split_at_mut(SECOND_BYTES);
    first.copy_from_slice(&crypto::public_key(ephemeral));
    state.mix_ephemeral((&*first).try_into().ok()?);
    state.mix_key(&ee);
    state.mix_key(&se);
    let key = state.mix_psk(psk);
    state.encrypt(&key, payload);
    Some(())
}

/// The initiator reads the second message. `state` is spoiled when this fails: pass a copy.
pub fn read_second(
    state: &mut Symmetric,
    ephemeral: &Key,
    private: &Key,
    psk: &Key,
    message: &[u8],
    into: &mut [u8],
) -> Option<()> {
    let remote: Key = message.get(..32)?.try_into().ok()?;
    state.mix_ephemeral(&remote);
    state.mix_key(&*crypto::dh(ephemeral, &remote)?);
    state.mix_key(&*crypto::dh(private, &remote)?);
    let key = state.mix_psk(psk);
    state.decrypt(&key, message.get(32..)?, into)
}
