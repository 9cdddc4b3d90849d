//! `cargo xtask test`: what runs anywhere first (unit tests, property tests, documentation), then
//! what needs root.
//!
//! Tests in the `tests` folders of the packages that run in the lab need root. They are compiled
//! by the user, optimised (they measure time), and run as root, one at a time (they share the
//! machine's cores with a flood) but for those that mostly wait.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use cargo_metadata::{Message, TargetKind};

use crate::{
    libtest::{self, Counts},
    package,
    run::{self, RUNNING},
    setup::{self, Scope},
    sh::{self, Root},
};

/// Path of the tests that mostly wait, and may do so together.
const PATIENT: &str = "patient::";

/// Packages that are compiled for the kernel.
pub const EBPF: [&str; 2] = ["synguard-ebpf", "synguard-lab-ebpf"];

#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// A compiled binary of tests.
struct Binary {
    executable: PathBuf,
    /// The package's folder: where cargo runs the tests.
    package: PathBuf,
    title: String,
}

/// `cargo xtask test`
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Scope::Build, Scope::Lab, Scope::Test, Scope::Package])?;
    let filter = args.filter.as_deref();
    let mut counts = Counts::default();

    for binary in compile(host_tests()?)? {
        let mut command = Command::new(&binary.executable);
        command.env("PATH", sh::path()?);
        counts += run_binary(&binary, command, filter, &[])?;
    }
    counts += documentation(filter)?;

    let mut refused = None;
    if has_lab_tests() {
        run::build_release()?;
        let deb = package::build(None)?;
        let binaries = compile(vec![lab_tests()?])?;
        let root = Root::find();
        match root.acquire("running the tests of the lab") {
            Ok(()) => {
                for binary in binaries {
                    let run = |filter, arguments: &[&str]| {
                        let vars = run::lab_env()?.into_iter().chain([
                            ("CARGO_MANIFEST_DIR", OsString::from(&binary.package)),
                            ("SYNGUARD_DEB", OsString::from(&deb)),
                        ]);
                        let command = root.command(&binary.executable, vars);
                        run_binary(&binary, command, filter, arguments)
                    };
                    if filter.is_some() {
                        counts += run(filter, &["--test-threads=1"])?;
                    } else {
                        counts += run(None, &["--test-threads=1", "--skip", PATIENT])?;
                        counts += run(Some(PATIENT), &["--test-threads=3"])?;
                    }
                }
            }
            Err(error) => refused = Some(error),
        }
    }

    println!(
        "\n{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    if let Some(error) = refused {
        return Err(error.context("the tests of the lab did not run"));
    }
    if let Some(filter) = filter
        && counts == Counts::default()
    {
        bail!("no test has `{filter}` in its name");
    }
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `cargo test` commands for the binaries that need no root.
fn host_tests() -> anyhow::Result<Vec<Command>> {
    let mut units = sh::cargo()?;
    units.args(["test", "--workspace", "--lib", "--bins"]);
    for package in EBPF {
        units.args(["--exclude", package]);
    }
    let mut commands = vec![units];
    for package in workspace_members()? {
        if !EBPF.contains(&&*package) && !RUNNING.contains(&&*package) && has_tests(&package) {
            let mut cargo = sh::cargo()?;
            cargo.args(["test", "--package", &package, "--test", "*"]);
            commands.push(cargo);
        }
    }
    Ok(commands)
}

/// The `cargo test` command for the binaries that need root.
fn lab_tests() -> anyhow::Result<Command> {
    let mut cargo = sh::cargo()?;
    cargo.args(["test", "--release", "--test", "*"]);
    for package in RUNNING {
        cargo.args(["--package", package]);
    }
    Ok(cargo)
}

fn has_lab_tests() -> bool {
    RUNNING.iter().any(|package| has_tests(package))
}

/// Whether a package has a test that is a binary of its own.
fn has_tests(package: &str) -> bool {
    let tests = fs::read_dir(ebpf_build::workspace().join(package).join("tests"));
    tests.into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file()
    })
}

fn workspace_members() -> anyhow::Result<BTreeSet<String>> {
    let mut command = cargo_metadata::MetadataCommand::new();
    command.current_dir(ebpf_build::workspace()).no_deps();
    let metadata = command.exec().context("cannot read the workspace")?;
    Ok(metadata
        .packages
        .iter()
        .map(|package| package.name.to_string())
        .collect())
}

/// Compiles the tests that `commands` would run.
fn compile(commands: Vec<Command>) -> anyhow::Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for mut command in commands {
        command
            .args(["--no-run", "--message-format=json-render-diagnostics"])
            .stdout(Stdio::piped());
        let typed = sh::typed(&command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {typed}"))?;
        let stdout = child.stdout.take().context("cargo has no output")?;
        for message in Message::parse_stream(BufReader::new(stdout)) {
            let message = message.with_context(|| format!("cannot read what {typed} says"))?;
            if let Message::CompilerArtifact(artifact) = message
                && artifact.profile.test
                && let Some(executable) = artifact.executable
                && let Some(package) = artifact.manifest_path.parent()
            {
                let what = match artifact.target.kind.first() {
                    Some(TargetKind::Test) => format!("tests/{}", artifact.target.name),
                    Some(TargetKind::Bin) => format!("bin {}", artifact.target.name),
                    _ => "lib".to_owned(),
                };
                binaries.push(Binary {
                    title: format!("{}: {what}", package.file_name().unwrap_or_default()),
                    executable: executable.into_std_path_buf(),
                    package: package.to_path_buf().into_std_path_buf(),
                });
            }
        }
        if !child
            .wait()
            .with_context(|| format!("cannot wait for {typed}"))?
            .success()
        {
            bail!("the tests do not compile, see above");
        }
    }
    Ok(binaries)
}

/// Runs one binary.
fn run_binary(
    binary: &Binary,
    mut command: Command,
    filter: Option<&str>,
    arguments: &[&str],
) -> anyhow::Result<Counts> {
    command
        .arg("--show-output")
        .args(arguments)
        .args(filter)
        .current_dir(&binary.package);
    count(&binary.title, command)
}

/// Runs the examples in the documentation.
fn documentation(filter: Option<&str>) -> anyhow::Result<Counts> {
    let mut cargo = sh::cargo()?;
    cargo.args(["test", "--quiet", "--doc", "--workspace"]);
    for package in EBPF {
        cargo.args(["--exclude", package]);
    }
    // Without `--no-fail-fast` the first package that fails would be the last.
    cargo
        .args(["--no-fail-fast", "--", "--format=pretty", "--show-output"])
        .args(filter);
    count("documentation", cargo)
}

fn count(title: &str, mut command: Command) -> anyhow::Result<Counts> {
    let typed = sh::typed(&command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {typed}"))?;
    let stdout = child.stdout.take().context("the tests have no output")?;
    let (mut counts, complete) = libtest::read(title, stdout, io::stdout().lock())
        .with_context(|| format!("cannot read the results of {title}"))?;
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {typed}"))?;
    if !status.success() && (!complete || counts.failed == 0) {
        println!("{title}: died without a result ({status})");
        counts.failed += 1;
    }
    Ok(counts)
}
