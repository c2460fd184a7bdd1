//! TAI64N: 8 bytes of seconds since 1970 TAI plus 2^62, 4 bytes of nanoseconds, big endian
//! (<https://cr.yp.to/libtai/tai64.html>). As byte strings they sort as times do.

/// Nanoseconds are cut to a multiple of this (16.8 ms), so that an initiation does not tell its
/// receiver how exact, or how skewed, the sender's clock is.
const WHITEN_NS: u32 = 1 << 24;
const EPOCH: u64 = 0x4000_0000_0000_000a;

pub type Tai64n = [u8; 12];
pub const ZERO: Tai64n = [0; 12];

/// The first whitened stamp that is not before `unix_ms` and later than `last`: a clock that steps
/// back, or two initiations within one whitened step, still give rising stamps.
pub fn after(last: &Tai64n, unix_ms: u64) -> Tai64n {
    let seconds = EPOCH.wrapping_add(unix_ms / 1000);
    let nanos = (unix_ms % 1000) as u32 * 1_000_000;
    let stamp = encode(seconds, nanos / WHITEN_NS * WHITEN_NS);
    if stamp > *last { stamp } else { step(last) }
}

fn step(last: &Tai64n) -> Tai64n {
    let mut seconds = [0; 8];
    let mut nanos = [0; 4];
    seconds.copy_from_slice(&last[..8]);
    nanos.copy_from_slice(&last[8..]);
    let next = u32::from_be_bytes(nanos) / WHITEN_NS * WHITEN_NS + WHITEN_NS;
    let seconds = u64::from_be_bytes(seconds);
    if next >= 1_000_000_000 { encode(seconds + 1, 0) } else { encode(seconds, next) }
}

fn encode(seconds: u64, nanos: u32) -> Tai64n {
    let mut stamp = ZERO;
    stamp[..8].copy_from_slice(&seconds.to_be_bytes());
    stamp[8..].copy_from_slice(&nanos.to_be_bytes());
    stamp
}
