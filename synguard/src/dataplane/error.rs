//! Why the programs cannot be loaded or attached. Each message is one line that says what is
//! wrong and what would be right.

use std::{fmt, io, path::PathBuf};

/// Kernel that the programs need, whatever the admission: XDP on frames of several buffers, and helpers
/// for these (`bpf_xdp_load_bytes`). Distributions bring much of that to older ones, so this is said
/// only where the kernel has refused.
pub const OLDEST_KERNEL: (u8, u8) = (5, 18);

/// A capability the daemon lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCapabilities(pub Vec<String>);

impl fmt::Display for MissingCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} missing: run as root, or grant it", self.0.join(", "))
    }
}

/// Why the programs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel does not describe its types.
    #[error(
        "kernel {release} has no BTF in /sys/kernel/btf/vmlinux: use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf {
        /// `uname -r`.
        release: String,
    },
    /// The daemon may not load programs.
    #[error("not allowed to load eBPF programs: {0}")]
    Capability(MissingCapabilities),
    /// The kernel lacks something the programs cannot do without.
    #[error(
        "kernel {release} is too old: Linux {}.{} or newer is needed (cannot {what}: {reason})",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    KernelTooOld {
        /// `uname -r`.
        release: String,
        /// What was tried.
        what: String,
        /// What the kernel said.
        reason: String,
    },
    /// The verifier said no.
    #[error("the kernel's verifier rejects program {program}: {reason}{log}")]
    Verifier {
        /// The program.
        program: String,
        /// Its last words.
        reason: String,
        /// Where the whole log lies.
        log: LogHint,
    },
    /// What outlives the daemon cannot be pinned, or taken over.
    #[error(transparent)]
    Pins(#[from] super::pins::PinError),
    /// The object built into this binary is not what the loader expects.
    #[error("the eBPF object inside this binary is damaged ({0}): rebuild synguard")]
    Object(String),
    /// Anything else the kernel refused.
    #[error("cannot {what}: {reason}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel said.
        reason: String,
    },
}

/// Where a verifier log was kept.
#[derive(Clone, Debug)]
pub struct LogHint(pub Option<PathBuf>);

impl fmt::Display for LogHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => write!(f, " (whole log: {})", path.display()),
            None => Ok(()),
        }
    }
}

/// Why the programs cannot be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It cannot outlive the daemon.
    #[error("cannot pin what is attached to {name} at {}: {reason}", path.display())]
    Pin {
        /// The interface.
        name: String,
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// No such interface.
    #[error("no interface {name}{hint}")]
    UnknownInterface {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        hint: NearNames,
    },
    /// This or another synguard is attached already.
    #[error(
        "interface {name} is guarded already (XDP program {program} \"{program_name}\"): stop the synguard that runs there first"
    )]
    AlreadyGuarded {
        /// The interface.
        name: String,
        /// Id of the program in the way.
        program: u32,
        /// Its name.
        program_name: String,
    },
    /// Somebody else's XDP program is attached.
    #[error(
        "another XDP program is attached to {name} (id {program}, \"{program_name}\"): detach it first, e.g. `ip link set dev {name} xdp off`"
    )]
    Occupied {
        /// The interface.
        name: String,
        /// Id of the program in the way.
        program: u32,
        /// Its name.
        program_name: String,
    },
    /// The driver refuses XDP, and nothing else was allowed.
    #[error(
        "driver {driver} of {name} refuses native XDP{mtu} ({reason}): allow generic XDP with --xdp-mode auto (`synguard check {name}` says more)"
    )]
    NativeUnsupported {
        /// The interface.
        name: String,
        /// Its driver.
        driver: String,
        /// Whether the MTU is the likely reason.
        mtu: MtuHint,
        /// What the driver said.
        reason: String,
    },
    /// The daemon may not attach programs.
    #[error("not allowed to attach to {name}: {missing}")]
    Capability {
        /// The interface.
        name: String,
        /// What is missing.
        missing: MissingCapabilities,
    },
    /// Anything else.
    #[error("cannot attach {program} to {name}: {reason}")]
    Kernel {
        /// The interface.
        name: String,
        /// The program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

/// Names near the one that was asked for; else all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearNames {
    near: Vec<String>,
    all: Vec<String>,
}

impl NearNames {
    /// The names of `all` that resemble `name`.
    pub fn new(name: &str, mut all: Vec<String>) -> Self {
        all.sort();
        let mut near: Vec<(usize, String)> = all
            .iter()
            .map(|candidate| {
                (
                    strsim::damerau_levenshtein(name, candidate),
                    candidate.clone(),
                )
            })
            .filter(|(distance, _)| *distance <= 2)
            .collect();
        near.sort();
        Self {
            near: near.into_iter().map(|(_, candidate)| candidate).collect(),
            all,
        }
    }
}

impl fmt::Display for NearNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.near.is_empty() {
            write!(f, ": did you mean {}?", self.near.join(" or "))
        } else if !self.all.is_empty() {
            write!(f, ": there are {}", self.all.join(", "))
        } else {
            Ok(())
        }
    }
}

/// Whether the interface's MTU is what keeps the driver from running XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MtuHint(pub Option<u32>);

impl fmt::Display for MtuHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mtu) => write!(f, " at MTU {mtu}, too large for its buffers"),
            None => Ok(()),
        }
    }
}

/// The error number inside an aya program error, if the kernel gave one.
pub(crate) fn errno(error: &aya::programs::ProgramError) -> Option<i32> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && let Some(number) = io.raw_os_error()
        {
            return Some(number);
        }
        if let Some(netlink) = current.downcast_ref::<aya::sys::NetlinkError>() {
            return netlink.raw_os_error();
        }
        source = current.source();
    }
    None
}

/// An error and its causes on one line, without repeating what a cause already said.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    crate::one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_come_first() {
        let all = || vec!["lo".to_string(), "eth0".into(), "eth1".into()];
        assert_eq!(
            NearNames::new("eht0", all()).to_string(),
            ": did you mean eth0 or eth1?"
        );
        assert_eq!(
            NearNames::new("wlan7", all()).to_string(),
            ": there are eth0, eth1, lo"
        );
        assert_eq!(NearNames::new("x", vec![]).to_string(), "");
    }
}
