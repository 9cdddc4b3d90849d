//! A guest: a machine of its own on this one's kernel and file system. Its systemd is process 1 of
//! a namespace of processes, its root is this machine's with all changes kept in memory, and it
//! lives in a network namespace of the lab. Where packages can be installed and removed for real,
//! and services run as their units say.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{netns::Netns, process::Process};

const OUTSIDE: &str = include_str!("outside.sh");
const INSIDE: &str = include_str!("inside.sh");
const SYSTEMD: &str = "/lib/systemd/systemd";
const PATIENCE: Duration = Duration::from_secs(20);

/// Control groups of guests begin with this, then the process that made them.
const PREFIX: &str = "sgl-guest-";

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A running guest; gone when dropped.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    /// Its process 1, as this machine counts; none before it runs.
    init: Option<Pid>,
    _root: TempDir,
    name: String,
}

impl Guest {
    /// Why there can be no guest here, if there cannot.
    pub fn impossible() -> Option<String> {
        if !Path::new(SYSTEMD).exists() {
            return Some(format!("this machine has no {SYSTEMD}"));
        }
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        for needed in ["overlay", "cgroup2", "bpf"] {
            if !known.split_whitespace().any(|word| word == needed) {
                return Some(format!("the kernel has no file system {needed}"));
            }
        }
        None
    }

    /// Boots a guest in a network namespace; what it runs is for the caller to say.
    pub fn boot(ns: &Netns) -> Result<Self> {
        let root = tempfile::tempdir().context("cannot make a folder for a guest")?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{serial}", std::process::id());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-eu", "-c", OUTSIDE])
            .env("ROOT", root.path())
            .env("NAME", &name)
            .env("INSIDE", INSIDE);
        let process = Process::spawn(ns, command)?;
        let mut guest = Self {
            process,
            init: None,
            _root: root,
            name,
        };
        let end = Instant::now() + PATIENCE;
        while !guest.is_up()? {
            if !guest.process.is_running() || Instant::now() > end {
                bail!("the guest does not boot; it said:\n{}", guest.process.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(guest)
    }

    fn is_up(&mut self) -> Result<bool> {
        let parent = self.process.pid();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(&children).unwrap_or_default();
        let Some(init) = children.split_whitespace().next() else {
            return Ok(false);
        };
        let pid = init.parse().context("a process has no number")?;
        self.init = Some(Pid::from_raw(pid));
        let is_systemd = fs::read_to_string(format!("/proc/{init}/comm"))
            .is_ok_and(|name| name.trim() == "systemd");
        Ok(is_systemd
            && self
                .run("systemctl is-active guest.target")?
                .status
                .success())
    }

    fn target(&self) -> String {
        self.init.map(|init| init.to_string()).unwrap_or_default()
    }

    /// Where a file of the guest is to be found from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.target())
            .join("root")
            .join(inside.trim_start_matches('/'))
    }

    /// Runs a script inside, as root.
    pub fn run(&self, script: &str) -> Result<Output> {
        Command::new("nsenter")
            .args(["--all", "--root", "--wd", "--target"])
            .arg(self.target())
            .args(["sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .with_context(|| format!("cannot run {script:?} in the guest"))
    }

    /// Runs a script that must succeed, and returns what it prints.
    pub fn told(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "`{script}` in the guest: {}\n{}{}",
                match output.status.code() {
                    Some(code) => format!("exit status {code}"),
                    None => format!("signal {:?}", output.status.signal()),
                },
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // With process 1 all others go, and then the one that waits for it. Without, it is the other
        // way round.
        let killed = match self.init {
            Some(init) => kill(init, Signal::SIGKILL).map_err(anyhow::Error::from),
            None => self.process.signal(Signal::SIGKILL),
        };
        let waited = killed.and_then(|()| self.process.wait(PATIENCE));
        if let Err(error) = waited.and_then(|_| forget(&self.name)) {
            eprintln!("lab: guest {}: {error:#}", self.name);
        }
    }
}

/// Removes a guest's control groups, and those of guests whose maker is gone.
fn forget(name: &str) -> Result<()> {
    const SCRIPT: &str = r#"
        mount -t cgroup2 guest /mnt
        for group in /mnt/"$PREFIX"*; do
            maker=${group#/mnt/"$PREFIX"}
            if [ "$group" = "/mnt/$NAME" ] || [ ! -e "/proc/${maker%%-*}" ]; then
                find "$group" -depth -type d -exec rmdir {} +
            fi
        done
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-eu", "-c", SCRIPT])
        .env("PREFIX", PREFIX)
        .env("NAME", name)
        .output()
        .context("cannot run unshare")?;
    if !output.status.success() {
        bail!(
            "its control groups stay: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
