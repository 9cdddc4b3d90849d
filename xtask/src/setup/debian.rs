//! Debian 12: which packages fill a need, and how they are installed.

use std::{
    cell::Cell,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};

use super::{Need, Program, Source};
use crate::{
    progress,
    sh::{self, Root},
};

/// Packages of the toolchain that compiles eBPF. Debian carries a current Rust beside the one of
/// the release, for its web browsers; `gcc` and the C library's headers come with it.
const TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What those packages conflict with, all of which would be too old to compile this workspace.
const CONFLICTS: [&str; 5] = ["rustc", "cargo", "rust-src", "rust-clippy", "rustfmt"];

/// Whether this is Debian 12.
pub fn is_here() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| is_debian_12(&text))
}

fn is_debian_12(os_release: &str) -> bool {
    let has = |line: &str| os_release.lines().any(|l| l.replace('"', "") == line);
    has("ID=debian") && has("VERSION_ID=12")
}

/// Packages to install, in a fixed order, each once. LLVM's are not among them: their version
/// depends on the compiler that these install.
pub fn packages(needs: &[Need]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for need in needs {
        match need {
            Need::EbpfToolchain => packages.extend(TOOLCHAIN),
            Need::Program(Program {
                package,
                source: Source::Installed,
                ..
            }) => packages.push(package),
            Need::EbpfClippy => packages.push("rust-web-clippy"),
            // The cargo is Debian's own (rustup's gets these from rustup).
            Need::Component("fmt") => packages.push("rustfmt-web"),
            Need::Component(_) => packages.push("rust-web-clippy"),
            Need::Linker(_) | Need::CargoDeny | Need::Program(_) => {}
        }
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// apt-get, as root.
pub struct Apt {
    root: Root,
    updated: Cell<bool>,
}

impl Apt {
    /// Nothing is run yet.
    pub fn new() -> Self {
        Self {
            root: Root::find(),
            updated: Cell::new(false),
        }
    }

    /// The command that installs `packages`.
    fn command(&self, arguments: &[&str]) -> Command {
        let vars = [("DEBIAN_FRONTEND", OsString::from("noninteractive"))];
        let mut apt = self.root.command("apt-get", vars);
        apt.args(arguments);
        apt
    }

    /// Fetches the lists of packages, once.
    fn update(&self) -> anyhow::Result<()> {
        if !self.updated.replace(true) {
            progress::run("apt-get update", self.command(&["update"]))?;
        }
        Ok(())
    }

    /// Installs `packages`; removes nothing.
    pub fn install(&self, packages: &[&str]) -> anyhow::Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let by_hand = format!(
            "apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
        if packages.iter().any(|p| p.contains("-web")) {
            let conflicts = installed(&CONFLICTS)?;
            if !conflicts.is_empty() {
                bail!(
                    "Debian's packages {} are too old and exclude {}; type, as root: apt-get remove {}",
                    conflicts.join(", "),
                    packages.join(", "),
                    conflicts.join(" "),
                );
            }
        }
        self.root
            .acquire("installing packages")
            .map_err(|error| anyhow!("{error}; type, as root: {by_hand}"))?;
        self.update()?;
        // `--no-remove`: whatever stands in the way is for a person to judge.
        let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
        arguments.extend(packages);
        let label = format!("apt-get install {}", packages.join(" "));
        progress::run(&label, self.command(&arguments))
    }

    /// Runs `apt-get` with `arguments` in `folder`. As the user; where that fails, once more with new
    /// lists of packages, which only root can fetch.
    fn fetch(&self, arguments: &[OsString], folder: &Path) -> anyhow::Result<()> {
        let apt = || {
            let mut apt = Command::new("apt-get");
            apt.args(arguments).current_dir(folder);
            apt
        };
        if !apt().output().is_ok_and(|output| output.status.success()) {
            self.root
                .acquire("apt-get update")
                .map_err(|error| anyhow!("{error}; type, as root: apt-get update"))?;
            self.update()?;
            progress::run(&sh::typed(&apt()), apt())?;
        }
        Ok(())
    }

    /// Puts the file `inside` of `package` into the folder `bin`, without installing the package.
    pub fn extract(&self, package: &str, inside: &str, bin: &Path) -> anyhow::Result<()> {
        let work = Work::new(bin.with_file_name(format!("{package}.tmp")))?;
        fs::create_dir_all(bin).with_context(|| format!("cannot make {}", bin.display()))?;
        self.fetch(&["download".into(), package.into()], &work.0)?;
        let root = work.0.join("root");
        unpack_all(&work.0, &root)?;
        let file = root.join(inside);
        fs::rename(&file, bin.join(file_name(inside)?))
            .with_context(|| format!("{package} has no {inside}"))
    }

    /// Unpacks `package`, and what it depends on that is not installed, into the folder of tools,
    /// with a script that runs `inside` from there. Nothing is installed.
    pub fn unpack(&self, package: &str, inside: &str, tools: &Path) -> anyhow::Result<()> {
        let (root, bin) = (tools.join(UNPACKED), tools.join("bin"));
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        if !root.join(inside).is_file() {
            let work = Work::new(tools.join(format!("{package}.tmp")))?;
            let mut archives = OsString::from("Dir::Cache::Archives=");
            archives.push(&work.0);
            let words = "install --download-only --reinstall --yes --no-install-recommends \
                         -o Debug::NoLocking=1 -o APT::Sandbox::User= -o";
            let words = words.split_whitespace().map(OsString::from);
            let arguments: Vec<_> = words.chain([archives, package.into()]).collect();
            self.fetch(&arguments, &work.0)?;
            unpack_all(&work.0, &root)?;
        }
        if !root.join(inside).is_file() {
            bail!("{package} has no {inside}");
        }
        let script = bin.join(file_name(inside)?);
        fs::write(&script, runner(inside))
            .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", script.display()))
    }
}

/// The folder of unpacked packages among the tools.
const UNPACKED: &str = "unpacked";

/// A script beside [`UNPACKED`] that runs a program in it with its libraries.
fn runner(inside: &str) -> String {
    format!(
        "#!/bin/sh\n\
         # Made by cargo xtask setup: a program that is not installed, with the libraries it came with.\n\
         root=$(dirname \"$(dirname \"$(realpath \"$0\")\")\")/{UNPACKED}\n\
         for folder in \"$root\"/usr/lib/*-linux-gnu \"$root\"/lib/*-linux-gnu; do\n    \
             LD_LIBRARY_PATH=$folder${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
         done\n\
         export LD_LIBRARY_PATH\n\
         exec \"$root/{inside}\" \"$@\"\n"
    )
}

fn file_name(inside: &str) -> anyhow::Result<&OsStr> {
    let name = Path::new(inside).file_name();
    name.with_context(|| format!("{inside} names no file"))
}

/// Unpacks every package in a folder.
fn unpack_all(archives: &Path, root: &Path) -> anyhow::Result<()> {
    let mut unpacked = 0;
    let entries = fs::read_dir(archives);
    for entry in entries.with_context(|| format!("cannot read {}", archives.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(&path).arg(root);
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            progress::run(&format!("unpack {name}"), unpack)?;
            unpacked += 1;
        }
    }
    if unpacked == 0 {
        bail!("apt-get left no package in {}", archives.display());
    }
    Ok(())
}

/// A folder to work in, empty at first, removed at the end.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> anyhow::Result<Self> {
        // Left over from an interrupted run.
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // `partial` is apt's.
        fs::create_dir_all(path.join("partial"))
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("setup: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Those of `packages` that are installed.
fn installed(packages: &[&'static str]) -> anyhow::Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query")?;
    // It fails where it knows nothing of a package, and still tells about the others.
    let known = sh::text(&output.stdout);
    Ok(packages
        .iter()
        .copied()
        .filter(|package| {
            known
                .lines()
                .any(|line| line == format!("installed {package}"))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::PROGRAMS;
    use ebpf_build::Missing;

    #[test]
    fn knows_debian_12_only() {
        assert!(is_debian_12(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n"
        ));
        assert!(!is_debian_12("ID=debian\nVERSION_ID=\"13\"\n"));
        assert!(!is_debian_12(
            "ID=ubuntu\nVERSION_ID=\"12\"\nID_LIKE=debian\n"
        ));
    }

    #[test]
    fn each_package_once_and_never_a_daemon() {
        let mut needs: Vec<_> = PROGRAMS.iter().map(Need::Program).collect();
        needs.push(Need::EbpfToolchain);
        needs.push(Need::Linker(Missing::Linker {
            looked: String::new(),
        }));
        assert_eq!(
            packages(&needs),
            [
                "binutils",
                "cargo-web",
                "dpkg",
                "dpkg-dev",
                "iproute2",
                "rust-web-src",
                "rustc-web"
            ]
        );
        assert_eq!(
            packages(&[
                Need::Component("fmt"),
                Need::Component("clippy"),
                Need::EbpfClippy,
                Need::CargoDeny
            ]),
            ["rust-web-clippy", "rustfmt-web"]
        );
    }
}
