//! What outlives the daemon, in a directory of the BPF file system.
//!
//! ```text
//! /sys/fs/bpf/synguard/          locked by the daemon that owns it
//!   current/                     appears whole, by one rename, and goes by one
//!     maps/NAME
//!     programs/OBJECT/NAME       OBJECT: hash of the object that they come from
//!     links/IFINDEX/xdp_native   or xdp_generic; appears whole
//!     links/IFINDEX/out
//!     links/IFINDEX/admit_IFINDEX
//!   new/, old/                   being made, being removed: what a crash leaves of them goes at
//!                                the next start
//! ```
//!
//! Programs are replaced in place (`BPF_LINK_UPDATE`), so the links are never made anew.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{maps::MapData, programs::SchedClassifier};
use rustix::mount::MountFlags;
use synguard_common::abi::{ABI_VERSION, map};
use tracing::{debug, info};

use super::{
    error::one_line,
    load::{PROGRAM_SWEEP, object_name},
    raw,
    testrun::Runner,
};

/// Where the BPF file system belongs.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// Its magic number (`BPF_FS_MAGIC`, linux/magic.h).
const MAGIC: i64 = 0xcafe_4a11;
/// Time between two looks at what is left to drain.
const LOOK: Duration = Duration::from_millis(250);
/// What a client gets to answer a cookie that is on its way when draining begins.
pub const COOKIES: Duration = Duration::from_secs(3);

/// Why nothing can be pinned there. One line that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another daemon owns it.
    #[error(
        "another synguard owns {}: stop that first, or give this one its own directory with --pins", path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It is on another file system.
    #[error(
        "{} is not on a BPF file system: mount one with `mount -t bpf bpf {BPFFS}`, or turn pins off with --pins off", path.display()
    )]
    NoBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel says no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is pinned there is damaged.
    #[error(
        "what is pinned in {} cannot be taken over ({reason}): `synguard detach --now` removes it", path.display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The directory, ours for as long as this lives.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    _lock: File,
}

/// What is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Tables that we understand.
    Ours,
    /// Tables of another version.
    Foreign {
        /// [`synguard_common::abi::Runtime::abi_version`].
        abi: u32,
    },
}

impl Pins {
    /// Opens the directory, made if it is not there, and removes what a crash has left.
    pub fn open(root: &Path) -> Result<Self, PinError> {
        // The service sees its own directory of the BPF file system, and nothing of it around that.
        let there = is_bpffs(root) || is_bpffs(Path::new(BPFFS));
        if root.starts_with(BPFFS) && !there {
            mount()?;
        }
        fs::create_dir_all(root).map_err(failed("make", root))?;
        Self::own(root)
    }

    /// Opens the directory if there is one.
    pub fn open_existing(root: &Path) -> Result<Option<Self>, PinError> {
        match fs::exists(root) {
            Ok(true) => Self::own(root).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(failed("look at", root)(error)),
        }
    }

