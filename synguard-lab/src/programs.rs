//! The lab's own eBPF programs, loaded, and their maps.

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray},
    programs::{
        Program, SchedClassifier, TcAttachType, Xdp, XdpMode, tc::SchedClassifierLink, xdp::XdpLink,
    },
};
use synguard_lab_ebpf::{Flood, FloodSources, Impairment, TAGS_MAX, Tag, Tags, counter, impaired};

use crate::{
    impair::Impaired,
    link::{End, Vlan},
    netns::Netns,
};

pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/synguard-lab"));

/// `Pod` for the layouts of `synguard-lab-ebpf`, which knows nothing of aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Layout<T>(T);

// SAFETY: integers, arrays of them and no implicit padding, as the sizes asserted beside the
// definitions show.
unsafe impl Pod for Layout<Flood> {}
// SAFETY: as above.
unsafe impl Pod for Layout<FloodSources> {}
// SAFETY: as above.
unsafe impl Pod for Layout<Tags> {}
// SAFETY: as above.
unsafe impl Pod for Layout<Impairment> {}

/// What the lab's programs have counted since they were loaded, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that reached `lab_peer`.
    pub received: u64,
    /// SYN-ACKs to flood sources.
    pub syn_ack: u64,
    /// RSTs to flood sources.
    pub rst: u64,
    /// Other TCP packets to flood sources.
    pub other: u64,
    /// Packets that came back from flood sources.
    pub echo: u64,
    /// Frames that `lab_flood` has sent.
    pub sent: u64,
    /// Frames that `floor_drop` has dropped.
    pub dropped: u64,
}

/// A program of the lab's, verified when it is first asked for.
pub(crate) fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the lab has no program {name}"))?;
    if program.fd().is_err() {
        match program {
            Program::Xdp(xdp) => xdp.load(),
            Program::SchedClassifier(classifier) => classifier.load(),
            other => bail!("{name} is a program of type {:?}", other.prog_type()),
        }
        .with_context(|| format!("cannot load {name}"))?;
    }
    Ok(program)
}

/// One loaded instance of the programs, with maps of its own.
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the object. Programs are verified when they are first asked for.
    pub fn load() -> Result<Self> {
        Ok(Self {
            ebpf: Ebpf::load(OBJECT).context("cannot load the lab's programs")?,
        })
    }

    /// A program by name, in the kernel.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        load(&mut self.ebpf, name)?
            .try_into()
            .with_context(|| format!("{name} is not an XDP program"))
    }

    /// Attaches a program, in native mode, until the link is dropped.
    pub fn attach(&mut self, name: &str, end: &End) -> Result<XdpLink> {
        let program = self.program(name)?;
        let link = end
            .ns
            .run(|| Ok(program.attach_to_if_index(end.index, XdpMode::Driver)?))
            .with_context(|| format!("cannot attach {name} to {}", end.name))?;
        Ok(program.take_link(link)?)
    }

    /// Says which sources `lab_peer` counts as the flood's.
    pub fn set_flood_sources(&mut self, sources: FloodSources) -> Result<()> {
        self.write("FLOOD_SOURCES", Layout(sources))
    }

    /// Says what the frames of `lab_flood` look like.
    pub fn set_flood(&mut self, flood: Flood) -> Result<()> {
        self.write("FLOOD", Layout(flood))
    }

    /// Says what `lab_impair` does.
    pub(crate) fn set_impairment(&mut self, impairment: Impairment) -> Result<()> {
        self.write("IMPAIRMENT", Layout(impairment))
    }

    /// Attaches a TC program to a device of a namespace until the link is dropped.
    pub(crate) fn attach_tc(
        &mut self,
        name: &str,
        ns: &Netns,
        device: &str,
        direction: TcAttachType,
    ) -> Result<SchedClassifierLink> {
        let program: &mut SchedClassifier = load(&mut self.ebpf, name)?
            .try_into()
            .with_context(|| format!("{name} is not a TC program"))?;
        let link = ns
            .run(|| Ok(program.attach(device, direction)?))
            .with_context(|| format!("cannot attach {name} to {device}"))?;
        Ok(program.take_link(link)?)
    }

    /// A handle on the counters that outlives the programs.
    pub fn counters(&mut self) -> Result<CounterReader> {
        self.sums("COUNTERS").map(CounterReader)
    }

    /// The same for what `lab_impair` has counted.
    pub(crate) fn impaired(&mut self) -> Result<ImpairedReader> {
        self.sums("IMPAIRED").map(ImpairedReader)
    }

    fn sums(&mut self, name: &'static str) -> Result<Sums> {
        let map = self
            .ebpf
            .map(name)
            .with_context(|| format!("the lab's object has no map {name}"))?;
        let aya::maps::Map::PerCpuArray(data) = map else {
            bail!("{name} is no per-CPU array")
        };
        let copy = MapData::from_id(data.info()?.id())
            .with_context(|| format!("cannot open {name} again"))?;
        let map = aya::maps::Map::PerCpuArray(copy);
        let map = map
            .try_into()
            .with_context(|| format!("{name} has another layout"))?;
        Ok(Sums { name, map })
    }

    fn write<T: Pod>(&mut self, name: &str, value: T) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("the lab's object has no map {name}"))?;
        let mut map: Array<_, T> = map
            .try_into()
            .with_context(|| format!("{name} has another layout"))?;
        map.set(0, value, 0)
            .with_context(|| format!("cannot write {name}"))
    }
}

