//! Debian 12: which packages fill a need, and how they are installed.

use std::{cell::Cell, ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Context as _, anyhow, bail};

use super::{Need, Program};
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
                extract: None,
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

    /// Puts the file `inside` of `package` into the folder `bin`, without installing the package.
    pub fn extract(&self, package: &str, inside: &str, bin: &Path) -> anyhow::Result<()> {
        let work = bin.with_file_name(format!("{package}.tmp"));
        // Left over from an interrupted run.
        if work.exists() {
            fs::remove_dir_all(&work)
                .with_context(|| format!("cannot remove {}", work.display()))?;
        }
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        fs::create_dir_all(bin).with_context(|| format!("cannot make {}", bin.display()))?;
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["download", package]).current_dir(&work);
            apt
        };
        // This needs no root, unless the lists of packages are missing or old.
        if !download()
            .output()
            .is_ok_and(|output| output.status.success())
        {
            self.root
                .acquire("apt-get update")
                .map_err(|error| anyhow!("{error}; type, as root: apt-get update"))?;
            self.update()?;
            progress::run(&format!("apt-get download {package}"), download())?;
        }
        let archive = fs::read_dir(&work)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&archive).arg(work.join("root"));
        progress::run(&format!("unpack {package}"), unpack)?;
        let file = work.join("root").join(inside);
        let name = file
            .file_name()
            .with_context(|| format!("{inside} names no file"))?;
        fs::rename(&file, bin.join(name)).with_context(|| format!("{package} has no {inside}"))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
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
            ["cargo-web", "iproute2", "rust-web-src", "rustc-web"]
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
