//! The nouns of the daemon: what a configuration says once it is valid, and what a running daemon
//! can tell about itself. Configuration goes one way (file → [`Config`] → tables), state the other
//! (tables → [`Snapshot`] → metrics, `status`, the control API).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use synguard_common::verdict::Reason;

use crate::lists::{Counts, SourceRules};

/// A configuration that has been checked as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Interfaces to guard from the start, where the command line names none.
    pub interfaces: Vec<String>,
    /// Where Prometheus scrapes; `None` turns the exporter off.
    pub metrics: Option<SocketAddr>,
    /// The control API's Unix socket.
    pub socket: PathBuf,
    /// File with the 32-byte master secret (hex); created with mode 0600 when missing.
    pub secret: PathBuf,
    /// Where what outlives the daemon is pinned; `None` where nothing does.
    pub pins: Option<PathBuf>,
    /// Directory for what is kept from one start to the next; `None` keeps nothing.
    pub state: Option<PathBuf>,
    /// How to attach XDP.
    pub xdp_mode: XdpMode,
    /// Entries of the half-open table, all services together.
    pub half_open_entries: u32,
    /// Entries of the flow table, all services with admission `proxy` together.
    pub flow_entries: u32,
    /// How long an idle flow is kept.
    pub flow_idle_timeout: Duration,
    /// Entries of the table of verified sources, all services with admission `reset` together.
    pub verified_entries: u32,
    /// How long a source stays verified.
    pub verified_timeout: Duration,
    /// Whether SYNs that are answered are remembered beside their cookies.
    pub syn_cache: bool,
    /// What is said of sources.
    pub sources: SourceRules,
    /// The services, in the order of the file; their numbers in the tables are position + 1.
    pub services: Vec<Service>,
}

/// One protected service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it covers.
    pub addresses: Addresses,
    /// Its ports; `None` is all of them.
    pub ports: Option<Vec<RangeInclusive<u16>>>,
    /// When it is guarded.
    pub mode: Mode,
    /// What a valid ACK becomes.
    pub admission: Admission,
    /// What its servers offer, where admission is `proxy`.
    pub server: Server,
    /// Half-open connections at which it becomes guarded.
    pub high: Watermark,
    /// Half-open connections below which it may become calm again.
    pub low: Watermark,
    /// How long it must have been below `low` before it becomes calm.
    pub calm_after: Duration,
    /// Age at which a half-open connection is given up.
    pub half_open_timeout: Duration,
    /// Whether the server is told so, by a RST in the client's name.
    pub release: bool,
}

/// Which addresses a service covers.
#[derive(Clone, Debug, PartialEq)]
pub enum Addresses {
    /// The interface's own addresses, followed as they change.
    Interface,
    /// These prefixes (a plain address is one of full length).
    Prefixes(Vec<IpNet>),
}

/// When a service is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// While its half-open count says so.
    Adaptive,
    /// Always.
    Always,
    /// Never; count what would have been done.
    Observe,
}

/// What a valid ACK becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Whatever is possible for the address and the kernel.
    Auto,
    /// A socket on this box.
    Local,
    /// A connection spliced to the one that the server behind the box accepts.
    Proxy,
    /// Nothing: the client is verified, reset, and comes again.
    Reset,
}

/// What the servers of a service offer in their SYN-ACKs, which ours must not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// What they are seen to offer.
    Learned,
    /// This.
    Fixed(ServerOffer),
}

/// The options of a SYN-ACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerOffer {
    /// Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// The window scale (RFC 7323), if there is one.
    pub window_scale: Option<u8>,
    /// Explicit congestion notification (RFC 3168).
    pub ecn: bool,
    /// Largest MSS; without one only the MTU limits it.
    pub mss: Option<u16>,
}

/// A threshold of the half-open count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    /// Chosen by the daemon.
    Auto,
    /// Given by the operator.
    Fixed(u32),
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, else generic with a warning.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack, after the driver made an skb.
    Generic,
}

