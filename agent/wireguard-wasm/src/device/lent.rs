//! An AEAD that the host lends, through two places of the function table: a library of the machine is
//! faster on long texts. Never needed: without one, and for short texts, ours is used.
//!
//! The host gets addresses in this memory, keeps nothing of what is there, and answers 1. A seal answers
//! 0 when nothing was changed, an open when the tag is wrong, the text then being as it was.

use super::crypto::{Key, TAG_BYTES};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

static SEAL: AtomicU32 = AtomicU32::new(0);
static OPEN: AtomicU32 = AtomicU32::new(0);
/// Shorter texts are ours.
static BYTES_MIN: AtomicU32 = AtomicU32::new(u32::MAX);

/// Key 32, nonce 12, tag 16, text, its length.
type Call = extern "C" fn(*const u8, *const u8, *mut u8, *mut u8, u32) -> u32;

/// Two places of the table, whose functions are of this type (a call of another traps); 0 takes both
/// back.
pub fn lend(seal: u32, open: u32, bytes_min: u32) {
    SEAL.store(seal, Relaxed);
    OPEN.store(open, Relaxed);
    BYTES_MIN.store(if seal == 0 || open == 0 { u32::MAX } else { bytes_min.max(1) }, Relaxed);
}

fn call(place: &AtomicU32, body: usize) -> Option<Call> {
    if (body as u32) < BYTES_MIN.load(Relaxed) {
        return None;
    }
    // SAFETY: a function pointer is a place of the table here, and not 0 (`lend`).
    Some(unsafe { core::mem::transmute::<usize, Call>(place.load(Relaxed) as usize) })
}

/// `None`: nothing was done.
#[inline]
pub fn seal(key: &Key, nonce: &[u8; 12], body: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
    let seal = call(&SEAL, body.len())?;
    let mut tag = [0; TAG_BYTES];
    let done =
        seal(key.as_ptr(), nonce.as_ptr(), tag.as_mut_ptr(), body.as_mut_ptr(), body.len() as u32);
    if done == 1 { Some(tag) } else { None }
}

#[inline]
pub fn open(
    key: &Key,
    nonce: &[u8; 12],
    body: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Option<bool> {
    let open = call(&OPEN, body.len())?;
    let mut tag = *tag;
    let done =
        open(key.as_ptr(), nonce.as_ptr(), tag.as_mut_ptr(), body.as_mut_ptr(), body.len() as u32);
    Some(done == 1)
}
