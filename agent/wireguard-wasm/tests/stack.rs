//! The stack against itself over a network that loses, delays, doubles and reorders, in virtual
//! time.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, HashMap};
use wireguard_wasm::stack::*;

struct Packets(Vec<Vec<u8>>, usize);

impl PacketSink for Packets {
    fn has_room(&self) -> bool {
        self.0.len() < self.1
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0xee; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn stack(accepts: bool, secret: u8) -> Stack {
    Stack::new(StackOptions {
        mtu: 1420,
        flows_max: 20_000,
        incoming_max_per_destination: 8,
        incoming_max: 64,
        buffer_bytes: 65_536,
        memory_bytes: 1 << 30,
        tolerant: true,
        accepts,
        secret: [secret; 16],
    })
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[derive(Default)]
struct Faults {
    loss: u64,
    double: u64,
    delay_ms: (u64, u64),
}

/// Two stacks and what is under way between them.
struct Pair {
    now_ms: u64,
    ends: [Stack; 2],
    wire: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    count: u64,
    random: Random,
    faults: Faults,
    changes: [HashMap<FlowId, u8>; 2],
}

impl Pair {
    fn new(seed: u64, faults: Faults) -> Pair {
        Pair {
            now_ms: 1_000,
            ends: [stack(false, 1), stack(true, 2)],
            wire: BTreeMap::new(),
            count: 0,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults,
            changes: [HashMap::new(), HashMap::new()],
        }
    }

    fn send(&mut self, from: usize, packets: Packets) {
        for packet in packets.0 {
            let copies = if self.random.chance(self.faults.double) { 2 } else { 1 };
            for _ in 0..copies {
                if self.random.chance(self.faults.loss) {
                    continue;
                }
                let (least, most) = self.faults.delay_ms;
                let at = self.now_ms + least + self.random.below(most - least + 1);
                self.count += 1;
                self.wire.insert((at, self.count), (1 - from, packet.clone()));
            }
        }
    }

    /// All that is due now, at both ends; then the clock goes on to what comes next. False:
    /// nothing will.
    fn step(&mut self) -> bool {
        let mut next = u64::MAX;
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now_ms)
        {
            let (to, packet) = entry.remove();
            let mut sink = Packets(Vec::new(), 64);
            self.ends[to].receive(self.now_ms, &packet, &mut sink);
            self.send(to, sink);
        }
        for end in 0..2 {
            while let Some((id, changes)) = self.ends[end].changed() {
                *self.changes[end].entry(id).or_default() |= changes;
                if changes & change::INCOMING != 0 {
                    assert!(self.ends[end].accept(id, self.now_ms));
                }
            }
            let mut sink = Packets(Vec::new(), 64);
            if let Some(at) = self.ends[end].poll(self.now_ms, &mut sink) {
                next = next.min(at);
            }
            self.send(end, sink);
            while let Some((id, changes)) = self.ends[end].changed() {
                *self.changes[end].entry(id).or_default() |= changes;
                assert!(changes & change::INCOMING == 0);
            }
        }
        if let Some(((at, _), _)) = self.wire.first_key_value() {
            next = next.min(*at);
        }
        if next == u64::MAX {
            return false;
        }
        self.now_ms = self.now_ms.max(next);
        true
    }

    fn saw(&self, end: usize, id: FlowId, bits: u8) -> bool {
        self.changes[end].get(&id).is_some_and(|changes| changes & bits == bits)
    }
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..length).map(|_| random.next() as u8).collect()
}

/// Bytes both ways on one flow, each side finishing after its own.
fn transfer(pair: &mut Pair, forth: &[u8], back: &[u8]) {
    let id =
        pair.ends[0].connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms).unwrap();
    let mut sent = [0, 0];
    let mut finished = [false, false];
    let mut got = [Vec::new(), Vec::new()];
    let mut buffer = vec![0; 20_000];
    let mut steps = 0;
    while pair.step() {
        steps += 1;
        assert!(
            steps < 2_000_000,
            "it does not end at {} ms: {:?} {:?}",
            pair.now_ms,
            sent,
            got[0].len()
        );
        for end in 0..2 {
            let whole = if end == 0 { forth } else { back };
            if pair.ends[end].ends(id).is_none() {
                continue;
            }
            if sent[end] < whole.len() {
                sent[end] += pair.ends[end].write(id, &whole[sent[end]..]);
            } else if !finished[end] && (end == 0 || !pair.changes[1].is_empty()) {
                finished[end] = true;
                pair.ends[end].finish(id);
            }
            loop {
                let bytes = pair.ends[end].read(id, &mut buffer);
                if bytes == 0 {
                    break;
                }
                got[end].extend_from_slice(&buffer[..bytes]);
            }
        }
    }
    assert!(
        got[1] == forth,
        "forth: {} of {}, {:?} at {}",
        got[1].len(),
        forth.len(),
        pair.changes,
        pair.now_ms
    );
    assert!(got[0] == back, "back: {} of {}", got[0].len(), back.len());
    for end in 0..2 {
        assert!(
            pair.saw(end, id, change::CONNECTED | change::FINISHED | change::CLOSED),
            "end {end}"
        );
        assert!(!pair.saw(end, id, change::RESET), "end {end}");
        assert!(pair.ends[end].is_empty());
    }
}

