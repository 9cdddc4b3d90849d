//! Which Rust toolchain compiles eBPF: one that has the source of `core`.
//!
//! A system-wide one in `/usr` first (on Debian 12: rustc-web, cargo-web and rust-web-src), then
//! those of rustup, nightlies before others. `RUSTC_BOOTSTRAP` makes the channel irrelevant.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A toolchain that can compile `core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The folder of its `rustc` and `cargo`.
    pub bin: PathBuf,
    /// Its version, without the patch level.
    pub version: (u32, u32),
    /// Major version of the LLVM whose bitcode it writes.
    pub llvm: u32,
}

impl Toolchain {
    /// The compiler.
    pub fn rustc(&self) -> PathBuf {
        self.bin.join("rustc")
    }

    /// The toolchain that is used if there is a linker for it.
    pub fn preferred() -> Option<Self> {
        candidates().into_iter().next()
    }

    /// The toolchain installed under `prefix`, if it is complete and new enough.
    pub fn at(prefix: &Path) -> Option<Self> {
        let bin = prefix.join("bin");
        // The lock file is what `-Z build-std` resolves by.
        let library = prefix.join("lib/rustlib/src/rust/library");
        if !bin.join("cargo").is_file() || !library.join("core/src/lib.rs").is_file() {
            return None;
        }
        let output = Command::new(bin.join("rustc"))
            .arg("-vV")
            .env_remove("RUSTUP_TOOLCHAIN")
            .output()
            .ok()?;
        let (version, llvm) = parse_version(&String::from_utf8(output.stdout).ok()?)?;
        (version >= parse_pair(env!("CARGO_PKG_RUST_VERSION"))?).then_some(Self {
            bin,
            version,
            llvm,
        })
    }
}

/// Every usable toolchain, best first.
pub(crate) fn candidates() -> Vec<Toolchain> {
    prefixes()
        .iter()
        .filter_map(|prefix| Toolchain::at(prefix))
        .collect()
}

/// The places that [`candidates`] looks at, for people.
pub(crate) fn places() -> String {
    match rustup_toolchains() {
        Some(dir) => format!("/usr or {}", dir.display()),
        None => "/usr".to_owned(),
    }
}

fn prefixes() -> Vec<PathBuf> {
    let mut rustup: Vec<PathBuf> = rustup_toolchains()
        .and_then(|dir| fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    rustup.sort_by_key(|path| Reverse(rank(path)));
    std::iter::once(PathBuf::from("/usr"))
        .chain(rustup)
        .collect()
}

/// The plain nightly before dated ones, those before every other, later names before earlier.
fn rank(toolchain: &Path) -> (bool, bool, String) {
    let name = toolchain
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let nightly = name.strip_prefix("nightly-");
    let dated = nightly.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (nightly.is_some(), !dated, name)
}

fn rustup_toolchains() -> Option<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".rustup")))?;
    let dir = home.join("toolchains");
    dir.is_dir().then_some(dir)
}

/// Version and LLVM's major version from what `rustc -vV` prints.
fn parse_version(verbose: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name));
    let release = parse_pair(field("release: ")?)?;
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

fn parse_pair(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_prints() {
        let nightly = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
                       host: x86_64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_version(nightly), Some(((1, 97), 22)));
        assert_eq!(
            parse_version("release: 1.96.0\nLLVM version: 22.1.8"),
            Some(((1, 96), 22))
        );
        assert_eq!(parse_version("release: 1.96.0\n"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn prefers_nightlies() {
        let mut names = [
            "stable-x",
            "nightly-2026-05-01-x",
            "1.95.0-x",
            "nightly-x",
            "nightly-2026-06-01-x",
        ]
        .map(|name| Path::new("/t").join(name));
        names.sort_by_key(|path| Reverse(rank(path)));
        let names: Vec<_> = names
            .iter()
            .filter_map(|p| p.file_name()?.to_str())
            .collect();
        assert_eq!(
            names[..3],
            ["nightly-x", "nightly-2026-06-01-x", "nightly-2026-05-01-x"]
        );
    }

    #[test]
    fn an_incomplete_toolchain_is_none() {
        assert_eq!(Toolchain::at(Path::new("/nonexistent")), None);
    }
}
