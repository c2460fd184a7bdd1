//! Cryptokey routing: from an IP address to the peer with the longest matching prefix. A
//! path-compressed binary trie in one vector, for IPv4 and for IPv6 each.

use alloc::vec::Vec;

const NIL: u32 = u32::MAX;
/// Prefixes of one family; further ones are refused.
pub const PREFIXES_MAX: usize = 65_536;

/// An address as an integer, its first bit the most significant.
pub trait Address: Copy + Eq {
    const BITS: u8;
    fn bit(self, at: u8) -> usize;
    /// The number of leading bits that both share.
    fn common(self, other: Self) -> u8;
    fn masked(self, cidr: u8) -> Self;
}

macro_rules! address {
    ($name:ty, $bits:literal) => {
        impl Address for $name {
            const BITS: u8 = $bits;
            fn bit(self, at: u8) -> usize {
                (self >> ($bits - 1 - at)) as usize & 1
            }
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
            fn masked(self, cidr: u8) -> Self {
                if cidr == 0 { 0 } else { self & (<$name>::MAX << ($bits - cidr)) }
            }
        }
    };
}
address!(u32, 32);
address!(u128, 128);

#[derive(Clone, Copy)]
struct Node<A> {
    key: A,
    cidr: u8,
    peer: u32,
    child: [u32; 2],
}

pub struct Trie<A> {
    nodes: Vec<Node<A>>,
    free: Vec<u32>,
    root: u32,
    prefixes: usize,
}

impl<A> Default for Trie<A> {
    fn default() -> Self {
        Trie { nodes: Vec::new(), free: Vec::new(), root: NIL, prefixes: 0 }
    }
}

impl<A: Address> Trie<A> {
    pub fn lookup(&self, address: A) -> Option<u32> {
        let mut best = NIL;
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.key.common(address) < node.cidr {
                break;
            }
            if node.peer != NIL {
                best = node.peer;
            }
            if node.cidr == A::BITS {
                break;
            }
            at = node.child[address.bit(node.cidr)];
        }
        if best == NIL { None } else { Some(best) }
    }

    /// Gives the prefix to the peer, taking it from whoever had it. `false`: the table is full.
    pub fn insert(&mut self, address: A, cidr: u8, peer: u32) -> bool {
        let key = address.masked(cidr);
        let mut parent = NIL;
        let mut side = 0;
        loop {
            let at = if parent == NIL { self.root } else { self.nodes[parent as usize].child[side] };
            if at != NIL {
                let node = &mut self.nodes[at as usize];
                let common = node.key.common(key).min(node.cidr).min(cidr);
                if common == node.cidr && common == cidr {
                    if node.peer == NIL {
                        if self.prefixes >= PREFIXES_MAX {
                            return false;
                        }
                        self.prefixes += 1;
                    }
                    node.peer = peer;
                    return true;
                }
                if common == node.cidr {
                    parent = at;
                    side = key.bit(node.cidr);
                    continue;
                }
            }
            if self.prefixes >= PREFIXES_MAX {
                return false;
            }
            self.prefixes += 1;
            let top = self.branch(at, key, cidr, peer);
            self.link(parent, side, top);
            return true;
        }
    }

    /// A new node for the prefix with `at` below it or beside it; returns the topmost.
    fn branch(&mut self, at: u32, key: A, cidr: u8, peer: u32) -> u32 {
        let leaf = self.allocate(Node { key, cidr, peer, child: [NIL, NIL] });
        if at == NIL {
            return leaf;
        }
        let below = self.nodes[at as usize];
        let common = below.key.common(key).min(below.cidr).min(cidr);
        if common == cidr {
            self.nodes[leaf as usize].child[below.key.bit(cidr)] = at;
            return leaf;
        }
        let mut child = [NIL, NIL];
        child[below.key.bit(common)] = at;
        child[key.bit(common)] = leaf;
        self.allocate(Node { key: key.masked(common), cidr: common, peer: NIL, child })
    }

    /// Takes the prefix from the peer; `false` when the peer did not have it.
    pub fn remove(&mut self, address: A, cidr: u8, peer: u32) -> bool {
        let key = address.masked(cidr);
        let mut path = [(NIL, 0usize); 2];
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.cidr > cidr || node.key.common(key) < node.cidr {
                return false;
            }
            if node.cidr == cidr {
                break;
            }
            let side = key.bit(node.cidr);
            path = [path[1], (at, side)];
            at = node.child[side];
        }
        if at == NIL || self.nodes[at as usize].peer != peer {
            return false;
        }
        self.nodes[at as usize].peer = NIL;
        self.prefixes -= 1;
        let [(grandparent, far), (parent, side)] = path;
        if self.splice(at, parent, side) && parent != NIL {
            self.splice(parent, grandparent, far);
        }
        true
    }

    /// Removes a node that has neither a peer nor two children.
    fn splice(&mut self, at: u32, parent: u32, side: usize) -> bool {
        let node = self.nodes[at as usize];
        if node.peer != NIL || (node.child[0] != NIL && node.child[1] != NIL) {
            return false;
        }
        let only = if node.child[0] != NIL { node.child[0] } else { node.child[1] };
        self.link(parent, side, only);
        self.free.push(at);
        true
    }

    pub fn remove_peer(&mut self, peer: u32) {
        for (address, cidr, owner) in self.list() {
            if owner == peer {
                self.remove(address, cidr, peer);
            }
        }
    }

    /// All prefixes with their peers, in no particular order.
    pub fn list(&self) -> Vec<(A, u8, u32)> {
        let mut found = Vec::new();
        let mut todo = Vec::from([self.root]);
        while let Some(at) = todo.pop() {
            if at == NIL {
                continue;
            }
            let node = &self.nodes[at as usize];
            if node.peer != NIL {
                found.push((node.key, node.cidr, node.peer));
            }
            todo.extend(node.child);
        }
        found
    }

    pub fn len(&self) -> usize {
        self.prefixes
    }

    pub fn is_empty(&self) -> bool {
        self.prefixes == 0
    }

    /// Nodes in use, those between prefixes included.
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    fn link(&mut self, parent: u32, side: usize, to: u32) {
        if parent == NIL {
            self.root = to;
        } else {
            self.nodes[parent as usize].child[side] = to;
        }
    }

    fn allocate(&mut self, node: Node<A>) -> u32 {
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        self.nodes.len() as u32 - 1
    }
}

