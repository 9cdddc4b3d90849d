//! Loads the programs: sizes the maps, turns made-up calls into kernel functions, and brings
//! everything before the verifier.

use std::io::Write as _;

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::MapError,
    programs::{ProgramError, SchedClassifier, Xdp},
    util::KernelVersion,
};
use aya_obj::btf::BtfKind;
use synguard_common::{abi::map, flowtable::buckets_for};
use tracing::debug;

use super::{
    error::{LoadError, LogHint, MissingCapabilities, errno, one_line},
    jiffies::Jiffies,
    kfunc,
    maps::{Maps, typed},
    testrun::Runner,
};
use crate::config;

/// The programs, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/synguard"));

/// XDP program: the way in.
pub const PROGRAM_IN: &str = "synguard_in";
/// The XDP program for generic mode, loaded when it is needed.
pub const PROGRAM_IN_GENERIC: &str = "synguard_in_skb";
/// TC ingress program: `local` admission.
pub const PROGRAM_ADMIT: &str = "synguard_admit";
/// TC egress program: the way out.
pub const PROGRAM_OUT: &str = "synguard_out";
/// The same for an interface whose XDP program runs in generic mode, loaded when it is needed.
pub const PROGRAM_OUT_GENERIC: &str = "synguard_out_skb";

/// TC program that is never attached: run by the daemon, it looks after the flows.
pub const PROGRAM_SWEEP: &str = "synguard_sweep";
/// TC program that is attached nowhere: tells the kernel's coarse clocks.
pub const PROGRAM_MOMENT: &str = "synguard_moment";
/// XDP program that passes everything: what frames are injected by in generic mode.
pub const PROGRAM_PASS: &str = "synguard_pass";

/// Kernel the programs need, whatever the admission.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 15, 0);

/// Numbers of services, 0 ("none") included.
pub const SERVICE_SLOTS: u32 = 1024;
/// Entries of `ADDRESSES` and `PREFIXES`; twice what a configuration may need, because an update
/// adds before it removes.
pub const ADDRESS_ENTRIES: u32 = 2 * super::tables::MAX_ADDRESSES as u32;
/// Entries of `PORTS`, likewise.
pub const PORT_ENTRIES: u32 = 2 * super::tables::MAX_PORTS as u32;

/// Sizes that the configuration decides.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Entries of the half-open table.
    pub half_open_entries: u32,
    /// Entries of the flow table.
    pub flow_entries: u32,
    /// Entries of the table of verified sources.
    pub verified_entries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            half_open_entries: config::DEFAULT_HALF_OPEN_ENTRIES,
            flow_entries: config::DEFAULT_FLOW_ENTRIES,
            verified_entries: config::DEFAULT_VERIFIED_ENTRIES,
        }
    }
}

/// The loaded programs and their tables.
pub struct Dataplane {
    /// The tables.
    pub maps: Maps,
    /// Why `local` admission is impossible, if it is.
    pub local_error: Option<String>,
    #[cfg(feature = "trace")]
    trace: aya_log::EbpfLogger<&'static dyn log::Log>,
    pub(super) ebpf: Ebpf,
}

impl Dataplane {
    /// Prints what the programs have logged since the last call.
    #[cfg(feature = "trace")]
    pub fn print_trace(&mut self) {
        self.trace.flush();
    }

    /// The XDP program, to run it on single frames or to ask what it is.
    pub fn xdp(&self) -> Result<&Xdp, LoadError> {
        shared(&self.ebpf, PROGRAM_IN)
    }

