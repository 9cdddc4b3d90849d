//! The demo: the same flood and the same legitimate clients, first against the bare kernel, then with
//! synguard in front.

mod live;
mod phase;
mod site;
mod summary;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::{
    sched::sched_getaffinity,
    unistd::{Pid, geteuid},
};

use crate::guard;
use live::Live;
use phase::{Phase, Place};
use site::Topology;

/// Flood a real server in a lab of network namespaces, without and with synguard in front.
///
/// Three phases: `calm` (no flood), `kernel` (a SYN flood as fast as one core can, against the
/// kernel's own SYN cookies) and `synguard` (the same flood). All the while 2,000 clients a second
/// connect, ask and read. One core serves, with all machines on the server's side of the wire, the
/// other floods and runs the clients.
#[derive(Debug, Parser)]
#[command(name = "synguard-demo", version)]
struct Args {
    /// Where the server is
    #[arg(long, value_enum, default_value_t = Topology::Local)]
    topology: Topology,

    /// Seconds measured in the phase `kernel`; half of it for `calm`, a third more for `synguard`
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,

    /// Print the result as JSON to standard output
    #[arg(long)]
    json: bool,

    /// Go on with the next phase when one fails
    #[arg(long)]
    keep_going: bool,

    /// The synguard to show
    #[arg(long, env = "SYNGUARD_BIN", value_name = "FILE")]
    synguard: Option<PathBuf>,
}

/// Runs the demo; what goes wrong is one line.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synguard-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "needs root, for network namespaces and eBPF; try sudo, or `cargo xtask demo`, which asks for it"
        );
    }
    let place = Place {
        topology: args.topology,
        cpus: two_cpus()?,
        interrupted: watch_for_interrupt()?,
    };
    let synguard = guard::binary(args.synguard.as_deref())?;
    let measured = Duration::from_secs(args.seconds);
    let phases = [
        Phase {
            name: "calm",
            flood: false,
            guard: None,
            measured: (measured / 2).max(Duration::from_secs(1)),
        },
        Phase {
            name: "kernel",
            flood: true,
            guard: None,
            measured,
        },
        Phase {
            name: "synguard",
            flood: true,
            guard: Some(synguard),
            measured: measured * 4 / 3,
        },
    ];

    let mut live = Live::new(phases.iter().map(|phase| phase.name));
    let (mut results, mut failures) = (Vec::new(), Vec::new());
    for phase in &phases {
        match phase.run(&place, &mut live) {
            Ok(result) => results.push(result),
            Err(error) => {
                let error = error.context(format!("phase {}", phase.name));
                live.failed(phase.name);
                if !args.keep_going || place.interrupted.load(Ordering::Relaxed) {
                    return Err(error);
                }
                failures.push(error);
            }
        }
    }
    live.finish();
    eprintln!("{}", summary::table(&results));
    if let Some(sentence) = summary::sentence(&results) {
        eprintln!("{sentence}");
    }
    if let Some(note) = summary::disturbance(&results) {
        eprintln!("{note}");
    }
    if args.json {
        println!("{}", summary::json(&results)?);
    }
    for failure in &failures {
        eprintln!("{failure:#}");
    }
    if !failures.is_empty() {
        bail!("{} of {} phases failed", failures.len(), phases.len());
    }
    Ok(())
}

/// One CPU to serve and one to flood.
fn two_cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs there are")?;
    let mut cpus =
        (0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(serve), Some(flood)) => Ok([serve, flood]),
        _ => bail!("needs two CPUs, one to serve and one to flood; there is one"),
    }
}

/// A flag that an interrupt sets, so that the lab is taken down before the program ends.
fn watch_for_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let ours = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                ours.store(true, Ordering::Relaxed);
            }
        })
        .context("cannot start a thread")?;
    Ok(flag)
}
