//! `cargo xtask setup`: finds what compiling eBPF and running the lab take, and installs what is
//! missing. Looking ([`look`]) costs some file accesses, so every other command does it first.

use std::process::ExitCode;

use anyhow::bail;
use ebpf_build::{Missing, Toolchain, Tools};

use crate::sh;

mod debian;
mod install;

/// What a command is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Compile.
    Build,
    /// Make namespaces and run programs in them.
    Lab,
    /// Run the tests.
    Test,
    /// Make a package.
    Package,
    /// Check the sources.
    Lint,
}

/// Something that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A toolchain with the source of `core`.
    EbpfToolchain,
    /// A `bpf-linker` for the toolchain that is there.
    Linker(Missing),
    /// A program that is run.
    Program(&'static Program),
    /// rustfmt and clippy for the user's cargo: this one of them.
    Component(&'static str),
    /// Clippy of the toolchain that compiles eBPF.
    EbpfClippy,
    /// cargo-deny.
    CargoDeny,
}

/// A program that the lab and the tests run.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Debian's package of it.
    pub package: &'static str,
    /// What it is for.
    pub reason: &'static str,
    /// What needs it.
    pub scope: Scope,
    /// How it comes here.
    pub source: Source,
}

/// How a program comes to this machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Its package is installed.
    Installed,
    /// Only this file is taken from its package, and kept with the workspace's tools: installing the
    /// package would start a daemon.
    File(&'static str),
    /// Likewise, but it needs other files of its package, or libraries: its package and what that
    /// depends on are unpacked beside the system.
    Unpacked(&'static str),
}

/// A program that a test sends through a guarded edge.
const fn passenger(name: &'static str, package: &'static str, file: &'static str) -> Program {
    Program {
        name,
        package,
        reason: "a test runs it through a guarded edge",
        scope: Scope::Test,
        source: Source::Unpacked(file),
    }
}

/// A shell for which there are completions.
const fn shell(name: &'static str, source: Source) -> Program {
    Program {
        name,
        package: name,
        reason: "a test has it read its completions",
        scope: Scope::Test,
        source,
    }
}

/// A program that makes a package.
const fn packer(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        reason: "makes the Debian package",
        scope: Scope::Package,
        source: Source::Installed,
    }
}

/// Every program that the lab and the tests run.
pub static PROGRAMS: [Program; 18] = [
    Program {
        name: "ip",
        package: "iproute2",
        reason: "namespaces and veth pairs",
        scope: Scope::Lab,
        source: Source::Installed,
    },
    Program {
        name: "ss",
        package: "iproute2",
        reason: "the tests compare a connection with what the kernel says about it",
        scope: Scope::Test,
        source: Source::Installed,
    },
    Program {
        name: "promtool",
        package: "prometheus",
        reason: "tests check metrics and alerting rules with it",
        scope: Scope::Test,
        source: Source::File("usr/bin/promtool"),
    },
    Program {
        name: "mandoc",
        package: "mandoc",
        reason: "a test checks the manual pages with it",
        scope: Scope::Test,
        source: Source::File("usr/bin/mandoc"),
    },
    shell("zsh", Source::File("bin/zsh")),
    shell("fish", Source::Unpacked("usr/bin/fish")),
    Program {
        name: "prometheus",
        package: "prometheus",
        reason: "a test has it scrape the daemon, and asks it what the dashboard asks",
        scope: Scope::Test,
        source: Source::File("usr/bin/prometheus"),
    },
    packer("dpkg-deb", "dpkg"),
    packer("dpkg-shlibdeps", "dpkg-dev"),
    packer("strip", "binutils"),
    Program {
        name: "tcpdump",
        package: "tcpdump",
        reason: "a test explains what it captured",
        scope: Scope::Test,
        source: Source::Unpacked("usr/bin/tcpdump"),
    },
    passenger("nginx", "nginx", "usr/sbin/nginx"),
    passenger("curl", "curl", "usr/bin/curl"),
    passenger("wrk", "wrk", "usr/bin/wrk"),
    passenger("sshd", "openssh-server", "usr/sbin/sshd"),
    passenger("ssh", "openssh-client", "usr/bin/ssh"),
    passenger("ssh-keygen", "openssh-client", "usr/bin/ssh-keygen"),
    passenger("iperf3", "iperf3", "usr/bin/iperf3"),
];

