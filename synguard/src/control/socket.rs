//! The control socket's file: made for owner and group only, never over a living daemon's, and
//! gone with the daemon.
//!
//! The socket is bound under a temporary name, given its mode and then renamed, so that nobody
//! finds it with another mode. A lock on the directory makes sure that of two daemons starting
//! at once only one takes a dead daemon's place.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process,
};

use thiserror::Error;
use tracing::warn;

const MODE: u32 = 0o660;

/// Why the control socket could not be had.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another synguard daemon answers on {0}: use `synguard attach IFACE` to add an interface \
         to it, or stop it first"
    )]
    Running(PathBuf),
    /// Another daemon is taking it at this moment.
    #[error("another synguard daemon is starting in {0}: try again")]
    Starting(PathBuf),
    /// A file of another kind is there.
    #[error("{0} exists and is no socket: name another path with --socket")]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot listen on the control socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A listening control socket; dropping it removes the file, if it is still this one.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

/// Listens on `path`. Needs no runtime, so that a daemon can call it before it touches anything.
pub fn bind(path: &Path) -> Result<Listener, BindError> {
    let failed = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = crate::make_parent(path, 0o755).map_err(failed)?;
    let lock = File::open(directory).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(BindError::Starting(directory.to_owned())),
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            // Its daemon died without removing it; the rename below replaces it.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
            Ok(_) => return Err(BindError::Running(path.to_owned())),
        },
    }

    let temporary = directory.join(format!(".sg{}", process::id()));
    fs::remove_file(&temporary).ok();
    let socket = UnixListener::bind(&temporary).map_err(failed)?;
    let named = || {
        socket.set_nonblocking(true)?;
        fs::set_permissions(&temporary, Permissions::from_mode(MODE))?;
        fs::rename(&temporary, path)?;
        fs::symlink_metadata(path)
    };
    match named() {
        Ok(metadata) => {
            let device_and_inode = (metadata.dev(), metadata.ino());
            let file = SocketFile {
                path: path.to_owned(),
                device_and_inode,
            };
            Ok(Listener { socket, file })
        }
        Err(e) => {
            fs::remove_file(&temporary).ok();
            Err(failed(e))
        }
    }
}

impl Listener {
    /// The listening socket, and the guard that removes its file.
    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.socket, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(there) = fs::symlink_metadata(&self.path) else {
            return;
        };
        if (there.dev(), there.ino()) != self.device_and_inode {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            warn!(
                "cannot remove the control socket {}: {e}",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_owner_and_group_and_goes_with_the_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("control.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_daemon_is_left_alone_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Running(p)) if p == path));
        // A dead daemon: the file stays, nobody listens.
        let (socket, file) = first.into_parts();
        std::mem::forget(file);
        drop(socket);
        assert!(path.exists());
        let second = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
    }

    #[test]
    fn the_successors_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn of_two_daemons_starting_at_once_one_is_told_to_wait() {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::open(directory.path()).unwrap();
        lock.lock().unwrap();
        let error = bind(&directory.path().join("control.sock")).unwrap_err();
        assert!(matches!(error, BindError::Starting(_)), "{error}");
    }
}
