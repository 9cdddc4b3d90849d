//! The master secret: 32 random bytes, kept as hex in a file that only its owner may read, or
//! handed over by systemd as a credential.

use std::{
    env, fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tracing::info;

/// Name of the systemd credential, as in `LoadCredential=synguard-secret:PATH`.
pub const CREDENTIAL: &str = "synguard-secret";

/// More than the hex digits and a line end.
const SIZE_LIMIT: u64 = 256;

/// The secret. It is never shown.
pub struct Secret([u8; 32]);

impl Secret {
    /// These bytes.
    #[cfg(test)]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A secret that nobody knows.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Others could forge cookies.
    #[error("secret {} can be read by others (mode {mode:04o}): chmod 600 it, and replace it if they did", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not what we write.
    #[error("secret {} is not 64 hexadecimal digits: restore it, or delete it to have a new one made", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file system.
    #[error("cannot {what} secret {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The credential if systemd gave one, else the file at `path`, made where it is missing.
pub fn obtain(path: &Path) -> Result<Secret, SecretError> {
    obtain_from(
        env::var_os("CREDENTIALS_DIRECTORY")
            .map(PathBuf::from)
            .as_deref(),
        path,
    )
}

/// The secret in the file at `path`, which must be there.
pub fn existing(path: &Path) -> Result<Secret, SecretError> {
    read(path, true)?.ok_or_else(|| SecretError::Io {
        what: "read",
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

fn obtain_from(credentials: Option<&Path>, path: &Path) -> Result<Secret, SecretError> {
    if let Some(directory) = credentials {
        let credential = directory.join(CREDENTIAL);
        // systemd decides who reads it: its own directory is private, and the mode is 0440 in
        // some versions.
        if let Some(secret) = read(&credential, false)? {
            return Ok(secret);
        }
    }
    if let Some(secret) = read(path, true)? {
        return Ok(secret);
    }
    create(path)
}

/// `None` where there is no such file.
fn read(path: &Path, private: bool) -> Result<Option<Secret>, SecretError> {
    let failed = |source| SecretError::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if private && mode & 0o077 != 0 {
        return Err(SecretError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    match file.take(SIZE_LIMIT).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => text.clear(),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = [0; 32];
    match hex::decode_to_slice(text.trim_end(), &mut bytes) {
        Ok(()) => Ok(Some(Secret(bytes))),
        Err(_) => Err(SecretError::Malformed {
            path: path.to_owned(),
        }),
    }
}

/// Makes a secret. The file appears whole, with its mode, or not at all; if another process was
/// faster, its secret is the one.
fn create(path: &Path) -> Result<Secret, SecretError> {
    let failed = |source| SecretError::Io {
        what: "create",
        path: path.to_owned(),
        source,
    };
    let directory = crate::make_parent(path, 0o700).map_err(failed)?;
    let Secret(bytes) = Secret::random().map_err(failed)?;
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    writeln!(file, "{}", hex::encode(bytes)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return read(path, true)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()));
        }
        Err(error) => return Err(failed(error.error)),
    }
    // The name is as durable as the content.
    if let Ok(directory) = fs::File::open(directory) {
        directory.sync_all().map_err(failed)?;
    }
    info!(path = %path.display(), "made a new master secret");
    Ok(Secret(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_secret_is_private_and_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/secret");
        let first = obtain_from(None, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap().len(), 65);
        assert_eq!(obtain_from(None, &path).unwrap().bytes(), first.bytes());
        let other = obtain_from(None, &directory.path().join("other")).unwrap();
        assert_ne!(other.bytes(), first.bytes());
    }

    #[test]
    fn an_exposed_secret_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        for mode in [0o644, 0o640, 0o602] {
            write(&path, "00".repeat(32), mode);
            let error = obtain_from(None, &path).unwrap_err();
            assert!(
                matches!(error, SecretError::Exposed { mode: m, .. } if m == mode),
                "{error}"
            );
            assert!(!error.to_string().contains('\n'));
        }
        write(&path, "00".repeat(32), 0o400);
        assert_eq!(obtain_from(None, &path).unwrap().bytes(), &[0; 32]);
    }

    #[test]
    fn a_malformed_secret_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let wrong: [&[u8]; 6] = [
            b"",
            b"abcd",
            &[b'0'; 63],
            &[b'0'; 66],
            &[b'g'; 64],
            &[0xff; 64],
        ];
        for text in wrong {
            write(&path, text, 0o600);
            assert!(matches!(
                obtain_from(None, &path),
                Err(SecretError::Malformed { .. })
            ));
            assert_eq!(fs::read(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_credential_wins_whatever_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write(&path, "11".repeat(32), 0o600);
        write(
            &directory.path().join(CREDENTIAL),
            format!("{}\n", "22".repeat(32)),
            0o440,
        );
        assert_eq!(
            obtain_from(Some(directory.path()), &path).unwrap().bytes(),
            &[0x22; 32]
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(
            obtain_from(Some(empty.path()), &path).unwrap().bytes(),
            &[0x11; 32]
        );
    }
}