    /// A handle of the program `name`, to run it from another thread.
    pub fn runner(&self, name: &str) -> Result<Runner, LoadError> {
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))?;
        let failed = |error: &dyn std::error::Error| LoadError::Kernel {
            what: format!("run program {name}"),
            reason: one_line(error),
        };
        let fd = program.fd().map_err(|error| failed(&error))?;
        Runner::new(fd).map_err(|error| failed(&error))
    }

    /// What compares the kernel's coarse clocks. Once: it takes the map it reads.
    pub fn jiffies(&mut self) -> Result<Jiffies, LoadError> {
        let program = self.classifier(PROGRAM_MOMENT)?;
        let kernel = |what: &str, error: &dyn std::error::Error| LoadError::Kernel {
            what: format!("{what} {PROGRAM_MOMENT}"),
            reason: one_line(error),
        };
        let fd = program.fd().map_err(|error| kernel("find", &error))?;
        let runner = Runner::new(fd).map_err(|error| kernel("open", &error))?;
        Ok(Jiffies::new(runner, typed(&mut self.ebpf, map::MOMENT)?))
    }

    /// The way out, loaded: one for each mode of XDP, as one must know that what it sends back passes
    /// XDP once more.
    pub fn out(&mut self, generic: bool) -> Result<&mut SchedClassifier, LoadError> {
        let name = if generic {
            PROGRAM_OUT_GENERIC
        } else {
            PROGRAM_OUT
        };
        let out: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        if out.fd().is_err() {
            out.load().map_err(|error| rejected(name, &error))?;
        }
        Ok(out)
    }

    /// A TC program, likewise.
    pub fn classifier(&self, name: &str) -> Result<&SchedClassifier, LoadError> {
        shared(&self.ebpf, name)
    }
}

/// Release of the running kernel, as `uname -r` says.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| release.trim().to_owned())
        .unwrap_or_else(|_| "of unknown release".to_owned())
}

/// Loads everything the kernel can run. Where it cannot make sockets from our cookies,
/// [`Dataplane::local_error`] says why and `synguard_admit` stays out.
pub fn load(options: &Options) -> Result<Dataplane, LoadError> {
    let release = kernel_release();
    if KernelVersion::current().is_ok_and(|version| version < OLDEST_KERNEL) {
        return Err(LoadError::KernelTooOld { release });
    }
    let btf = Btf::from_sys_fs().map_err(|error| {
        debug!(error = one_line(&error), "kernel BTF");
        LoadError::NoBtf {
            release: release.clone(),
        }
    })?;
    let mut object = aligned(OBJECT);
    let patched = kfunc::patch(object.bytes_mut(), |name| {
        btf.id_by_type_name_kind(name, BtfKind::Func).ok()
    })
    .map_err(|error| LoadError::Object(error.to_string()))?;
    let local_error = patched.missing.first().map(|name| {
        format!("kernel {release} has no {name}: local admission needs Linux 6.9 or newer")
    });

    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .map_max_entries(map::HALF_OPEN, options.half_open_entries)
        .map_max_entries(map::FLOWS, buckets_for(options.flow_entries))
        .map_max_entries(map::VERIFIED, options.verified_entries)
        .map_max_entries(map::ADDRESSES, ADDRESS_ENTRIES)
        .map_max_entries(map::PREFIXES, ADDRESS_ENTRIES)
        .map_max_entries(map::PORTS, PORT_ENTRIES)
        .map_max_entries(map::SERVICES, SERVICE_SLOTS)
        .map_max_entries(map::STATES, SERVICE_SLOTS)
        .map_max_entries(map::STATS, SERVICE_SLOTS)
        .load(object.bytes())
        .map_err(|error| match &error {
            aya::EbpfError::MapError(MapError::CreateError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EPERM) =>
            {
                LoadError::Capability(MissingCapabilities(vec!["CAP_BPF".into()]))
            }
            aya::EbpfError::ParseError(_) => LoadError::Object(one_line(&error)),
            _ => LoadError::Kernel {
                what: "create the eBPF maps".into(),
                reason: one_line(&error),
            },
        })?;
    let maps = Maps::take(&mut ebpf)?;
    // Before the programs are loaded: their log map must be open by then.
    #[cfg(feature = "trace")]
    let trace = aya_log::EbpfLogger::init(&mut ebpf)
        .map_err(|error| LoadError::Object(one_line(&error)))?;

    let xdp: &mut Xdp = program(&mut ebpf, PROGRAM_IN)?;
    xdp.load().map_err(|error| rejected(PROGRAM_IN, &error))?;
    let out: &mut SchedClassifier = program(&mut ebpf, PROGRAM_OUT)?;
    out.load().map_err(|error| rejected(PROGRAM_OUT, &error))?;
    let sweep: &mut SchedClassifier = program(&mut ebpf, PROGRAM_SWEEP)?;
    sweep
        .load()
        .map_err(|error| rejected(PROGRAM_SWEEP, &error))?;
    let moment: &mut SchedClassifier = program(&mut ebpf, PROGRAM_MOMENT)?;
    moment
        .load()
        .map_err(|error| rejected(PROGRAM_MOMENT, &error))?;
    let pass: &mut Xdp = program(&mut ebpf, PROGRAM_PASS)?;
    pass.load()
        .map_err(|error| rejected(PROGRAM_PASS, &error))?;
    if local_error.is_none() {
        let admit: &mut SchedClassifier = program(&mut ebpf, PROGRAM_ADMIT)?;
        admit
            .load()
            .map_err(|error| rejected(PROGRAM_ADMIT, &error))?;
    }
    Ok(Dataplane {
        maps,
        local_error,
        #[cfg(feature = "trace")]
        trace,
        ebpf,
    })
}

