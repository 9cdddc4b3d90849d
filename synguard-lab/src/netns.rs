//! Network namespaces: made, entered, swept and removed.
//!
//! A namespace is called `sgl-<pid>-<serial>-<name>` and is seen by `ip netns`, so that a person can
//! look into a running lab. It goes when its last handle is dropped. What a killed process left
//! behind is swept by the next one: only names of this form whose process is gone are touched.

use std::{
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::{Pid, gettid},
};
use rtnetlink::Handle;

use crate::cpu;

/// Where `ip netns` looks.
const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "sgl-";

static SERIAL: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A handle on a network namespace; the last one to go removes it.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Makes a namespace whose loopback is up.
    pub fn create(name: &str) -> Result<Self> {
        SWEEP.call_once(|| {
            if let Err(error) = sweep() {
                eprintln!("lab: leftovers of earlier runs stay: {error:#}");
            }
        });
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{serial}-{name}", std::process::id());
        let path = Path::new(DIRECTORY).join(&name);
        fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;

        let made = on_thread("netns", || {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace (needs root)")?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("cannot mount the namespace at {}", path.display()))
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let ns = Self(Arc::new(Inner { name, path, file }));
        ns.netlink(async |handle| crate::link::set_up(&handle, 1).await)
            .context("cannot bring loopback up")?;
        Ok(ns)
    }

    /// The name `ip netns` shows.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Makes the calling thread, and what it starts later, live in the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(self, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter namespace {}", self.name()))
    }

    /// Runs `f` on a thread of its own inside the namespace and waits for it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread("netns", || {
            self.enter()?;
            f()
        })
    }

    /// As [`Netns::run`], with the namespace's own sysfs mounted at `/sys`: the sysfs a process sees
    /// lists the devices of the namespace it was mounted from. Nobody else sees this mount.
    pub fn run_with_sysfs<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .context("cannot make the mounts private")?;
            mount(
                Some("lab"),
                "/sys",
                Some("sysfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .with_context(|| format!("cannot mount sysfs for namespace {}", self.name()))?;
            f()
        })
    }

    /// Starts a thread inside the namespace, bound to `cpu` where one is given. `f` runs once the
    /// thread is in place; an error to get there is the thread's result.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        cpu: Option<usize>,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let ns = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                ns.enter()?;
                if let Some(cpu) = cpu {
                    cpu::pin(gettid(), cpu)?;
                }
                f()
            })
            .with_context(|| format!("cannot start thread {name}"))
    }

    /// Talks route netlink inside the namespace.
    pub fn netlink<T: Send>(&self, f: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime for netlink")?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().context("cannot open a netlink socket")?;
                tokio::spawn(connection);
                f(handle).await
            })
        })
    }

    /// Packets that devices of the namespace have lost so far, for want of room or otherwise
    /// (`/proc/net/dev`: errors, drops and overruns of both directions).
    pub fn lost_packets(&self) -> Result<u64> {
        const PATH: &str = "/proc/thread-self/net/dev";
        let table =
            self.run(|| fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}")))?;
        let lost = |line: &str| {
            let (_, numbers) = line.split_once(':')?;
            let numbers = numbers.split_ascii_whitespace().enumerate();
            // Bytes, packets, errors, drops, overruns, ... and eight more for what is sent.
            let lost = numbers.filter(|(column, _)| matches!(column % 8, 2..=4));
            lost.map(|(_, number)| number.parse::<u64>().ok())
                .sum::<Option<u64>>()
        };
        Ok(table.lines().filter_map(lost).sum::<u64>())
    }

    /// Sets a sysctl of the namespace, written as `net.ipv4.tcp_syncookies`.
    pub fn set_sysctl(&self, name: &str, value: impl ToString) -> Result<()> {
        let (path, value) = (sysctl_path(name), value.to_string());
        self.run(|| {
            fs::write(&path, &value).with_context(|| format!("cannot set {name} to {value:?}"))
        })
        .with_context(|| format!("in namespace {}", self.name()))
    }

    /// Reads a sysctl of the namespace, without the line's end.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        self.run(|| fs::read_to_string(&path).with_context(|| format!("cannot read {name}")))
            .map(|value| value.trim_end().to_owned())
            .with_context(|| format!("in namespace {}", self.name()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: {error:#}");
        }
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

/// Runs `f` on a thread of its own, because a thread that has changed namespace is spoilt for others.
fn on_thread<T: Send>(name: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, f)
            .with_context(|| format!("cannot start thread {name}"))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Removes the namespaces that dead processes left behind; returns their names. [`Netns::create`]
/// does it once per process.
pub fn sweep() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {DIRECTORY}")),
    };
    let mut swept = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {DIRECTORY}"))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if owner(&name).is_some_and(|pid| !exists(pid)) {
            remove(&entry.path())?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// The process that made the namespace of this name, if the name is one of ours.
fn owner(name: &str) -> Option<Pid> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    let pid = parts.next()?.parse().ok()?;
    let _serial: u32 = parts.next()?.parse().ok()?;
    parts.next()?;
    Some(Pid::from_raw(pid))
}

fn exists(pid: Pid) -> bool {
    !matches!(nix::sys::signal::kill(pid, None), Err(Errno::ESRCH))
}

fn remove(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted: its maker died between making the file and mounting. Gone: swept by another.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => bail!("cannot unmount {}: {error}", path.display()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("sgl-123-0-client"), Some(Pid::from_raw(123)));
        assert_eq!(owner("sgl-123-0-two-parts"), Some(Pid::from_raw(123)));
        for other in [
            "blue",
            "sgl-",
            "sgl-x-0-a",
            "sgl-1-x-a",
            "sgl-123-0",
            "my-sgl-1-0-a",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
