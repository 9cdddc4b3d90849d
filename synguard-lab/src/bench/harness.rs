//! The harness programs, loaded, and one measurement by them.

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, Pod, TestRun, TestRunOptions, TestRunResult,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{Program, ProgramFd, SchedClassifier, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use synguard::dataplane::wire::Wire;
use synguard_common::abi::{FlowEntry, Tuple};
use synguard_lab_ebpf::{
    FRAME_MAX,
    bench::{FRAMES, Frame, Round, slot},
};

use crate::{
    programs::{self, OBJECT},
    testrun,
};

/// Words of a value of `FLOOR_INSERT`.
const FLOW_WORDS: usize = size_of::<FlowEntry>() / 8;

/// `Pod` for the layouts of `synguard-lab-ebpf`, which knows nothing of aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Layout<T>(T);

// SAFETY: an array of bytes.
unsafe impl Pod for Layout<Frame> {}
// SAFETY: two integers without padding, as the size asserted beside the definition shows.
unsafe impl Pod for Layout<Round> {}

/// What a measurement runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `floor_empty` by itself, without the harness.
    Bare,
    /// The harness around a program that does nothing.
    Empty,
    /// The harness around the program under test.
    Subject,
    /// The harness around `floor_tx`.
    Tx,
    /// The harness around `floor_siphash`.
    SipHash,
    /// The harness around `floor_lookup`.
    Lookup,
    /// The harness around `floor_hash`.
    Hash,
    /// The harness around `floor_lru`.
    Lru,
    /// The harness around `floor_insert`.
    Insert,
    /// `floor_tc_empty` by itself, without the harness.
    TcBare,
    /// The TC harness around a program that does nothing.
    TcEmpty,
    /// The TC harness around the program under test.
    TcSubject,
}

impl Target {
    const fn program(self) -> &'static str {
        match self {
            Self::Bare => "floor_empty",
            Self::Empty => "bench_empty",
            Self::Subject => "bench_subject",
            Self::Tx => "bench_tx",
            Self::SipHash => "bench_siphash",
            Self::Lookup => "bench_lookup",
            Self::Hash => "bench_hash",
            Self::Lru => "bench_lru",
            Self::Insert => "bench_insert",
            Self::TcBare => "floor_tc_empty",
            Self::TcEmpty => "bench_tc_empty",
            Self::TcSubject => "bench_tc_subject",
        }
    }

    const fn is_tc(self) -> bool {
        matches!(self, Self::TcBare | Self::TcEmpty | Self::TcSubject)
    }
}

/// What one measurement came to.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Time of one run, ns, with its share of the call; for differences.
    pub ns: f64,
    /// The kernel's own mean of the runs, which it gives in whole ns.
    pub gross_ns: f64,
    /// What the program returned for the last frame of the ring.
    pub value: u32,
}

/// The programs and their maps. A program array forgets its programs when the last descriptor of
/// it is closed, so they are kept.
pub struct Harness {
    ebpf: Ebpf,
    round: Array<MapData, Layout<Round>>,
    frames: Array<MapData, Layout<Frame>>,
    runs: PerCpuArray<MapData, u32>,
    xdp: ProgramArray<MapData>,
    tc: ProgramArray<MapData>,
    /// What the floors `floor_hash` and `floor_lru` look into.
    connections: [HashMap<MapData, Wire<Tuple>, u64>; 2],
    /// What the floor `floor_insert` enters into.
    inserted: HashMap<MapData, Wire<Tuple>, [u64; FLOW_WORDS]>,
    first: Vec<u8>,
}

impl Harness {
    /// Loads the harness; `subject` is the XDP program to measure.
    pub fn load(subject: &ProgramFd) -> Result<Self> {
        let mut ebpf = Ebpf::load(OBJECT).context("cannot load the lab's programs")?;
        for name in [
            "floor_empty",
            "floor_tx",
            "floor_siphash",
            "bench_empty",
            "bench_subject",
            "bench_tx",
            "bench_siphash",
            "floor_lookup",
            "bench_lookup",
            "floor_hash",
            "bench_hash",
            "floor_lru",
            "bench_lru",
            "floor_insert",
            "bench_insert",
            "floor_tc_empty",
            "bench_tc_empty",
            "bench_tc_subject",
        ] {
            programs::load(&mut ebpf, name)?;
        }
        let mut harness = Self {
            round: map(&mut ebpf, "BENCH")?,
            frames: map(&mut ebpf, "BENCH_FRAMES")?,
            runs: map(&mut ebpf, "BENCH_RUNS")?,
            xdp: map(&mut ebpf, "BENCH_XDP")?,
            tc: map(&mut ebpf, "BENCH_TC")?,
            inserted: map(&mut ebpf, "FLOOR_INSERT")?,
            connections: [map(&mut ebpf, "FLOOR_HASH")?, map(&mut ebpf, "FLOOR_LRU")?],
            ebpf,
            first: Vec::new(),
        };
        for (at, name) in [
            (slot::EMPTY, "floor_empty"),
            (slot::TX, "floor_tx"),
            (slot::SIPHASH, "floor_siphash"),
            (slot::LOOKUP, "floor_lookup"),
            (slot::HASH, "floor_hash"),
            (slot::LRU, "floor_lru"),
            (slot::INSERT, "floor_insert"),
        ] {
            let fd = harness.descriptor(name)?;
            harness
                .xdp
                .set(at, &fd, 0)
                .with_context(|| format!("cannot make {name} callable"))?;
        }
        let fd = harness.descriptor("floor_tc_empty")?;
        harness
            .tc
            .set(slot::EMPTY, &fd, 0)
            .context("cannot make floor_tc_empty callable")?;
        harness
            .xdp
            .set(slot::SUBJECT, subject, 0)
            .context("cannot make the program under test callable")?;
        Ok(harness)
    }

