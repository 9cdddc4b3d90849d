//! `synguard explain`: what the programs would do with each packet of a capture, and why.
//!
//! Each packet is shown to programs that no interface has, by `BPF_PROG_TEST_RUN`: a copy of those at
//! work with all that their tables hold ([`running`]), or fresh ones for a configuration
//! ([`planned`]). They decide as the real ones would, from one packet to the next: a SYN that is
//! tracked counts, and may turn a service guarded. Nothing is sent, nothing is counted elsewhere, and
//! nothing of the daemon's is written.
//!
//! What does not come from the tables is that of the moment and of the network namespace that the
//! command runs in: the sockets, so that a connection that has ended since is unknown to them; and
//! there is no daemon to turn a service calm or to forget half-open connections. `synguard_admit` is
//! not run: a test run is no TC ingress, where alone a socket can be made. What it would be shown is
//! known by its reason, `cookie_valid`.

pub mod capture;
pub mod headers;
pub mod instance;
pub mod link;
mod planned;
pub mod report;
mod running;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    capture::{Capture, Captured},
    headers::Headers,
    instance::{Instance, State},
    link::Direction,
    report::{Against, Form, NotRun, Report},
    running::Running,
};
use crate::{
    daemon::{
        links::{Netlink, World},
        secret::{self, Secret},
        startup,
    },
    model::Snapshot,
};

/// A wait that is not worth a progress bar.
const SHORT: Duration = Duration::from_millis(500);
/// Packets between two looks at the clock.
const STEP: u64 = 256;

/// Which clock the programs go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum At {
    /// The present, as if the packets came one after the other now.
    Now,
    /// When each packet was captured.
    Capture,
}

/// What to explain, and against what.
#[derive(Clone, Debug)]
pub struct Request {
    /// The capture; `-` is standard input.
    pub file: PathBuf,
    /// Fresh programs for this configuration, in place of a copy of those at work.
    pub config: Option<PathBuf>,
    /// Interfaces to go by.
    pub interfaces: Vec<String>,
    /// How services stand at the beginning; else as they are.
    pub state: Option<State>,
    /// Which clock the programs go by.
    pub at: At,
    /// Master secret of the cookies in the capture.
    pub secret: Option<PathBuf>,
    /// Which way every packet went.
    pub direction: Option<Direction>,
    /// What to write.
    pub form: Form,
}

/// Explains a capture on `out`. `status` asks the daemon how it stands, for the names of its services.
pub fn explain(
    request: &Request,
    status: impl FnOnce() -> Option<Snapshot>,
    out: impl Write,
) -> anyhow::Result<()> {
    // What is wrong with the file is said before anything that takes time, or rights.
    let mut capture = Capture::open(&request.file)?;
    let mut packet = Captured::default();
    let mut more = capture.next(&mut packet)?;
    let secret = request.secret.as_deref().map(secret::existing);
    let secret = secret.transpose()?;
    startup::check_capabilities_to_test()?;
    let (mut instance, interface) = load(request, status)?;
    set_keys(&mut instance, request, secret)?;
    // Services of fresh programs start calm; where some are always guarded, what cannot be told
    // apart is guarded too.
    let start = request.config.as_ref().map(|_| State::Calm);
    if let Some(state) = request.state.or(start) {
        instance.set_state(state)?;
    }

    let against = Against {
        file: display(&request.file),
        interface,
        config: request.config.as_deref().map(display),
        clock: match request.at {
            At::Now => "now",
            At::Capture => "capture",
        },
    };
    let services = instance.services.clone();
    let mut report = Report::begin(out, request.form, &against, services)?;
    let mut progress = Progress::new(request);
    let mut broken = None;
    while more {
        tell(&mut instance, request.direction, &packet, &mut report)
            .with_context(|| format!("packet {}", packet.number))?;
        progress.follow(&capture, packet.number);
        more = match capture.next(&mut packet) {
            Ok(more) => more,
            Err(error) => {
                broken = Some(error);
                false
            }
        };
    }
    progress.finish();
    report.end(broken.is_none())?;
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// The programs, and the interface whose they are a copy of.
fn load(
    request: &Request,
    status: impl FnOnce() -> Option<Snapshot>,
) -> anyhow::Result<(Instance, Option<String>)> {
    let world = discover()?;
    if let Some(config) = &request.config {
        return Ok((planned::plan(config, &request.interfaces, &world)?, None));
    }
    let name = match request.interfaces.as_slice() {
        [] => None,
        [name] => Some(name.as_str()),
        _ => anyhow::bail!("--interface: name one, or explain with --config FILE"),
    };
    let running = Running::find(&world, name)?;
    let device = &running.interface.device;
    // The socket may be that of a daemon in another network namespace.
    let status = status().filter(|status| {
        let mut interfaces = status.interfaces.iter();
        interfaces.any(|at| (at.index, &at.name) == (device.index, &device.name))
    });
    let names: BTreeMap<u16, String> = status
        .map(|status| status.services)
        .unwrap_or_default()
        .into_iter()
        .map(|service| (service.number, service.name))
        .collect();
    Ok((running.copy(&names)?, Some(device.name.clone())))
}

fn set_keys(
    instance: &mut Instance,
    request: &Request,
    secret: Option<Secret>,
) -> anyhow::Result<()> {
    match (secret, request.at) {
        (Some(secret), At::Capture) => instance.replay(&secret),
        (Some(secret), At::Now) => Ok(instance.set_secret(&secret)?),
        (None, _) if request.config.is_some() => {
            let secret = Secret::random().context("cannot get random numbers")?;
            Ok(instance.set_secret(&secret)?)
        }
        (None, _) => Ok(()),
    }
}

/// Shows one packet to the programs, and tells what they said.
fn tell(
    instance: &mut Instance,
    direction: Option<Direction>,
    packet: &Captured,
    report: &mut Report<impl Write>,
) -> anyhow::Result<()> {
    let Some(frame) = link::frame(packet.link, &packet.bytes) else {
        let headers = Headers::read(&[]);
        return Ok(report.add(packet, &headers, None, Err(NotRun::Link))?);
    };
    let headers = Headers::read(&frame.bytes);
    if packet.is_cut() {
        return Ok(report.add(packet, &headers, None, Err(NotRun::Cut))?);
    }
    let direction = match direction {
        Some(direction) => direction,
        None => instance.direction(&frame, &headers)?,
    };
    let said = instance.ask(&frame.bytes, &headers, direction, packet.time)?;
    Ok(report.add(packet, &headers, Some(direction), Ok(said))?)
}

fn discover() -> anyhow::Result<World> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async { Netlink::connect()?.discover().await })
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// A bar on a terminal, where lines do not go there already and it takes long enough to wonder.
struct Progress {
    wanted: bool,
    length: u64,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(request: &Request) -> Self {
        let silent = !request.form.packets || request.form.columns.is_none();
        let length = fs::metadata(&request.file).map_or(0, |file| file.len());
        Self {
            wanted: silent && length > 0 && io::stderr().is_terminal(),
            length,
            begun: Instant::now(),
            bar: None,
        }
    }

    fn follow(&mut self, capture: &Capture, packets: u64) {
        if !self.wanted || !packets.is_multiple_of(STEP) || self.begun.elapsed() < SHORT {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(self.length);
            // A template of ours; should it be wrong, the usual one is as good.
            let template = "{bar:40} {percent:>3} %, {msg} packets, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(packets.to_string());
        bar.set_position(capture.consumed());
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
