//! The two ends of a TCP connection, for both address families.
//!
//! Code that handles packets is generic over [`Net`], so that the IPv4 path never carries sixteen
//! byte addresses around.

use crate::{
    abi::{Address, Tuple},
    siphash::SipHash24,
    tables::Parked,
    wire::{ipv4, ipv6},
};

/// Both addresses of a connection.
pub trait Net: Copy + crate::handshake::IpHeader {
    /// Length of the IP header that our answers have, bytes.
    const HEADER: usize;
    /// MTU less MSS: the IP header and a TCP header without options (RFC 9293 section 3.7.1).
    const OVERHEAD: u16;
    /// MSS of a host that sends no such option (RFC 9293 section 3.7.1).
    const DEFAULT_MSS: u16;
    /// Values of the three MSS bits in a cookie, see [`crate::cookie`].
    const MSS_TABLE: [u16; 8];
    /// Smallest MSS for which `bpf_sk_assign_tcp_reqsk` makes a socket.
    const MIN_KERNEL_MSS: u16;

    /// Address of the client.
    fn client(self) -> Address;
    /// Address of the server.
    fn server(self) -> Address;
    /// Feeds both addresses to the MAC, the client's first, most significant bits first.
    fn hash(self, mac: SipHash24) -> SipHash24;
    /// Sum of both addresses, for the checksum's pseudo-header.
    fn sum(self) -> u64;
    /// A word in which the low bits of both addresses count, for tables that need no strong hash.
    fn mix(self) -> u64;
    /// Puts both addresses aside.
    fn park(self, parked: &Parked);
    /// Takes them up again.
    fn unpark(parked: &Parked) -> Self;
    /// Whether no answer may be sent to the client's address: multicast, broadcast, unspecified,
    /// loopback (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7), or the server's own.
    fn bad_source(self) -> bool;
}

/// Both addresses of an IPv4 connection, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4 {
    /// Address of the client.
    pub client: u32,
    /// Address of the server.
    pub server: u32,
}

/// What precedes an IPv4 address in a mapped one (RFC 4291 section 2.5.5.2), after eight zero bytes.
pub const MAPPED: u64 = 0xffff;

/// Both addresses of an IPv6 connection: host-order words, most significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6 {
    /// Address of the client.
    pub client: [u64; 2],
    /// Address of the server.
    pub server: [u64; 2],
}

impl Address {
    /// The mapped form of an IPv4 address given in host order.
    #[inline(always)]
    pub const fn from_v4(address: u32) -> Self {
        Self::from_words([0, (MAPPED << 32) | address as u64])
    }

    /// From host-order words, most significant first.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self((((words[0] as u128) << 64) | words[1] as u128).to_be_bytes())
    }

    /// As host-order words, most significant first.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let bits = u128::from_be_bytes(self.0);
        [(bits >> 64) as u64, bits as u64]
    }
}

impl Net for V4 {
    const HEADER: usize = ipv4::HEADER;
    const OVERHEAD: u16 = 40;
    const DEFAULT_MSS: u16 = 536;
    const MSS_TABLE: [u16; 8] = [216, 536, 1200, 1360, 1400, 1440, 1460, 8960];
    const MIN_KERNEL_MSS: u16 = 536;

    #[inline(always)]
    fn client(self) -> Address {
        Address::from_v4(self.client)
    }

    #[inline(always)]
    fn server(self) -> Address {
        Address::from_v4(self.server)
    }

    #[inline(always)]
    fn hash(self, mac: SipHash24) -> SipHash24 {
        mac.word(((self.client as u64) << 32) | self.server as u64)
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        self.client as u64 + self.server as u64
    }

    #[inline(always)]
    fn mix(self) -> u64 {
        ((self.client as u64) << 32) | self.server as u64
    }

    #[inline(always)]
    fn park(self, parked: &Parked) {
        parked.addresses[0].set(self.mix());
    }

    #[inline(always)]
    fn unpark(parked: &Parked) -> Self {
        let both = parked.addresses[0].get();
        Self {
            client: (both >> 32) as u32,
            server: both as u32,
        }
    }

    #[inline(always)]
    fn bad_source(self) -> bool {
        let first = self.client >> 24;
        first >= 224 || first == 0 || first == 127 || self.client == self.server
    }
}

impl Net for V6 {
    const HEADER: usize = ipv6::HEADER;
    const OVERHEAD: u16 = 60;
    const DEFAULT_MSS: u16 = 1220;
    const MSS_TABLE: [u16; 8] = [216, 1220, 1340, 1360, 1400, 1420, 1440, 8940];
    const MIN_KERNEL_MSS: u16 = 1220;

    #[inline(always)]
    fn client(self) -> Address {
        Address::from_words(self.client)
    }

    #[inline(always)]
    fn server(self) -> Address {
        Address::from_words(self.server)
    }

    #[inline(always)]
    fn hash(self, mac: SipHash24) -> SipHash24 {
        mac.word(self.client[0])
            .word(self.client[1])
            .word(self.server[0])
            .word(self.server[1])
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        const fn halves(word: u64) -> u64 {
            (word >> 32) + (word & 0xffff_ffff)
        }
        halves(self.client[0])
            + halves(self.client[1])
            + halves(self.server[0])
            + halves(self.server[1])
    }

    #[inline(always)]
    fn mix(self) -> u64 {
        self.client[0] ^ self.client[1].rotate_left(32) ^ (self.server[1] << 16)
    }

    #[inline(always)]
    fn park(self, parked: &Parked) {
        parked.addresses[0].set(self.client[0]);
        parked.addresses[1].set(self.client[1]);
        parked.addresses[2].set(self.server[0]);
        parked.addresses[3].set(self.server[1]);
    }

    #[inline(always)]
    fn unpark(parked: &Parked) -> Self {
        let word = |i: usize| parked.addresses[i].get();
        Self {
            client: [word(0), word(1)],
            server: [word(2), word(3)],
        }
    }

    #[inline(always)]
    fn bad_source(self) -> bool {
        let [high, low] = self.client;
        // Unspecified is ::, loopback ::1; nobody is at a mapped IPv4 address.
        let reserved = high == 0 && (low <= 1 || low >> 32 == MAPPED);
        high >> 56 == 0xff || reserved || self.client == self.server
    }
}

/// A TCP connection as packets from the client name it. Ports in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<N> {
    /// Both addresses.
    pub net: N,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub server_port: u16,
}

impl<N: Net> Flow<N> {
    /// The flow as a key of the half-open table.
    #[inline(always)]
    pub fn tuple(self) -> Tuple {
        Tuple {
            client: self.net.client(),
            server: self.net.server(),
            client_port: self.client_port,
            server_port: self.server_port,
            pad: 0,
        }
    }
}