#[test]
fn bytes_pass_both_ways_and_both_ends_finish() {
    let mut pair = Pair::new(1, Faults { delay_ms: (1, 1), ..Faults::default() });
    transfer(&mut pair, &pattern(3_000_000, 5), &pattern(1_234_567, 7));
    let mut pair = Pair::new(1, Faults::default());
    transfer(&mut pair, &[], &pattern(10, 7));
}

#[test]
fn bytes_are_the_same_over_any_network() {
    for seed in 1..150 {
        let mut pair = Pair::new(
            seed,
            Faults { loss: seed % 12, double: seed % 4, delay_ms: (1, 1 + seed % 40) },
        );
        let (forth, back) =
            (pattern(60_000 + seed as usize * 777, seed), pattern(40_000, seed + 1));
        transfer(&mut pair, &forth, &back);
    }
}

#[test]
fn a_syn_waits_for_its_answer_and_may_be_refused() {
    for kind in [None, Some(IcmpError::HostUnreachable)] {
        let [mut near, mut far] = [stack(false, 3), stack(true, 4)];
        let id = near.connect(at("100.64.0.2:5000"), at("10.1.2.3:22"), 0).unwrap();
        let mut sink = Packets(Vec::new(), 9);
        near.poll(0, &mut sink);
        assert_eq!(sink.0.len(), 1);
        let mut answer = Packets(Vec::new(), 9);
        for _ in 0..3 {
            assert_eq!(far.receive(1, &sink.0[0], &mut answer), Received::Taken);
        }
        assert_eq!(far.changed(), Some((0, change::INCOMING)));
        assert_eq!(far.changed(), None);
        assert_eq!(far.ends(0), Some((at("10.1.2.3:22"), at("100.64.0.2:5000"))));
        assert!(answer.0.is_empty(), "nothing is said before it is known");
        far.reject(0, kind);
        far.poll(1, &mut answer);
        assert_eq!(answer.0.len(), 1);
        assert!(far.is_empty());
        let mut none = Packets(Vec::new(), 9);
        if kind.is_some() {
            // Of another connection: whoever cannot see the SYN cannot end it.
            let mut other = answer.0[0].clone();
            other[20 + 8 + 20 + 4] ^= 1;
            let sum = u16::from_be_bytes([other[22], other[23]]);
            let (old, new) = (answer.0[0][52] as u32, other[52] as u32);
            let fixed = (!sum as u32) + 0xffff + (new << 8) - (old << 8);
            let fixed = !(((fixed & 0xffff) + (fixed >> 16)) as u16);
            other[22..24].copy_from_slice(&fixed.to_be_bytes());
            assert_eq!(near.receive(2, &other, &mut none), Received::Taken);
            assert_eq!(near.changed(), None);
        }
        near.receive(2, &answer.0[0], &mut none);
        assert_eq!(near.changed(), Some((id, change::CLOSED | change::RESET)));
        assert!(near.is_empty());
    }
}

