//! mac1, mac2 and cookie replies (whitepaper §5.4.4 and §5.4.7). A device under load answers a
//! handshake that has no valid mac2 by a cookie, sealed for whoever knows the device's public key
//! and the mac1 that was sent; it proves that the sender receives at its address and port.

use super::crypto::{self, Key, Secret};
use super::endpoint::Endpoint;
use super::message::{self, COOKIE, COOKIE_BYTES, MACS_BYTES, array_at};
use zeroize::{Zeroize, Zeroizing};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// The secret behind cookies changes after this time (whitepaper §6.1).
pub const COOKIE_SECRET_MS: u64 = 120_000;
/// A cookie may be on its way for this long, so its receiver stops using it that much earlier.
pub const COOKIE_LATENCY_MS: u64 = 5_000;

type Mac = [u8; 16];

fn split_macs(message: &[u8]) -> (&[u8], Mac, Mac) {
    let at = message.len() - MACS_BYTES;
    (&message[..at], array_at(message, at), array_at(message, at + 16))
}

/// The receiving side, one for a device.
pub struct Checker {
    mac1_key: Secret,
    cookie_key: Secret,
    secret: Secret,
    secret_set_ms: Option<u64>,
}

impl Checker {
    pub fn new(public: &Key) -> Checker {
        Checker {
            mac1_key: Zeroizing::new(crypto::hash(&[LABEL_MAC1, public])),
            cookie_key: Zeroizing::new(crypto::hash(&[LABEL_COOKIE, public])),
            secret: Zeroizing::new([0; 32]),
            secret_set_ms: None,
        }
    }

    pub fn mac1_valid(&self, handshake: &[u8]) -> bool {
        let (body, mac1, _) = split_macs(handshake);
        crypto::same(&crypto::mac(&self.mac1_key[..], &[body]), &mac1)
    }

    pub fn mac2_valid(&self, now_ms: u64, from: &Endpoint, handshake: &[u8]) -> bool {
        if !self.secret_is_fresh(now_ms) {
            return false;
        }
        let (body, mac1, mac2) = split_macs(handshake);
        let mut cookie = self.cookie(from);
        let expected = crypto::mac(&cookie, &[body, &mac1]);
        cookie.zeroize();
        crypto::same(&expected, &mac2)
    }

    pub fn secret_is_fresh(&self, now_ms: u64) -> bool {
        self.secret_set_ms.is_some_and(|set| now_ms.saturating_sub(set) < COOKIE_SECRET_MS)
    }

    pub fn set_secret(&mut self, now_ms: u64, secret: Secret) {
        self.secret = secret;
        self.secret_set_ms = Some(now_ms);
    }

    fn cookie(&self, from: &Endpoint) -> Mac {
        crypto::mac(&self.secret[..], &[&from.cookie_input()])
    }

    /// The reply to a handshake whose sender index is `receiver`.
    pub fn reply(&self, from: &Endpoint, handshake: &[u8], nonce: &[u8; 24]) -> [u8; COOKIE_BYTES] {
        let (_, mac1, _) = split_macs(handshake);
        let mut reply = [0; COOKIE_BYTES];
        reply[0] = COOKIE;
        reply[4..8].copy_from_slice(&handshake[message::SENDER_AT..message::SENDER_AT + 4]);
        reply[8..32].copy_from_slice(nonce);
        reply[32..48].copy_from_slice(&self.cookie(from));
        let tag = crypto::xseal(&self.cookie_key, nonce, &mac1, &mut reply[32..48]);
        reply[48..].copy_from_slice(&tag);
        reply
    }
}

/// The sending side, one for each peer.
pub struct Generator {
    mac1_key: Secret,
    cookie_key: Secret,
    cookie: Option<(Mac, u64)>,
    /// mac1 of the last handshake message, which a cookie reply must answer.
    last_mac1: Option<Mac>,
}

impl Drop for Generator {
    fn drop(&mut self) {
        if let Some((cookie, _)) = &mut self.cookie {
            cookie.zeroize();
        }
    }
}

impl Generator {
    pub fn new(public: &Key) -> Generator {
        Generator {
            mac1_key: Zeroizing::new(crypto::hash(&[LABEL_MAC1, public])),
            cookie_key: Zeroizing::new(crypto::hash(&[LABEL_COOKIE, public])),
            cookie: None,
            last_mac1: None,
        }
    }

    /// Writes both MACs into the end of a handshake message.
    pub fn stamp(&mut self, now_ms: u64, handshake: &mut [u8]) {
        let (body, macs) = handshake.split_at_mut(handshake.len() - MACS_BYTES);
        let mac1 = crypto::mac(&self.mac1_key[..], &[body]);
        macs[..16].copy_from_slice(&mac1);
        self.last_mac1 = Some(mac1);
        match &self.cookie {
            Some((cookie, set)) if now_ms < set + COOKIE_SECRET_MS - COOKIE_LATENCY_MS => {
                macs[16..].copy_from_slice(&crypto::mac(cookie, &[body, &mac1]));
            }
            _ => macs[16..].fill(0),
        }
    }

    /// Takes the cookie out of a reply; `false` when it does not answer our last handshake.
    pub fn consume(&mut self, now_ms: u64, reply: &[u8; COOKIE_BYTES]) -> bool {
        let Some(mac1) = self.last_mac1 else { return false };
        let mut cookie: Mac = array_at(reply, 32);
        let nonce = array_at(reply, 8);
        if !crypto::xopen(&self.cookie_key, &nonce, &mac1, &mut cookie, &array_at(reply, 48)) {
            return false;
        }
        self.cookie = Some((cookie, now_ms));
        true
    }
}
