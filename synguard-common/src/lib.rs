//! What both sides of the kernel boundary agree on, and every decision that can be tested on the
//! host.
//!
//! The eBPF programs in `synguard-ebpf` are shells around [`ingress`], [`admit`] and [`egress`]:
//! they give these functions a packet to look at and the kernel's tables to look things up in. The
//! same functions run in host tests over byte slices and hash maps. There is no I/O here, no
//! allocation, no `unsafe`, and no clock: time is a parameter.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod abi;
pub mod admit;
pub mod clock;
pub mod cookie;
pub mod egress;
pub mod expiry;
pub mod flow;
pub mod flowtable;
pub mod halfopen;
pub mod handshake;
pub mod icmp;
pub mod ingress;
pub mod options;
pub mod packet;
pub mod profile;
pub mod recent;
pub mod reset;
pub mod siphash;
pub mod sources;
pub mod splice;
pub mod syncache;
pub mod tables;
pub mod translate;
pub mod verdict;
pub mod wire;