/// What a running daemon knows, at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of the daemon.
    pub version: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Seconds since the epoch when the daemon started.
    pub started_at: u64,
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// Seconds since the epoch when the present configuration was applied.
    pub config_applied_at: u64,
    /// Why the last reload of the configuration failed, if it did: the one before is still in
    /// force.
    #[serde(default)]
    pub config_error: Option<String>,
    /// `None` where `local` admission works; else why it does not.
    pub local_admission_error: Option<String>,
    /// Whether it has been told to leave, and waits for spliced connections to end.
    pub draining: bool,
    /// Interfaces it is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Packets of no service, by reason.
    pub unprotected: Vec<ReasonCount>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// The keys.
    pub keys: KeyStatus,
    /// How full the kernel's tables are.
    pub maps: Vec<MapFill>,
    /// Connections of proxied services.
    pub flows: FlowStatus,
    /// Sources that are listed, and what one may ask for.
    #[serde(default)]
    pub sources: SourceStatus,
    /// Events noted since the start, by kind.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// One attached interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// How XDP runs on it: `native` or `generic`.
    pub xdp_mode: String,
    /// Driver name, where the kernel tells.
    pub driver: Option<String>,
    /// Whether link is up.
    pub up: bool,
    /// Its addresses and those of the VLAN devices on it.
    pub addresses: Vec<IpAddr>,
}

/// One service, as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its number in the kernel's tables.
    pub number: u16,
    /// What it covers, for people: `192.0.2.1:443`, `interface:all`.
    pub covers: Vec<String>,
    /// What it would cover but must leave alone, each with the reason and the cure.
    pub excepted: Vec<String>,
    /// Its mode.
    pub mode: Mode,
    /// What a valid ACK becomes: `local`, `proxy`, `reset` or `none`.
    pub admission: String,
    /// Why it is that.
    pub admission_reason: String,
    /// What clients are offered in the name of its servers, where admission is `proxy`.
    pub server: Option<ServerStatus>,
    /// `calm` or `guarded`.
    pub state: String,
    /// Seconds since the epoch of the last change of state, if there was one.
    pub state_since: Option<u64>,
    /// Half-open connections now.
    pub half_open: u64,
    /// Count at which it becomes guarded.
    pub high: u32,
    /// Count below which it may become calm.
    pub low: u32,
    /// Where `high` comes from, for people.
    #[serde(default)]
    pub high_reason: String,
    /// Half-open connections that are normal now, at the busiest moment of an hour; none as long as that
    /// is not known.
    #[serde(default)]
    pub normal_half_open: Option<f64>,
    /// SYNs per second that are normal now.
    #[serde(default)]
    pub normal_syn_rate: Option<f64>,
    /// Half-open connections there would be now, were the service not guarded.
    pub projected_half_open: u64,
    /// Turns to guarded.
    pub guarded_total: u64,
    /// Turns to calm.
    pub calmed_total: u64,
    /// Half-open connections given up, for their age or under pressure.
    pub expired_total: u64,
    /// How many of these the server was told to forget.
    #[serde(default)]
    pub released_total: u64,
    /// SYN-ACKs sent again because nobody had answered them.
    #[serde(default)]
    pub reminded_total: u64,
    /// Ages of the half-open connections: upper bound in seconds (none for the last) and count, not
    /// cumulative.
    #[serde(default)]
    pub half_open_ages: Vec<(Option<u64>, u64)>,
    /// Sum of the ages in seconds.
    #[serde(default)]
    pub half_open_age_sum: f64,
    /// Age of the oldest in seconds; 0 where there is none.
    #[serde(default)]
    pub half_open_oldest: f64,
    /// SYNs received.
    pub syns: u64,
    /// SYNs received per second, lately.
    #[serde(default)]
    pub syn_rate: f64,
    /// Where it is configured, for people.
    #[serde(default)]
    pub origin: String,
    /// Packets by reason; reasons with no packet are left out.
    pub packets: Vec<ReasonCount>,
    /// The same for what mode observe would have done.
    pub observed: Vec<ReasonCount>,
    /// Round trips between our SYN-ACK and its ACK, of clients with timestamps, where admission is
    /// `local`: upper bound in seconds (none for the last) and count, not cumulative.
    pub rtt: Vec<(Option<f64>, u64)>,
    /// Sum of the round trips in seconds.
    pub rtt_sum: f64,
}