/// The program `name`, to look at.
fn shared<'a, P>(ebpf: &'a Ebpf, name: &str) -> Result<&'a P, LoadError>
where
    &'a P: TryFrom<&'a aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program(name)
        .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))?;
    program
        .try_into()
        .map_err(|_| LoadError::Object(format!("program {name} has the wrong type")))
}

/// The program `name`, as the type it must have.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))?;
    program
        .try_into()
        .map_err(|_| LoadError::Object(format!("program {name} has the wrong type")))
}

fn rejected(program: &str, error: &ProgramError) -> LoadError {
    if errno(error) == Some(libc::EPERM) {
        let capabilities = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
            .map(String::from)
            .to_vec();
        return LoadError::Capability(MissingCapabilities(capabilities));
    }
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return LoadError::Kernel {
            what: format!("load program {program}"),
            reason: one_line(error),
        };
    };
    let log = verifier_log.to_string();
    let reason = verdict(&log).map_or_else(|| io_error.to_string(), str::to_owned);
    LoadError::Verifier {
        program: program.to_owned(),
        reason,
        log: LogHint(keep(program, &log)),
    }
}

/// The line of a verifier log that says what was wrong: the last one before the statistics.
fn verdict(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = [
        "processed ",
        "verification time",
        "stack depth",
        "peak_states",
    ];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

/// Keeps a verifier log in a file of its own; without one there is only the line.
fn keep(program: &str, log: &str) -> Option<std::path::PathBuf> {
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{program}-verifier-"))
        .suffix(".log")
        .tempfile()
        .ok()?;
    file.write_all(log.as_bytes()).ok()?;
    file.keep().ok().map(|(_, path)| path)
}

/// A copy of the object that is aligned as the ELF parser wants it and may be written to.
struct Aligned {
    words: Vec<u64>,
    length: usize,
}

fn aligned(bytes: &[u8]) -> Aligned {
    let words = bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect();
    Aligned {
        words,
        length: bytes.len(),
    }
}

impl Aligned {
    fn bytes(&self) -> &[u8] {
        &object::bytes_of_slice(&self.words)[..self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut object::bytes_of_slice_mut(&mut self.words)[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_of_a_verifier_log_is_its_last_line_before_the_statistics() {
        let log = "0: (b7) r0 = 0\n1: (95) exit\nR1 invalid mem access 'scalar'\nverification time 12 usec\n\
                   stack depth 0\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(verdict(log), Some("R1 invalid mem access 'scalar'"));
        assert_eq!(verdict(""), None);
    }

    #[test]
    fn an_aligned_copy_is_equal() {
        for length in 0..20u8 {
            let bytes: Vec<u8> = (0..length).collect();
            let mut copy = aligned(&bytes);
            assert_eq!(copy.bytes(), bytes);
            assert_eq!(copy.bytes_mut().as_ptr().align_offset(8), 0);
        }
    }
}
