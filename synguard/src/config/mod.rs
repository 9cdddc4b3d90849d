//! Configuration: one TOML file, and services added by command, checked as a whole before any of it
//! is used.
//!
//! [`load`] reads the files ([`sources`] knows which, [`document`] walks one, [`table`] and [`values`] read single keys),
//! checks what the services cover against each other ([`cover`]) and lets the command line's
//! [`Overrides`] win. Every mistake is one line, `FILE:LINE:COL: what is wrong; what would be
//! right`, and as many as can be found are reported at once.

pub mod cover;
mod document;
mod listed;
mod mistake;
mod server;
mod sources;
mod table;
mod values;

use std::{
    fs::File,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

pub(crate) use listed::is_comment;
pub use mistake::{Error, Mistake};
pub use sources::{Addition, Origin, Sources};
pub(crate) use values::HALF_OPEN_BOUNDS;

use crate::{
    lists::SourceRules,
    model::{Config, Mode, Service, XdpMode},
};

/// Where the packaged daemon has its configuration.
pub const DEFAULT_PATH: &str = "/etc/synguard/synguard.toml";
/// Where the control socket is.
pub const DEFAULT_SOCKET: &str = "/run/synguard/control.sock";
/// Where the master secret is.
pub const DEFAULT_SECRET: &str = "/var/lib/synguard/secret";
/// Where what outlives the daemon is pinned.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/synguard";
/// Where events, and services added by command, are kept.
pub const DEFAULT_STATE: &str = "/var/lib/synguard";
/// Where Prometheus scrapes.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9911";
/// Entries of the half-open table.
pub const DEFAULT_HALF_OPEN_ENTRIES: u32 = 65_536;
/// Entries of the flow table.
pub const DEFAULT_FLOW_ENTRIES: u32 = 262_144;
/// How long an idle flow is kept: translation that ends is a connection that ends, and RFC 5382
/// asks for two hours and four minutes at least.
pub const DEFAULT_FLOW_IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Entries of the table of verified sources.
pub const DEFAULT_VERIFIED_ENTRIES: u32 = 65_536;
/// How long a source stays verified.
pub const DEFAULT_VERIFIED_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a service must have been below `low`; also the least that may be asked for.
pub const DEFAULT_CALM_AFTER: Duration = Duration::from_secs(15);
/// Age at which a half-open connection is given up: Linux gives up its own after 63 s
/// (`net.ipv4.tcp_synack_retries` = 5).
pub const DEFAULT_HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(64);

/// A file of more bytes is not read: a thousand services with ten prefixes each have a third.
const SIZE_LIMIT: u64 = 1 << 20;

/// What the command line says in place of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `-i`: none given leaves the file's.
    pub interfaces: Vec<String>,
    /// `--metrics`
    pub metrics: Option<MetricsAddress>,
    /// `--pins`
    pub pins: Option<PinDirectory>,
    /// `--mode`: of every service.
    pub mode: Option<Mode>,
    /// `--xdp-mode`
    pub xdp_mode: Option<XdpMode>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--secret`
    pub secret: Option<PathBuf>,
    /// `--state`
    pub state: Option<StateDirectory>,
}

/// Where Prometheus scrapes, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// No exporter.
    Off,
    /// Here.
    At(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "off" {
            return Ok(Self::Off);
        }
        match s.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::At(address)),
            _ => Err(format!("give {}", values::METRICS_RIGHT)),
        }
    }
}

impl From<MetricsAddress> for Option<SocketAddr> {
    fn from(address: MetricsAddress) -> Self {
        match address {
            MetricsAddress::Off => None,
            MetricsAddress::At(address) => Some(address),
        }
    }
}

/// Where what outlives the daemon is pinned, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinDirectory {
    /// Nothing outlives it.
    Off,
    /// Here.
    At(PathBuf),
}

impl FromStr for PinDirectory {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "off" {
            return Ok(Self::Off);
        }
        // The root of the file system is for directories of many programs.
        match Path::new(s).strip_prefix("/sys/fs/bpf") {
            Ok(rest) if !rest.as_os_str().is_empty() => Ok(Self::At(s.into())),
            _ => Err(format!("give {}", values::PINS_RIGHT)),
        }
    }
}

impl From<PinDirectory> for Option<PathBuf> {
    fn from(directory: PinDirectory) -> Self {
        match directory {
            PinDirectory::Off => None,
            PinDirectory::At(path) => Some(path),
        }
    }
}

/// Where the daemon keeps what it must not forget, if it may keep anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateDirectory {
    /// Nowhere.
    Off,
    /// Here.
    At(PathBuf),
}

impl FromStr for StateDirectory {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match Path::new(s) {
            _ if s == "off" => Ok(Self::Off),
            path if path.is_absolute() => Ok(Self::At(path.to_owned())),
            _ => Err(format!("give {}", values::STATE_RIGHT)),
        }
    }
}

impl From<StateDirectory> for Option<PathBuf> {
    fn from(directory: StateDirectory) -> Self {
        match directory {
            StateDirectory::Off => None,
            StateDirectory::At(path) => Some(path),
        }
    }
}

/// The configuration of `path` (the built-in one without), with the services that were added by
/// command, as the command line changes it.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Error> {
    Sources::read(path, overrides)?.config()
}

/// What holds without a file.
pub fn built_in() -> Config {
    Config {
        interfaces: Vec::new(),
        metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9911))),
        socket: DEFAULT_SOCKET.into(),
        secret: DEFAULT_SECRET.into(),
        pins: Some(DEFAULT_PINS.into()),
        state: Some(DEFAULT_STATE.into()),
        xdp_mode: XdpMode::Auto,
        half_open_entries: DEFAULT_HALF_OPEN_ENTRIES,
        flow_entries: DEFAULT_FLOW_ENTRIES,
        flow_idle_timeout: DEFAULT_FLOW_IDLE_TIMEOUT,
        verified_entries: DEFAULT_VERIFIED_ENTRIES,
        verified_timeout: DEFAULT_VERIFIED_TIMEOUT,
        syn_cache: false,
        sources: SourceRules {
            listed: Arc::default(),
            syn_budget: 0,
            answer_budget: 0,
        },
        services: vec![Service {
            name: "default".into(),
            ..document::template()
        }],
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let unreadable = |e| {
        let text = format!("cannot be read: {e}; name a file that can be");
        Error::from(Mistake::of_file(path, text))
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(SIZE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        let text = format!("is larger than {SIZE_LIMIT} bytes; is it the right file?");
        return Err(Mistake::of_file(path, text).into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let bytes = e.into_bytes();
        let (valid, rest) = bytes.split_at(at);
        let text = format!(
            "byte {:#04x} is not UTF-8; save the file as UTF-8",
            rest.first().copied().unwrap_or_default()
        );
        Mistake::at_end_of(path, &String::from_utf8_lossy(valid), text).into()
    })
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if !self.interfaces.is_empty() {
            config.interfaces.clone_from(&self.interfaces);
        }
        if let Some(metrics) = self.metrics {
            config.metrics = metrics.into();
        }
        if let Some(pins) = &self.pins {
            config.pins = pins.clone().into();
        }
        if let Some(xdp_mode) = self.xdp_mode {
            config.xdp_mode = xdp_mode;
        }
        if let Some(socket) = &self.socket {
            config.socket.clone_from(socket);
        }
        if let Some(secret) = &self.secret {
            config.secret.clone_from(secret);
        }
        if let Some(state) = &self.state {
            config.state = state.clone().into();
        }
        if let Some(mode) = self.mode {
            for service in &mut config.services {
                service.mode = mode;
            }
        }
    }
}

#[cfg(test)]
mod tests;