impl Need {
    /// One line for a person.
    fn describe(&self) -> String {
        match self {
            Self::EbpfToolchain => {
                "a Rust toolchain with the source of `core`, which compiles eBPF".to_owned()
            }
            Self::Linker(missing) => format!("bpf-linker, which links eBPF programs ({missing})"),
            Self::Program(program) => format!("{}: {}", program.name, program.reason),
            Self::Component(name) => format!("cargo {name}"),
            Self::EbpfClippy => "clippy of the toolchain that compiles eBPF".to_owned(),
            Self::CargoDeny => {
                "cargo-deny, which checks licences and sources of dependencies".to_owned()
            }
        }
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Only say what is missing, and fail if anything is
    #[arg(long)]
    check: bool,
    /// Also what `cargo xtask lint` needs
    #[arg(long)]
    lint: bool,
}

/// `cargo xtask setup`
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut scopes = vec![Scope::Build, Scope::Lab, Scope::Test, Scope::Package];
    if args.lint {
        scopes.push(Scope::Lint);
    }
    if args.check {
        let needs = look(&scopes)?;
        for need in &needs {
            println!("missing: {}", need.describe());
        }
        if !needs.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    } else {
        ensure(&scopes)?;
    }
    let tools = Tools::find(&sh::tools_dir()?)?;
    println!(
        "complete: eBPF is compiled by {} (Rust {}.{}, LLVM {}) and linked by {}",
        tools.toolchain.rustc().display(),
        tools.toolchain.version.0,
        tools.toolchain.version.1,
        tools.toolchain.llvm,
        tools.linker.path.display(),
    );
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for `scopes`, or says what to type.
pub fn ensure(scopes: &[Scope]) -> anyhow::Result<()> {
    let needs = look(scopes)?;
    if needs.is_empty() {
        return Ok(());
    }
    for need in &needs {
        eprintln!("setup: missing {}", need.describe());
    }
    install::install(&needs, scopes)?;
    let left = look(scopes)?;
    if !left.is_empty() {
        let left: Vec<_> = left.iter().map(Need::describe).collect();
        bail!("still missing after the set-up: {}", left.join("; "));
    }
    Ok(())
}

/// What is missing for `scopes`.
fn look(scopes: &[Scope]) -> anyhow::Result<Vec<Need>> {
    let tools_dir = sh::tools_dir()?;
    let path = sh::path()?;
    let runs = |program: &str| {
        // Daemons and network tools lie where a user's PATH does not look.
        let places = [path.clone(), "/usr/sbin:/sbin".into()];
        places
            .into_iter()
            .any(|path| which::which_in(program, Some(path), "/").is_ok())
    };
    let mut needs = Vec::new();
    let tools = Tools::find(&tools_dir);
    if scopes.contains(&Scope::Build) {
        match &tools {
            Ok(_) => {}
            Err(Missing::Toolchain { .. }) => {
                needs.push(Need::EbpfToolchain);
                needs.push(Need::Linker(Missing::Linker {
                    looked: "the same place".to_owned(),
                }));
            }
            Err(missing) => needs.push(Need::Linker(missing.clone())),
        }
    }
    let programs = PROGRAMS
        .iter()
        .filter(|p| scopes.contains(&p.scope) && !runs(p.name));
    needs.extend(programs.map(Need::Program));
    if scopes.contains(&Scope::Lint) {
        for component in ["fmt", "clippy"] {
            let mut cargo = sh::cargo()?;
            cargo.args([component, "--version"]);
            if !cargo.output().is_ok_and(|output| output.status.success()) {
                needs.push(Need::Component(component));
            }
        }
        let toolchain = tools
            .ok()
            .map(|tools| tools.toolchain)
            .or_else(Toolchain::preferred);
        if !toolchain.is_some_and(|t| t.bin.join("cargo-clippy").is_file()) {
            needs.push(Need::EbpfClippy);
        }
        if !runs("cargo-deny") {
            needs.push(Need::CargoDeny);
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_one_line() {
        let needs = [
            Need::EbpfToolchain,
            Need::Linker(Missing::Linker {
                looked: "/x".to_owned(),
            }),
            Need::Component("fmt"),
            Need::EbpfClippy,
            Need::CargoDeny,
        ];
        for need in needs.into_iter().chain(PROGRAMS.iter().map(Need::Program)) {
            let line = need.describe();
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
        }
    }
}
