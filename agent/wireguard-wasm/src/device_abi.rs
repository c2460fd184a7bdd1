//! The exports of the device: raw `extern "C"`, numbers alone. ABI.md describes them for the host.
//!
//! One instance of the module holds one device. Nothing here is entered twice at a time: WASM runs
//! on one thread, and no export calls the host, but for an AEAD that it lends, which calls nothing here.

use crate::device::batch::{self, BATCH_MAX, Descriptor, EndpointRecord, Runs, SendErrors};
use crate::device::crypto::{self, Key, TAG_BYTES};
use crate::device::message::array_at;
use crate::device::{DROPS, Device, Endpoint, Notice, Now, PeerError, lent, stitched};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};
use zeroize::Zeroize;

const ABI_VERSION: u32 = 1;
const SCRATCH_BYTES: usize = 1024;
const POLL_BYTES: usize = 128 * 1024;

/// The last-error word.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Failure {
    Panic = 1,
    NotInitialised = 2,
    UnknownPeer = 3,
    PeerExists = 4,
    BadKey = 5,
    TooManyPeers = 6,
    BadPrefix = 7,
    BadDescriptor = 8,
    AlreadyInitialised = 9,
}

static LAST_ERROR: AtomicU32 = AtomicU32::new(0);

pub fn fail(failure: Failure) {
    LAST_ERROR.store(failure as u32, Ordering::Relaxed);
}

/// The device with the memory that it shares with the host.
pub struct Instance {
    pub device: Device,
    pub rx: Box<[u8]>,
    pub tx: Box<[u8]>,
    poll: Box<[u8]>,
    pub input: Box<[Descriptor]>,
    pub from: Box<[EndpointRecord]>,
    packets: Box<[Descriptor]>,
    pub runs: Box<[Descriptor]>,
    pub to: Box<[EndpointRecord]>,
    pub scratch: Box<[u8]>,
    entropy: Box<[u8]>,
    pub errors: SendErrors,
}

struct Slot(UnsafeCell<Option<Box<Instance>>>);
// SAFETY: the module is built without threads, so no two threads share it.
unsafe impl Sync for Slot {}
static INSTANCE: Slot = Slot(UnsafeCell::new(None));

/// Runs `act` on the instance, or sets the last error and returns the default.
pub fn with<T: Default>(act: impl FnOnce(&mut Instance) -> T) -> T {
    // SAFETY: one thread, and `act` never comes back here: it calls no export.
    match unsafe { &mut *INSTANCE.0.get() } {
        Some(instance) => act(instance),
        None => {
            fail(Failure::NotInitialised);
            T::default()
        }
    }
}

/// The greatest whole number of milliseconds that a float holds exactly.
const MS_MAX: f64 = 9_007_199_254_740_992.0;

/// A time that is negative, infinite or no number becomes 0, and the device's clock stands still.
pub fn at(ms: f64, unix_ms: f64) -> Now {
    let whole = |ms: f64| if ms <= MS_MAX { ms as u64 } else { 0 };
    Now { ms: whole(ms), unix_ms: whole(unix_ms) }
}

pub fn deadline(ms: u64) -> f64 {
    if ms == u64::MAX { f64::INFINITY } else { ms as f64 }
}

