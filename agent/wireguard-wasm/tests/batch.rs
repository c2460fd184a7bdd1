//! Batches: runs of equal stride, trains split, descriptors checked.

mod common;
use common::*;
use wireguard_wasm::device::batch::{self, Descriptor, EndpointRecord, NO_PEER, Runs};

const STRIDE: usize = 1452;

struct Sender {
    pool: Vec<u8>,
    runs: Vec<Descriptor>,
    to: Vec<EndpointRecord>,
    errors: batch::SendErrors,
}

impl Sender {
    fn new() -> Sender {
        let (runs, to) = (vec![Descriptor::default(); 256], vec![EndpointRecord::default(); 256]);
        Sender { pool: vec![0; 1 << 20], runs, to, errors: [0; 6] }
    }

    /// Lays packets of the lengths at the stride and sends them; the runs.
    fn send(&mut self, pair: &mut Pair, stride: usize, lens: &[usize]) -> Vec<Descriptor> {
        let mut input = Vec::new();
        for (number, &len) in lens.iter().enumerate() {
            let at = number * stride;
            self.pool[at + 16..at + 16 + len]
                .copy_from_slice(&packet(pair.a.ip, pair.b.ip, len));
            input.push(Descriptor {
                offset: at as u32,
                len: len as u32,
                third: stride as u32,
                fourth: 0,
            });
        }
        self.submit(pair, &input)
    }

    fn submit(&mut self, pair: &mut Pair, input: &[Descriptor]) -> Vec<Descriptor> {
        let mut runs = Runs::new(&mut self.runs, &mut self.to);
        let (device, now) = (&mut pair.a.device, pair.now);
        batch::send(device, now, &mut self.pool, input, &mut runs, &mut self.errors);
        let count = runs.len();
        self.runs[..count].to_vec()
    }
}

/// Hands runs over as trains; the lengths of the packets that came out.
fn deliver(pair: &mut Pair, pool: &mut [u8], runs: &[Descriptor]) -> Vec<u32> {
    let from = [EndpointRecord::from(&pair.a.at)];
    let input: Vec<_> = runs.iter().map(|run| Descriptor { third: 0, ..*run }).collect();
    let mut packets = vec![Descriptor::default(); 2048];
    let (count, refused) =
        batch::receive(&mut pair.b.device, pair.now, pool, &input, &from, &mut packets);
    assert_eq!(refused, 0);
    for found in &packets[..count] {
        let bytes = &pool[found.offset as usize..][..found.len as usize];
        assert_eq!(bytes, packet(pair.a.ip, pair.b.ip, bytes.len()));
    }
    packets[..count].iter().map(|found| found.len).collect()
}

#[test]
fn full_packets_at_their_sealed_stride_are_one_run_without_a_move() {
    let mut pair = connected();
    let mut sender = Sender::new();
    let runs = sender.send(&mut pair, STRIDE, &[1420; 44]);
    let whole = Descriptor { offset: 0, len: 44 * 1452, third: 0, fourth: 1452 };
    assert_eq!(runs, vec![whole]);
    assert_eq!(sender.to[0], EndpointRecord::from(&pair.b.at));
    assert_eq!(deliver(&mut pair, &mut sender.pool, &runs), vec![1420; 44]);
}

#[test]
fn a_wider_stride_is_packed_together() {
    let mut pair = connected();
    let mut sender = Sender::new();
    let runs = sender.send(&mut pair, 2048, &[1000; 30]);
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].len, runs[0].fourth), (30 * 1040, 1040));
    assert_eq!(deliver(&mut pair, &mut sender.pool, &runs), vec![1000; 30]);
}

#[test]
fn a_shorter_datagram_ends_a_run_and_a_longer_one_begins_another() {
    let mut pair = connected();
    let mut sender = Sender::new();
    let lens = [1420, 1420, 100, 100, 1420, 60];
    let runs = sender.send(&mut pair, STRIDE, &lens);
    let shape: Vec<_> = runs.iter().map(|run| (run.len, run.fourth)).collect();
    assert_eq!(shape, vec![(2 * 1452 + 144, 1452), (144, 144), (1452 + 96, 1452)]);
    assert_eq!(deliver(&mut pair, &mut sender.pool, &runs), lens.map(|len| len as u32));
}

