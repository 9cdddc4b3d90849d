//! The one place that decides which toolchain compiles the eBPF programs and which `bpf-linker`
//! links them. Build scripts call [`build`]; `cargo xtask` asks [`Tools::find`] what is missing.
//!
//! Two things are needed that a plain stable toolchain does not have: the source of `core`, which
//! nobody ships compiled for eBPF, and a linker for LLVM bitcode. See [`toolchain`] and [`linker`]
//! for where they are looked for.

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain as AyaToolchain};

pub mod linker;
pub mod toolchain;

pub use linker::Linker;
pub use toolchain::Toolchain;

/// The target of the programs; big-endian hosts are not supported.
pub const TARGET: &str = "bpfel-unknown-none";

/// What is missing before eBPF programs can be compiled.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    /// No toolchain has the source of `core`.
    #[error("no Rust toolchain with the source of `core` in {looked}")]
    Toolchain {
        /// The places that were looked at.
        looked: String,
    },
    /// There is no `bpf-linker`.
    #[error("no `bpf-linker` in {looked}")]
    Linker {
        /// The places that were looked at.
        looked: String,
    },
    /// Every `bpf-linker` is older than every toolchain: it could not read their bitcode.
    #[error(
        "{} links bitcode up to LLVM {has}, but the toolchain in {} writes LLVM {needs}",
        linker.display(), toolchain.display()
    )]
    LinkerTooOld {
        /// The newest linker.
        linker: PathBuf,
        /// LLVM of that linker.
        has: u32,
        /// The preferred toolchain.
        toolchain: PathBuf,
        /// LLVM of that toolchain.
        needs: u32,
    },
}

/// A toolchain and a linker that understand each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// The toolchain.
    pub toolchain: Toolchain,
    /// The linker.
    pub linker: Linker,
}

impl Tools {
    /// The first toolchain, in order of preference, that has a linker; `tools` is the folder that
    /// [`tools_dir`] names.
    pub fn find(tools: &Path) -> Result<Self, Missing> {
        Self::choose(&toolchain::candidates(), &linker::candidates(tools), tools)
    }

    fn choose(toolchains: &[Toolchain], linkers: &[Linker], tools: &Path) -> Result<Self, Missing> {
        let Some(preferred) = toolchains.first() else {
            return Err(Missing::Toolchain {
                looked: toolchain::places(),
            });
        };
        for toolchain in toolchains {
            if let Some(linker) = linkers.iter().find(|l| l.reads(toolchain.llvm)) {
                return Ok(Self {
                    toolchain: toolchain.clone(),
                    linker: linker.clone(),
                });
            }
        }
        match linkers
            .iter()
            .filter_map(|l| Some((l.llvm?, l)))
            .max_by_key(|(llvm, _)| *llvm)
        {
            Some((has, linker)) => Err(Missing::LinkerTooOld {
                linker: linker.path.clone(),
                has,
                toolchain: preferred.bin.clone(),
                needs: preferred.llvm,
            }),
            None => Err(Missing::Linker {
                looked: linker::places(tools),
            }),
        }
    }

    /// A command of the toolchain, `cargo` or `rustc`, in an environment that compiles eBPF.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.toolchain.bin.join(program));
        for name in OUTER {
            command.env_remove(name);
        }
        command.envs(self.env([])?);
        Ok(command)
    }

    /// What makes a cargo, and what it starts, use this toolchain and this linker. The folders
    /// `first` and then the toolchain's go before the rest of `PATH`.
    fn env(
        &self,
        first: impl IntoIterator<Item = PathBuf>,
    ) -> anyhow::Result<[(&'static str, OsString); 3]> {
        let rest = env::var_os("PATH").unwrap_or_default();
        let dirs = first
            .into_iter()
            .chain([self.toolchain.bin.clone()])
            .chain(env::split_paths(&rest));
        Ok([
            ("PATH", env::join_paths(dirs)?),
            (
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
                self.linker.path.clone().into(),
            ),
            // `-Z build-std` on a toolchain that is not a nightly.
            ("RUSTC_BOOTSTRAP", "1".into()),
        ])
    }
}

/// Variables by which an outer cargo or rustup would choose the compiler of an inner one.
const OUTER: [&str; 6] = [
    "CARGO",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
];

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The target folder that `inside` (an executable or an `OUT_DIR`) lies in. Cargo tells neither a
/// build script nor a program; but it keeps a file there that it keeps nowhere else.
pub fn target_dir(inside: &Path) -> PathBuf {
    let marked = inside
        .ancestors()
        .find(|dir| dir.join(".rustc_info.json").is_file());
    marked.map(Path::to_path_buf).unwrap_or_else(|| {
        let configured = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        workspace().join(configured)
    })
}

/// Where `cargo xtask setup` keeps the tools it builds; the executables are in `bin`.
pub fn tools_dir(target: &Path) -> PathBuf {
    target.join("tools")
}

