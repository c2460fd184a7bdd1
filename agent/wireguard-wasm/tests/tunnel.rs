//! Devices and stacks joined, over a network in virtual time.

mod common;

use common::{Node, node};
use std::collections::BTreeMap;
use wireguard_wasm::device::batch::{Descriptor, EndpointRecord, Runs};
use wireguard_wasm::device::{Endpoint, Now};
use wireguard_wasm::stack::{Stack, StackOptions, change};
use wireguard_wasm::tunnel::{self, Areas, Change, Message, Turn, kind};

struct End {
    node: Node,
    stack: Stack,
    rx: Vec<u8>,
    tx: Vec<u8>,
    input: Vec<Descriptor>,
    from: Vec<EndpointRecord>,
    messages: Vec<Message>,
    changes: Vec<Change>,
    payload: Vec<u8>,
    errors: [u64; 6],
    filled: usize,
}

struct Pair {
    now: Now,
    ends: [End; 2],
    wire: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    count: u64,
    plain: bool,
}

fn end(number: u8, accepts: bool, mtu: usize) -> End {
    End {
        node: node(number),
        stack: Stack::new(StackOptions {
            accepts,
            mtu,
            secret: [number; 16],
            ..StackOptions::default()
        }),
        rx: vec![0; 1 << 20],
        tx: vec![0; 1 << 20],
        input: Vec::new(),
        from: vec![EndpointRecord::default()],
        messages: vec![Message::default(); tunnel::MESSAGES_MAX],
        changes: vec![Change::default(); tunnel::CHANGES_MAX],
        payload: vec![0; 1 << 16],
        errors: [0; 6],
        filled: 0,
    }
}

impl Pair {
    fn new(plain: bool, mtu: usize) -> Pair {
        let mut ends = [end(1, false, mtu), end(2, true, mtu)];
        let now = Now { ms: 1_000, unix_ms: 1_700_000_000_000 };
        for own in 0..2 {
            let (public, at) = (ends[1 - own].node.public, ends[1 - own].node.at);
            let device = &mut ends[own].node.device;
            device.set_mtu(mtu);
            let peer = device.add_peer(&public).unwrap();
            assert!(device.allow(peer, &[0; 4], 0));
            device.set_endpoint(now, peer, Some(at));
        }
        Pair { now, ends, wire: BTreeMap::new(), count: 0, plain }
    }

    fn turn(&mut self, own: usize, outgoing: &[Message]) -> Turn {
        let at = self.ends[1 - own].node.at;
        let end = &mut self.ends[own];
        end.from[0] = EndpointRecord::from(&at);
        end.node.feed();
        let mut descriptors = vec![Descriptor::default(); 2048];
        let mut to = vec![EndpointRecord::default(); 2048];
        let mut runs = Runs::new(&mut descriptors, &mut to);
        let areas = Areas {
            rx: &mut end.rx,
            input: &end.input,
            from: &end.from,
            tx: &mut end.tx,
            errors: &mut end.errors,
            outgoing,
            payload: &end.payload,
            messages: &mut end.messages,
            changes: &mut end.changes,
        };
        let device = (!self.plain).then_some(&mut end.node.device);
        let turn = tunnel::turn(device, &mut end.stack, self.now, areas, &mut runs);
        let count = runs.len();
        for run in &descriptors[..count] {
            let bytes = &end.tx[run.offset as usize..(run.offset + run.len) as usize];
            for datagram in bytes.chunks(run.fourth as usize) {
                self.count += 1;
                self.wire.insert((self.now.ms + 5, self.count), (1 - own, datagram.to_vec()));
            }
        }
        let end = &mut self.ends[own];
        end.input.clear();
        end.filled = 0;
        turn
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.now.ms) {
            let (to, bytes) = entry.remove();
            let end = &mut self.ends[to];
            end.rx[end.filled..end.filled + bytes.len()].copy_from_slice(&bytes);
            let (offset, len) = (end.filled as u32, bytes.len() as u32);
            end.input.push(Descriptor { offset, len, third: 0, fourth: 0 });
            end.filled += bytes.len();
            if end.input.len() == 200 {
                return;
            }
        }
    }

    /// Advances to the next thing that happens.
    fn step(&mut self, deadline_ms: u64) {
        let wire = self.wire.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        let next = wire.min(deadline_ms).max(self.now.ms);
        assert!(next < u64::MAX, "nothing will happen any more");
        self.now.unix_ms += next - self.now.ms;
        self.now.ms = next;
    }
}

