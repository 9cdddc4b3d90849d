//! What `synguard check` looks at. The probes fill it in, the judges read it: they never look at the
//! machine themselves.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use super::{
    genl::{Channels, XdpFeatures},
    helpers::Helpers,
};
use crate::{daemon::links::Link, dataplane::error::NearNames, model::Config};

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// We may not look.
    NeedsRoot,
    /// Another reason.
    Other(String),
}

/// Something that may not be known.
pub type Seen<T> = Result<T, Unseen>;

/// Everything.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel.
    pub kernel: Kernel,
    /// The rest of the machine, and what it is to do.
    pub host: Host,
    /// The interfaces, found or not.
    pub interfaces: Vec<Result<Interface, Missing>>,
}

/// An interface that is not there.
#[derive(Clone, Debug)]
pub struct Missing {
    /// What was asked for.
    pub name: String,
    /// What may have been meant.
    pub hint: NearNames,
}

/// What the kernel can do.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Whether it describes its types.
    pub btf: bool,
    /// Names of kernel functions that are called and that it lacks.
    pub missing_kfuncs: Vec<&'static str>,
    /// The helpers of the programs.
    pub helpers: Seen<Helpers>,
    /// Whether TC programs attach by link.
    pub tcx: Seen<bool>,
    /// How loading the programs went.
    pub programs: Seen<Programs>,
    /// `net.core.bpf_jit_enable`, where it is shown.
    pub jit_enabled: Option<u8>,
}

/// The programs, once they were loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Why they are not, where the kernel refused.
    pub refused: Option<String>,
    /// Whether the kernel translates them to machine code.
    pub jited: bool,
    /// Whether it can have frames received.
    pub live_frames: bool,
}

/// The machine, and what it is to do.
#[derive(Clone, Debug)]
pub struct Host {
    /// Capabilities that the caller lacks.
    pub missing_capabilities: Vec<String>,
    /// Whether the caller is root, be it without all capabilities.
    pub is_root: bool,
    /// Whether bpffs is mounted where the pins go.
    pub bpffs: bool,
    /// The configuration file; `None` for the built-in configuration.
    pub config_path: Option<PathBuf>,
    /// What it says, or what is wrong with it.
    pub config: Result<Config, String>,
    /// Bytes that the tables will take.
    pub tables: Option<u64>,
    /// Bytes that are free for it.
    pub available: Option<u64>,
    /// CPUs at work.
    pub cpus: u32,
    /// Every address of the box.
    pub addresses: Vec<IpAddr>,
    /// `net.ipv4.tcp_syncookies`.
    pub syncookies: Option<u8>,
    /// `net.ipv4.tcp_timestamps`.
    pub timestamps: Option<u8>,
    /// `net.ipv4.ip_forward`.
    pub forwards_v4: Option<u8>,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwards_v6: Option<u8>,
}

/// One interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// What rtnetlink tells.
    pub link: Link,
    /// What its driver offers XDP; not told before Linux 6.3.
    pub xdp: Option<XdpFeatures>,
    /// Offloads that are on.
    pub offloads: Option<BTreeSet<String>>,
    /// Its queues.
    pub channels: Option<Channels>,
    /// VLAN devices above it.
    pub vlans: Vec<String>,
    /// The device below it, in this namespace.
    pub lower: Option<String>,
    /// What it is a port of, and the kind of that.
    pub controller: Option<(String, String)>,
    /// Its ports, where it has some.
    pub ports: Vec<String>,
    /// The other end, of a veth.
    pub peer: Option<Seen<Peer>>,
    /// The name of the XDP program that is there.
    pub program: Option<String>,
    /// Reverse-path filter: the larger of its own and everybody's, which is the one that counts.
    pub rp_filter: Option<u8>,
}

/// The other end of a veth.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Whether it is in another namespace.
    pub elsewhere: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it has an XDP program.
    pub has_xdp: bool,
    /// Offloads that are on.
    pub offloads: BTreeSet<String>,
    /// Its queues.
    pub channels: Option<Channels>,
}
