//! One phase of the demo: a fresh lab, clients, perhaps a guard, perhaps a flood, and a measurement.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::unistd::Pid;
use serde::Serialize;

use super::{
    live::{Live, Numbers},
    site::{Site, Topology},
};
use crate::{
    cpu::{self, Core, Task},
    flood::{FloodSpec, Kind, Rate},
    guard::Guard,
    http::{HttpServer, ServerOptions},
    load::{LoadClient, LoadOptions, Pattern},
};

/// Legitimate connections begun per second.
const CLIENTS: u32 = 2000;
/// How long clients and flood run before anything is measured; the same in every phase.
const WARM_UP: Duration = Duration::from_millis(2500);
/// How often the live table changes.
const TICK: Duration = Duration::from_millis(500);

/// What all phases share.
pub struct Place {
    /// Where the server is.
    pub topology: Topology,
    /// The CPU that serves and the one that floods.
    pub cpus: [usize; 2],
    /// Set when the user has had enough.
    pub interrupted: Arc<AtomicBool>,
}

/// A phase to be run.
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// Whether there is a flood.
    pub flood: bool,
    /// The synguard that stands in front, if one does.
    pub guard: Option<PathBuf>,
    /// How long is measured.
    pub measured: Duration,
}

/// What a phase has shown.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseResult {
    /// The phase.
    pub name: &'static str,
    /// SYNs of the flood per second.
    pub offered_pps: f64,
    /// SYN-ACKs per second that came back to the flood's sources.
    pub handled_pps: f64,
    /// Legitimate connections begun.
    pub legit_attempted: u64,
    /// Of these, how many got the right answer.
    pub legit_ok: u64,
    /// Median of their time from the scheduled begin to the end of the answer.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the same.
    pub p99_ms: Option<f64>,
    /// CPU time of everything on the server's side, per SYN answered: receive work, server, and
    /// daemon. The work for legitimate connections is in it.
    pub cpu_us_per_syn: Option<f64>,
    /// Share of the two CPUs that went to programs that have nothing to do with the demo.
    #[serde(skip)]
    pub others: f64,
}

/// Counters at one moment.
struct Sample {
    at: Instant,
    offered: u64,
    handled: u64,
    cpu: Duration,
}

impl Sample {
    fn take(site: &Site, tasks: &[Task]) -> Result<Self> {
        let counters = site.counters()?;
        Ok(Self {
            at: Instant::now(),
            offered: counters.sent,
            handled: counters.syn_ack,
            cpu: cpu::time_of(tasks),
        })
    }

    /// SYNs offered and answered per second since then, and CPU time per SYN answered.
    fn since(&self, earlier: &Self) -> (f64, f64, Option<f64>) {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let handled = self.handled - earlier.handled;
        let rate = |count: u64| count as f64 / seconds;
        (
            rate(self.offered - earlier.offered),
            rate(handled),
            cpu::micros_per(self.cpu - earlier.cpu, handled),
        )
    }
}

/// CPU time on the two CPUs, all of it and our own.
struct Usage {
    cores: [Core; 2],
    ours: Duration,
}

impl Usage {
    fn take(place: &Place, site: &Site, server_side: &[Task]) -> Result<Self> {
        let [serve, flood] = place.cpus;
        let mut tasks = cpu::tasks_of(Pid::this())?;
        tasks.extend(site.client_end().napi_threads()?);
        // The server's own thread is among those of this process.
        tasks.extend(
            server_side
                .iter()
                .filter(|task| !tasks.contains(task))
                .copied()
                .collect::<Vec<_>>(),
        );
        Ok(Self {
            cores: [Core::read(serve)?, Core::read(flood)?],
            ours: cpu::time_of(&tasks),
        })
    }

    /// Share of the CPUs that others have had since then, 0 to 1.
    fn others_since(&self, earlier: &Self, seconds: f64) -> f64 {
        let load: f64 = self
            .cores
            .iter()
            .zip(&earlier.cores)
            .map(|(now, then)| now.load_since(*then))
            .sum();
        let ours = self.ours.saturating_sub(earlier.ours).as_secs_f64() / seconds;
        ((load - ours) / 2.0).max(0.0)
    }
}

impl Phase {
    /// Builds a lab, runs the phase in it, and takes the lab down.
    pub fn run(&self, place: &Place, live: &mut Live) -> Result<PhaseResult> {
        live.begin(self.name, "building the lab");
        let [serve, flood] = place.cpus;
        let site = Site::new(place.topology)?;
        let target = site.target();
        let server = HttpServer::start(
            site.server(),
            ServerOptions {
                port: target.port(),
                cpu: Some(serve),
                ..ServerOptions::default()
            },
        )?;
        let guard = self
            .guard
            .as_ref()
            .map(|binary| -> Result<Guard> {
                let guard = Guard::start(binary, site.guarded(), site.services().as_deref())?;
                guard.pin(serve)?;
                Ok(guard)
            })
            .transpose()?;

        let mut tasks = site.pin_napi(serve, flood)?;
        tasks.push(server.task());
        if let Some(guard) = &guard {
            tasks.extend(cpu::tasks_of(guard.pid())?);
        }

        let total = WARM_UP + self.measured;
        let clients = LoadClient::start(
            site.client(),
            LoadOptions {
                sources: site.client_sources(),
                duration: total * 2,
                cpu: Some(flood),
                ..LoadOptions::new(target, Pattern::Open(CLIENTS))
            },
        )?;
        let attack = self
            .flood
            .then(|| {
                site.flood(FloodSpec {
                    duration: total * 2,
                    cpu: Some(flood),
                    ..FloodSpec::new(Kind::Syn, Rate::FlatOut, target)
                })
            })
            .transpose()?;

        live.begin(self.name, "warming up");
        sleep(WARM_UP, place)?;
        clients.restart_measurement()?;
        let usage = Usage::take(place, &site, &tasks)?;
        let first = Sample::take(&site, &tasks)?;
        let mut last = Sample::take(&site, &tasks)?;
        while let Some(left) = self
            .measured
            .checked_sub(first.at.elapsed())
            .filter(|left| !left.is_zero())
        {
            sleep(left.min(TICK), place)?;
            let now = Sample::take(&site, &tasks)?;
            let (offered, handled, cpu) = now.since(&last);
            live.show(
                self.name,
                first.at.elapsed(),
                &Numbers::new(offered, handled, cpu, &clients.snapshot()),
            );
            last = now;
        }
        // The connections under way end under flood, as they began.
        let (offered_pps, handled_pps, cpu_us_per_syn) = last.since(&first);
        let others = Usage::take(place, &site, &tasks)?
            .others_since(&usage, first.at.elapsed().as_secs_f64());
        let report = clients.stop()?;
        if let Some(attack) = attack {
            attack.stop()?;
        }
        if let Some(guard) = guard {
            guard.stop()?;
        }
        live.show_final(
            self.name,
            &Numbers::new(offered_pps, handled_pps, cpu_us_per_syn, &report),
        );
        let rounded =
            |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        Ok(PhaseResult {
            name: self.name,
            offered_pps: rounded(offered_pps, 0),
            handled_pps: rounded(handled_pps, 0),
            legit_attempted: report.attempted,
            legit_ok: report.ok,
            p50_ms: report.latency_ms(50.0).map(|value| rounded(value, 3)),
            p99_ms: report.latency_ms(99.0).map(|value| rounded(value, 3)),
            cpu_us_per_syn: cpu_us_per_syn.map(|value| rounded(value, 3)),
            others,
        })
    }
}

fn sleep(time: Duration, place: &Place) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if place.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}