fn stream(plain: bool, mtu: usize) {
    let mut pair = Pair::new(plain, mtu);
    let local = "100.64.0.2:40000".parse().unwrap();
    let id = pair.ends[0].stack.connect(local, "192.168.1.9:80".parse().unwrap(), 1_000).unwrap();
    let whole: Vec<u8> = (0..2_000_000u32).map(|at| (at * 7 >> 3) as u8).collect();
    let (mut sent, mut got, mut closed, mut told) = (0, Vec::new(), [false; 2], false);
    while closed != [true; 2] {
        pair.arrive();
        let mut deadline = u64::MAX;
        for own in 0..2 {
            loop {
                let turn = pair.turn(own, &[]);
                assert_eq!(turn.refused, 0);
                deadline = deadline.min(turn.deadline_ms);
                for Change { flow, bits } in pair.ends[own].changes[..turn.changes].to_vec() {
                    let stack = &mut pair.ends[own].stack;
                    if bits as u8 & change::INCOMING != 0 {
                        assert!(stack.accept(flow, pair.now.ms));
                        deadline = 0;
                    }
                    closed[own] |= bits as u8 & change::CLOSED != 0;
                    assert!(bits as u8 & change::RESET == 0);
                }
                if !turn.more {
                    break;
                }
            }
            let stack = &mut pair.ends[own].stack;
            if own == 0 {
                loop {
                    let room = stack.room(id);
                    let count = room.len().min(whole.len() - sent);
                    room[..count].copy_from_slice(&whole[sent..sent + count]);
                    assert_eq!(stack.commit(id, count), count);
                    sent += count;
                    if count == 0 {
                        break;
                    }
                    deadline = 0;
                }
                if sent == whole.len() && !told {
                    told = true;
                    stack.finish(id);
                    deadline = 0;
                }
            } else {
                loop {
                    let piece = stack.peek(0);
                    let count = piece.len();
                    got.extend_from_slice(piece);
                    if count == 0 {
                        break;
                    }
                    stack.consume(0, count);
                    deadline = 0;
                }
                if got.len() == whole.len() {
                    stack.finish(0);
                }
            }
        }
        pair.step(deadline);
        assert!(pair.now.ms < 600_000);
    }
    assert!(got == whole);
    assert_eq!((pair.ends[0].errors, pair.ends[1].errors), ([0; 6], [0; 6]));
}

#[test]
fn a_stream_passes_sealed() {
    stream(false, 1_420);
}

#[test]
fn a_stream_passes_as_packets() {
    stream(true, 1_420);
}

#[test]
fn a_stream_passes_in_packets_of_any_size() {
    // 576 is the least there is; large ones are for paths that carry them, such as relays.
    for mtu in [576, 1_280, 1_421, 16_384, 65_400] {
        stream(false, mtu);
    }
}

#[test]
fn messages_pass_and_errors_come_back() {
    for plain in [false, true] {
        let mut pair = Pair::new(plain, 1_420);
        let source = "100.64.0.2:53".parse().unwrap();
        let destination = "10.1.2.3:5353".parse().unwrap();
        let text = b"a question that is somewhat longer than an answer";
        pair.ends[0].payload[100..100 + text.len()].copy_from_slice(text);
        let (offset, len) = (100, text.len() as u32);
        let sent: Vec<Message> = [kind::DATAGRAM, kind::ECHO_REQUEST, kind::ECHO_REPLY]
            .map(|kind| Message { offset, len, ..Message::between(kind, source, destination) })
            .to_vec();
        assert_eq!(pair.turn(0, &sent).refused, 0);
        let mut got = Vec::new();
        while got.len() < 3 {
            pair.step(u64::MAX);
            pair.arrive();
            for own in 0..2 {
                let turn = pair.turn(own, &[]);
                for message in &pair.ends[own].messages[..turn.messages] {
                    let from = message.offset as usize;
                    assert_eq!(&pair.ends[own].rx[from..from + message.len as usize], text);
                    got.push(*message);
                }
            }
        }
        for (got, sent) in got.iter().zip(&sent) {
            assert_eq!(Message { offset, peer: 0, ..*got }, Message { peer: 0, ..*sent });
        }
        for (code, mtu) in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1280)] {
            let error = Message { code, mtu, offset: 0, len: 8, ..sent[0] };
            let error = Message { kind: kind::UNREACHABLE, ..error };
            assert_eq!(pair.turn(1, &[error]).refused, 0);
            pair.step(u64::MAX);
            pair.arrive();
            let turn = pair.turn(0, &[]);
            assert_eq!(turn.messages, 1);
            let got = pair.ends[0].messages[0];
            // What the two versions of ICMP cannot both say becomes the nearest that they can.
            assert_eq!((got.kind, got.code, got.mtu), (kind::UNREACHABLE, code, mtu));
            assert_eq!(got.ends(), Some((source, destination)));
        }
        // What reaches outside a pool, or is of no kind, is counted.
        let bad = [
            Message { offset: u32::MAX, ..sent[0] },
            Message { kind: 99, ..sent[0] },
            Message { family: 5, ..sent[0] },
            Message { len: 1_401, ..sent[0] },
        ];
        assert_eq!(pair.turn(0, &bad).refused, 4);
    }
}

#[test]
fn a_stranger_is_not_heard() {
    let mut pair = Pair::new(false, 1_420);
    let mut packet = vec![0x45; 64];
    packet[9] = 6;
    let end = &mut pair.ends[1];
    end.rx[..64].copy_from_slice(&packet);
    end.input.push(Descriptor { offset: 0, len: 64, third: 0, fourth: 0 });
    end.input.push(Descriptor { offset: u32::MAX, len: 64, third: 0, fourth: 0 });
    end.input.push(Descriptor { offset: 0, len: 64, third: 9, fourth: 0 });
    let turn = pair.turn(1, &[]);
    assert_eq!((turn.refused, turn.messages, turn.changes), (2, 0, 0));
    assert_eq!(pair.ends[1].stack.stats().received, 0);
    let _: Endpoint = pair.ends[0].node.at;
}