/// A per-CPU map of counters.
struct Sums {
    name: &'static str,
    map: PerCpuArray<MapData, u64>,
}

impl Sums {
    fn slot(&self, index: u32) -> Result<u64> {
        let values = self.map.get(&index, 0);
        let values = values.with_context(|| format!("cannot read {}", self.name))?;
        Ok(values.iter().sum())
    }
}

/// Reads [`Counters`].
pub struct CounterReader(Sums);

impl CounterReader {
    /// The counters as they are now.
    pub fn read(&self) -> Result<Counters> {
        let slot = |index| self.0.slot(index);
        Ok(Counters {
            received: slot(counter::RECEIVED)?,
            syn_ack: slot(counter::SYN_ACK)?,
            rst: slot(counter::RST)?,
            other: slot(counter::OTHER)?,
            echo: slot(counter::ECHO)?,
            sent: slot(counter::SENT)?,
            dropped: slot(counter::DROPPED)?,
        })
    }
}

/// Reads [`Impaired`].
pub(crate) struct ImpairedReader(Sums);

impl ImpairedReader {
    pub(crate) fn read(&self) -> Result<Impaired> {
        let slot = |index| self.0.slot(index);
        Ok(Impaired {
            seen: slot(impaired::SEEN)?,
            lost: slot(impaired::LOST)?,
            delayed: slot(impaired::DELAYED)?,
            overtaken: slot(impaired::OVERTAKEN)?,
        })
    }
}

/// The two programs that stand in for VLAN devices, attached to a device until dropped.
pub(crate) struct TagLinks {
    _programs: Programs,
    _links: [SchedClassifierLink; 2],
}

impl TagLinks {
    /// Attaches them to a device above `end`.
    pub(crate) fn attach(end: &End, device: &str, vlans: &[Vlan]) -> Result<Self> {
        let mut tags = Tags::default();
        if vlans.len() > TAGS_MAX {
            bail!("a wire has at most {TAGS_MAX} tags");
        }
        for (tag, vlan) in tags.tags.iter_mut().zip(vlans) {
            *tag = Tag {
                tpid_be: vlan.tpid.to_be(),
                id: vlan.id,
            };
        }
        let mut programs = Programs::load()?;
        programs.write("TAGS", Layout(tags))?;
        let mut attach = |name, direction| programs.attach_tc(name, &end.ns, device, direction);
        let links = [
            attach("lab_tag_in", TcAttachType::Ingress)?,
            attach("lab_tag_out", TcAttachType::Egress)?,
        ];
        Ok(Self {
            _programs: programs,
            _links: links,
        })
    }
}
