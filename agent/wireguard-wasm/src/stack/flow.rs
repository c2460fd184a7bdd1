//! One TCP connection on an interface of its own, so that what it costs does not depend on how many
//! others there are.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::sink::PacketSink;

/// Where the limits of a flow's buffers begin; memory is taken for what they hold.
const INITIAL_BUFFER_BYTES: usize = 256 * 1024;

/// Empty buffers are given back after this.
const IDLE_MS: u64 = 5_000;
/// Stray segments are answered for so long after the end where something was not read yet.
const UNREAD_MS: u64 = 5_000;

/// What a flow has become, or can do, since it was last asked; bits of `changes`.
pub mod change {
    pub const CONNECTED: u8 = 1;
    pub const READABLE: u8 = 2;
    pub const WRITABLE: u8 = 4;
    /// The other side has finished sending, and all of it was read.
    pub const FINISHED: u8 = 8;
    /// Over: the flow's number is free once this was told.
    pub const CLOSED: u8 = 16;
    /// With `CLOSED`: not by both sides in good order.
    pub const RESET: u8 = 32;
    /// A SYN waits for `accept` or `reject`.
    pub const INCOMING: u8 = 64;
}

pub struct FlowOptions {
    pub mtu: usize,
    /// Of each direction.
    pub buffer_bytes: usize,
    /// Few losses without a growing queue do not slow it down.
    pub tolerant: bool,
    /// Silence of a peer that owes an acknowledgement ends the flow.
    pub timeout_ms: u64,
    pub keep_alive_ms: u64,
    pub random_seed: u64,
}

pub struct Flow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Not yet told.
    pub changes: u8,
    pub on_ready_list: bool,
    pub on_dirty_list: bool,
    /// When it wants to be looked at again.
    pub deadline_ms: Option<u64>,
    /// The earliest that the heap holds for it.
    pub queued_ms: Option<u64>,
    /// The writer was told that there is no room, and waits for `WRITABLE`.
    wants_room: bool,
    told_finished: bool,
    was_connected: bool,
    aborted: bool,
    finishing: bool,
    /// What the socket was when it was last looked at.
    was: tcp::State,
    ended_in_order: bool,
    /// Since when both ends have finished.
    past_ms: Option<u64>,
    /// What was counted of its buffers, by the stack.
    pub accounted: usize,
    /// What was queued and passed when it was last looked at, and when that changed.
    moved: (usize, usize, (u32, u32)),
    moved_ms: u64,
    state: State,
}

enum State {
    /// The SYN as it came; nothing is answered until it is known whether the far end can be
    /// reached.
    Incoming {
        syn: Vec<u8>,
    },
    Open(alloc::boxed::Box<Open>),
    Closed,
}

struct Open {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Flow {
    pub fn incoming(local: SocketAddr, remote: SocketAddr, syn: &[u8]) -> Flow {
        Flow { state: State::Incoming { syn: syn.to_vec() }, ..Flow::new(local, remote) }
    }

    /// Begins to connect.
    pub fn outgoing(
        local: SocketAddr,
        remote: SocketAddr,
        options: &FlowOptions,
        now_ms: u64,
    ) -> Option<Flow> {
        let mut open = Open::new(local, options, now_ms);
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        socket.connect(open.interface.context(), remote, local).ok()?;
        Some(Flow { state: State::Open(alloc::boxed::Box::new(open)), ..Flow::new(local, remote) })
    }

    fn new(local: SocketAddr, remote: SocketAddr) -> Flow {
        Flow {
            local,
            remote,
            changes: 0,
            on_ready_list: false,
            on_dirty_list: false,
            deadline_ms: None,
            queued_ms: None,
            wants_room: false,
            told_finished: false,
            was_connected: false,
            aborted: false,
            finishing: false,
            was: tcp::State::Closed,
            ended_in_order: false,
            past_ms: None,
            accounted: 0,
            moved: (0, 0, (0, 0)),
            moved_ms: 0,
            state: State::Closed,
        }
    }

