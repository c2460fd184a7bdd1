//! Where a peer is reached. The device never looks inside but to compute cookies and limits.

/// A path of the host (0 is UDP; others are the host's own, such as one relay) and, on it, an
/// address. `family` is 0 when the path needs no address, else 4 or 6; an IPv4 address fills the
/// first four bytes of `ip`. `scope` is the IPv6 zone, 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    pub path: u32,
    pub scope: u32,
    pub ip: [u8; 16],
    pub port: u16,
    pub family: u8,
}

impl Endpoint {
    pub fn v4(ip: [u8; 4], port: u16) -> Endpoint {
        let mut endpoint = Endpoint { port, family: 4, ..Endpoint::default() };
        endpoint.ip[..4].copy_from_slice(&ip);
        endpoint
    }

    pub fn v6(ip: [u8; 16], port: u16) -> Endpoint {
        Endpoint { ip, port, family: 6, ..Endpoint::default() }
    }

    fn ip_bytes(&self) -> usize {
        match self.family {
            4 => 4,
            6 => 16,
            _ => 0,
        }
    }

    /// All that a cookie is bound to: path, scope, family, address and port.
    pub fn cookie_input(&self) -> [u8; 27] {
        let mut input = [0; 27];
        input[..4].copy_from_slice(&self.path.to_le_bytes());
        input[4..8].copy_from_slice(&self.scope.to_le_bytes());
        input[8] = self.family;
        input[9..9 + self.ip_bytes()].copy_from_slice(&self.ip[..self.ip_bytes()]);
        input[25..].copy_from_slice(&self.port.to_be_bytes());
        input
    }

    /// What the limiter counts as one source: an IPv4 address, an IPv6 /64, or a path.
    pub fn prefix(&self) -> [u8; 13] {
        let mut prefix = [0; 13];
        prefix[..4].copy_from_slice(&self.path.to_le_bytes());
        prefix[4] = self.family;
        let kept = self.ip_bytes().min(8);
        prefix[5..5 + kept].copy_from_slice(&self.ip[..kept]);
        prefix
    }
}
