//! `synguard explain`: what would become of each packet of a capture.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
};

use clap::Args;

use super::Daemon;
use crate::explain::{self, At, Request, instance::State, link::Direction, report::Form};

/// Say what synguard would do with each packet of a capture, and why.
///
/// The packets are shown to a copy of the programs that guard an interface here, with all that their
/// tables hold, one after the other: what one packet changes, the next one meets. With --config it
/// is fresh programs, filled as at a start of the daemon. Nothing is attached or sent, and what
/// runs does not notice.
///
/// Captures are pcap or pcapng files, as of `tcpdump -w`; `-` is standard input. XDP comes before
/// tcpdump: what it answers or drops is not seen by a capture on the guarded interface itself, but by
/// one on the other side of the wire, or made while the service is calm.
///
/// Connections are looked for in the network namespace that the command runs in, as they are now:
/// packets of one that has ended since belong to none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard explain flood.pcap
  synguard explain flood.pcap --summary --state guarded
  synguard explain flood.pcap --config synguard.toml --long
  synguard explain flood.pcap --at capture --secret /var/lib/synguard/secret
  synguard explain flood.pcap --json | jq -c '.packets[] | select(.verdict == \"drop\")'")]
pub(super) struct Explain {
    /// The capture.
    file: PathBuf,

    /// Show them to fresh programs for this configuration, not to a copy of those at work.
    #[arg(short, long, value_name = "CONFIG")]
    config: Option<PathBuf>,

    /// Guarded interface whose programs are copied; with --config, interface whose addresses count
    /// (may be given more than once; else those that the file names, else all but loopback).
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,

    /// How services stand at the first packet; else as they are, and with --config calm.
    #[arg(long)]
    state: Option<State>,

    /// What the time is: now, or as captured, which takes the secret that the cookies were made with.
    #[arg(long, default_value = "now")]
    at: At,

    /// Master secret that cookie keys are made from, in place of the keys in use (with --config:
    /// random ones).
    #[arg(long, value_name = "PATH", required_if_eq("at", "capture"))]
    secret: Option<PathBuf>,

    /// Which way all packets went; else each one's link header and addresses tell.
    #[arg(long)]
    direction: Option<Direction>,

    /// With each reason, the sentence that says what it means.
    #[arg(long)]
    long: bool,

    /// Only how many packets there were of each kind.
    #[arg(long)]
    summary: bool,

    /// As one JSON object, with a packet to a line.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Explain {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = Request {
            file: self.file,
            config: self.config,
            interfaces: self.interfaces,
            state: self.state,
            at: self.at,
            secret: self.secret,
            direction: self.direction,
            form: Form {
                json: self.json,
                packets: !self.summary,
                long: self.long,
                columns: columns(),
            },
        };
        let daemon = self.daemon;
        // Without it services have no names, and numbers do.
        let status = || {
            daemon
                .talk(|client| async move { Ok(client.status().await?) })
                .ok()
        };
        explain::explain(&request, status, BufWriter::new(io::stdout().lock()))
    }
}

/// Width of the terminal that stdout is, if it is one.
fn columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    // A terminal that does not know is as wide as any.
    Some(if size.ws_col == 0 { 80 } else { size.ws_col })
}
