//! The daemon and the command line of synguard, as a library.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
mod http;
pub mod metrics;
pub mod model;

/// `text` on one line, for messages that others wrote.
fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