#[test]
fn a_run_has_at_most_64_datagrams_and_65507_bytes() {
    let mut pair = connected();
    let mut sender = Sender::new();
    for (len, count) in [(60, 200), (1420, 200)] {
        let runs = sender.send(&mut pair, STRIDE, &vec![len; count]);
        for run in &runs {
            assert!(run.len <= 65_507 && run.len.div_ceil(run.fourth) <= 64);
        }
        assert_eq!(runs.iter().map(|run| run.len / run.fourth).sum::<u32>(), count as u32);
        assert_eq!(deliver(&mut pair, &mut sender.pool, &runs).len(), count);
    }
}

#[test]
fn bad_descriptors_are_counted_and_touch_nothing() {
    let mut pair = connected();
    let mut sender = Sender::new();
    let bad = |offset, len, third| Descriptor { offset, len, third, fourth: 0 };
    let input = [
        bad(u32::MAX, 60, 200),
        bad(0, u32::MAX, 200),
        bad(0, 60, u32::MAX),
        bad(0, 200, 200),
        bad((1 << 20) - 10, 60, 200),
    ];
    assert_eq!(sender.submit(&mut pair, &input), vec![]);
    assert_eq!(sender.errors[0], 5);
    let overlapping = [bad(100, 60, 200), bad(200, 60, 200)];
    sender.pool[116..176].copy_from_slice(&packet(pair.a.ip, pair.b.ip, 60));
    assert_eq!(sender.submit(&mut pair, &overlapping).len(), 1);
    assert_eq!(sender.errors[0], 6);

    let from = [EndpointRecord::default()];
    let input = [bad(u32::MAX, 60, 0), bad(0, u32::MAX, 0), bad(0, 60, 1), bad(0, 60, u32::MAX)];
    let mut packets = [Descriptor::default(); 4];
    let (device, now) = (&mut pair.b.device, pair.now);
    let outcome = batch::receive(device, now, &mut sender.pool, &input, &from, &mut packets);
    assert_eq!(outcome, (0, 4));
}

#[test]
fn more_packets_than_places_are_refused_and_counted() {
    let mut pair = connected();
    let mut sender = Sender::new();
    let runs = sender.send(&mut pair, STRIDE, &[100; 10]);
    let from = [EndpointRecord::from(&pair.a.at)];
    let input: Vec<_> = runs.iter().map(|run| Descriptor { third: 0, ..*run }).collect();
    let mut packets = [Descriptor::default(); 4];
    let (device, now) = (&mut pair.b.device, pair.now);
    let outcome = batch::receive(device, now, &mut sender.pool, &input, &from, &mut packets);
    assert_eq!(outcome, (4, 6));
}

#[test]
fn poll_writes_handshakes_and_staged_packets_as_runs() {
    let mut pair = strangers();
    for _ in 0..50 {
        pair.a.send(pair.now, pair.b.ip, 1420);
    }
    let mut pool = vec![0; 1 << 17];
    let (mut runs, mut to) = (vec![Descriptor::default(); 64], vec![EndpointRecord::default(); 64]);
    let mut poll = |pair: &mut Pair, pool: &mut [u8]| {
        let mut made = Runs::new(&mut runs, &mut to);
        batch::poll(&mut pair.a.device, pair.now, pool, &mut made);
        let count = made.len();
        runs[..count].to_vec()
    };
    let first = poll(&mut pair, &mut pool);
    assert_eq!((first[0].len, first.len()), (148, 1));
    assert!(first[0].third != NO_PEER);
    pair.b.receive(pair.now, &pair.a.at, &pool[..148]);
    let response = pair.b.poll_one(pair.now);
    pair.a.receive(pair.now, &pair.b.at, &response);
    let staged = poll(&mut pair, &mut pool);
    assert_eq!(deliver(&mut pair, &mut pool, &staged), vec![1420; 50]);
    assert_eq!(poll(&mut pair, &mut pool), vec![]);
}
