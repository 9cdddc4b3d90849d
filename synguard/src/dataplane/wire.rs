//! Lets the shared layouts of [`synguard_common::abi`] travel through aya's maps.
//!
//! aya asks for its own marker trait, and neither the trait nor the layouts are ours: a
//! transparent wrapper joins the two.

use std::net::{IpAddr, Ipv6Addr};

use synguard_common::abi;

/// A layout of the ABI as a map key or value.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wire<T>(pub T);

macro_rules! pod {
    ($($layout:ty),+ $(,)?) => {$(
        // SAFETY: the layout is `repr(C)`, made of integers and arrays of integers without hidden
        // padding (asserted beside its definition), so that every bit pattern is a value and
        // every byte is initialised; `Wire` is transparent.
        unsafe impl aya::Pod for Wire<$layout> {}
    )+};
}

pod!(
    abi::Address,
    abi::AddressEntry,
    abi::PortKey,
    abi::PortEntry,
    abi::ServiceConfig,
    abi::ServiceStats,
    abi::EpochKey,
    abi::Clock,
    abi::Moment,
    abi::Runtime,
    abi::Tuple,
    abi::HalfOpen,
    abi::FlowBucket,
    abi::FlowCounts,
    abi::Errand,
    abi::Sweep,
    abi::VerifiedSource,
    abi::SourceEntry,
);

/// The address as the tables hold it: IPv4 mapped to `::ffff:a.b.c.d`.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The inverse of [`mapped`].
pub fn unmapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}
