//! ChaCha20-Poly1305 (RFC 8439) for WebAssembly: ChaCha20 in vector registers, and between its
//! rounds Poly1305 in 64-bit integers, so that both units of the processor work at once. More than
//! twice the speed of the soft code of the crate, which stays its twin in tests.
//!
//! Constant-time by construction: additions, xors, shifts, multiplications and shuffles; no branch
//! and no address depends on a secret. Lengths are public.
//!
//! What the shape is for (docs/decisions/aead.md has the figures): a register holds a row of one
//! block, and eight blocks are in work at once, since one alone waits for its own results most of the
//! time. Two of them fit into the registers of a processor, so the rows lie in memory between the
//! rounds, where it is certain that they do: left to the compilers, registers are spilled one by one.

use super::crypto::{Key, TAG_BYTES};
use super::lanes::Lanes;
use super::message::u32_at;
use super::poly::Poly;

const BLOCK: usize = 64;
/// Blocks that are worked on in registers at the same time.
const PAIR: usize = 2;
/// Pairs in work at once, at most.
const PAIRS_MAX: usize = 4;
/// 20 rounds.
const DOUBLE_ROUNDS: usize = 10;

type Rows = [Lanes; 4];
type Pair = [Rows; PAIR];

/// The state before the first round, as rows: constants, key, key, counter (0) and nonce.
struct Start {
    rows: Rows,
    factors: [Lanes; 2],
}

impl Start {
    fn new(key: &Key, nonce: &[u8; 12]) -> Start {
        let rows = [
            Lanes::of([0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]),
            Lanes::of(core::array::from_fn(|i| u32_at(key, i * 4))),
            Lanes::of(core::array::from_fn(|i| u32_at(key, 16 + i * 4))),
            Lanes::of([0, u32_at(nonce, 0), u32_at(nonce, 4), u32_at(nonce, 8)]),
        ];
        Start { rows, factors: [Lanes::factor::<12>(), Lanes::factor::<7>()] }
    }

    fn block(&self, counter: u32) -> Rows {
        let [a, b, c, d] = self.rows;
        [a, b, c, d.add(Lanes::of([counter, 0, 0, 0]))]
    }
}

/// One round of two blocks, then the rows turned for the next: A, C and 2 words. It is the second row
/// that stays, since all wait for it.
#[inline(always)]
fn round<const A: usize, const C: usize>([by12, by7]: [Lanes; 2], pair: &mut Pair) {
    let mut x: Pair = core::array::from_fn(|i| core::array::from_fn(|row| pair[i][row].fetch()));
    for [a, b, ..] in &mut x {
        *a = a.add(*b);
    }
    for [a, _, _, d] in &mut x {
        *d = d.xor(*a).rotate16();
    }
    for [_, _, c, d] in &mut x {
        *c = c.add(*d);
    }
    for [_, b, c, _] in &mut x {
        *b = b.xor(*c).rotate::<12>(by12);
    }
    for [a, b, ..] in &mut x {
        *a = a.add(*b);
    }
    for [a, _, _, d] in &mut x {
        *d = d.xor(*a).rotate8();
    }
    for [_, _, c, d] in &mut x {
        *c = c.add(*d);
    }
    for [_, b, c, _] in &mut x {
        *b = b.xor(*c).rotate::<7>(by7);
    }
    for ([a, _, _, d], place) in x.iter().zip(&mut *pair) {
        place[0].put(a.turn::<A>());
        place[3].put(d.turn::<2>());
    }
    for ([_, b, c, _], place) in x.iter().zip(pair) {
        place[2].put(c.turn::<C>());
        place[1].put(*b);
    }
}

/// All rounds of N pairs of blocks from `counter` on (but for the addition of the start), and
/// meanwhile Poly1305 over `hashed`, in even steps.
///
/// A function of its own on purpose: put into its callers it ran at 0.85 of the speed in JavaScriptCore.
#[inline(never)]
fn rounds_of<const N: usize>(
    start: &Start,
    counter: u32,
    poly: &mut Poly,
    hashed: &[[u8; 16]],
    pairs: &mut [Pair; PAIRS_MAX],
) {
    for (number, rows) in pairs[..N].iter_mut().flatten().enumerate() {
        *rows = start.block(counter + number as u32);
    }
    let slots = N * DOUBLE_ROUNDS * 2;
    // A copy, so that it may stay in registers.
    let mut own = poly.clone();
    let mut todo = hashed.iter();
    let mut due = slots - 1;
    let factors = start.factors;
    // Written out for each pair, and no closure: with an index or a call, addresses and moves cost a
    // fifth of the instructions.
    macro_rules! hash {
        () => {
            due += hashed.len();
            if due >= slots {
                due -= slots;
                if let Some(block) = todo.next() {
                    own.block(block);
                }
            }
        };
    }
    macro_rules! all {
        ($a:literal, $c:literal) => {
            round::<$a, $c>(factors, &mut pairs[0]);
            hash!();
            if N > 1 {
                round::<$a, $c>(factors, &mut pairs[1]);
                hash!();
            }
            if N > 2 {
                round::<$a, $c>(factors, &mut pairs[2]);
                hash!();
                round::<$a, $c>(factors, &mut pairs[3]);
                hash!();
            }
        };
    }
    for _ in 0..DOUBLE_ROUNDS {
        all!(3, 1);
        all!(1, 3);
    }
    for block in todo {
        own.block(block);
    }
    *poly = own;
}

