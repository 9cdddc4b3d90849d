//! The machine whose settings are meant: this one, or one below a directory.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::boot::DIRECTORIES;

/// Where the drop-in goes.
pub const DEFAULT_FILE: &str = "/etc/sysctl.d/60-synguard.conf";
/// Where the old values are kept: not in the daemon's directory, where its user may write.
pub const RECORD: &str = "/var/lib/synguard-tune/applied.json";
/// Where settings are.
const SYSCTLS: &str = "/proc/sys";

/// A machine.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    /// The drop-in, as the machine itself names it.
    pub file: PathBuf,
    /// Its memory in bytes.
    pub memory: u64,
}

/// A setting as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its value; words are one space apart.
    pub value: String,
    /// Whether it can be set here at all: some can only be set in the first network namespace.
    pub writable: bool,
}

impl Host {
    /// The machine below `root`; an image, which has no `/proc`, is taken to run on one with this
    /// one's memory.
    pub fn new(root: &Path, file: &Path) -> anyhow::Result<Self> {
        if !file.is_absolute() || file.extension().is_none_or(|extension| extension != "conf") {
            anyhow::bail!(
                "{} is no name for a drop-in: give an absolute path that ends in .conf",
                file.display()
            );
        }
        let parent = file.parent().unwrap_or(file);
        if !DIRECTORIES.map(Path::new).contains(&parent) {
            anyhow::bail!(
                "{} would not be read at boot: name a file in {}",
                file.display(),
                DIRECTORIES.join(", ")
            );
        }
        let mut host = Self {
            root: root.to_owned(),
            file: file.to_owned(),
            memory: 0,
        };
        let own = host.below("/proc/meminfo");
        let meminfo = if own.exists() {
            own
        } else {
            "/proc/meminfo".into()
        };
        host.memory = memory(&meminfo)?;
        Ok(host)
    }

    /// A path of the machine, as seen from here.
    pub fn below(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether its kernel runs, so that settings can be read and set.
    pub fn is_live(&self) -> bool {
        self.below(SYSCTLS).is_dir()
    }

    /// The drop-in.
    pub fn drop_in(&self) -> PathBuf {
        self.below(&self.file)
    }

    /// The file with the old values.
    pub fn record(&self) -> PathBuf {
        self.below(RECORD)
    }

    /// A setting; `None` where the kernel has none of this name.
    pub fn read(&self, key: &str) -> Option<Reading> {
        let path = self.sysctl(key);
        let value = normal(&fs::read_to_string(&path).ok()?);
        // Root is not asked for rights, but the mode of these files is the kernel's own word.
        let mode = fs::metadata(&path).ok()?.permissions().mode();
        Some(Reading {
            value,
            writable: mode & 0o200 != 0,
        })
    }

    /// Changes a setting, and looks whether the kernel took it.
    pub fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let path = self.sysctl(key);
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| {
                io::Write::write_all(&mut file, format!("{value}\n").as_bytes())
            })?;
        let got = normal(&fs::read_to_string(&path)?);
        if got == normal(value) {
            Ok(())
        } else {
            Err(io::Error::other(format!("the kernel made {got:?} of it")))
        }
    }

    fn sysctl(&self, key: &str) -> PathBuf {
        // As sysctl(8) has it: a dot within a name, `eth0.7`, is written as a slash.
        let swapped = |c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        self.below(SYSCTLS)
            .join(key.chars().map(swapped).collect::<String>())
    }
}

/// Words one space apart.
pub(super) fn normal(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `MemTotal` in bytes.
fn memory(meminfo: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(meminfo)
        .with_context(|| format!("cannot read {}", meminfo.display()))?;
    let kib: Option<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.map(|kib| kib * 1024)
        .with_context(|| format!("{} does not tell the memory", meminfo.display()))
}
