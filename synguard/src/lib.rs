//! The daemon and the command line of synguard, as a library.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod explain;
mod fold;
mod http;
mod human;
pub mod journal;
pub mod lists;
pub mod metrics;
pub mod model;
pub mod top;
pub mod tune;

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path};

/// Makes the directory of a file, with this mode unless it is there already, and says which it is.
fn make_parent(file: &Path, mode: u32) -> io::Result<&Path> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(directory)?;
    Ok(directory)
}

/// `text` on one line, for messages that others wrote.
fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