/// What is offered in the name of servers, and how that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// `configured`, `learned`, or `unknown` as long as no server was seen to answer.
    pub source: String,
    /// Timestamps.
    pub timestamps: bool,
    /// Selective acknowledgements.
    pub sack: bool,
    /// The window scale, if there is one.
    pub window_scale: Option<u8>,
    /// Explicit congestion notification.
    pub ecn: bool,
    /// Largest MSS over IPv4 (20 more than over IPv6), if anything but the MTU limits it.
    pub mss: Option<u16>,
    /// Options that a server fell short of, and that are not offered for a while.
    pub withheld: Vec<String>,
}

/// Sources that are listed, and what one may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Prefixes in force.
    #[serde(flatten)]
    pub listed: Counts,
    /// SYNs of one source in a second that may come to nothing while their service is calm; none is no
    /// limit.
    pub syn_budget: Option<u32>,
    /// SYN-ACKs to one address in a second that nobody answers, while guarded; none is no limit.
    pub answer_budget: Option<u32>,
}

/// Connections of proxied services, all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Those that need the programs: pending or spliced, and not over.
    pub left: u64,
    /// Waiting for their server.
    pub pending: u64,
    /// Spliced: translated as long as they live.
    pub spliced: u64,
    /// Known, and not translated.
    pub known: u64,
    /// How many of them are over, and kept for what may still be on its way.
    pub closing: u64,
    /// Flows made.
    pub created_total: u64,
    /// Flows removed: ended a while ago, idle for too long, or refused.
    pub expired_total: u64,
    /// Flows that made room for others.
    pub evicted_total: u64,
    /// SYNs sent again because a server kept silent.
    pub retried_total: u64,
    /// Connections refused because a server kept silent.
    pub refused_total: u64,
    /// Retries and refusals that failed.
    pub errands_failed_total: u64,
    /// Retries and refusals that there was no room for.
    pub errands_lost_total: u64,
    /// Sources verified.
    pub verified_total: u64,
}

impl FlowStatus {
    /// Flows in the table.
    pub const fn entries(&self) -> u64 {
        self.pending + self.spliced + self.known
    }
}

/// A reason and how often it was the one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// [`synguard_common::verdict::Reason::label`].
    pub reason: String,
    /// `pass`, `answer` or `drop`.
    pub action: String,
    /// Packets.
    pub packets: u64,
}

/// How many packets left with a reason that `is` of interest.
pub fn packets(counts: &[ReasonCount], is: impl Fn(Reason) -> bool) -> u64 {
    let interests = |label: &str| Reason::ALL.iter().any(|r| r.label() == label && is(*r));
    counts
        .iter()
        .filter(|c| interests(&c.reason))
        .map(|c| c.packets)
        .sum()
}

/// The cookie keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The present epoch.
    pub epoch: u64,
    /// Length of an epoch in seconds.
    pub epoch_seconds: u64,
    /// Seconds since the epoch when a key was last written.
    pub last_rotation: u64,
    /// Epochs ahead of the present one whose key is in place.
    pub ready_ahead: u64,
}

impl KeyStatus {
    /// Seconds since the epoch when the last key that is in place runs out: until then a guarded
    /// service is guarded without a daemon, from then on its SYNs pass.
    pub const fn expires_at(&self) -> u64 {
        (self.epoch + self.ready_ahead + 1) * self.epoch_seconds
    }
}

/// How full one of the kernel's tables is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapFill {
    /// The map.
    pub name: String,
    /// Entries in it.
    pub entries: u64,
    /// Entries it has room for.
    pub capacity: u64,
}

impl MapFill {
    /// Percent from which on somebody should look.
    pub const NEARLY_FULL: u64 = 80;

    /// How full it is.
    pub fn percent(&self) -> u64 {
        let hundredfold = self.entries.saturating_mul(100);
        hundredfold.checked_div(self.capacity).unwrap_or(0)
    }

    /// Whether somebody should look.
    pub fn is_nearly_full(&self) -> bool {
        self.percent() >= Self::NEARLY_FULL
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Admission::Auto => "auto",
            Admission::Local => "local",
            Admission::Proxy => "proxy",
            Admission::Reset => "reset",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Adaptive => "adaptive",
            Mode::Always => "always",
            Mode::Observe => "observe",
        })
    }
}