#[test]
fn syns_to_a_dead_host_leave_room_for_others() {
    let mut far = stack(true, 4);
    let mut none = Packets(Vec::new(), 9);
    let mut full = 0;
    for port in 1..=200u16 {
        let mut near = stack(false, 3);
        let mut sink = Packets(Vec::new(), 9);
        let to = if port == 200 { at("10.0.0.2:80") } else { at("10.0.0.1:80") };
        near.connect(SocketAddr::new("100.64.0.2".parse().unwrap(), port), to, 0).unwrap();
        near.poll(0, &mut sink);
        if far.receive(0, &sink.0[0], &mut none) == Received::Full {
            full += 1;
        }
    }
    assert_eq!((full, far.len()), (191, 9));
    // Given up, they make room again.
    while let Some((id, _)) = far.changed() {
        far.abort(id);
    }
    while far.changed().is_some() {}
    assert!(far.is_empty());
}

#[test]
fn what_leads_nowhere_is_answered_by_a_reset_at_a_bounded_rate() {
    let mut near = stack(false, 3);
    let mut nowhere = stack(false, 4);
    let mut sink = Packets(Vec::new(), 9);
    let id = near.connect(at("[fd00::2]:5000"), at("[fd00::9]:22"), 0).unwrap();
    near.poll(0, &mut sink);
    let mut answers = Packets(Vec::new(), 100_000);
    for _ in 0..5_000 {
        nowhere.receive(0, &sink.0[0], &mut answers);
    }
    assert_eq!(answers.0.len(), 1_000);
    let mut none = Packets(Vec::new(), 9);
    near.receive(1, &answers.0[0], &mut none);
    assert_eq!(near.changed(), Some((id, change::CLOSED | change::RESET)));
    // A reset is not answered.
    let reset = answers.0[0].clone();
    nowhere.receive(5_000, &reset, &mut answers);
    assert_eq!(answers.0.len(), 1_000);
}

#[test]
fn an_abort_is_a_reset_at_the_other_end() {
    let mut pair = Pair::new(3, Faults { delay_ms: (1, 1), ..Faults::default() });
    let id =
        pair.ends[0].connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms).unwrap();
    while !pair.saw(1, 0, change::CONNECTED) {
        pair.step();
    }
    pair.ends[0].abort(id);
    while !(pair.saw(0, id, change::CLOSED | change::RESET)
        && pair.saw(1, 0, change::CLOSED | change::RESET))
    {
        pair.step();
    }
    assert!(pair.ends[0].is_empty() && pair.ends[1].is_empty());
}

#[test]
fn a_peer_that_vanished_ends_the_flow_in_time() {
    let mut pair = Pair::new(3, Faults { delay_ms: (1, 1), ..Faults::default() });
    let id =
        pair.ends[0].connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms).unwrap();
    while !pair.saw(1, 0, change::CONNECTED) {
        pair.step();
    }
    pair.faults.loss = 100;
    pair.wire.clear();
    let began = pair.now_ms;
    while !pair.saw(0, id, change::CLOSED | change::RESET) {
        pair.step();
    }
    assert!(pair.now_ms - began <= 300_000, "{}", pair.now_ms - began);
}

