//! The exports of the stack and of the tunnel, beside those of the device: ABI.md describes them.

use crate::device::Now;
use crate::device::batch::{BATCH_MAX, Runs};
use crate::device_abi::{Failure, Instance, at, boxed, deadline, fail, with};
use crate::stack::{FlowId, Stack, StackOptions};
use crate::tunnel::{self, Areas, CHANGES_MAX, Change, MESSAGES_MAX, Message, Turn};
use alloc::boxed::Box;
use core::cell::UnsafeCell;
use zeroize::Zeroize;

const PAYLOAD_BYTES: usize = 512 * 1024;
const RESULT_BYTES: usize = 64;

struct Joined {
    stack: Stack,
    messages: Box<[Message]>,
    changes: Box<[Change]>,
    outgoing: Box<[Message]>,
    payload: Box<[u8]>,
    result: Box<[u8]>,
}

struct Slot(UnsafeCell<Option<Box<Joined>>>);
// SAFETY: the module is built without threads, so no two threads share it.
unsafe impl Sync for Slot {}
static JOINED: Slot = Slot(UnsafeCell::new(None));

/// Runs `act` on the stack, or sets the last error and returns the default.
fn join<T: Default>(act: impl FnOnce(&mut Joined) -> T) -> T {
    // SAFETY: one thread, and `act` never comes back here: it calls no export.
    match unsafe { &mut *JOINED.0.get() } {
        Some(joined) => act(joined),
        None => {
            fail(Failure::NotInitialised);
            T::default()
        }
    }
}

/// After `wg_init`. Scratch: 16 secret bytes, which are overwritten.
#[unsafe(no_mangle)]
pub extern "C" fn tn_init(
    mtu: u32,
    flows: u32,
    buffer_bytes: u32,
    memory_bytes: u32,
    flags: u32,
) -> u32 {
    with(|i| {
        // SAFETY: as in `join`.
        let slot = unsafe { &mut *JOINED.0.get() };
        if slot.is_some() {
            fail(Failure::AlreadyInitialised);
            return 0;
        }
        let mut secret = [0; 16];
        secret.copy_from_slice(&i.scratch[..16]);
        i.scratch.zeroize();
        let stack = Stack::new(StackOptions {
            accepts: flags & 1 != 0,
            tolerant: flags & 2 == 0,
            mtu: mtu.clamp(576, 65_400) as usize,
            flows_max: flows as usize,
            buffer_bytes: buffer_bytes as usize,
            memory_bytes: memory_bytes as usize,
            secret,
            ..StackOptions::default()
        });
        *slot = Some(Box::new(Joined {
            stack,
            messages: boxed(MESSAGES_MAX),
            changes: boxed(CHANGES_MAX),
            outgoing: boxed(MESSAGES_MAX),
            payload: boxed(PAYLOAD_BYTES),
            result: boxed(RESULT_BYTES),
        }));
        1
    })
}

