//! Loads the programs: sizes the maps, turns made-up calls into kernel functions, and brings
//! everything before the verifier; or takes over what another daemon has loaded.

use std::{io::Write as _, path::Path};

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
    error::{LoadError, LogHint, MissingCapabilities, OLDEST_KERNEL, errno, one_line},
    inert,
    jiffies::Jiffies,
    kfunc,
    maps::{Maps, Source},
    pins::{Found, Pins},
    programs::Programs,
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
    /// The programs.
    pub programs: Programs,
    /// Whether another daemon has made the tables, and they hold what it knew.
    pub adopted: bool,
    #[cfg(feature = "trace")]
    trace: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl Dataplane {
    /// Prints what the programs have logged since the last call.
    #[cfg(feature = "trace")]
    pub fn print_trace(&mut self) {
        self.trace.flush();
    }

    /// The XDP program, to run it on single frames or to ask what it is.
    pub fn xdp(&self) -> Result<&Xdp, LoadError> {
        self.programs.loaded(PROGRAM_IN)
    }

    /// A TC program, likewise.
    pub fn classifier(&self, name: &str) -> Result<&SchedClassifier, LoadError> {
        self.programs.loaded(name)
    }

    /// A handle of the program `name`, to run it from another thread.
    pub fn runner(&self, name: &str) -> Result<Runner, LoadError> {
        let failed = |error: &dyn std::error::Error| LoadError::Kernel {
            what: format!("run program {name}"),
            reason: one_line(error),
        };
        let fd = self.programs.fd(name)?;
        Runner::new(fd).map_err(|error| failed(&error))
    }

    /// What compares the kernel's coarse clocks. Once: it takes the map it reads.
    pub fn jiffies(&mut self) -> Result<Jiffies, LoadError> {
        let moments =
            self.maps.moments.take().ok_or_else(|| {
                LoadError::Object(format!("map {} was taken already", map::MOMENT))
            })?;
        Ok(Jiffies::new(self.runner(PROGRAM_MOMENT)?, moments))
    }
}

/// Release of the running kernel, as `uname -r` says.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| release.trim().to_owned())
        .unwrap_or_else(|_| "of unknown release".to_owned())
}

/// The object, to look at: which helpers its programs call, how large its maps are.
pub(crate) fn object() -> Result<aya_obj::Object, LoadError> {
    aya_obj::Object::parse(OBJECT).map_err(|error| LoadError::Object(one_line(&error)))
}