    pub fn is_incoming(&self) -> bool {
        matches!(self.state, State::Incoming { .. })
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The waiting SYN is taken up; false when none waits.
    pub fn accept(
        &mut self,
        options: &FlowOptions,
        now_ms: u64,
        sink: &mut impl PacketSink,
    ) -> bool {
        let State::Incoming { syn } = core::mem::replace(&mut self.state, State::Closed) else {
            return false;
        };
        let mut open = Open::new(self.local, options, now_ms);
        let endpoint =
            IpListenEndpoint { addr: Some(self.local.ip().into()), port: self.local.port() };
        if open.sockets.get_mut::<tcp::Socket>(open.handle).listen(endpoint).is_err() {
            return false;
        }
        self.state = State::Open(alloc::boxed::Box::new(open));
        self.receive(&syn, options.mtu, now_ms, sink);
        true
    }

    /// The waiting SYN, which is taken away.
    pub fn reject(&mut self) -> Option<Vec<u8>> {
        match core::mem::replace(&mut self.state, State::Closed) {
            State::Incoming { syn } => Some(syn),
            other => {
                self.state = other;
                None
            }
        }
    }

    pub fn receive(&mut self, packet: &[u8], mtu: usize, now_ms: u64, sink: &mut impl PacketSink) {
        let State::Open(open) = &mut self.state else { return };
        let mut device = FlowDevice { received: Some(packet), mtu, sink };
        let at = Instant::from_millis(now_ms as i64);
        let _: PollIngressSingleResult =
            open.interface.poll_ingress_single(at, &mut device, &mut open.sockets);
        self.notice();
    }

    /// Sends what is to be sent, at most `packets`. True: there is more.
    pub fn poll(
        &mut self,
        packets: usize,
        mtu: usize,
        now_ms: u64,
        sink: &mut impl PacketSink,
    ) -> bool {
        let at = Instant::from_millis(now_ms as i64);
        let State::Open(open) = &mut self.state else { return false };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        // The socket forgets all ten seconds after both ends have finished, with what was not read yet: it is
        // not asked again until that is read.
        if socket.state() == tcp::State::TimeWait && socket.can_recv() {
            let since_ms = *self.past_ms.get_or_insert(now_ms);
            if now_ms >= since_ms + UNREAD_MS {
                self.deadline_ms = None;
                return false;
            }
        }
        // What is held when nothing has moved for a while is given back.
        let moved = (socket.recv_queue(), socket.send_queue(), socket.sequence_numbers());
        if moved != self.moved {
            self.moved = moved;
            self.moved_ms = now_ms;
        }
        let holds = socket.allocated() > 0 && socket.recv_queue() + socket.send_queue() == 0;
        let release_ms = holds.then_some(self.moved_ms + IDLE_MS);
        if release_ms.is_some_and(|at| at <= now_ms) {
            socket.release();
        }
        let mut sent_any = false;
        for _ in 0..packets {
            if !sink.has_room() {
                sent_any = true;
                break;
            }
            let mut device = FlowDevice { received: None, mtu, sink };
            let sent = open.interface.poll_egress(at, &mut device, &mut open.sockets);
            if sent == smoltcp::iface::PollResult::None {
                break;
            }
            sent_any = true;
        }
        let next =
            open.interface.poll_at(at, &open.sockets).map(|at| at.total_millis().max(0) as u64);
        let due = next.is_some_and(|next| next <= now_ms);
        // Due and yet silent: asked again a moment later, or a turn would never end.
        let more = due && sent_any;
        self.deadline_ms = if more {
            None
        } else if due {
            Some(now_ms + 1)
        } else {
            next
        };
        if let Some(at) = release_ms.filter(|at| *at > now_ms && !more) {
            self.deadline_ms = Some(self.deadline_ms.map_or(at, |earlier| earlier.min(at)));
        }
        self.notice();
        more && !self.is_closed()
    }

    /// Bytes taken out of what has come, in order; 0: none there.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        let State::Open(open) = &mut self.state else { return 0 };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        let mut taken = 0;
        // The buffer is a ring: what wraps around comes in two pieces.
        while taken < target.len() {
            match socket.recv_slice(&mut target[taken..]) {
                Ok(0) | Err(_) => break,
                Ok(bytes) => taken += bytes,
            }
        }
        self.notice();
        taken
    }

    /// What has come and lies in one piece; `consume` takes it.
    pub fn peek(&mut self) -> &[u8] {
        let State::Open(open) = &mut self.state else { return &[] };
        open.sockets.get_mut::<tcp::Socket>(open.handle).peek(usize::MAX).unwrap_or(&[])
    }