/// Address of an area: see ABI.md for the numbers. 0 for an unknown one.
#[unsafe(no_mangle)]
pub extern "C" fn tn_area(which: u32) -> u32 {
    join(|j| match which {
        0 => j.messages.as_ptr() as u32,
        1 => j.changes.as_ptr() as u32,
        2 => j.outgoing.as_ptr() as u32,
        3 => j.payload.as_ptr() as u32,
        4 => j.result.as_ptr() as u32,
        _ => 0,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_area_bytes(which: u32) -> u32 {
    join(|j| match which {
        0 | 2 => (MESSAGES_MAX * size_of::<Message>()) as u32,
        1 => (CHANGES_MAX * size_of::<Change>()) as u32,
        3 => j.payload.len() as u32,
        4 => j.result.len() as u32,
        _ => 0,
    })
}

fn run(i: &mut Instance, j: &mut Joined, sealed: bool, count: u32, outgoing: u32, now: Now) -> u32 {
    let mut runs = Runs::new(&mut i.runs, &mut i.to);
    let areas = Areas {
        rx: &mut i.rx,
        input: &i.input[..(count as usize).min(BATCH_MAX)],
        from: &i.from,
        tx: &mut i.tx,
        errors: &mut i.errors,
        outgoing: &j.outgoing[..(outgoing as usize).min(MESSAGES_MAX)],
        payload: &j.payload,
        messages: &mut j.messages,
        changes: &mut j.changes,
    };
    let device = sealed.then_some(&mut i.device);
    let Turn { messages, changes, more, deadline_ms, refused } =
        tunnel::turn(device, &mut j.stack, now, areas, &mut runs);
    let words = [messages as u32, changes as u32, more as u32, refused as u32];
    for (place, word) in j.result.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    j.result[16..24].copy_from_slice(&deadline(deadline_ms).to_le_bytes());
    runs.len() as u32
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_turn(count: u32, outgoing: u32, ms: f64, unix_ms: f64) -> u32 {
    with(|i| join(|j| run(i, j, true, count, outgoing, at(ms, unix_ms))))
}

/// The same over packets, without the device.
#[unsafe(no_mangle)]
pub extern "C" fn tn_plain_turn(count: u32, outgoing: u32, ms: f64) -> u32 {
    with(|i| join(|j| run(i, j, false, count, outgoing, at(ms, 0.0))))
}

// Flows.

/// Scratch: a message record of whose fields family, addresses and ports count; source is ours.
#[unsafe(no_mangle)]
pub extern "C" fn tn_connect(ms: f64) -> i32 {
    with(|i| {
        join(|j| {
            let scratch = &i.scratch;
            let port = |from: usize| u16::from_le_bytes([scratch[from], scratch[from + 1]]);
            let mut message = Message {
                family: scratch[1],
                source_port: port(48),
                destination_port: port(50),
                ..Message::default()
            };
            message.source.copy_from_slice(&scratch[16..32]);
            message.destination.copy_from_slice(&scratch[32..48]);
            let flow = message
                .ends()
                .and_then(|(local, remote)| j.stack.connect(local, remote, ms as u64));
            flow.map_or(-1, |flow| flow as i32)
        })
    })
}

/// Scratch: a message record with the two ends, ours as its source; 0 when there is no such flow.
#[unsafe(no_mangle)]
pub extern "C" fn tn_ends(flow: FlowId) -> u32 {
    with(|i| {
        join(|j| {
            let Some((local, remote)) = j.stack.ends(flow) else { return 0 };
            let message = Message::between(0, local, remote);
            i.scratch[..64].fill(0);
            i.scratch[1] = message.family;
            i.scratch[16..32].copy_from_slice(&message.source);
            i.scratch[32..48].copy_from_slice(&message.destination);
            i.scratch[48..50].copy_from_slice(&message.source_port.to_le_bytes());
            i.scratch[50..52].copy_from_slice(&message.destination_port.to_le_bytes());
            1
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_accept(flow: FlowId, ms: f64) -> u32 {
    join(|j| u32::from(j.stack.accept(flow, ms as u64)))
}

/// `code` is that of a message, 0 for a reset.
#[unsafe(no_mangle)]
pub extern "C" fn tn_reject(flow: FlowId, code: u32) {
    join(|j| j.stack.reject(flow, tunnel::icmp_of(code as u16, 0)))
}

/// Bytes that have come and lie in one piece; the address is word 6 of the result area.
#[unsafe(no_mangle)]
pub extern "C" fn tn_peek(flow: FlowId) -> u32 {
    join(|j| {
        let piece = j.stack.peek(flow);
        let (address, len) = (piece.as_ptr() as u32, piece.len() as u32);
        j.result[24..28].copy_from_slice(&address.to_le_bytes());
        len
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_consume(flow: FlowId, bytes: u32) {
    join(|j| j.stack.consume(flow, bytes as usize))
}

/// Room in one piece; its address is word 6 of the result area. 0: wait for `WRITABLE`.
#[unsafe(no_mangle)]
pub extern "C" fn tn_room(flow: FlowId) -> u32 {
    join(|j| {
        let piece = j.stack.room(flow);
        let (address, len) = (piece.as_ptr() as u32, piece.len() as u32);
        j.result[24..28].copy_from_slice(&address.to_le_bytes());
        len
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_commit(flow: FlowId, bytes: u32) -> u32 {
    join(|j| j.stack.commit(flow, bytes as usize) as u32)
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_finish(flow: FlowId) {
    join(|j| j.stack.finish(flow))
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_abort(flow: FlowId) {
    join(|j| j.stack.abort(flow))
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_readable(flow: FlowId) -> u32 {
    join(|j| j.stack.readable(flow) as u32)
}

#[unsafe(no_mangle)]
pub extern "C" fn tn_unacknowledged(flow: FlowId) -> u32 {
    join(|j| j.stack.unacknowledged(flow) as u32)
}

/// Writes counts to the scratch area, u64 each; returns how many there are.
#[unsafe(no_mangle)]
pub extern "C" fn tn_counts() -> u32 {
    with(|i| {
        join(|j| {
            let stats = j.stack.stats();
            let counts = [
                stats.received,
                stats.dropped,
                stats.resets_sent,
                stats.flows_opened,
                j.stack.len() as u64,
                j.stack.buffered_bytes() as u64,
            ];
            for (place, count) in i.scratch.chunks_exact_mut(8).zip(counts) {
                place.copy_from_slice(&count.to_le_bytes());
            }
            counts.len() as u32
        })
    })
}