/// Entries of the maps whose size is not the object's own.
pub(crate) fn map_entries(options: &Options) -> [(&'static str, u32); 10] {
    [
        (map::HALF_OPEN, options.half_open_entries),
        (map::FLOWS, buckets_for(options.flow_entries)),
        (map::VERIFIED, options.verified_entries),
        (map::ADDRESSES, ADDRESS_ENTRIES),
        (map::PREFIXES, ADDRESS_ENTRIES),
        (map::PORTS, PORT_ENTRIES),
        (map::SERVICES, SERVICE_SLOTS),
        (map::STATES, SERVICE_SLOTS),
        (map::STATS, SERVICE_SLOTS),
        (map::LEDGER, SERVICE_SLOTS),
    ]
}

/// Loads everything the kernel can run. Where it cannot make sockets from our cookies,
/// [`Dataplane::local_error`] says why and `synguard_admit` stays out.
pub fn load(options: &Options) -> Result<Dataplane, LoadError> {
    load_object(Object::open(options, None)?)
}

/// Brings the programs for generic mode, which [`load`] leaves for later, before the verifier, and lets
/// them go.
pub fn try_generic(options: &Options) -> Result<(), LoadError> {
    let mut programs = Programs::unloaded(Object::open(options, None)?);
    programs.get::<Xdp>(PROGRAM_IN_GENERIC)?;
    programs.get::<SchedClassifier>(PROGRAM_OUT_GENERIC)?;
    Ok(())
}

/// The same as [`load`] with programs that send nothing by themselves, for test runs: see [`inert`].
pub fn load_inert(options: &Options) -> Result<Dataplane, LoadError> {
    let mut object = aligned(OBJECT);
    inert::patch(object.bytes_mut()).map_err(|error| LoadError::Object(error.to_string()))?;
    load_object(Object::of(object, options, None)?)
}

fn load_object(object: Object) -> Result<Dataplane, LoadError> {
    let maps = Maps::create(&Source::Object(&object.ebpf))?;
    finish(Programs::of(object)?, maps, false)
}

/// Takes over what is pinned, or loads and pins it; tables of another version must be gone.
///
/// Programs that were pinned by this very binary are taken as they are, which saves the verifier's
/// second. Tables keep the sizes they were made with.
pub fn load_pinned(options: &Options, pins: &Pins) -> Result<Dataplane, LoadError> {
    let adopted = pins.find()? == Found::Ours;
    let (programs, maps);
    if adopted {
        maps = Maps::adopt(&Source::Pins(pins))?;
        programs = Programs::pinned(*options, pins)?;
    } else {
        let staged = pins.stage()?;
        let object = Object::open(options, Some(&staged))?;
        // All of it must be there before anybody takes it over.
        maps = Maps::create(&Source::Object(&object.ebpf))?;
        pins.publish()?;
        programs = Programs::of(object)?.pin(pins)?;
    }
    finish(programs, maps, adopted)
}

fn finish(programs: Programs, maps: Maps, adopted: bool) -> Result<Dataplane, LoadError> {
    #[cfg(feature = "trace")]
    let mut programs = programs;
    Ok(Dataplane {
        maps,
        local_error: programs.local_error().map(str::to_owned),
        #[cfg(feature = "trace")]
        trace: programs.trace()?,
        programs,
        adopted,
    })
}

/// The object inside this binary, its maps made and its programs ready to be loaded.
pub(super) struct Object {
    pub ebpf: Ebpf,
    /// Why `local` admission is impossible, if it is.
    pub local_error: Option<String>,
}

impl Object {
    /// Makes the maps, or takes those that are in `maps` already, and pins them there.
    pub fn open(options: &Options, maps: Option<&Path>) -> Result<Self, LoadError> {
        Self::of(aligned(OBJECT), options, maps)
    }

    fn of(mut object: Aligned, options: &Options, maps: Option<&Path>) -> Result<Self, LoadError> {
        let release = kernel_release();
        let btf = Btf::from_sys_fs().map_err(|error| {
            debug!(error = one_line(&error), "kernel BTF");
            LoadError::NoBtf {
                release: release.clone(),
            }
        })?;
        let patched = kfunc::patch(object.bytes_mut(), |name| {
            btf.id_by_type_name_kind(name, BtfKind::Func).ok()
        })
        .map_err(|error| LoadError::Object(error.to_string()))?;
        let local_error = patched.missing.first().map(|name| {
            format!("kernel {release} has no {name}: local admission needs Linux 6.9 or newer")
        });

        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for (name, entries) in map_entries(options) {
            loader.map_max_entries(name, entries);
        }
        if let Some(directory) = maps {
            for name in map::ALL {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let ebpf = loader.load(object.bytes()).map_err(|error| match &error {
            aya::EbpfError::MapError(MapError::CreateError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EPERM) =>
            {
                LoadError::Capability(MissingCapabilities(vec!["CAP_BPF".into()]))
            }
            aya::EbpfError::ParseError(_) => LoadError::Object(one_line(&error)),
            _ => kernel_refused("create the eBPF maps".into(), one_line(&error)),
        })?;
        Ok(Self { ebpf, local_error })
    }
}

/// Names the object, so that programs can be told from those of another: a hash of it.
pub(super) fn object_name() -> String {
    blake3::hash(OBJECT).to_hex()[..16].to_owned()
}

pub(super) fn rejected(program: &str, error: &ProgramError) -> LoadError {
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
        return kernel_refused(format!("load program {program}"), one_line(error));
    };
    let log = verifier_log.to_string();
    let reason = verdict(&log).map_or_else(|| io_error.to_string(), str::to_owned);
    match kernel_refused(format!("load program {program}"), reason) {
        LoadError::Kernel { reason, .. } => LoadError::Verifier {
            program: program.to_owned(),
            reason,
            log: LogHint(keep(program, &log)),
        },
        too_old => too_old,
    }
}

/// Blames the kernel's age where it is older than what is known to do.
fn kernel_refused(what: String, reason: String) -> LoadError {
    match KernelVersion::current() {
        Ok(version) => blame(version, what, reason),
        Err(_) => LoadError::Kernel { what, reason },
    }
}

fn blame(version: KernelVersion, what: String, reason: String) -> LoadError {
    let (major, minor) = OLDEST_KERNEL;
    if version < KernelVersion::new(major, minor, 0) {
        let release = kernel_release();
        LoadError::KernelTooOld {
            release,
            what,
            reason,
        }
    } else {
        LoadError::Kernel { what, reason }
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
    fn age_is_blamed_on_old_kernels_only() {
        let refused = |version| blame(version, "load".into(), "EINVAL".into());
        let old = refused(KernelVersion::new(5, 15, 0));
        let told = old.to_string();
        assert!(matches!(old, LoadError::KernelTooOld { .. }), "{told}");
        assert!(told.contains("Linux 5.18 or newer is needed (cannot load: EINVAL)"));
        for new in [KernelVersion::new(5, 18, 0), KernelVersion::new(6, 1, 9)] {
            assert!(matches!(refused(new), LoadError::Kernel { .. }));
        }
    }

    #[test]
    fn the_programs_send_by_a_call_that_can_be_taken_out() {
        let mut object = aligned(OBJECT);
        assert!(inert::patch(object.bytes_mut()).unwrap() > 0);
        assert_eq!(inert::patch(object.bytes_mut()), Ok(0));
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
