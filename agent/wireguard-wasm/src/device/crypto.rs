//! The one door to the primitives: BLAKE2s, X25519, ChaCha20-Poly1305 and XChaCha20-Poly1305.
//!
//! Names follow the whitepaper, §5.4: `hash` = Hash, `mac` = Mac, `hmac` = Hmac, `kdf` = Kdf_n,
//! `seal`/`open` = Aead with an 8-byte counter, `xseal`/`xopen` = Xaead with a 24-byte nonce.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use zeroize::{Zeroize, Zeroizing};

pub const KEY_BYTES: usize = 32;
pub const TAG_BYTES: usize = 16;
const HASH_BLOCK_BYTES: usize = 64;

pub type Key = [u8; KEY_BYTES];
/// A key that is overwritten when it goes out of scope.
pub type Secret = Zeroizing<Key>;

/// BLAKE2s-256 over the parts, one after another.
pub fn hash(parts: &[&[u8]]) -> Key {
    let mut state = Blake2s256::default();
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// Keyed BLAKE2s-128 (the MAC of mac1, mac2 and cookies). The key has 1 to 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("a key of 1 to 32 bytes");
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// HMAC (RFC 2104) with BLAKE2s-256.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut block = [0u8; HASH_BLOCK_BYTES];
    if key.len() > HASH_BLOCK_BYTES {
        block[..KEY_BYTES].copy_from_slice(&hash(&[key]));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Blake2s256::default();
    inner.update(&block.map(|byte| byte ^ 0x36));
    for part in parts {
        inner.update(part);
    }
    let mut digest: Key = inner.finalize_fixed().into();
    let mut outer = Blake2s256::default();
    outer.update(&block.map(|byte| byte ^ 0x5c));
    outer.update(&digest);
    block.zeroize();
    digest.zeroize();
    outer.finalize_fixed().into()
}

/// Kdf_n of the whitepaper: N keys of 32 bytes from a chaining key and an input (HKDF's shape).
pub fn kdf<const N: usize>(key: &[u8], input: &[u8]) -> [Secret; N] {
    let secret = Zeroizing::new(hmac(key, &[input]));
    let mut previous: Secret = Zeroizing::new([0; KEY_BYTES]);
    core::array::from_fn(|index| {
        let label = [index as u8 + 1];
        let kept = if index == 0 { &[][..] } else { &previous[..] };
        let next = Zeroizing::new(hmac(&secret[..], &[kept, &label]));
        previous = next.clone();
        next
    })
}

/// X25519; `None` when the result is all zero, which a public key of low order causes.
pub fn dh(private: &Key, public: &Key) -> Option<Secret> {
    let shared = Zeroizing::new(x25519_dalek::x25519(*private, *public));
    let seen = shared.iter().fold(0u8, |seen, byte| seen | byte);
    if seen == 0 { None } else { Some(shared) }
}

pub fn public_key(private: &Key) -> Key {
    x25519_dalek::x25519(*private, x25519_dalek::X25519_BASEPOINT_BYTES)
}

/// The nonce of WireGuard's AEAD: four zero bytes, then the counter, little endian.
fn nonce_of(counter: u64) -> [u8; 12] {
    let mut nonce = [0u8; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Encrypts `body` in place and returns the tag.
pub fn seal(key: &Key, counter: u64, ad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
    fast::seal(key, &nonce_of(counter), ad, body)
}

/// Decrypts `body` in place; `false`, with `body` unchanged, when the tag does not match.
#[must_use]
pub fn open(key: &Key, counter: u64, ad: &[u8], body: &mut [u8], tag: &[u8; TAG_BYTES]) -> bool {
    fast::open(key, &nonce_of(counter), ad, body, tag)
}

/// What `seal` and `open` run on: in WebAssembly what the host lends, or our own code, which is more
/// than twice as fast there as the crate's; elsewhere the crate's, which has vectors of the machine.
#[cfg(target_arch = "wasm32")]
mod fast {
    use super::super::{lent, stitched};
    use super::{Key, TAG_BYTES};

    #[inline]
    pub fn seal(key: &Key, nonce: &[u8; 12], ad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
        let lent = if ad.is_empty() { lent::seal(key, nonce, body) } else { None };
        lent.unwrap_or_else(|| stitched::seal(key, nonce, ad, body))
    }

    #[inline]
    pub fn open(
        key: &Key,
        nonce: &[u8; 12],
        ad: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        let lent = if ad.is_empty() { lent::open(key, nonce, body, tag) } else { None };
        lent.unwrap_or_else(|| stitched::open(key, nonce, ad, body, tag))
    }
}
#[cfg(not(target_arch = "wasm32"))]
mod fast {
    pub use super::{aead_open as open, aead_seal as seal};
}

/// ChaCha20-Poly1305 of RFC 8439 with any nonce, by the crate.
pub fn aead_seal(key: &Key, nonce: &[u8; 12], ad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
    let cipher = ChaCha20Poly1305::new(key.into());
    cipher
        .encrypt_inout_detached(&(*nonce).into(), ad, body.into())
        .expect("a message far shorter than 256 GiB")
        .into()
}

#[must_use]
pub fn aead_open(
    key: &Key,
    nonce: &[u8; 12],
    ad: &[u8],
    body: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> bool {
    let cipher = ChaCha20Poly1305::new(key.into());
    cipher.decrypt_inout_detached(&(*nonce).into(), ad, body.into(), &(*tag).into()).is_ok()
}

/// XChaCha20-Poly1305, for cookies alone.
pub fn xseal(key: &Key, nonce: &[u8; 24], ad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher
        .encrypt_inout_detached(&(*nonce).into(), ad, body.into())
        .expect("a message far shorter than 256 GiB")
        .into()
}

#[must_use]
pub fn xopen(
    key: &Key,
    nonce: &[u8; 24],
    ad: &[u8],
    body: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> bool {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.decrypt_inout_detached(&(*nonce).into(), ad, body.into(), &(*tag).into()).is_ok()
}

/// Equality whose time does not depend on where the bytes differ.
pub fn same(left: &[u8; 16], right: &[u8; 16]) -> bool {
    let difference = left.iter().zip(right).fold(0u8, |seen, (a, b)| seen | (a ^ b));
    core::hint::black_box(difference) == 0
}
