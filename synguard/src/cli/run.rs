//! `synguard run`: the daemon.

use std::path::PathBuf;

use clap::Args;

use crate::{
    config::{MetricsAddress, Overrides, PinDirectory, StateDirectory},
    daemon::{self, RunArgs},
    model::{Mode, XdpMode},
};

/// Guard interfaces. SIGTERM stops the daemon and leaves the interfaces guarded, for the next one to
/// take over; SIGINT (Ctrl-C) takes the guard off, too.
///
/// Without a configuration file every TCP listener on the interfaces' own addresses is protected.
/// What is said here wins over the file, also when it is reloaded (SIGHUP or `synguard reload`).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard run -i eth0
  synguard run --config /etc/synguard/synguard.toml
  synguard run -i eth0 -i eth1 --config /etc/synguard/synguard.toml
  synguard run -i eth0 --mode observe --metrics off")]
pub(super) struct Run {
    /// Interface to guard; may be given more than once. Wins over `interfaces` of the file.
    #[arg(
        short,
        long = "interface",
        value_name = "IFACE",
        required_unless_present = "config"
    )]
    interfaces: Vec<String>,

    /// Configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Mode of every service, whatever the file says.
    #[arg(long)]
    mode: Option<Mode>,

    /// Where Prometheus scrapes: IP:PORT, or `off`.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<MetricsAddress>,

    /// Where what outlives the daemon is pinned: a directory below /sys/fs/bpf, or `off`.
    #[arg(long, value_name = "DIR", overrides_with = "pins")]
    pins: Option<PinDirectory>,

    /// How XDP is attached; `native` forbids falling back.
    #[arg(long)]
    xdp_mode: Option<XdpMode>,

    /// The control socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// File with the master secret of the cookies; made when missing.
    #[arg(long, value_name = "PATH")]
    secret: Option<PathBuf>,

    /// Directory for what outlives the daemon, such as events; or `off`.
    #[arg(long, value_name = "PATH")]
    state: Option<StateDirectory>,
}

impl Run {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        daemon::run(RunArgs {
            config_path: self.config,
            overrides: Overrides {
                interfaces: self.interfaces,
                metrics: self.metrics,
                pins: self.pins,
                mode: self.mode,
                xdp_mode: self.xdp_mode,
                socket: self.socket,
                secret: self.secret,
                state: self.state,
            },
        })
    }
}