    pub fn consume(&mut self, bytes: usize) {
        let State::Open(open) = &mut self.state else { return };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        let _ = socket.recv(|piece| (bytes.min(piece.len()), ()));
        self.notice();
    }

    /// Takes memory for `room` to show.
    pub fn reserve(&mut self) {
        if let State::Open(open) = &mut self.state {
            let _ = open.sockets.get_mut::<tcp::Socket>(open.handle).send(|_| (0, ()));
        }
    }

    /// Room for what is to be sent, in one piece; `commit` sends what was put at its start. Empty:
    /// wait for `WRITABLE`.
    pub fn room(&mut self) -> &mut [u8] {
        let State::Open(open) = &mut self.state else { return &mut [] };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        self.wants_room = socket.send_queue() == socket.send_capacity();
        socket.send(|piece| (0, piece)).unwrap_or(&mut [])
    }

    /// Returns the bytes taken.
    pub fn commit(&mut self, bytes: usize) -> usize {
        let State::Open(open) = &mut self.state else { return 0 };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        let taken = |piece: &mut [u8]| (bytes.min(piece.len()), bytes.min(piece.len()));
        socket.send(taken).unwrap_or(0)
    }

    /// Bytes that can be read now.
    pub fn readable(&self) -> usize {
        self.socket().map_or(0, |socket| socket.recv_queue())
    }

    /// Bytes taken to be sent; fewer than given: wait for `WRITABLE`.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let State::Open(open) = &mut self.state else { return 0 };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        let mut taken = 0;
        while taken < bytes.len() {
            match socket.send_slice(&bytes[taken..]) {
                Ok(0) | Err(_) => break,
                Ok(sent) => taken += sent,
            }
        }
        self.wants_room = taken < bytes.len();
        taken
    }

    /// Bytes that the other side has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.socket().map_or(0, |socket| socket.send_queue())
    }

    /// Packets of at most `mtu` bytes from now on, when `about` is the sequence number of one on
    /// its way.
    pub fn limit_packets(&mut self, mtu: usize, about: u32) {
        let headers = if self.local.is_ipv4() { 40 } else { 60 };
        if let State::Open(open) = &mut self.state {
            open.sockets.get_mut::<tcp::Socket>(open.handle).limit_mss(mtu - headers, about);
        }
    }

    /// Ends it when it is not connected yet, and `about` is the sequence number of its SYN.
    pub fn refuse(&mut self, about: u32) {
        let State::Open(open) = &mut self.state else { return };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        if socket.state() == tcp::State::SynSent && socket.sequence_numbers().1 == about {
            self.drop_silently();
        }
    }

    /// Whether its buffers may grow beyond 16 KiB, or what they are.
    pub fn allow_growth(&mut self, allowed: bool) {
        if let State::Open(open) = &mut self.state {
            open.sockets.get_mut::<tcp::Socket>(open.handle).allow_buffer_growth(allowed);
        }
    }

    /// Bytes that its buffers hold, full or not.
    pub fn allocated(&self) -> usize {
        self.socket().map_or(0, |socket| socket.allocated())
    }

    /// Sends no more after what was written; reading goes on.
    pub fn finish(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        let socket = open.sockets.get_mut::<tcp::Socket>(open.handle);
        // RFC 9293 §3.10.4: in SYN-SENT a close is the end of all. Here it waits for the
        // connection.
        self.finishing = socket.state() == tcp::State::SynSent;
        if !self.finishing {
            socket.close();
        }
    }

    /// Ends it by a reset, which `poll` sends.
    pub fn abort(&mut self) {
        self.aborted = true;
        if let State::Open(open) = &mut self.state {
            open.sockets.get_mut::<tcp::Socket>(open.handle).abort();
        }
    }

    /// Ends it without a word.
    pub fn drop_silently(&mut self) {
        if !self.is_closed() {
            self.state = State::Closed;
            self.changes |= change::CLOSED | change::RESET;
        }
    }

    pub fn set_nodelay(&mut self, on: bool) {
        if let State::Open(open) = &mut self.state {
            open.sockets.get_mut::<tcp::Socket>(open.handle).set_nagle_enabled(!on);
        }
    }

    fn socket(&self) -> Option<&tcp::Socket<'static>> {
        match &self.state {
            State::Open(open) => Some(open.sockets.get::<tcp::Socket>(open.handle)),
            _ => None,
        }
    }

    /// Compares what the socket is now with what was told.
    fn notice(&mut self) {
        let Some(socket) = self.socket() else { return };
        let state = socket.state();
        let mut changes = 0;
        let connected =
            socket.may_send() || matches!(state, tcp::State::FinWait1 | tcp::State::FinWait2);
        if connected && !self.was_connected {
            changes |= change::CONNECTED | change::WRITABLE;
        }
        if socket.can_recv() {
            changes |= change::READABLE;
        }
        if self.wants_room && socket.can_send() && socket.send_queue() * 2 <= socket.send_capacity()
        {
            changes |= change::WRITABLE;
        }
        let finished =
            (self.was_connected || connected) && !socket.may_recv() && !socket.can_recv();
        if finished && !self.told_finished && state != tcp::State::Closed {
            changes |= change::FINISHED;
        }
        // Waiting for stray segments would keep the buffers for ten seconds; they get a reset
        // instead.
        let over = matches!(state, tcp::State::Closed | tcp::State::TimeWait)
            && !socket.can_recv()
            && (!self.aborted || socket.remote_endpoint().is_none());
        // Both ends have finished and know it, however late the reader is.
        let is_past = state == tcp::State::TimeWait
            || (self.was == tcp::State::LastAck
                && state == tcp::State::Closed
                && socket.send_queue() == 0);
        self.ended_in_order |= is_past && !self.aborted;
        self.was = state;
        let in_order = self.ended_in_order || (self.told_finished && !self.aborted);
        self.was_connected |= connected;
        if changes & change::WRITABLE != 0 {
            self.wants_room = false;
        }
        if connected && self.finishing {
            self.finish();
        }
        if changes & change::FINISHED != 0 {
            self.told_finished = true;
        }
        if over {
            changes |= change::CLOSED;
            if self.ended_in_order && !self.told_finished {
                changes |= change::FINISHED;
            }
            if !in_order {
                changes |= change::RESET;
            }
            self.state = State::Closed;
            self.deadline_ms = None;
        }
        self.changes |= changes;
    }
}

