//! `tuning`: the watermarks that `auto` chooses, judged on traces instead of taste.
//!
//! Traffic of weeks is generated ([`traces`]) and replayed in simulated time ([`replay`]) to the code that
//! the daemon and the programs run, and to two rivals ([`defences`]). Each sees the same SYNs; what it lets
//! pass is half-open until its client answers ([`world`]).

mod chance;
mod defences;
mod replay;
mod report;
mod traces;
mod traffic;
mod world;

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    replay::{Outcome, replay},
    traces::{Making, Trace},
};

/// What `tuning` can be told.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cargo xtask bench tuning --filter flood")]
pub struct Args {
    /// Print the result as JSON to standard output
    #[arg(long)]
    json: bool,

    /// Only traces whose name contains this
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,

    /// Seed of the traces
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// What every rate of real clients is multiplied by
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    scale: f64,

    /// Weeks of a trace without an attack
    #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = factor)]
    weeks: f64,

    /// Days of peace before an attack
    #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = factor)]
    peace: f64,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (0.01..=100.0).contains(&factor) => Ok(factor),
        _ => Err("give a number from 0.01 to 100".to_owned()),
    }
}

/// Replays the traces and prints what came of it.
pub fn run(args: &Args) -> Result<()> {
    let making = Making {
        seed: args.seed,
        scale: args.scale,
        weeks: args.weeks,
        days_before: args.peace,
    };
    let mut traces = making.all();
    let names: Vec<_> = traces.iter().map(|trace| trace.name).collect();
    traces.retain(|trace| trace.name.contains(&args.filter));
    if traces.is_empty() {
        let filter = &args.filter;
        bail!(
            "no trace's name contains {filter:?}; there are {}",
            names.join(", ")
        );
    }
    let outcomes = replay_all(&traces);
    if args.json {
        println!("{}", report::json(&outcomes)?);
    } else {
        println!("{}", report::table(&outcomes));
    }
    Ok(())
}

/// Replays traces, as many at once as there are CPUs.
fn replay_all(traces: &[Trace]) -> Vec<Outcome> {
    const PARTS: f64 = 1000.0;
    let bar = ProgressBar::new(traces.len() as u64 * PARTS as u64);
    // A template that indicatif does not understand would only cost the colours.
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent}% {msg}") {
        bar.set_style(style);
    }
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(trace) = traces.get(index) else {
                        return;
                    };
                    bar.set_message(format!("{}: {}", trace.name, trace.about));
                    let mut told = 0;
                    let outcome = replay(trace, |share| {
                        let done = (share * PARTS) as u64;
                        bar.inc(done.saturating_sub(told));
                        told = told.max(done);
                    });
                    bar.inc((PARTS as u64).saturating_sub(told));
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    outcomes.push((index, outcome));
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