/// Both ends have finished, and everything has come; it is read when stray segments are long past.
#[test]
fn a_late_reader_hears_an_end_in_order() {
    for first in 0..2 {
        let mut pair = Pair::new(4, Faults { delay_ms: (1, 1), ..Faults::default() });
        let id = pair.ends[0]
            .connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms)
            .unwrap();
        let ids = [id, 0];
        while !pair.saw(1, 0, change::CONNECTED) {
            pair.step();
        }
        let whole = pattern(60_000, 4);
        for end in [first, 1 - first] {
            assert_eq!(pair.ends[end].write(ids[end], &whole), whole.len());
            pair.ends[end].finish(ids[end]);
            // One begins, and the other finishes when it has heard of it.
            let heard = pair.now_ms + 1_000;
            while pair.now_ms < heard && pair.step() {}
        }
        let until = pair.now_ms + 60_000;
        while pair.now_ms < until && pair.step() {}
        let mut buffer = vec![0; whole.len()];
        for end in 0..2 {
            assert!(!pair.saw(end, ids[end], change::CLOSED), "{first} {end}: it has not read: {:?}", pair.changes);
            assert_eq!(pair.ends[end].read(ids[end], &mut buffer), whole.len());
            assert!(buffer == whole);
        }
        for _ in 0..10 {
            pair.step();
        }
        for end in 0..2 {
            assert!(pair.saw(end, ids[end], change::FINISHED | change::CLOSED), "{first} {end}");
            assert!(!pair.saw(end, ids[end], change::RESET), "{first} {end}");
            assert!(pair.ends[end].is_empty());
        }
    }
}

#[test]
fn both_sides_are_heard_after_both_have_sent_again() {
    let mut pair = Pair::new(3, Faults { delay_ms: (20, 20), ..Faults::default() });
    let id =
        pair.ends[0].connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms).unwrap();
    while !pair.saw(1, 0, change::CONNECTED) {
        pair.step();
    }
    let whole = pattern(60_000, 4);
    for end in 0..2 {
        assert_eq!(pair.ends[end].write([id, 0][end], &whole), whole.len());
    }
    // Some arrives; then nothing for two seconds, in which both time out.
    for _ in 0..8 {
        pair.step();
    }
    let until = pair.now_ms + 2_000;
    pair.faults.loss = 100;
    pair.wire.clear();
    while pair.now_ms < until {
        pair.step();
    }
    pair.faults.loss = 0;
    let mut buffer = vec![0; whole.len()];
    let mut got = [0, 0];
    while got != [whole.len(); 2] {
        assert!(pair.step() && pair.now_ms < until + 5_000, "{got:?}");
        for end in 0..2 {
            got[end] += pair.ends[end].read([id, 0][end], &mut buffer);
        }
    }
}

#[test]
fn a_router_that_says_too_big_is_obeyed_when_it_quotes_what_is_on_its_way() {
    for (near, far, least) in
        [("100.64.0.2:4000", "192.168.1.9:80", 900), ("[fd00::2]:4000", "[fd00::9]:80", 1280)]
    {
        let mut pair = Pair::new(3, Faults { delay_ms: (20, 20), ..Faults::default() });
        let id = pair.ends[0].connect(at(near), at(far), pair.now_ms).unwrap();
        while !pair.saw(0, id, change::CONNECTED) {
            pair.step();
        }
        let whole = pattern(400_000, 4);
        let (mut sent, mut got) = (0, Vec::new());
        let mut buffer = vec![0; 1 << 16];
        let (mut told, mut large) = (false, 0);
        let router: IpAddr =
            if at(near).is_ipv4() { at("10.9.9.9:1").ip() } else { at("[fd00::7]:1").ip() };
        while got.len() < whole.len() {
            assert!(pair.step() && pair.now_ms < 60_000, "{} bytes", got.len());
            // The router on the way drops what is too big, and says so; before, somebody lies
            // about another packet.
            let on_way: Vec<_> = pair
                .wire
                .iter()
                .filter(|(_, (to, p))| *to == 1 && p.len() > least)
                .map(|(k, _)| *k)
                .collect();
            for key in on_way {
                let (_, packet) = pair.wire.remove(&key).unwrap();
                large += 1;
                let mut other = packet.clone();
                let tcp = if at(near).is_ipv4() { 20 } else { 40 };
                other[tcp + 4] ^= 0x55;
                for (quoted, mtu) in [(other, 600), (packet, least)] {
                    let mut sink = Packets(Vec::new(), 9);
                    let mut helper = stack(false, 9);
                    assert!(helper.send_unreachable(
                        0,
                        router,
                        &quoted,
                        IcmpError::TooBig(mtu as u32),
                        &mut sink
                    ));
                    let mut none = Packets(Vec::new(), 9);
                    assert_eq!(
                        pair.ends[0].receive(pair.now_ms, &sink.0[0], &mut none),
                        Received::Taken
                    );
                }
                told = true;
            }
            sent += pair.ends[0].write(id, &whole[sent..]);
            let count = pair.ends[1].read(0, &mut buffer);
            got.extend_from_slice(&buffer[..count]);
        }
        assert!(got == whole && told && large < 40, "{large}");
    }
}

