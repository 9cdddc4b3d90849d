//! Where log lines go: stderr, which systemd sends to the journal.

use std::{env, io, io::IsTerminal};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

/// Logs what `filter` lets through. Under the journal, which stamps lines itself, without time.
pub(super) fn start(filter: &str) -> anyhow::Result<()> {
    let right = "give error, warn, info, debug or trace, or a filter such as synguard=debug";
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("`{filter}` is no log level; {right}"))?;
    let subscriber = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        // Told on stderr, where it has just failed, that panics: a full disk would end the daemon.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let started = if env::var_os("JOURNAL_STREAM").is_some() {
        subscriber.without_time().try_init()
    } else {
        subscriber.try_init()
    };
    started.map_err(|e| anyhow::anyhow!("cannot start logging: {e}"))
}
