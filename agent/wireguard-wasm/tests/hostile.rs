//! A remote that is past its handshake and means harm: whatever it acknowledges, reports or sends,
//! a flow neither panics nor stays for ever, and what it holds is bounded.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Address, Ipv4Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};
use wireguard_wasm::stack::*;

#[derive(Default)]
struct Packets(Vec<Vec<u8>>);

impl PacketSink for Packets {
    fn has_room(&self) -> bool {
        self.0.len() < 512
    }
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

fn roll(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

const NEAR: Ipv4Address = Ipv4Address::new(100, 64, 0, 2);
const FAR: Ipv4Address = Ipv4Address::new(192, 168, 1, 9);

fn packet(repr: &TcpRepr) -> Vec<u8> {
    let caps = ChecksumCapabilities::default();
    let (source, destination) = (IpAddress::Ipv4(FAR), IpAddress::Ipv4(NEAR));
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, repr.buffer_len(), 64);
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut bytes, &caps);
    repr.emit(&mut TcpPacket::new_unchecked(&mut bytes[20..]), &source, &destination, &caps);
    bytes
}

fn segment(seq: u32, ack: u32) -> TcpRepr<'static> {
    TcpRepr {
        src_port: 80,
        dst_port: 4_000,
        control: TcpControl::None,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: Some(TcpSeqNumber(ack as i32)),
        window_len: 8_192,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// The highest sequence number after what `near` has sent.
fn highest(packets: &Packets, mut next: u32) -> u32 {
    for packet in &packets.0 {
        let ip = Ipv4Packet::new_unchecked(&packet[..]);
        let tcp = TcpPacket::new_unchecked(ip.payload());
        let end = (tcp.seq_number() + tcp.segment_len()).0 as u32;
        if end.wrapping_sub(next) < 1 << 30 {
            next = end;
        }
    }
    next
}

/// An established flow whose remote numbers its bytes from 1,000; its number, and what it has sent
/// up to.
fn established(dice: &mut u64) -> (Stack, FlowId, u32) {
    let secret = [roll(dice) as u8; 16];
    let options = StackOptions { secret, memory_bytes: 4 << 20, ..StackOptions::default() };
    let mut near = Stack::new(options);
    let id = near
        .connect("100.64.0.2:4000".parse().unwrap(), "192.168.1.9:80".parse().unwrap(), 0)
        .unwrap();
    let mut sink = Packets::default();
    near.poll(0, &mut sink);
    let ip = Ipv4Packet::new_unchecked(&sink.0[0][..]);
    let next = TcpPacket::new_unchecked(ip.payload()).seq_number().0 as u32;
    let next = next.wrapping_add(1);
    let answer = TcpRepr {
        control: TcpControl::Syn,
        max_seg_size: Some([1_380, 48, 0, 536][roll(dice) as usize % 4]),
        window_scale: Some((roll(dice) % 15) as u8),
        sack_permitted: roll(dice) % 4 > 0,
        ..segment(999, next)
    };
    near.receive(20, &packet(&answer), &mut sink);
    assert!(near.changed().is_some_and(|(_, changes)| changes & change::CONNECTED != 0));
    (near, id, next)
}

#[test]
fn no_remote_can_break_a_flow() {
    let mut dice = 0x1234_5678_9abc_def1;
    let mut closed = 0;
    let flows = std::env::var("HOSTILE_FLOWS").map_or(300, |text| text.parse().unwrap());
    for _ in 0..flows {
        let (mut near, id, mut next) = established(&mut dice);
        let (mut una, mut seq, mut ms) = (next, 1_000u32, 21);
        let data = vec![7; 100_000];
        let payload = vec![9; 3_000];
        for _ in 0..1_500 {
            let dice = &mut dice;
            let around = |dice: &mut u64, base: u32, most: u32| {
                base.wrapping_add((roll(dice) % most as u64) as u32).wrapping_sub(most / 4)
            };
            let length = if roll(dice) % 3 == 0 { roll(dice) as usize % 1_400 } else { 0 };
            let mut repr = TcpRepr {
                payload: &payload[..length],
                window_len: [0, 1, 100, 8_192, 65_535][roll(dice) as usize % 5],
                ..segment(seq, una)
            };
            match roll(dice) % 8 {
                0 => repr.ack_number = Some(TcpSeqNumber(around(dice, una, 200_000) as i32)),
                1 | 2 => {
                    let way = next.wrapping_sub(una).max(1);
                    una = una.wrapping_add((roll(dice) % (way as u64 + 1)) as u32);
                    repr.ack_number = Some(TcpSeqNumber(una as i32));
                }
                3 => repr.seq_number = TcpSeqNumber(around(dice, seq, 300_000) as i32),
                4 => repr.seq_number = TcpSeqNumber(roll(dice) as i32),
                5 if roll(dice) % 200 == 0 => repr.control = TcpControl::Fin,
                5 if roll(dice) % 200 == 0 => repr.control = TcpControl::Syn,
                _ => {}
            }
            for range in &mut repr.sack_ranges {
                if roll(dice) % 2 == 0 {
                    let left = around(dice, una, 40_000);
                    let length = [0, 1, 1_380, 5_000, 1 << 20, u32::MAX][roll(dice) as usize % 6];
                    *range = Some((left, left.wrapping_add(length)));
                }
            }
            let mut sink = Packets::default();
            near.receive(ms, &packet(&repr), &mut sink);
            if repr.seq_number == TcpSeqNumber(seq as i32) && repr.control == TcpControl::None {
                seq = seq.wrapping_add(length as u32);
            }
            ms += [0, 0, 1, 5, 300][roll(dice) as usize % 5];
            near.write(id, &data[..roll(dice) as usize % data.len()]);
            if roll(dice) % 2 == 0 {
                near.read(id, &mut vec![0; 2_000]);
            }
            near.poll(ms, &mut sink);
            next = highest(&sink, next);
            while let Some((_, changes)) = near.changed() {
                closed += (changes & change::CLOSED != 0) as usize;
            }
            if near.is_empty() {
                break;
            }
            assert!(near.buffered_bytes() <= 24 << 20);
        }
        // Left alone with what it has, it ends.
        near.finish(id);
        for _ in 0..20_000 {
            let mut sink = Packets::default();
            let next = near.poll(ms, &mut sink);
            near.read(id, &mut vec![0; 1 << 20]);
            while near.changed().is_some() {}
            if near.is_empty() {
                break;
            }
            ms = next.unwrap_or(ms).max(ms);
        }
        assert!(near.is_empty(), "it is still there at {ms} ms");
    }
    println!("{closed} of {flows} flows were closed on the way");
    assert!(closed < flows / 2);
}

#[test]
fn segments_full_of_holes_are_held_within_bounds() {
    let mut dice = 5;
    let (mut near, id, next) = established(&mut dice);
    let payload = [1; 10];
    let mut sink = Packets::default();
    for hole in 1..20_000u32 {
        let repr = TcpRepr { payload: &payload, ..segment(1_000 + hole * 13, next) };
        near.receive(30, &packet(&repr), &mut sink);
        sink.0.clear();
    }
    assert!(near.buffered_bytes() <= 1 << 20, "{}", near.buffered_bytes());
    assert_eq!(near.readable(id), 0);
    // What is wanted next is taken all the same.
    let repr = TcpRepr { payload: &payload, ..segment(1_000, next) };
    near.receive(31, &packet(&repr), &mut sink);
    assert_eq!(near.readable(id), 10);
}
