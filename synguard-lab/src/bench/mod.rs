//! The bench: what one packet costs on each path, beside floors measured in the same run.
//!
//! A path's cost is *net*: the harness with the program under test less the harness with an empty
//! program, both measured within milliseconds of each other, round after round. What is reported
//! is the least, the median and the greatest of the rounds. The counters of the programs must show that
//! every packet left for the expected reason; a bench of the wrong path is worth nothing.
//!
//! [`tuning`] is another matter: it judges decisions, in simulated time.

mod check;
mod flows;
mod frames;
mod harness;
mod machine;
mod paths;
mod random;
mod report;
mod run;
mod scene;
mod tuning;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use nix::unistd::geteuid;

/// Measure what synguard's programs cost, and judge what its daemon decides.
#[derive(Debug, Parser)]
#[command(name = "synguard-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Nanoseconds per packet on each path, net of the harness, beside floors
    Path(PathArgs),
    /// Detection and false alarms of the self-tuned watermarks on traces of weeks, beside rivals
    Tuning(tuning::Args),
}

/// What `path` can be told.
#[derive(Debug, clap::Args)]
struct PathArgs {
    /// Print the result as JSON to standard output
    #[arg(long)]
    json: bool,

    /// Only paths whose name contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,

    /// How often each path is measured [default: 31 times, or until 45 s have passed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Packets of one measurement, rounded up to whole rings of frames
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    packets: u32,

    /// The CPU to measure on [default: the last one]
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
}

/// Runs the bench; what goes wrong is one line.
pub fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Path(args) => path(&args),
        Command::Tuning(args) => tuning::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synguard-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn path(args: &PathArgs) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "needs root, for network namespaces and eBPF; try sudo, or `cargo xtask bench`, which asks for it"
        );
    }
    let filter = args.filter.as_deref().unwrap_or("");
    let selected: Vec<_> = paths::all()
        .filter(|path| path.name.contains(filter))
        .copied()
        .collect();
    if selected.is_empty() {
        let names: Vec<_> = paths::all().map(|path| path.name).collect();
        bail!(
            "no path's name contains {filter:?}; there are {}",
            names.join(", ")
        );
    }
    let cpu = machine::choose(args.cpu)?;
    eprintln!("{}", machine::describe(cpu));
    if let Some(note) = machine::slow_returns() {
        eprintln!("note: {note}");
    }
    if let Some(warning) = machine::load_warning() {
        eprintln!("warning: {warning}");
    }
    let results = run::run(&selected, args.rounds, args.packets, cpu)?;
    if args.json {
        println!("{}", report::json(&results)?);
    } else {
        println!("{}", report::table(&results));
    }
    Ok(())
}