#[test]
fn buffers_grow_by_need_and_are_given_back() {
    let mut pair = Pair::new(3, Faults { delay_ms: (20, 20), ..Faults::default() });
    pair.ends = [7, 8].map(|secret| {
        Stack::new(StackOptions {
            accepts: secret == 8,
            secret: [secret; 16],
            ..StackOptions::default()
        })
    });
    let id =
        pair.ends[0].connect(at("100.64.0.2:40000"), at("192.168.1.9:80"), pair.now_ms).unwrap();
    assert!(pair.ends[0].buffered_bytes() == 0, "an idle flow costs no buffers");
    let (whole, mut sent, mut got) = (vec![7; 30_000_000], 0, 0);
    let (mut most, mut buffer) = (0, vec![0; 1 << 20]);
    while got < whole.len() {
        pair.step();
        sent += pair.ends[0].write(id, &whole[sent..]);
        got += pair.ends[1].read(0, &mut buffer);
        most = most.max(pair.ends[0].buffered_bytes());
    }
    assert!(most > 1 << 20, "{most}");
    let until = pair.now_ms + 6_000;
    while pair.now_ms < until {
        pair.step();
    }
    assert_eq!((pair.ends[0].buffered_bytes(), pair.ends[1].buffered_bytes()), (0, 0));
    // And it works on.
    assert_eq!(pair.ends[0].write(id, b"more"), 4);
    while pair.ends[1].read(0, &mut buffer) == 0 {
        pair.step();
    }
    assert_eq!(&buffer[..4], b"more");
}

#[test]
fn memory_of_all_flows_has_a_limit() {
    let limit = 2 << 20;
    let mut pair = Pair::new(3, Faults { delay_ms: (20, 20), ..Faults::default() });
    pair.ends = [7, 8].map(|secret| {
        let options =
            StackOptions { accepts: secret == 8, memory_bytes: limit, ..StackOptions::default() };
        Stack::new(StackOptions { secret: [secret; 16], ..options })
    });
    let flows: Vec<FlowId> = (0..60)
        .map(|n| {
            let from = SocketAddr::new("100.64.0.2".parse().unwrap(), 1_000 + n);
            pair.ends[0].connect(from, at("192.168.1.9:80"), pair.now_ms).unwrap()
        })
        .collect();
    let (whole, mut buffer) = (pattern(400_000, 3), vec![0; 1 << 16]);
    let mut sent = vec![0; flows.len()];
    let mut got = vec![0; flows.len()];
    let mut most = 0;
    while got.iter().sum::<usize>() < whole.len() * flows.len() {
        assert!(pair.step() && pair.now_ms < 600_000, "{got:?}");
        for (n, id) in flows.iter().enumerate() {
            sent[n] += pair.ends[0].write(*id, &whole[sent[n]..]);
            // Half of the readers are slow: they hold what they may, and the others get on.
            if n % 2 == 0 || pair.now_ms % 3 == 0 {
                let count = pair.ends[1].read(*id, &mut buffer);
                got[n] += count;
            }
        }
        most = most.max(pair.ends[0].buffered_bytes()).max(pair.ends[1].buffered_bytes());
    }
    assert!(most <= limit + 60 * (32 << 10) + (256 << 10), "{most}");
}

