//! The four messages of WireGuard, byte by byte (whitepaper §5.4). Integers are little endian.
//!
//! ```text
//! initiation 148: type 1 · 0 0 0 · sender 4 · ephemeral 32 · static 48 · timestamp 28 · mac1 16 · mac2 16
//! response    92: type 2 · 0 0 0 · sender 4 · receiver 4 · ephemeral 32 · empty 16 · mac1 16 · mac2 16
//! cookie      64: type 3 · 0 0 0 · receiver 4 · nonce 24 · cookie 32
//! data     ≥  32: type 4 · 0 0 0 · receiver 4 · counter 8 · packet · tag 16
//! ```

pub const INITIATION: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const COOKIE: u8 = 3;
pub const DATA: u8 = 4;

pub const INITIATION_BYTES: usize = 148;
pub const RESPONSE_BYTES: usize = 92;
pub const COOKIE_BYTES: usize = 64;
/// Bytes before the encrypted packet of a data message.
pub const DATA_HEADER_BYTES: usize = 16;
/// A data message that carries nothing: a keepalive.
pub const DATA_BYTES_MIN: usize = 32;
/// Both MACs at the end of an initiation or response.
pub const MACS_BYTES: usize = 32;

pub const SENDER_AT: usize = 4;

/// The type, if the length fits it. The three bytes after the type are the caller's to check.
pub fn kind_of(datagram: &[u8]) -> Option<u8> {
    match (datagram.first()?, datagram.len()) {
        (&INITIATION, INITIATION_BYTES) => Some(INITIATION),
        (&RESPONSE, RESPONSE_BYTES) => Some(RESPONSE),
        (&COOKIE, COOKIE_BYTES) => Some(COOKIE),
        (&DATA, DATA_BYTES_MIN..) => Some(DATA),
        _ => None,
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// N bytes as an array; the caller has checked the length.
pub fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