/// For build scripts: compiles every binary of the workspace member `package` for eBPF and copies
/// the objects to `OUT_DIR`. Cargo shows what goes wrong as one line, behind the compiler's own.
pub fn build(package: &str, features: &[&str]) -> ExitCode {
    match try_build(package, features) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={package}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_build(package: &str, features: &[&str]) -> anyhow::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let target = target_dir(&out);
    let root = workspace();

    // aya-build names the package itself. The workspace's manifest holds the profiles.
    for part in [
        "synguard-common/src",
        "synguard-common/Cargo.toml",
        "Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(part).display());
    }
    let tools = Tools::find(&tools_dir(&target))
        .map_err(|missing| anyhow!("{missing}; run: cargo xtask setup"))?;
    println!("cargo:rerun-if-changed={}", tools.linker.path.display());
    println!(
        "cargo:rerun-if-changed={}",
        tools.toolchain.rustc().display()
    );

    let environment = tools.env([rustup_shim(&out)?])?;
    // SAFETY: this is a build script's only thread.
    unsafe {
        for name in OUTER {
            env::remove_var(name);
        }
        for (name, value) in environment {
            env::set_var(name, value);
        }
        // aya-build repeats every line of the inner cargo as a warning; this leaves the
        // compiler's own warnings and errors.
        env::set_var("CARGO_TERM_QUIET", "true");
        // `core`, aya and the programs are the same whichever crate and profile embeds them: one
        // build folder compiles them once. Cargo locks it.
        env::set_var("CARGO_BUILD_BUILD_DIR", target.join("ebpf"));
    }
    let dir = root.join(package);
    let dir = dir
        .to_str()
        .with_context(|| format!("{} is not UTF-8", dir.display()))?;
    aya_build::build_ebpf(
        [Package {
            name: package,
            root_dir: dir,
            features,
            ..Default::default()
        }],
        AyaToolchain::Custom("first-in-path"),
    )
    .context("the programs do not compile")
}

/// A `rustup` that runs what is first in `PATH`, for instruction set v3.
///
/// aya-build runs `rustup run TOOLCHAIN cargo …`, and warns at every build where there is no
/// rustup. The toolchain found here need not be one of rustup's, and its folder already leads
/// `PATH`.
///
/// aya-build also sets the compiler's flags and takes none of ours, so the one they lack is added
/// here. Instruction set v3 (Linux 5.12 for all of it) has 32-bit arithmetic *and* 32-bit jumps.
/// With the arithmetic alone, LLVM compares a zero-extended register with a sign-extended constant:
/// `x >= 0xe000_0000` is never true.
fn rustup_shim(out: &Path) -> anyhow::Result<PathBuf> {
    const SCRIPT: &str = "#!/bin/sh\n\
        # rustup run TOOLCHAIN PROGRAM ARGUMENTS...\n\
        shift 2\n\
        if [ -n \"$CARGO_ENCODED_RUSTFLAGS\" ]; then\n\
        CARGO_ENCODED_RUSTFLAGS=\"$CARGO_ENCODED_RUSTFLAGS$(printf '\\037-Ctarget-cpu=v3')\"\n\
        fi\n\
        exec \"$@\"\n";
    let dir = out.join("rustup-shim");
    let file = dir.join("rustup");
    let write = || -> io::Result<()> {
        fs::create_dir_all(&dir)?;
        fs::write(&file, SCRIPT)?;
        fs::set_permissions(&file, Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(bin: &str, llvm: u32) -> Toolchain {
        Toolchain {
            bin: bin.into(),
            version: (1, 96),
            llvm,
        }
    }

    fn linker(path: &str, llvm: Option<u32>) -> Linker {
        Linker {
            path: path.into(),
            llvm,
        }
    }

    fn choose(toolchains: &[Toolchain], linkers: &[Linker]) -> Result<Tools, Missing> {
        Tools::choose(toolchains, linkers, Path::new("/t"))
    }

    #[test]
    fn the_linker_is_at_least_as_new_as_the_toolchain() {
        let debian = toolchain("/usr/bin", 22);
        let nightly = toolchain("/n/bin", 23);
        let old = linker("/a/bpf-linker", Some(21));
        let fit = linker("/b/bpf-linker", Some(22));

        let found = choose(
            &[debian.clone(), nightly.clone()],
            &[old.clone(), fit.clone()],
        );
        assert_eq!(
            found,
            Ok(Tools {
                toolchain: debian.clone(),
                linker: fit.clone()
            })
        );

        // A toolchain of lower preference that can be linked beats one that cannot.
        let found = choose(
            &[nightly.clone(), debian.clone()],
            std::slice::from_ref(&fit),
        );
        assert_eq!(
            found,
            Ok(Tools {
                toolchain: debian,
                linker: fit.clone()
            })
        );

        let found = choose(std::slice::from_ref(&nightly), &[old, fit]);
        let error = found.unwrap_err();
        assert_eq!(
            error.to_string(),
            "/b/bpf-linker links bitcode up to LLVM 22, but the toolchain in /n/bin writes LLVM 23"
        );
    }

    #[test]
    fn a_linker_that_holds_its_llvm_inside_is_taken_at_its_word() {
        let nightly = toolchain("/n/bin", 23);
        let inside = linker("/c/bpf-linker", None);
        let found = choose(
            std::slice::from_ref(&nightly),
            std::slice::from_ref(&inside),
        );
        assert_eq!(
            found,
            Ok(Tools {
                toolchain: nightly,
                linker: inside
            })
        );
    }

    #[test]
    fn says_what_is_missing() {
        assert!(matches!(choose(&[], &[]), Err(Missing::Toolchain { .. })));
        let found = choose(&[toolchain("/usr/bin", 22)], &[]);
        assert!(
            found
                .unwrap_err()
                .to_string()
                .starts_with("no `bpf-linker` in /t/bin, ")
        );
    }
}