    fn own(root: &Path) -> Result<Self, PinError> {
        if !is_bpffs(root) {
            return Err(PinError::NoBpffs {
                path: root.to_owned(),
            });
        }
        let lock = File::open(root).map_err(failed("open", root))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => PinError::Locked {
                path: root.to_owned(),
            },
            TryLockError::Error(error) => failed("lock", root)(error),
        })?;
        let pins = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        for leftover in [pins.root.join("new"), pins.root.join("old")] {
            remove(&leftover)?;
        }
        if let Ok(links) = fs::read_dir(pins.links()) {
            for link in links.flatten() {
                if link.file_name().as_bytes().starts_with(b"new_") {
                    remove(&link.path())?;
                }
            }
        }
        Ok(pins)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is there.
    pub fn find(&self) -> Result<Found, PinError> {
        if !fs::exists(self.current()).map_err(failed("look at", &self.current()))? {
            return Ok(Found::Nothing);
        }
        let runtime = raw::first(&self.map(map::RUNTIME)?)
            .map_err(failed("read", &self.maps().join(map::RUNTIME)))?;
        match word(&runtime, 0) {
            Some(ABI_VERSION) => Ok(Found::Ours),
            Some(abi) => Ok(Found::Foreign { abi }),
            None => Err(self.damaged("RUNTIME is too short".to_owned())),
        }
    }

    fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// Where maps are.
    pub fn maps(&self) -> PathBuf {
        self.current().join("maps")
    }

    /// Where the programs of an object are.
    pub fn programs(&self, object: &str) -> PathBuf {
        self.current().join("programs").join(object)
    }

    /// Where the links of interfaces are.
    pub fn links(&self) -> PathBuf {
        self.current().join("links")
    }

    /// Where the links of an interface are.
    pub fn links_of(&self, index: u32) -> PathBuf {
        self.links().join(index.to_string())
    }

    /// Whether an interface has links here. Where that cannot be seen, it is believed.
    pub fn hold(&self, index: u32) -> bool {
        fs::exists(self.links_of(index)).unwrap_or(true)
    }

    /// Indices of the interfaces that have links here.
    pub fn interfaces(&self) -> Vec<u32> {
        let entries = fs::read_dir(self.links()).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// A directory for maps that are yet to be made; [`Self::publish`] makes it the current one.
    pub fn stage(&self) -> Result<PathBuf, PinError> {
        let new = self.root.join("new");
        remove(&new)?;
        for part in ["maps", "programs", "links"] {
            let part = new.join(part);
            fs::create_dir_all(&part).map_err(failed("make", &part))?;
        }
        Ok(new.join("maps"))
    }

    /// Makes what was staged the current one.
    pub fn publish(&self) -> Result<(), PinError> {
        fs::rename(self.root.join("new"), self.current()).map_err(failed("name", &self.current()))
    }

    /// Removes the programs of all objects but ours, once no interface runs them any more.
    pub fn keep_our_programs(&self) -> Result<(), PinError> {
        let (programs, ours) = (self.current().join("programs"), object_name());
        for entry in fs::read_dir(&programs).into_iter().flatten().flatten() {
            if entry.file_name() != *ours {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes everything off all interfaces, at once.
    pub fn clear(&self) -> Result<(), PinError> {
        for index in self.interfaces() {
            unlink(&self.links_of(index))?;
        }
        let (current, old) = (self.current(), self.root.join("old"));
        match fs::rename(&current, &old) {
            Ok(()) => remove(&old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &current)(error)),
        }
    }

    /// Has the programs challenge nobody any more (or again).
    pub fn set_draining(&self, draining: bool) -> Result<(), PinError> {
        let path = self.maps().join(map::RUNTIME);
        let map = self.map(map::RUNTIME)?;
        let mut runtime = raw::first(&map).map_err(failed("read", &path))?;
        match runtime.get_mut(4..8) {
            Some(flag) => flag.copy_from_slice(&u32::from(draining).to_ne_bytes()),
            None => return Err(self.damaged("RUNTIME is too short".to_owned())),
        }
        raw::set_first(&map, &mut runtime).map_err(failed("write", &path))
    }

    /// Challenges nobody any more and waits until no flow needs the programs, or `patience` ends; says
    /// how many are left. Knows nothing of the tables but what every version has.
    pub fn drain(&self, patience: Duration, mut tell: impl FnMut(u64)) -> Result<u64, PinError> {
        self.set_draining(true)?;
        let begin = Instant::now();
        loop {
            let left = self.flows_left()?;
            tell(left);
            let waited = begin.elapsed();
            if (left == 0 && waited >= COOKIES) || waited >= patience {
                return Ok(left);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Flows that need the programs.
    pub fn flows_left(&self) -> Result<u64, PinError> {
        if self.interfaces().is_empty() {
            return Ok(0);
        }
        let programs = self.current().join("programs");
        let objects = fs::read_dir(&programs).map_err(failed("read", &programs))?;
        let sweep = objects
            .flatten()
            .map(|object| object.path().join(PROGRAM_SWEEP))
            .find(|path| fs::exists(path).unwrap_or(false))
            .ok_or_else(|| self.damaged(format!("there is no {PROGRAM_SWEEP}")))?;
        let run = || -> anyhow::Result<()> {
            let program = SchedClassifier::from_pin(&sweep)?;
            Runner::new(program.fd()?)?.run(&[0; 64])?;
            Ok(())
        };
        run().map_err(|error| self.damaged(format!("{PROGRAM_SWEEP}: {error:#}")))?;
        let swept = raw::first(&self.map(map::SWEEP)?)
            .map_err(failed("read", &self.maps().join(map::SWEEP)))?;
        let left = swept.first_chunk().copied().map(u64::from_ne_bytes);
        left.ok_or_else(|| self.damaged("SWEEP is too short".to_owned()))
    }

    /// A pinned map.
    pub fn map(&self, name: &str) -> Result<MapData, PinError> {
        MapData::from_pin(self.maps().join(name))
            .map_err(|error| self.damaged(format!("map {name}: {}", one_line(&error))))
    }

    /// That what is there is no use.
    pub fn damaged(&self, reason: String) -> PinError {
        PinError::Damaged {
            path: self.root.clone(),
            reason,
        }
    }
}

/// Tables that nothing is attached by are of no use to anybody.
impl Drop for Pins {
    fn drop(&mut self) {
        if self.interfaces().is_empty()
            && let Err(error) = self.clear()
        {
            debug!(%error, "what is pinned stays");
        }
    }
}

/// Removes the links of an interface, XDP first: a challenged client must never find its ACK without
/// admission.
pub fn unlink(directory: &Path) -> Result<(), PinError> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut links: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    links.sort_by_key(|path| match path.file_name().map(OsStrExt::as_bytes) {
        Some(name) if name.starts_with(b"xdp_") => 0,
        Some(name) if name.starts_with(b"admit_") => 1,
        _ => 2,
    });
    for link in links {
        fs::remove_file(&link).map_err(failed("remove", &link))?;
    }
    remove(directory)
}

fn remove(directory: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(directory) {
        Ok(()) => {
            debug!(path = %directory.display(), "removed");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", directory)(error)),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError + use<> {
    let path = path.to_owned();
    move |source| PinError::Io { what, path, source }
}

pub(crate) fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == MAGIC)
}

/// Mounts a BPF file system where it belongs.
fn mount() -> Result<(), PinError> {
    let no_bpffs = || PinError::NoBpffs { path: BPFFS.into() };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", BPFFS, "bpf", flags, c"").map_err(|error| {
        debug!(%error, "cannot mount {BPFFS}");
        no_bpffs()
    })?;
    info!("mounted a BPF file system at {BPFFS}");
    Ok(())
}