    /// Makes a TC program the one under test.
    pub fn set_tc(&mut self, subject: &ProgramFd) -> Result<()> {
        self.tc
            .set(slot::SUBJECT, subject, 0)
            .context("cannot make the TC program under test callable")
    }

    /// Makes a connection one that the floors of hash tables find.
    pub fn enter_connection(&mut self, tuple: Tuple) -> Result<()> {
        for map in &mut self.connections {
            map.insert(Wire(tuple), 0, 0)
                .context("cannot write FLOOR_HASH or FLOOR_LRU")?;
        }
        Ok(())
    }

    /// Removes what `floor_insert` entered, as far as it is there.
    pub fn remove_inserted(&mut self, tuples: &[Tuple]) -> Result<()> {
        tuples
            .iter()
            .try_for_each(|tuple| remove(&mut self.inserted, *tuple))
            .context("cannot clear FLOOR_INSERT")
    }

    fn descriptor(&self, name: &str) -> Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Says what the next measurements go round: frames of one even length, their number a power
    /// of two.
    pub fn set_ring(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let first = frames.first().context("a ring of no frames")?;
        ensure!(
            frames.len().is_power_of_two() && frames.len() <= FRAMES as usize,
            "a ring of {} frames",
            frames.len()
        );
        ensure!(
            first.len().is_multiple_of(2)
                && first.len() <= FRAME_MAX
                && frames.iter().all(|frame| frame.len() == first.len()),
            "a ring of frames of unequal, odd or too great length ({})",
            first.len()
        );
        for (at, frame) in frames.iter().enumerate() {
            let mut bytes = [0; FRAME_MAX];
            bytes[..frame.len()].copy_from_slice(frame);
            self.frames
                .set(at as u32, Layout(Frame(bytes)), 0)
                .context("cannot write BENCH_FRAMES")?;
        }
        let round = Round {
            length: first.len() as u32,
            mask: frames.len() as u32 - 1,
        };
        self.round
            .set(0, Layout(round), 0)
            .context("cannot write BENCH")?;
        let cpus = self
            .runs
            .get(&0, 0)
            .context("cannot read BENCH_RUNS")?
            .len();
        self.runs
            .set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)
            .context("cannot write BENCH_RUNS")?;
        self.first.clone_from(first);
        Ok(())
    }

    /// Runs a program on the next frame of the ring; the frame as it left it.
    pub fn run_once(&self, target: Target) -> Result<Vec<u8>> {
        let name = target.program();
        let program = self.program(name)?;
        let outcome = if target.is_tc() {
            let program: &SchedClassifier = program.try_into()?;
            testrun::run(program, &self.first)
        } else {
            let program: &Xdp = program.try_into()?;
            testrun::run(program, &self.first)
        };
        Ok(outcome.with_context(|| format!("cannot run {name}"))?.frame)
    }

    /// Runs a program over the ring, `repeat` frames in all: whole rounds of it, so that the next
    /// measurement starts with the first frame again.
    pub fn measure(&self, target: Target, repeat: u32) -> Result<Measured> {
        let name = target.program();
        let program = self.program(name)?;
        let measured = if target.is_tc() {
            let program: &SchedClassifier = program.try_into()?;
            timed(program, &self.first, repeat)
        } else {
            let program: &Xdp = program.try_into()?;
            timed(program, &self.first, repeat)
        };
        measured.with_context(|| format!("cannot run {name}"))
    }

    fn program(&self, name: &str) -> Result<&Program> {
        self.ebpf
            .program(name)
            .with_context(|| format!("the lab has no program {name}"))
    }
}

/// The kernel's own mean is too coarse for differences. This thread's CPU time is not, and like the
/// kernel's leaves out what other tasks took meanwhile. The call itself, which takes some 150 µs for
/// patching the program into the kernel's XDP dispatcher, is in both sides of a difference.
fn timed<P>(program: &P, frame: &[u8], repeat: u32) -> Result<Measured>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let before = cpu_time()?;
    let outcome = testrun::repeat(program, frame, None, repeat)?;
    let time = cpu_time()?.saturating_sub(before);
    Ok(Measured {
        ns: time.as_nanos() as f64 / f64::from(repeat),
        gross_ns: outcome.duration.as_nanos() as f64,
        value: outcome.value,
    })
}

/// Removes an entry, if it is there.
pub fn remove<V: Pod>(
    map: &mut HashMap<MapData, Wire<Tuple>, V>,
    tuple: Tuple,
) -> Result<(), MapError> {
    match map.remove(&Wire(tuple)) {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            Ok(())
        }
        result => result,
    }
}

fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("cannot read the thread's CPU time")?;
    Ok(time.into())
}

fn map<M>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let Some(map) = ebpf.take_map(name) else {
        bail!("the lab's object has no map {name}")
    };
    M::try_from(map).with_context(|| format!("{name} has another layout"))
}