#[test]
fn datagrams_and_echoes_pass_one_by_one() {
    let mut one = stack(false, 1);
    for (source, destination) in
        [("100.64.0.2:53", "10.0.0.1:5353"), ("[fd00::1]:53", "[fd00::2]:9")]
    {
        let mut sink = Packets(Vec::new(), 9);
        let payload = pattern(900, 9);
        assert!(one.send_datagram(at(source), at(destination), &payload, &mut sink));
        assert!(!one.send_datagram(at(source), at(destination), &pattern(1400, 9), &mut sink));
        let mut none = Packets(Vec::new(), 9);
        let mut other = stack(false, 2);
        assert_eq!(
            other.receive(0, &sink.0[0], &mut none),
            Received::Datagram {
                source: at(source),
                destination: at(destination),
                payload: &payload
            },
        );
        let [from, to]: [IpAddr; 2] = [at(source).ip(), at(destination).ip()];
        for request in [true, false] {
            assert!(one.send_echo(from, to, (request, 7, 8), &payload, &mut sink));
            let packet = sink.0.pop().unwrap();
            assert_eq!(
                other.receive(0, &packet, &mut none),
                Received::Echo {
                    source: from,
                    destination: to,
                    request,
                    id: 7,
                    sequence: 8,
                    payload: &payload
                },
            );
        }
        // An error about the datagram finds its way back to whom it is about.
        for kind in [
            IcmpError::PortUnreachable,
            IcmpError::HostUnreachable,
            IcmpError::Prohibited,
            IcmpError::TooBig(1280),
        ] {
            let mut back = Packets(Vec::new(), 9);
            assert!(other.send_unreachable(0, to, &sink.0[0], kind, &mut back));
            assert_eq!(
                one.receive(0, &back.0[0], &mut none),
                Received::Unreachable { source: at(source), destination: at(destination), kind },
            );
        }
    }
}

#[test]
fn no_bytes_of_a_packet_can_break_it() {
    let mut random = Random(99);
    let mut far = stack(true, 4);
    let mut samples = Vec::new();
    let mut pair = Pair::new(3, Faults { delay_ms: (1, 1), ..Faults::default() });
    for (from, to) in [("100.64.0.2:40000", "192.168.1.9:80"), ("[fd00::1]:40000", "[fd00::2]:80")]
    {
        let id = pair.ends[0].connect(at(from), at(to), pair.now_ms).unwrap();
        pair.ends[0].write(id, &pattern(5000, 1));
    }
    for _ in 0..60 {
        pair.step();
        samples.extend(pair.wire.values().map(|(_, packet)| packet.clone()));
    }
    let mut sink = Packets(Vec::new(), 1_000_000);
    for (from, to) in [("100.64.0.2:53", "10.0.0.1:5353"), ("[fd00::1]:53", "[fd00::2]:9")] {
        far.send_datagram(at(from), at(to), &pattern(100, 1), &mut sink);
        far.send_echo(at(from).ip(), at(to).ip(), (true, 1, 2), &pattern(100, 1), &mut sink);
        let whole = sink.0[sink.0.len() - 2].clone();
        far.send_unreachable(0, at(from).ip(), &whole, IcmpError::PortUnreachable, &mut sink);
    }
    samples.append(&mut sink.0);
    assert!(samples.len() > 10);
    for sample in &samples {
        for length in 0..sample.len() {
            let mut sink = Packets(Vec::new(), 9);
            far.receive(0, &sample[..length], &mut sink);
        }
    }
    for round in 0..300_000u64 {
        let mut packet = samples[random.below(samples.len() as u64) as usize].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(packet.len() as u64) as usize;
            packet[at] = random.next() as u8;
        }
        if random.chance(20) {
            packet.truncate(random.below(packet.len() as u64 + 1) as usize);
        }
        let mut sink = Packets(Vec::new(), 40);
        let end = (round % 2) as usize;
        for stack in [&mut far, &mut pair.ends[end]] {
            stack.receive(round / 10, &packet, &mut sink);
            while let Some((id, changes)) = stack.changed() {
                if changes & change::INCOMING != 0 {
                    stack.accept(id, round / 10);
                }
            }
            sink.0.clear();
            stack.poll(round / 10, &mut sink);
            sink.0.clear();
        }
    }
}