pub fn boxed<T: Clone + Default>(count: usize) -> Box<[T]> {
    vec![T::default(); count].into_boxed_slice()
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_abi() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_last_error() -> u32 {
    LAST_ERROR.swap(0, Ordering::Relaxed)
}

/// Makes the device and its areas, and takes `reserve` bytes more from the host so that what is
/// allocated later (peers, sessions, flows) does not grow the memory.
#[unsafe(no_mangle)]
pub extern "C" fn wg_init(rx_bytes: u32, tx_bytes: u32, reserve_bytes: u32) -> u32 {
    // SAFETY: as in `with`.
    let slot = unsafe { &mut *INSTANCE.0.get() };
    if slot.is_some() {
        fail(Failure::AlreadyInitialised);
        return 0;
    }
    *slot = Some(Box::new(Instance {
        device: Device::default(),
        rx: boxed(rx_bytes as usize),
        tx: boxed(tx_bytes as usize),
        poll: boxed(POLL_BYTES),
        input: boxed(BATCH_MAX),
        from: boxed(BATCH_MAX),
        packets: boxed(BATCH_MAX),
        runs: boxed(BATCH_MAX),
        to: boxed(BATCH_MAX),
        scratch: boxed(SCRATCH_BYTES),
        entropy: boxed(crate::device::entropy::POOL_BYTES),
        errors: [0; 6],
    }));
    // The allocator keeps what it has once taken.
    drop(core::hint::black_box(Vec::<u8>::with_capacity(reserve_bytes as usize)));
    1
}

/// Address of an area: see ABI.md for the numbers. 0 for an unknown one.
#[unsafe(no_mangle)]
pub extern "C" fn wg_area(which: u32) -> u32 {
    with(|i| match which {
        0 => i.rx.as_ptr() as u32,
        1 => i.tx.as_ptr() as u32,
        2 => i.poll.as_ptr() as u32,
        3 => i.input.as_ptr() as u32,
        4 => i.from.as_ptr() as u32,
        5 => i.packets.as_ptr() as u32,
        6 => i.runs.as_ptr() as u32,
        7 => i.to.as_ptr() as u32,
        8 => i.scratch.as_ptr() as u32,
        9 => i.entropy.as_ptr() as u32,
        _ => 0,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_area_bytes(which: u32) -> u32 {
    with(|i| match which {
        0 => i.rx.len() as u32,
        1 => i.tx.len() as u32,
        2 => i.poll.len() as u32,
        3 | 5 | 6 => (BATCH_MAX * size_of::<Descriptor>()) as u32,
        4 | 7 => (BATCH_MAX * size_of::<EndpointRecord>()) as u32,
        8 => i.scratch.len() as u32,
        9 => i.entropy.len() as u32,
        _ => 0,
    })
}

// Traffic.

#[unsafe(no_mangle)]
pub extern "C" fn wg_receive(count: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| {
        let input = &i.input[..(count as usize).min(BATCH_MAX)];
        let now = at(ms, unix_ms);
        let (packets, refused) =
            batch::receive(&mut i.device, now, &mut i.rx, input, &i.from, &mut i.packets);
        if refused > 0 {
            fail(Failure::BadDescriptor);
        }
        packets as u32
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_send(count: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| {
        let input = &i.input[..(count as usize).min(BATCH_MAX)];
        let mut runs = Runs::new(&mut i.runs, &mut i.to);
        let bad = i.errors[0];
        batch::send(&mut i.device, at(ms, unix_ms), &mut i.tx, input, &mut runs, &mut i.errors);
        if i.errors[0] > bad {
            fail(Failure::BadDescriptor);
        }
        runs.len() as u32
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_poll(ms: f64, unix_ms: f64) -> u32 {
    with(|i| {
        let mut runs = Runs::new(&mut i.runs, &mut i.to);
        batch::poll(&mut i.device, at(ms, unix_ms), &mut i.poll, &mut runs);
        runs.len() as u32
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_tick(ms: f64, unix_ms: f64) -> f64 {
    with(|i| deadline(i.device.tick(at(ms, unix_ms))))
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_next_deadline() -> f64 {
    with(|i| deadline(i.device.next_deadline()))
}

/// Feeds the first `bytes` of the entropy area and overwrites them; returns how many were taken.
#[unsafe(no_mangle)]
pub extern "C" fn wg_feed_entropy(bytes: u32) -> u32 {
    with(|i| {
        let count = (bytes as usize).min(i.entropy.len());
        let taken = i.device.feed_entropy(&i.entropy[..count]);
        i.entropy.zeroize();
        taken as u32
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_wants_entropy() -> u32 {
    with(|i| u32::from(i.device.wants_entropy()))
}

/// Compares the AEAD over vector registers with the crate's, at every length to 2,048: 1 when all
/// agree. Takes some tens of milliseconds, and warms the engine's compiler on the way.
#[unsafe(no_mangle)]
pub extern "C" fn wg_self_test() -> u32 {
    let mut ours = [0u8; 2048];
    let mut theirs = [0u8; 2048];
    for len in 0..=ours.len() {
        let key = crypto::hash(&[&len.to_le_bytes()]);
        let fill = [0x00, 0xff, 0xa5, len as u8][len % 4];
        ours.fill(fill);
        theirs.fill(fill);
        let nonce = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, len as u8];
        let counter = u64::from_le_bytes(array_at(&nonce, 4));
        // What a host lends is for texts without additional data.
        let ad = &key[..if len % 2 == 0 { 0 } else { len % 33 }];
        let tag = crypto::seal(&key, counter, ad, &mut ours[..len]);
        let twin = crypto::aead_seal(&key, &nonce, ad, &mut theirs[..len]);
        let mut wrong = tag;
        wrong[len % 16] ^= 1;
        let agreed = tag == twin
            && ours == theirs
            && !crypto::open(&key, counter, ad, &mut ours[..len], &wrong)
            && ours == theirs
            && crypto::open(&key, counter, ad, &mut ours[..len], &tag)
            && ours.iter().all(|byte| *byte == fill);
        if !agreed {
            return 0;
        }
    }
    1
}

/// The AEAD alone, for tests and measurements: seals (`what` 0) or opens (1) `count` texts of `bytes`
/// in pool 1, each with its tag behind it; the same by the crate (2, 3). Scratch: key 32 at 0, nonce
/// 12 at 32, length of additional data u32 at 44, additional data at 64. How many were sealed or
/// opened.
#[unsafe(no_mangle)]
pub extern "C" fn wg_aead(what: u32, bytes: u32, count: u32) -> u32 {
    with(|i| {
        let (key, nonce) = (array_at(&i.scratch, 0), array_at(&i.scratch, 32));
        let ad = u32::from_le_bytes(array_at(&i.scratch, 44)) as usize;
        let Some(ad) = i.scratch[64..].get(..ad) else { return 0 };
        let Some(place) = (bytes as usize).checked_add(TAG_BYTES) else { return 0 };
        let mut done = 0;
        for text in i.tx.chunks_exact_mut(place).take(count as usize) {
            let (body, tag) = text.split_at_mut(bytes as usize);
            let came = array_at(tag, 0);
            done += u32::from(match what {
                1 => stitched::open(&key, &nonce, ad, body, &came),
                3 => crypto::aead_open(&key, &nonce, ad, body, &came),
                _ => {
                    let seal = if what == 0 { stitched::seal } else { crypto::aead_seal };
                    tag.copy_from_slice(&seal(&key, &nonce, ad, body));
                    true
                }
            });
        }
        done
    })
}

/// Lends an AEAD for texts of at least `bytes_min`: two places of the function table. 0 takes it back.
#[unsafe(no_mangle)]
pub extern "C" fn wg_lend_aead(seal: u32, open: u32, bytes_min: u32) {
    lent::lend(seal, open, bytes_min);
}

// Settings. Keys and addresses pass through the scratch area, which is overwritten after a secret.

fn take_key(instance: &mut Instance) -> Key {
    let key = array_at(&instance.scratch, 0);
    instance.scratch.zeroize();
    key
}

fn scratch_endpoint(instance: &Instance) -> Endpoint {
    let bytes = &instance.scratch;
    Endpoint {
        path: u32::from_le_bytes(array_at(bytes, 0)),
        scope: u32::from_le_bytes(array_at(bytes, 4)),
        ip: array_at(bytes, 8),
        port: u16::from_le_bytes(array_at(bytes, 24)),
        family: bytes[26],
    }
}

fn known(done: bool, failure: Failure) -> u32 {
    if !done {
        fail(failure);
    }
    u32::from(done)
}

/// Scratch: private key in, public key out. Changes no device.
#[unsafe(no_mangle)]
pub extern "C" fn wg_derive_public() {
    with(|i| {
        let mut private = take_key(i);
        i.scratch[..32].copy_from_slice(&crypto::public_key(&private));
        private.zeroize();
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_private_key() -> u32 {
    with(|i| {
        let mut private = take_key(i);
        i.device.set_private_key(&private);
        private.zeroize();
        1
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_mtu(mtu: u32) {
    with(|i| i.device.set_mtu(mtu as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_load_limit(messages: u32) {
    with(|i| i.device.set_load_limit(messages))
}

/// Scratch: public key. The peer, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn wg_add_peer() -> i32 {
    with(|i| {
        let public = array_at(&i.scratch, 0);
        match i.device.add_peer(&public) {
            Ok(id) => id as i32,
            Err(error) => {
                fail(match error {
                    PeerError::Exists => Failure::PeerExists,
                    PeerError::BadKey => Failure::BadKey,
                    PeerError::TooMany => Failure::TooManyPeers,
                });
                -1
            }
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_find_peer() -> i32 {
    with(|i| i.device.find_peer(&array_at(&i.scratch, 0)).map_or(-1, |id| id as i32))
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_remove_peer(peer: u32) -> u32 {
    with(|i| known(i.device.remove_peer(peer), Failure::UnknownPeer))
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_psk(peer: u32) -> u32 {
    with(|i| {
        let mut psk = take_key(i);
        let done = i.device.set_psk(peer, &psk);
        psk.zeroize();
        known(done, Failure::UnknownPeer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_endpoint(peer: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| {
        let to = Some(scratch_endpoint(i));
        known(i.device.set_endpoint(at(ms, unix_ms), peer, to), Failure::UnknownPeer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_clear_endpoint(peer: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| known(i.device.set_endpoint(at(ms, unix_ms), peer, None), Failure::UnknownPeer))
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_keepalive(peer: u32, seconds: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| {
        let seconds = seconds.min(65_535) as u16;
        known(i.device.set_keepalive(at(ms, unix_ms), peer, seconds), Failure::UnknownPeer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_set_reserved(peer: u32, bytes: u32) -> u32 {
    with(|i| {
        let [a, b, c, _] = bytes.to_le_bytes();
        known(i.device.set_reserved(peer, [a, b, c]), Failure::UnknownPeer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_connect(peer: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| known(i.device.connect(at(ms, unix_ms), peer), Failure::UnknownPeer))
}

fn ip_bytes(family: u32) -> usize {
    if family == 4 { 4 } else { 16 }
}

/// Scratch: the address, 4 or 16 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn wg_allow(peer: u32, family: u32, cidr: u32) -> u32 {
    with(|i| {
        let ip = &i.scratch[..ip_bytes(family)];
        known(i.device.allow(peer, ip, cidr.min(255) as u8), Failure::BadPrefix)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_disallow(peer: u32, family: u32, cidr: u32) -> u32 {
    with(|i| {
        let ip = &i.scratch[..ip_bytes(family)];
        known(i.device.disallow(peer, ip, cidr.min(255) as u8), Failure::BadPrefix)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn wg_route(family: u32) -> i32 {
    with(|i| i.device.route(&i.scratch[..ip_bytes(family)]).map_or(-1, |peer| peer as i32))
}

// What can be asked.

/// Writes the state of the peer to the scratch area.
#[unsafe(no_mangle)]
pub extern "C" fn wg_peer_stats(peer: u32) -> u32 {
    with(|i| {
        let Some(found) = i.device.peer(peer) else {
            fail(Failure::UnknownPeer);
            return 0;
        };
        let stats = found.counters();
        let scratch = &mut i.scratch;
        scratch[..96].fill(0);
        scratch[..8].copy_from_slice(&stats.received_bytes.to_le_bytes());
        scratch[8..16].copy_from_slice(&stats.sent_bytes.to_le_bytes());
        scratch[16..24].copy_from_slice(&stats.last_handshake_unix_ms.to_le_bytes());
        scratch[24..28].copy_from_slice(&(found.staged_packets() as u32).to_le_bytes());
        scratch[32..64].copy_from_slice(found.public_key());
        if let Some(to) = found.current_endpoint() {
            scratch[28] = 1;
            scratch[64..68].copy_from_slice(&to.path.to_le_bytes());
            scratch[68..72].copy_from_slice(&to.scope.to_le_bytes());
            scratch[72..88].copy_from_slice(&to.ip);
            scratch[88..90].copy_from_slice(&to.port.to_le_bytes());
            scratch[90] = to.family;
        }
        1
    })
}

/// Writes the counts of drops, then of send errors, to the scratch area; returns how many there are.
#[unsafe(no_mangle)]
pub extern "C" fn wg_counts() -> u32 {
    with(|i| {
        let counts = i.device.drops().iter().chain(&i.errors);
        for (place, count) in i.scratch.chunks_exact_mut(8).zip(counts) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        (DROPS + i.errors.len()) as u32
    })
}

/// The next notice: its kind, with the peer in the first word of the scratch area; 0 for none.
#[unsafe(no_mangle)]
pub extern "C" fn wg_next_notice() -> u32 {
    with(|i| {
        let Some(notice) = i.device.next_notice() else { return 0 };
        let (kind, peer) = match notice {
            Notice::Connected { peer } => (1, peer),
            Notice::GaveUp { peer } => (2, peer),
            Notice::Roamed { peer } => (3, peer),
            Notice::Expired { peer } => (4, peer),
        };
        i.scratch[..4].copy_from_slice(&peer.to_le_bytes());
        kind
    })
}
