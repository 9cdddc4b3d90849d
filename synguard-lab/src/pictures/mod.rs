//! `synguard-pictures`: pictures for the documents, of what really happens in the lab. Each is
//! printed to standard output.

mod dashboard;
mod svg;
mod top;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use nix::unistd::geteuid;

/// Pictures for the documents, of what really happens in the lab.
#[derive(Debug, Parser)]
#[command(name = "synguard-pictures", version)]
struct Args {
    #[command(subcommand)]
    picture: Picture,

    /// The synguard to show
    #[arg(long, env = "SYNGUARD_BIN", value_name = "FILE", global = true)]
    synguard: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Picture {
    /// The Grafana dashboard, as a real Prometheus fills it in a minute and a half, as SVG
    Dashboard,
    /// `synguard top` while a flood lasts, as SVG
    Top {
        /// Of a short flood: only to see that it can be made
        #[arg(long)]
        brief: bool,
    },
}

/// Prints a picture; what goes wrong is one line.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synguard-pictures: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "needs root, for network namespaces and eBPF; try sudo, or `cargo xtask pictures`, which asks for it"
        );
    }
    let synguard = crate::guard::binary(args.synguard.as_deref())?;
    let picture = match args.picture {
        Picture::Dashboard => dashboard::picture(&synguard)?,
        Picture::Top { brief } => top::picture(&synguard, brief)?,
    };
    io::stdout()
        .write_all(picture.as_bytes())
        .context("cannot print the picture")
}
