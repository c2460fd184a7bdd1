//! Batches over one pool of bytes: descriptors in, descriptors out, no object for a packet.
//!
//! Sealed datagrams of one peer that have the same length are laid side by side, so that a run is
//! at once one buffer for UDP segmentation offload and one body of a bundled frame.

use super::endpoint::Endpoint;
use super::message::INITIATION_BYTES;
use super::shared::Now;
use super::{Device, Event, SendError, Sent, padded};

/// Packets or runs that one call can report.
pub const BATCH_MAX: usize = 2048;
/// Datagrams in one run, and their bytes: what Linux takes as one segmented send.
pub const RUN_SEGMENTS_MAX: usize = 64;
pub const RUN_BYTES_MAX: usize = 65_507;

/// Four words; `offset` counts from the start of the pool.
///
/// | call | len | third | fourth |
/// | --- | --- | --- | --- |
/// | receive, in | bytes | place in the endpoint table | datagram size of a GRO train, 0 for one |
/// | receive, out | bytes of the IP packet | peer | 0 |
/// | send, in | bytes of the IP packet, at offset + 16 | bytes of the slot | 0 |
/// | send and poll, out | bytes of the run | peer, 0xffffffff for none | datagram size |
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Descriptor {
    pub offset: u32,
    pub len: u32,
    pub third: u32,
    pub fourth: u32,
}

pub const NO_PEER: u32 = u32::MAX;

/// 32 bytes: path 4, scope 4, ip 16, port 2, family 1, zero 5; integers little endian.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct EndpointRecord {
    pub path: u32,
    pub scope: u32,
    pub ip: [u8; 16],
    pub port: u16,
    pub family: u8,
    pub zero: [u8; 5],
}

impl From<&EndpointRecord> for Endpoint {
    fn from(record: &EndpointRecord) -> Endpoint {
        let EndpointRecord { path, scope, ip, port, family, .. } = *record;
        Endpoint { path, scope, ip, port, family }
    }
}

impl From<&Endpoint> for EndpointRecord {
    fn from(endpoint: &Endpoint) -> EndpointRecord {
        let Endpoint { path, scope, ip, port, family } = *endpoint;
        EndpointRecord { path, scope, ip, port, family, zero: [0; 5] }
    }
}

/// Runs being built: each a descriptor and the endpoint it goes to.
pub struct Runs<'a> {
    runs: &'a mut [Descriptor],
    to: &'a mut [EndpointRecord],
    count: usize,
}

impl<'a> Runs<'a> {
    /// Both slices have the same length.
    pub fn new(runs: &'a mut [Descriptor], to: &'a mut [EndpointRecord]) -> Runs<'a> {
        Runs { runs, to, count: 0 }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count == self.runs.len()
    }

    /// Where the last run ends.
    fn end(&self) -> usize {
        match self.count.checked_sub(1) {
            Some(last) => (self.runs[last].offset + self.runs[last].len) as usize,
            None => 0,
        }
    }

    /// Whether a datagram of `len` bytes may follow the last run.
    fn extends(&self, peer: u32, to: &EndpointRecord, len: usize) -> bool {
        let Some(last) = self.count.checked_sub(1) else { return false };
        let run = &self.runs[last];
        let whole = run.len % run.fourth == 0;
        peer != NO_PEER
            && run.third == peer
            && self.to[last] == *to
            && whole
            && len <= run.fourth as usize
            && ((run.len / run.fourth) as usize) < RUN_SEGMENTS_MAX
            && run.len as usize + len <= RUN_BYTES_MAX
    }

    /// Adds a datagram that lies at `offset`; one that extends the last run lies at its end.
    pub fn push(&mut self, offset: usize, len: usize, peer: u32, to: EndpointRecord) {
        if offset == self.end() && self.extends(peer, &to, len) {
            self.runs[self.count - 1].len += len as u32;
            return;
        }
        self.runs[self.count] =
            Descriptor { offset: offset as u32, len: len as u32, third: peer, fourth: len as u32 };
        self.to[self.count] = to;
        self.count += 1;
    }
}

/// Receives datagrams (or GRO trains of them) in place; returns the number of packets written to
/// `packets`. Descriptors that reach outside the pool or the table are skipped, and what comes
/// after `packets` is full is dropped: the second number counts both.
pub fn receive(
    device: &mut Device,
    now: Now,
    pool: &mut [u8],
    input: &[Descriptor],
    from: &[EndpointRecord],
    packets: &mut [Descriptor],
) -> (usize, usize) {
    let mut count = 0;
    let mut refused = 0;
    for descriptor in input {
        let start = descriptor.offset as usize;
        let slice = start
            .checked_add(descriptor.len as usize)
            .and_then(|end| pool.get_mut(start..end));
        let (Some(train), Some(record)) = (slice, from.get(descriptor.third as usize)) else {
            refused += 1;
            continue;
        };
        let endpoint = Endpoint::from(record);
        let size = match descriptor.fourth as usize {
            0 => train.len().max(1),
            size => size,
        };
        for (index, datagram) in train.chunks_mut(size).enumerate() {
            if count == packets.len() {
                refused += 1;
                continue;
            }
            if let Event::Packet { peer, start: at, len } = device.receive(now, &endpoint, datagram)
            {
                packets[count] = Descriptor {
                    offset: (start + index * size + at) as u32,
                    len: len as u32,
                    third: peer,
                    fourth: 0,
                };
                count += 1;
            }
        }
    }
    (count, refused)
}

/// Errors of a batch of packets, counted by `SendError`; place 0 counts bad descriptors.
pub type SendErrors = [u64; 6];

/// Seals packets in place, moved together where a run can be made of them. Slots come in rising
/// order and do not overlap.
pub fn send(
    device: &mut Device,
    now: Now,
    pool: &mut [u8],
    input: &[Descriptor],
    runs: &mut Runs,
    errors: &mut SendErrors,
) {
    let mut free_from = 0;
    for descriptor in input {
        let start = descriptor.offset as usize;
        let room = descriptor.third as usize;
        let len = descriptor.len as usize;
        let end = start.saturating_add(room);
        if start < free_from || end > pool.len() || len.saturating_add(16) > room || runs.is_full()
        {
            errors[0] += 1;
            continue;
        }
        free_from = end;
        let slot = &mut pool[start..end];
        match device.encapsulate(now, slot, len) {
            Ok(Sent::Sealed { peer, to, len: sealed }) => {
                let to = EndpointRecord::from(&to);
                let at = if runs.extends(peer, &to, sealed) { runs.end() } else { start };
                if at != start {
                    pool.copy_within(start..start + sealed, at);
                }
                runs.push(at, sealed, peer, to);
            }
            Ok(Sent::Staged { .. }) => {}
            Err(error) => errors[error as usize] += 1,
        }
    }
}

/// Writes what the device itself has to send into the pool; call again until there is no run.
pub fn poll(device: &mut Device, now: Now, pool: &mut [u8], runs: &mut Runs) {
    let slot = (padded(device.shared.mtu, device.shared.mtu) + 32).max(INITIATION_BYTES);
    let mut at = 0;
    while at + slot <= pool.len() && !runs.is_full() {
        let Some(datagram) = device.poll(now, &mut pool[at..]) else { return };
        let to = EndpointRecord::from(&datagram.to);
        runs.push(at, datagram.len, datagram.peer.unwrap_or(NO_PEER), to);
        at += datagram.len;
    }
}

const _: () = assert!(size_of::<Descriptor>() == 16 && size_of::<EndpointRecord>() == 32);
const _: () = assert!(SendError::Full as usize == 5);
