//! Wire formats, a file per protocol: constants, a header type, `read` from a checked view and
//! `write` to one. The kernel reads and writes through the same functions; what it does not use of
//! a header costs nothing, because the accessors are inlined and unused loads disappear.

pub mod checksum;
pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