/// Both families.
#[derive(Default)]
pub struct AllowedIps {
    pub v4: Trie<u32>,
    pub v6: Trie<u128>,
}

impl AllowedIps {
    /// `ip` has 4 or 16 bytes; `false` for another length, too long a prefix, or a full table.
    pub fn insert(&mut self, ip: &[u8], cidr: u8, peer: u32) -> bool {
        match ip.len() {
            4 if cidr <= 32 => self.v4.insert(v4(ip), cidr, peer),
            16 if cidr <= 128 => self.v6.insert(v6(ip), cidr, peer),
            _ => false,
        }
    }

    pub fn remove(&mut self, ip: &[u8], cidr: u8, peer: u32) -> bool {
        match ip.len() {
            4 if cidr <= 32 => self.v4.remove(v4(ip), cidr, peer),
            16 if cidr <= 128 => self.v6.remove(v6(ip), cidr, peer),
            _ => false,
        }
    }

    pub fn remove_peer(&mut self, peer: u32) {
        self.v4.remove_peer(peer);
        self.v6.remove_peer(peer);
    }

    pub fn lookup(&self, ip: &[u8]) -> Option<u32> {
        match ip.len() {
            4 => self.v4.lookup(v4(ip)),
            16 => self.v6.lookup(v6(ip)),
            _ => None,
        }
    }
}

fn v4(ip: &[u8]) -> u32 {
    u32::from_be_bytes(super::message::array_at(ip, 0))
}

fn v6(ip: &[u8]) -> u128 {
    u128::from_be_bytes(super::message::array_at(ip, 0))
}

/// What an IP header says of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header<'a> {
    pub source: &'a [u8],
    pub destination: &'a [u8],
    /// Bytes of the packet, header included, without what follows it.
    pub length: usize,
}

/// Reads the header of an IPv4 or IPv6 packet; `None` when it is neither, is cut short, or claims
/// more bytes than there are.
pub fn read_header(packet: &[u8]) -> Option<Header<'_>> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            (20..=packet.len()).contains(&length).then(|| Header {
                source: &packet[12..16],
                destination: &packet[16..20],
                length,
            })
        }
        6 if packet.len() >= 40 => {
            let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (length <= packet.len()).then(|| Header {
                source: &packet[8..24],
                destination: &packet[24..40],
                length,
            })
        }
        _ => None,
    }
}
