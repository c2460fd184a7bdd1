//! Poly1305 (RFC 8439 §2.5) in 64-bit integers, radix 2^32, for the AEAD of WebAssembly.
//!
//! Constant-time by construction: additions, multiplications, shifts and masks alone.

use super::crypto::TAG_BYTES;
use super::message::u32_at;

const LOW: u64 = 0xffff_ffff;

/// Carries go one word up and no further, so that no block waits for a chain of them. In units of
/// 2^32, after each block: `h[0]` < 2.25 + a little, `h[1]` to `h[3]` < 2, `h[4]` ≤ 3 (alone).
#[derive(Clone)]
pub struct Poly {
    h: [u64; 5],
    /// r in four words; then r / 4 * 5 of each: what wraps around 2^130 comes back five times.
    r: [u64; 8],
    pad: [u32; 4],
}

impl Poly {
    pub fn new(key: &[u8; 32]) -> Poly {
        let word = |i: usize| u64::from(u32_at(key, i * 4));
        let mut r = [0; 8];
        r[0] = word(0) & 0x0fff_ffff;
        for i in 1..4 {
            r[i] = word(i) & 0x0fff_fffc;
        }
        for i in 0..4 {
            r[4 + i] = (r[i] >> 2) * 5;
        }
        Poly { h: [0; 5], r, pad: core::array::from_fn(|i| u32_at(key, 16 + i * 4)) }
    }

    /// Of no message: while the first blocks of keystream are made, from which the key comes.
    pub fn idle() -> Poly {
        Poly { h: [0; 5], r: [0; 8], pad: [0; 4] }
    }

    /// With a word of the block, s0 < 3.25 and s1 to s3 < 3 (times 2^32), s4 ≤ 4. A word of r is below
    /// 2^28, of r / 4 * 5 below 1.25 · 2^28. So x0, the largest sum, is below
    /// (3.25 + 3 · 3 · 1.25) · 2^60 + a little = 14.5 · 2^60 < 2^64.
    #[inline(always)]
    pub fn block(&mut self, bytes: &[u8; 16]) {
        let word = |i: usize| {
            u64::from(u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]))
        };
        let [r0, r1, r2, r3, w0, w1, w2, w3] = self.r;
        let s0 = self.h[0] + word(0);
        let s1 = self.h[1] + word(4);
        let s2 = self.h[2] + word(8);
        let s3 = self.h[3] + word(12);
        let s4 = self.h[4] + 1;
        let x0 = s0 * r0 + s1 * w3 + s2 * w2 + s3 * w1 + s4 * w0;
        let x1 = s0 * r1 + s1 * r0 + s2 * w3 + s3 * w2 + s4 * w1;
        let x2 = s0 * r2 + s1 * r1 + s2 * r0 + s3 * w3 + s4 * w2;
        let x3 = s0 * r3 + s1 * r2 + s2 * r1 + s3 * r0 + s4 * w3;
        // s4 · r0 would be the word of 2^128: only its low two bits are below 2^130, the rest is
        // in s4 · w0 already.
        let top = s4 * (r0 & 3) + (x3 >> 32);
        self.h = [
            (x0 & LOW) + (top >> 2) * 5,
            (x1 & LOW) + (x0 >> 32),
            (x2 & LOW) + (x1 >> 32),
            (x3 & LOW) + (x2 >> 32),
            top & 3,
        ];
    }

    /// Whole blocks, then the rest filled up by zeros (as the AEAD pads).
    pub fn padded(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<16>();
        for block in blocks {
            self.block(block);
        }
        if !rest.is_empty() {
            let mut last = [0; 16];
            last[..rest.len()].copy_from_slice(rest);
            self.block(&last);
        }
    }

    pub fn finish(mut self, ad: usize, body: usize) -> [u8; TAG_BYTES] {
        let mut lengths = [0; 16];
        lengths[..8].copy_from_slice(&(ad as u64).to_le_bytes());
        lengths[8..].copy_from_slice(&(body as u64).to_le_bytes());
        self.block(&lengths);
        // h < 1.3 · 2^130, so h ≥ p = 2^130 - 5 exactly when h + 5 reaches 2^130; then p is taken
        // off by adding 5 and forgetting what is above 2^128.
        let mut carry = 5;
        for word in &self.h[..4] {
            carry = (word + carry) >> 32;
        }
        let over = ((self.h[4] + carry) >> 2) * 5;
        let mut carry = over;
        let mut tag = [0; TAG_BYTES];
        for i in 0..4 {
            carry += self.h[i] + u64::from(self.pad[i]);
            tag[i * 4..i * 4 + 4].copy_from_slice(&(carry as u32).to_le_bytes());
            carry >>= 32;
        }
        tag
    }
}
