//! Runs long commands quietly: a spinner with the last line of output on a terminal, one line at
//! the start and one at the end elsewhere, the tail of the output when a command fails.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, IsTerminal as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::sh;

/// Lines of output shown when a command fails.
const TAIL: usize = 25;

/// Runs `command` to its end; `label` says what it does.
pub fn run(label: &str, mut command: Command) -> anyhow::Result<()> {
    let started = Instant::now();
    let bar = if io::stderr().is_terminal() {
        let style =
            ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix}  {wide_msg:.dim}")?;
        let bar = ProgressBar::new_spinner()
            .with_style(style)
            .with_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    } else {
        eprintln!("setup: {label} ...");
        ProgressBar::hidden()
    };

    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer)
        .spawn();
    let typed = sh::typed(&command);
    // The command holds the writing ends; the reader below would wait for them for ever.
    drop(command);
    let mut child = spawned.with_context(|| format!("cannot run {typed}"))?;

    let mut tail = VecDeque::with_capacity(TAIL);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .with_context(|| format!("cannot read what {typed} says"))?
        > 0
    {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() {
            bar.set_message(text.clone());
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(text);
        }
        line.clear();
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {typed}"))?;
    bar.finish_and_clear();
    if !status.success() {
        for line in tail {
            eprintln!("  {line}");
        }
        bail!("{label} failed ({status}): {typed}");
    }
    eprintln!("setup: {label}: {} s", started.elapsed().as_secs());
    Ok(())
}
