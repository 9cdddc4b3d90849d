//! Which `bpf-linker` links the programs: one whose LLVM is at least the compiler's, for LLVM
//! reads the bitcode of older versions but not of newer ones.
//!
//! The one that `cargo xtask setup` built first, then `PATH`, then cargo's folder.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use memchr::memmem;

/// File name of the linker.
pub const NAME: &str = "bpf-linker";

/// A `bpf-linker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// Major version of its LLVM; `None` where LLVM is linked into it and cannot be told.
    pub llvm: Option<u32>,
}

impl Linker {
    /// Whether it can read the bitcode of a compiler with this LLVM. Where that cannot be told it
    /// is assumed: the linker itself then says what it does not understand.
    pub fn reads(&self, llvm: u32) -> bool {
        self.llvm.is_none_or(|own| own >= llvm)
    }

    fn at(path: PathBuf) -> Option<Self> {
        let executable = fs::metadata(&path).ok()?;
        if !executable.is_file() || executable.permissions().mode() & 0o111 == 0 {
            return None;
        }
        let llvm = llvm_of(&fs::read(&path).ok()?);
        Some(Self { path, llvm })
    }
}

/// Every linker there is, best first.
pub(crate) fn candidates(tools: &Path) -> Vec<Linker> {
    let mut seen = Vec::new();
    dirs(tools)
        .into_iter()
        .filter(|dir| {
            let new = !seen.contains(dir);
            seen.push(dir.clone());
            new
        })
        .filter_map(|dir| Linker::at(dir.join(NAME)))
        .collect()
}

/// The places that [`candidates`] looks at, for people.
pub(crate) fn places(tools: &Path) -> String {
    format!("{}, PATH or ~/.cargo/bin", tools.join("bin").display())
}

fn dirs(tools: &Path) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    std::iter::once(tools.to_path_buf())
        .map(|dir| dir.join("bin"))
        .chain(env::split_paths(&path))
        .chain(cargo_home.map(|dir| dir.join("bin")))
        .collect()
}

/// `bpf-linker --version` does not tell its LLVM, but the name of the shared library it is linked
/// against does: `libLLVM.so.22.1`, `libLLVM-15.so`.
fn llvm_of(executable: &[u8]) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM";
    memmem::find_iter(executable, LIBRARY).find_map(|at| {
        let rest = &executable[at + LIBRARY.len()..];
        let version = rest
            .strip_prefix(b".so.")
            .or_else(|| rest.strip_prefix(b"-"))?;
        let digits = version.iter().take_while(|c| c.is_ascii_digit()).count();
        std::str::from_utf8(&version[..digits]).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_llvm_from_the_name_of_its_library() {
        assert_eq!(llvm_of(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_of(b"\0libLLVM-15.so.1\0"), Some(15));
        assert_eq!(
            llvm_of(b"a libLLVM that is missing\0libLLVM.so.23.1-rust-1.98.0\0"),
            Some(23)
        );
        assert_eq!(llvm_of(b"nothing of the kind"), None);
        assert_eq!(llvm_of(b"libLLVM"), None);
    }

    #[test]
    fn a_file_that_cannot_be_run_is_no_linker() {
        assert_eq!(
            Linker::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")),
            None
        );
        assert_eq!(Linker::at(PathBuf::from("/nonexistent")), None);
    }
}
