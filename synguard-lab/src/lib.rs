//! The lab: network namespaces with real kernels' TCP in them, real clients and servers, frames of
//! any shape, and an in-kernel flood. Integration tests, the demo and the bench run in it.
//!
//! Everything here needs root and is taken down when dropped; a test begins with
//! [`skip_unless_root`].
//!
//! ```no_run
//! use std::time::Duration;
//! use synguard_lab::{
//!     edge::{Edge, EdgeOptions, SERVER_V4},
//!     flood::{FloodSpec, Kind, Rate},
//!     http::{HttpServer, ServerOptions},
//!     load::{LoadClient, LoadOptions, Pattern},
//! };
//!
//! # fn main() -> anyhow::Result<()> {
//! let edge = Edge::new(EdgeOptions::default())?;
//! let target = (SERVER_V4, 80).into();
//! let _server = HttpServer::start(&edge.server, ServerOptions::default())?;
//! // Attach what is to be tried to edge.server_end, then:
//! edge.pin_napi(0, 1)?;
//! let flood = edge.flood(FloodSpec::new(Kind::Syn, Rate::Pps(20_000), target))?;
//! let mut options = LoadOptions::new(target, Pattern::Open(500));
//! options.duration = Duration::from_secs(5);
//! let report = LoadClient::start(&edge.client, options)?.wait()?;
//! println!("{report:?}, {} SYNs sent, {:?}", flood.stop()?, edge.counters()?);
//! # Ok(())
//! # }
//! ```
//!
//! What is where:
//!
//! | for | see |
//! |---|---|
//! | namespaces: `run`, `thread`, `set_sysctl`, `netlink` | [`netns::Netns`] |
//! | the topology of a client and a server, its addresses and counters | [`edge::Edge`] |
//! | an edge that forwards: routed, bridged, translating, asymmetric | [`topology::Forwarding`] |
//! | loss and reordering | [`impair::Impairment`] |
//! | a machine with its own systemd, to install packages in | [`guest::Guest`] |
//! | veth pairs and VLAN devices for other topologies | [`link`] |
//! | offloads, switched on and off | [`ethtool`] |
//! | frames by the byte, and reading answers | [`frame::Frame`], [`frame::describe`] |
//! | sending and seeing frames on a wire | [`wire::Wire`] |
//! | every TCP header that passes an end, both ways | [`capture::Capture`] |
//! | bytes that either end can make and check | [`pattern::Pattern`] |
//! | running a program on one frame | [`testrun`] |
//! | an HTTP, banner and echo server | [`http::HttpServer`] |
//! | one connection with chosen options, and `TCP_INFO` | [`client`] |
//! | many connections, measured | [`load::LoadClient`] |
//! | floods | [`flood::FloodSpec`] |
//! | a child process in a namespace | [`process::Process`] |
//! | Prometheus, and a box that it watches | [`prometheus::Prometheus`], [`observed::Observed`] |
//! | the dashboard: its queries, its schema, its picture | [`dashboard`] |
//! | programs that the set-up provides | [`tool`] |
//! | CPU time of tasks and cores | [`cpu`] |
//! | `synguard-demo` | [`demo`] |
//! | `synguard-bench` | [`bench`] |
//! | `synguard-pictures` | [`pictures`] |
//! | the decisions of the data plane without a kernel | [`host::HostTables`] |
//! | named frames with what should come of them, for host and kernel | [`fixtures`] |
//! | the lab's own programs: floors and peers | [`programs::Programs`] |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod bench;
pub mod capture;
pub mod client;
pub mod cpu;
pub mod dashboard;
pub mod demo;
pub mod edge;
pub mod ethtool;
pub mod fixtures;
pub mod flood;
pub mod frame;
mod guard;
pub mod guest;
pub mod host;
pub mod http;
pub mod impair;
pub mod link;
pub mod load;
pub mod netns;
pub mod observed;
pub mod pattern;
pub mod pictures;
pub mod process;
pub mod programs;
pub mod prometheus;
#[cfg(test)]
mod sources;
pub mod testrun;
pub mod tool;
pub mod topology;
pub mod wire;

/// Whether this process may build a lab; says on standard output that `what` is skipped where not.
pub fn skip_unless_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {what}: needs root, for network namespaces and eBPF");
    }
    root
}