/// Keystream in work: pairs of blocks, and the number of the first.
struct Stream<'a> {
    start: &'a Start,
    pairs: [Pair; PAIRS_MAX],
    counter: u32,
}

impl<'a> Stream<'a> {
    fn new(start: &'a Start) -> Self {
        Stream { start, pairs: [[start.rows; PAIR]; PAIRS_MAX], counter: 0 }
    }

    /// Makes blocks for `wanted` bytes from `counter` on, or as many as there is room for, and returns
    /// for how many bytes. Takes `hashed` into `poly` on the way.
    fn make(&mut self, counter: u32, wanted: usize, poly: &mut Poly, hashed: &[[u8; 16]]) -> usize {
        self.counter = counter;
        let Stream { start, pairs, .. } = self;
        let made = match wanted.div_ceil(BLOCK * PAIR) {
            0..=1 => {
                rounds_of::<1>(start, counter, poly, hashed, pairs);
                1
            }
            2 => {
                rounds_of::<2>(start, counter, poly, hashed, pairs);
                2
            }
            _ => {
                rounds_of::<PAIRS_MAX>(start, counter, poly, hashed, pairs);
                PAIRS_MAX
            }
        };
        made * PAIR * BLOCK
    }

    #[inline(always)]
    fn block(&self, number: usize) -> Rows {
        let rows = &self.pairs[number / PAIR][number % PAIR];
        let start = self.start.block(self.counter + number as u32);
        core::array::from_fn(|row| rows[row].add(start[row]))
    }

    /// Blocks from `first` of those made over `body`, which is not longer than they are.
    fn apply(&self, first: usize, body: &mut [u8]) {
        let (blocks, rest) = body.as_chunks_mut::<BLOCK>();
        let whole = blocks.len();
        for (number, block) in blocks.iter_mut().enumerate() {
            xor(block, self.block(first + number));
        }
        if !rest.is_empty() {
            let mut last = [0; BLOCK];
            last[..rest.len()].copy_from_slice(rest);
            xor(&mut last, self.block(first + whole));
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }

    /// Poly1305 under the key in block 0, with the additional data taken in.
    fn poly(&self, ad: &[u8]) -> Poly {
        let mut key = [0; BLOCK];
        xor(&mut key, self.block(0));
        let mut poly = Poly::new(key.first_chunk().expect("32 of 64 bytes"));
        poly.padded(ad);
        poly
    }
}

#[inline(always)]
fn xor(block: &mut [u8; BLOCK], rows: Rows) {
    let (parts, _) = block.as_chunks_mut::<16>();
    for (part, row) in parts.iter_mut().zip(rows) {
        Lanes::load(part).xor(row).store(part);
    }
}

/// Poly1305 of the AEAD under a one-time key of its own: both texts padded, then their lengths.
pub fn authenticate(key: &[u8; 32], ad: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
    let mut poly = Poly::new(key);
    poly.padded(ad);
    poly.padded(body);
    poly.finish(ad.len(), body.len())
}

/// Encrypts `body` in place and returns the tag.
pub fn seal(key: &Key, nonce: &[u8; 12], ad: &[u8], body: &mut [u8]) -> [u8; TAG_BYTES] {
    let start = Start::new(key, nonce);
    let mut stream = Stream::new(&start);
    let len = body.len();
    let made = stream.make(0, BLOCK + len, &mut Poly::idle(), &[]);
    let mut poly = stream.poly(ad);
    let mut sealed = len.min(made - BLOCK);
    stream.apply(1, &mut body[..sealed]);
    let mut hashed = 0;
    while sealed < len {
        // Poly1305 follows behind by what was made at once.
        let (done, rest) = body.split_at_mut(sealed);
        let (blocks, _) = done[hashed..].as_chunks();
        let counter = (sealed / BLOCK) as u32 + 1;
        let part = stream.make(counter, rest.len(), &mut poly, blocks).min(rest.len());
        stream.apply(0, &mut rest[..part]);
        hashed = sealed;
        sealed += part;
    }
    poly.padded(&body[hashed..]);
    poly.finish(ad.len(), len)
}

/// Decrypts `body` in place; `false`, with `body` as it was, when the tag does not match.
#[must_use]
pub fn open(
    key: &Key,
    nonce: &[u8; 12],
    ad: &[u8],
    body: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> bool {
    let start = Start::new(key, nonce);
    let mut stream = Stream::new(&start);
    let len = body.len();
    let made = stream.make(0, BLOCK + len, &mut Poly::idle(), &[]);
    let mut poly = stream.poly(ad);
    let mut opened = len.min(made - BLOCK);
    poly.padded(&body[..opened]);
    stream.apply(1, &mut body[..opened]);
    while opened < len {
        let rest = &mut body[opened..];
        let counter = (opened / BLOCK) as u32 + 1;
        let part = rest.len().min(PAIRS_MAX * PAIR * BLOCK);
        let (blocks, end) = rest[..part].as_chunks();
        stream.make(counter, part, &mut poly, blocks);
        poly.padded(end);
        stream.apply(0, &mut rest[..part]);
        opened += part;
    }
    if super::crypto::same(&poly.finish(ad.len(), len), tag) {
        return true;
    }
    // Decrypting again gives back what came in.
    let mut at = 0;
    while at < len {
        let made = stream.make((at / BLOCK) as u32 + 1, len - at, &mut Poly::idle(), &[]);
        let end = len.min(at + made);
        stream.apply(0, &mut body[at..end]);
        at = end;
    }
    false
}