impl Open {
    fn new(local: SocketAddr, options: &FlowOptions, now_ms: u64) -> Open {
        let at = Instant::from_millis(now_ms as i64);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = options.random_seed;
        let mut nowhere = Nowhere;
        let mut device = FlowDevice { received: None, mtu: options.mtu, sink: &mut nowhere };
        let mut interface = Interface::new(config, &mut device, at);
        let own = local.ip();
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(own.into(), if own.is_ipv4() { 32 } else { 128 }));
        });
        let buffer = || tcp::SocketBuffer::new(Vec::new());
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_buffer_growth(
            options.buffer_bytes.min(INITIAL_BUFFER_BYTES),
            options.buffer_bytes,
        );
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_random_loss_tolerance(options.tolerant);
        // Whoever writes here has gathered bytes already.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(Duration::from_millis(options.timeout_ms)));
        socket.set_keep_alive(Some(Duration::from_millis(options.keep_alive_ms)));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Open { interface, sockets, handle }
    }
}

struct Nowhere;

impl PacketSink for Nowhere {
    fn has_room(&self) -> bool {
        false
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; length])
    }
}

/// smoltcp's idea of a network card: one packet in, and a sink.
struct FlowDevice<'a, S> {
    received: Option<&'a [u8]>,
    mtu: usize,
    sink: &'a mut S,
}

struct Received<'a>(&'a [u8]);
struct Sending<'a, S>(&'a mut S);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<S: PacketSink> TxToken for Sending<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.packet(length, f)
    }
}

impl<S: PacketSink> Device for FlowDevice<'_, S> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b, S>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_, S>)> {
        self.received.take().map(|packet| (Received(packet), Sending(&mut *self.sink)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, S>> {
        self.sink.has_room().then(|| Sending(&mut *self.sink))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // What comes is authenticated as a whole, or comes from this machine's own kernel: as
        // WireGuard in a kernel does, its checksums are taken for right. They are 40 % of what a
        // packet costs.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
