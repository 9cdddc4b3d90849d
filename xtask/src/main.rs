//! Everything one does with this repository besides cargo.
//!
//! Standard output belongs to what a command is asked for (test results, `--json`); progress and
//! the output of compilers go to standard error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod libtest;
mod lint;
mod package;
mod pictures;
mod progress;
mod run;
mod setup;
mod sh;
mod test;

/// Sets up, builds, tests and shows synguard. Every command first installs what it needs and does
/// not find.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what compiling eBPF and running the lab take, where it is missing
    #[command(after_help = "Example: cargo xtask setup --check")]
    Setup(setup::Args),
    /// Compile everything
    #[command(after_help = "Example: cargo xtask build --release")]
    Build(run::BuildArgs),
    /// Run the tests: on the host, then in network namespaces (as root or through sudo)
    #[command(after_help = "Example: cargo xtask test cookie")]
    Test(test::Args),
    /// Check formatting, lints of userspace and eBPF, and the licences and sources of dependencies
    #[command(after_help = "Example: cargo xtask lint")]
    Lint,
    /// Flood a real server, without and with synguard, and watch its clients
    #[command(
        after_help = "Everything after `demo` goes to synguard-demo.\nExample: cargo xtask demo --topology routed"
    )]
    Demo(run::PassArgs),
    /// Measure, for example what one packet costs on each path
    #[command(
        after_help = "Everything after `bench` goes to synguard-bench.\nExample: cargo xtask bench path --json, or cargo xtask bench tuning"
    )]
    Bench(run::PassArgs),
    /// Make the pictures of the documents anew, from what really happens in the lab
    #[command(after_help = "Example: cargo xtask pictures top")]
    Pictures(pictures::Args),
    /// Make a Debian package of the optimised binary
    #[command(after_help = "Example: cargo xtask package --out /tmp")]
    Package(package::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => run::build(&args),
        Command::Test(args) => test::run(&args),
        Command::Lint => lint::run(),
        Command::Demo(args) => run::exec("synguard-demo", &args),
        Command::Bench(args) => run::exec("synguard-bench", &args),
        Command::Pictures(args) => pictures::run(&args),
        Command::Package(args) => package::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
