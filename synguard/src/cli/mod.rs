//! The command line. One file per command; this one has what they share: the parser, and how a
//! failure is told.

mod attach;
mod check;
mod completions;
mod config;
mod detach;
mod events;
mod explain;
mod lists;
mod logging;
mod man;
mod mode;
mod reload;
mod run;
mod service;
mod status;
mod top;
mod tune;

use std::{
    env,
    future::Future,
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::{
    config::{DEFAULT_SOCKET, Error as ConfigError},
    control::{
        Done,
        client::{Client, ClientError},
    },
    daemon::NoInterface,
    model::Snapshot,
};

const EXIT_CODES: &str = "\
Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon runs or can be reached.
Whatever is not done is explained by a line on stderr.";
/// The arguments make no sense, as clap has it.
const MISUSED: u8 = 2;
/// No daemon runs, or none can be reached.
const UNREACHABLE: u8 = 3;

/// SYN-flood defence on XDP: answers SYNs with cookies from the NIC driver while a flood lasts.
#[derive(Debug, Parser)]
#[command(name = "synguard", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What is logged: error, warn, info, debug, trace, or a filter such as synguard=debug.
    #[arg(
        long,
        global = true,
        env = "RUST_LOG",
        default_value = "info",
        hide_env = true
    )]
    #[arg(value_name = "LEVEL")]
    log_level: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Status(status::Status),
    Top(top::Top),
    Events(events::Events),
    Service(service::Service),
    Allow(lists::Allow),
    Block(lists::Block),
    Attach(attach::Attach),
    Detach(detach::Detach),
    Mode(mode::SetMode),
    Reload(reload::Reload),
    Explain(explain::Explain),
    Config(config::Config),
    Check(check::Check),
    Tune(tune::Tune),
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(man::Man),
}

/// How commands find the daemon.
#[derive(Debug, Args)]
struct Daemon {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// Runs the command that the process's arguments say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = logging::start(&cli.log_level).and_then(|()| cli.command.execute());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            for line in failure_lines(&e) {
                // Nobody is left to be told when stderr is closed.
                writeln!(io::stderr(), "synguard: {line}").ok();
            }
            exit_code(&e)
        }
    }
}

impl Command {
    fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Run(command) => command.execute(),
            Self::Status(command) => command.execute(),
            Self::Top(command) => command.execute(),
            Self::Events(command) => command.execute(),
            Self::Service(command) => command.execute(),
            Self::Allow(command) => command.execute(),
            Self::Block(command) => command.execute(),
            Self::Attach(command) => command.execute(),
            Self::Detach(command) => command.execute(),
            Self::Mode(command) => command.execute(),
            Self::Reload(command) => command.execute(),
            Self::Explain(command) => command.execute(),
            Self::Config(command) => command.execute(),
            Self::Check(command) => command.execute(),
            Self::Tune(command) => command.execute(),
            Self::Completions(command) => command.execute(),
            Self::Man(command) => command.execute(),
        }
    }
}

impl Daemon {
    /// Runs `exchange` with a client of this daemon.
    fn talk<T, F>(&self, exchange: impl FnOnce(Client) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the client")?;
        runtime.block_on(exchange(Client::new(&self.socket)))
    }

    /// What it knows.
    fn status(&self) -> anyhow::Result<Snapshot> {
        self.talk(|client| async move { Ok(client.status().await?) })
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    // A daemon that nobody told what to guard was used wrongly: no later try will change that.
    if error.is::<NoInterface>() {
        return MISUSED.into();
    }
    match error.downcast_ref::<ClientError>() {
        Some(error) if error.is_unreachable() => UNREACHABLE.into(),
        _ => ExitCode::FAILURE,
    }
}

/// A chain of causes is one line; a configuration file has one line per mistake.
fn failure_lines(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref::<ConfigError>() {
        Some(config) => config.mistakes().map(ToString::to_string).collect(),
        None => vec![crate::one_line(&format!("{error:#}"))],
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Whether stdout takes colours, and whoever reads it wants them.
fn colours() -> bool {
    // https://no-color.org: set, and not empty.
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !plain
}

/// Prints to stdout; a closed pipe is an error here, not a panic.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Prints what was done.
fn print_done(done: &Done, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(done);
    }
    print(&format!("{}\n", done.message))
}

/// Prints what a program reads.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, line: &str) {
            if command.has_subcommands() {
                for each in command.get_subcommands() {
                    check(each, &format!("{line} {}", each.get_name()));
                }
            } else {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains(line), "{line} in {help}");
            }
        }
        check(&Cli::command(), "  synguard");
    }

    #[test]
    fn causes_are_told_on_one_line() {
        let error = anyhow::anyhow!("no such\ndevice").context("cannot attach to eth9");
        assert_eq!(
            failure_lines(&error),
            ["cannot attach to eth9: no such; device"]
        );
    }
}
