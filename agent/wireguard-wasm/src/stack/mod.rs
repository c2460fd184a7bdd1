//! A TCP/IP stack for many flows, without I/O: packets, a clock and entropy come in as arguments.
//!
//! TCP is smoltcp's, on one small interface for each flow behind a keyed hash of its two ends and
//! a heap of deadlines: the cost of a packet or a timer does not grow with the flows that are
//! idle. UDP and ICMP pass one by one; whoever owns the stack decides what belongs together.

mod flow;
mod keyed;
mod options;
mod packet;
mod sink;
mod streams;

use alloc::collections::{BTreeMap, BinaryHeap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::hash::BuildHasher;
use core::net::{IpAddr, SocketAddr};
use flow::{Flow, FlowOptions};
use hashbrown::HashMap;
use keyed::Keyed;

pub use flow::change;
pub use options::{Received, StackOptions, StackStats};
pub use packet::{Drop, IcmpError, quoted_ends};
pub use sink::PacketSink;

/// Number of a flow; told `CLOSED`, it may come again for another.
pub type FlowId = u32;

/// Packets that a flow may send before the next has its turn.
const TURN_PACKETS: usize = 32;
/// Five keepalives: a link that loses some must not end a connection that is idle.
const TIMEOUT_MS: u64 = 240_000;
const KEEP_ALIVE_MS: u64 = 45_000;
/// Resets and ICMP errors in a second, for what leads nowhere.
const ANSWERS_PER_SECOND: u32 = 1_000;
/// What is believed of a router that says less: RFC 791 and 8200.
const MTU_MIN_V4: usize = 576;
const MTU_MIN_V6: usize = 1280;
const KEPT_MAX: usize = 256;
/// Of a datagram that an error is about.
const QUOTED_PAYLOAD_BYTES: usize = 512;

/// Packets that wait for a poll; what comes beyond is not sent, and the other side asks again.
struct Kept(VecDeque<Vec<u8>>);

impl PacketSink for Kept {
    fn has_room(&self) -> bool {
        self.0.len() < KEPT_MAX
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        if self.has_room() {
            self.0.push_back(packet);
        }
        result
    }
}

type Ends = (SocketAddr, SocketAddr);

pub struct Stack {
    options: StackOptions,
    flows: Vec<Option<Flow>>,
    free: Vec<FlowId>,
    /// By (local, remote).
    table: HashMap<Ends, FlowId, Keyed>,
    incoming: BTreeMap<SocketAddr, usize>,
    incoming_total: usize,
    deadlines: BinaryHeap<Reverse<(u64, FlowId)>>,
    dirty: VecDeque<FlowId>,
    /// Answers made outside of `poll`.
    kept: VecDeque<Vec<u8>>,
    ready: VecDeque<FlowId>,
    buffered: usize,
    seeds: u64,
    answers: u32,
    answers_since_ms: u64,
    stats: StackStats,
}

impl Stack {
    pub fn new(options: StackOptions) -> Stack {
        let table = HashMap::with_hasher(Keyed(options.secret));
        let seeds = table.hasher().hash_one(0x736f_7474_6fu64);
        Stack {
            options,
            flows: Vec::new(),
            free: Vec::new(),
            table,
            incoming: BTreeMap::new(),
            incoming_total: 0,
            deadlines: BinaryHeap::new(),
            dirty: VecDeque::new(),
            kept: VecDeque::new(),
            ready: VecDeque::new(),
            buffered: 0,
            seeds,
            answers: 0,
            answers_since_ms: 0,
            stats: StackStats::default(),
        }
    }

    pub fn mtu(&self) -> usize {
        self.options.mtu
    }

    pub fn stats(&self) -> StackStats {
        self.stats
    }

    /// Bytes that the buffers of all flows hold, full or not.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered
    }

    /// Flows there are, those that wait for `accept` among them.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// One packet from the network, which may be hostile in every byte.
    pub fn receive<'a>(
        &mut self,
        now_ms: u64,
        packet: &'a [u8],
        sink: &mut impl PacketSink,
    ) -> Received<'a> {
        self.stats.received += 1;
        match packet::parse(packet) {
            Ok(packet::Parsed::Tcp { source, destination, tcp, ip }) => {
                if !sink.has_room() {
                    self.stats.dropped += 1;
                    return Received::Full;
                }
                if let Some(&id) = self.table.get(&(destination, source)) {
                    self.receive_known(id, packet, tcp.rst(), now_ms, sink);
                    return Received::Taken;
                }
                if !tcp.verify_checksum(&ip.src_addr(), &ip.dst_addr()) {
                    self.stats.dropped += 1;
                    return Received::Dropped(Drop::Checksum);
                }
                let is_syn = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
                if is_syn && self.options.accepts {
                    return match self.take_syn(destination, source, packet) {
                        true => Received::Taken,
                        false => {
                            self.stats.dropped += 1;
                            Received::Full
                        }
                    };
                }
                if self.may_answer(now_ms) {
                    self.stats.resets_sent += 1;
                    packet::reset(&ip, &tcp, sink);
                }
                Received::Taken
            }
            Ok(packet::Parsed::Udp { source, destination, payload }) => {
                Received::Datagram { source, destination, payload }
            }
            Ok(packet::Parsed::Echo { source, destination, request, id, sequence, payload }) => {
                Received::Echo { source, destination, request, id, sequence, payload }
            }
            Ok(packet::Parsed::Error { kind, quoted }) => match quoted_ends(quoted) {
                Some((false, source, destination)) => {
                    Received::Unreachable { source, destination, kind }
                }
                Some((true, local, remote)) => {
                    if let Some(about) = packet::quoted_sequence(quoted) {
                        self.receive_error((local, remote), kind, about);
                    }
                    Received::Taken
                }
                _ => Received::Taken,
            },
            Err(drop) => {
                self.stats.dropped += 1;
                Received::Dropped(drop)
            }
        }
    }

    /// A router could not pass on what a flow sent. Too big: its packets are made smaller. Else it
    /// ends what is not connected yet; when it is the error is soft (RFC 5927 §5), and
    /// retransmission times out, or does not.
    fn receive_error(&mut self, ends: Ends, kind: IcmpError, about: u32) {
        let Some(&id) = self.table.get(&ends) else { return };
        let Some(flow) = self.flow_mut(id) else { return };
        match kind {
            IcmpError::TooBig(mtu) => {
                let least = if ends.0.is_ipv4() { MTU_MIN_V4 } else { MTU_MIN_V6 };
                // Routers older than RFC 1191 say nothing.
                flow.limit_packets((mtu as usize).max(least), about);
                self.touch(id);
            }
            IcmpError::Other => {}
            _ => {
                flow.refuse(about);
                self.settle(id);
            }
        }
    }

    fn receive_known(
        &mut self,
        id: FlowId,
        packet: &[u8],
        is_reset: bool,
        now_ms: u64,
        sink: &mut impl PacketSink,
    ) {
        let (mtu, may_grow) = (self.options.mtu, self.may_grow());
        let Some(flow) = self.flows[id as usize].as_mut() else { return };
        if flow.is_incoming() {
            // A SYN again, or a reset by somebody who has seen it: it has not been answered yet.
            if is_reset {
                let local = flow.local;
                flow.drop_silently();
                self.no_longer_incoming(local);
                self.settle(id);
            }
            return;
        }
        flow.allow_growth(may_grow);
        flow.receive(packet, mtu, now_ms, sink);
        self.account(id);
        self.touch(id);
        self.settle(id);
    }

    fn take_syn(&mut self, local: SocketAddr, remote: SocketAddr, packet: &[u8]) -> bool {
        let waiting = self.incoming.get(&local).copied().unwrap_or(0);
        if self.table.len() >= self.options.flows_max
            || self.incoming_total >= self.options.incoming_max
            || waiting >= self.options.incoming_max_per_destination
        {
            return false;
        }
        self.incoming.insert(local, waiting + 1);
        self.incoming_total += 1;
        let mut flow = Flow::incoming(local, remote, packet);
        flow.changes |= change::INCOMING;
        let id = self.keep(flow);
        self.tell(id);
        true
    }

    /// The two ends of a flow, ours first.
    pub fn ends(&self, id: FlowId) -> Option<(SocketAddr, SocketAddr)> {
        self.flow(id).map(|flow| (flow.local, flow.remote))
    }

    /// Answers the SYN of an incoming flow, in the next `poll`; false when it is gone.
    pub fn accept(&mut self, id: FlowId, now_ms: u64) -> bool {
        let options = self.flow_options();
        let mut kept = Kept(core::mem::take(&mut self.kept));
        let Some(flow) = self.flow_mut(id).filter(|flow| flow.is_incoming()) else {
            self.kept = kept.0;
            return false;
        };
        let local = flow.local;
        let accepted = flow.accept(&options, now_ms, &mut kept);
        self.kept = kept.0;
        self.no_longer_incoming(local);
        self.touch(id);
        self.settle(id);
        accepted
    }

    /// Refuses an incoming flow: by a reset (None), or by an ICMP error, which `poll` sends.
    pub fn reject(&mut self, id: FlowId, kind: Option<IcmpError>) {
        let Some(flow) = self.flow_mut(id).filter(|flow| flow.is_incoming()) else { return };
        let local = flow.local;
        let syn = flow.reject();
        self.no_longer_incoming(local);
        self.remove(id);
        let mut kept = Kept(core::mem::take(&mut self.kept));
        if let Some(syn) = syn.filter(|_| kept.has_room()) {
            if let Some(kind) = kind {
                packet::unreachable(local.ip(), &syn, kind, &mut kept);
            } else if let Ok(packet::Parsed::Tcp { tcp, ip, .. }) = packet::parse(&syn) {
                self.stats.resets_sent += 1;
                packet::reset(&ip, &tcp, &mut kept);
            }
        }
        self.kept = kept.0;
    }

    /// Opens a flow from `local`, whose port is the caller's to choose. None when the ends are in
    /// use or of two families, or there are too many flows.
    pub fn connect(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now_ms: u64,
    ) -> Option<FlowId> {
        let usable = local.port() != 0
            && remote.port() != 0
            && local.is_ipv4() == remote.is_ipv4()
            && !remote.ip().is_unspecified()
            && !remote.ip().is_multicast();
        if !usable
            || self.table.len() >= self.options.flows_max
            || self.table.contains_key(&(local, remote))
        {
            return None;
        }
        let flow = Flow::outgoing(local, remote, &self.flow_options(), now_ms)?;
        let id = self.keep(flow);
        self.touch(id);
        Some(id)
    }

    /// A flow with news, and its `change` bits; it is forgotten when `CLOSED` is among them.
    pub fn changed(&mut self) -> Option<(FlowId, u8)> {
        while let Some(id) = self.ready.pop_front() {
            let Some(flow) = self.flow_mut(id) else { continue };
            flow.on_ready_list = false;
            let changes = core::mem::take(&mut flow.changes);
            if flow.is_closed() {
                self.remove(id);
            }
            if changes != 0 {
                return Some((id, changes));
            }
        }
        None
    }

    /// Sends what is due, in turns, until nothing is or the sink is full. When to come again at
    /// the latest; `now_ms`: when there is room.
    pub fn poll(&mut self, now_ms: u64, sink: &mut impl PacketSink) -> Option<u64> {
        while let Some(&Reverse((at, id))) = self.deadlines.peek() {
            if at > now_ms {
                break;
            }
            self.deadlines.pop();
            let Some(flow) = self.flow_mut(id).filter(|flow| flow.queued_ms == Some(at)) else {
                continue;
            };
            flow.queued_ms = None;
            match flow.deadline_ms {
                Some(deadline) if deadline > now_ms => self.queue(id, deadline),
                Some(_) => self.touch(id),
                None => {}
            }
        }
        let mtu = self.options.mtu;
        while sink.has_room() {
            let Some(packet) = self.kept.pop_front() else { break };
            sink.packet(packet.len(), |target| target.copy_from_slice(&packet));
        }
        while sink.has_room() {
            let Some(id) = self.dirty.pop_front() else { break };
            let may_grow = self.may_grow();
            let Some(flow) = self.flow_mut(id) else { continue };
            flow.allow_growth(may_grow);
            flow.on_dirty_list = false;
            let more = flow.poll(TURN_PACKETS, mtu, now_ms, sink);
            let deadline = flow.deadline_ms;
            self.account(id);
            if more {
                self.touch(id);
            } else if let Some(at) = deadline {
                self.queue(id, at);
            }
            self.settle(id);
        }
        if !self.dirty.is_empty() {
            return Some(now_ms);
        }
        self.deadlines.peek().map(|&Reverse((at, _))| at)
    }

    /// A UDP datagram; false when it does not fit, or there is no room.
    pub fn send_datagram(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
        sink: &mut impl PacketSink,
    ) -> bool {
        packet::udp(source, destination, payload, self.options.mtu, sink)
    }

    /// An ICMP echo: `(request, id, sequence)`.
    pub fn send_echo(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        head: (bool, u16, u16),
        payload: &[u8],
        sink: &mut impl PacketSink,
    ) -> bool {
        packet::echo(source, destination, head, payload, self.options.mtu, sink)
    }

    /// An ICMP error about `packet`, as its router or destination `source`; at a bounded rate.
    pub fn send_unreachable(
        &mut self,
        now_ms: u64,
        source: IpAddr,
        packet: &[u8],
        kind: IcmpError,
        sink: &mut impl PacketSink,
    ) -> bool {
        sink.has_room()
            && self.may_answer(now_ms)
            && packet::unreachable(source, packet, kind, sink)
    }

    /// The ICMP error about a datagram that came from `source` and was for `destination`, of which
    /// `payload` is the start; at a bounded rate.
    pub fn send_datagram_error(
        &mut self,
        now_ms: u64,
        (source, destination): (SocketAddr, SocketAddr),
        payload: &[u8],
        kind: IcmpError,
        sink: &mut impl PacketSink,
    ) -> bool {
        let mut made = Kept(VecDeque::new());
        let payload = &payload[..payload.len().min(QUOTED_PAYLOAD_BYTES)];
        if !packet::udp(source, destination, payload, usize::MAX, &mut made) {
            return false;
        }
        self.send_unreachable(now_ms, destination.ip(), &made.0[0], kind, sink)
    }

    fn may_answer(&mut self, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.answers_since_ms) >= 1_000 {
            self.answers_since_ms = now_ms;
            self.answers = 0;
        }
        self.answers += 1;
        self.answers <= ANSWERS_PER_SECOND
    }

    fn flow_options(&mut self) -> FlowOptions {
        self.seeds = self.seeds.wrapping_add(1);
        FlowOptions {
            mtu: self.options.mtu,
            buffer_bytes: self.options.buffer_bytes,
            tolerant: self.options.tolerant,
            timeout_ms: TIMEOUT_MS,
            keep_alive_ms: KEEP_ALIVE_MS,
            // Of a keyed hash, so that nobody can tell a sequence number from those of other flows.
            random_seed: self.table.hasher().hash_one(self.seeds),
        }
    }

    fn keep(&mut self, flow: Flow) -> FlowId {
        self.stats.flows_opened += 1;
        let ends = (flow.local, flow.remote);
        let id = match self.free.pop() {
            Some(id) => {
                self.flows[id as usize] = Some(flow);
                id
            }
            None => {
                self.flows.push(Some(flow));
                (self.flows.len() - 1) as FlowId
            }
        };
        self.table.insert(ends, id);
        id
    }

    fn may_grow(&self) -> bool {
        self.buffered < self.options.memory_bytes
    }

    /// Brings the sum of what all buffers hold up to date.
    fn account(&mut self, id: FlowId) {
        let Some(flow) = self.flow_mut(id) else { return };
        let (before, now) = (flow.accounted, flow.allocated());
        flow.accounted = now;
        self.buffered = self.buffered + now - before;
    }

    fn remove(&mut self, id: FlowId) {
        if let Some(flow) = self.flows[id as usize].take() {
            self.buffered -= flow.accounted;
            self.table.remove(&(flow.local, flow.remote));
            self.free.push(id);
        }
    }

    fn no_longer_incoming(&mut self, local: SocketAddr) {
        self.incoming_total -= 1;
        if let Some(waiting) = self.incoming.get_mut(&local) {
            *waiting -= 1;
            if *waiting == 0 {
                self.incoming.remove(&local);
            }
        }
    }

    fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id as usize)?.as_ref()
    }

    fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id as usize)?.as_mut()
    }

    /// It has something to send, or may have.
    fn touch(&mut self, id: FlowId) {
        if let Some(flow) =
            self.flow_mut(id).filter(|flow| !flow.on_dirty_list && !flow.is_closed())
        {
            flow.on_dirty_list = true;
            self.dirty.push_back(id);
        }
    }

    /// Most deadlines move before they come: one entry of the heap stands for a flow, and may be
    /// early.
    fn queue(&mut self, id: FlowId, at: u64) {
        if let Some(flow) =
            self.flow_mut(id).filter(|flow| flow.queued_ms.is_none_or(|queued| at < queued))
        {
            flow.queued_ms = Some(at);
            self.deadlines.push(Reverse((at, id)));
        }
    }

    fn settle(&mut self, id: FlowId) {
        if self.flow(id).is_some_and(|flow| flow.changes != 0) {
            self.tell(id);
        }
    }

    fn tell(&mut self, id: FlowId) {
        if let Some(flow) = self.flow_mut(id).filter(|flow| !flow.on_ready_list) {
            flow.on_ready_list = true;
            self.ready.push_back(id);
        }
    }
}
