//! The in-kernel flood: `lab_flood` run over live frames, paced or as fast as a core can.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use synguard::dataplane::testrun::Runner;
use synguard_lab_ebpf::{FRAME_MAX, Flood as Template};

use crate::{
    cpu,
    edge::{FLOOD_V4, FLOOD_V6},
    frame::{Frame, TcpOption, flags, sum},
    link::End,
    programs::{CounterReader, Programs},
};

/// Which packets a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYN.
    Syn,
    /// ACK with random numbers, and the same with data pushed.
    Ack,
    /// RST, and RST with ACK.
    Rst,
    /// FIN with ACK.
    Fin,
    /// What no stack sends: SYN+FIN, SYN+RST, no flags, FIN alone, all flags and the like.
    Nonsense,
    /// All of the above.
    Mixed,
}

impl Kind {
    fn flags(self) -> [u8; 8] {
        use flags::{ACK, FIN, PSH, RST, SYN, URG};
        match self {
            Self::Syn => [SYN; 8],
            Self::Ack => [ACK, ACK, ACK, ACK, ACK, ACK, ACK | PSH, ACK | PSH],
            Self::Rst => [
                RST,
                RST | ACK,
                RST,
                RST | ACK,
                RST,
                RST | ACK,
                RST,
                RST | ACK,
            ],
            Self::Fin => [FIN | ACK; 8],
            Self::Nonsense => [
                SYN | FIN,
                SYN | RST,
                0,
                FIN,
                FIN | PSH | URG,
                0xff,
                SYN | FIN | RST,
                SYN | ACK | FIN,
            ],
            Self::Mixed => [SYN, SYN, ACK, ACK | PSH, RST, FIN | ACK, SYN | FIN, 0],
        }
    }
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Packets per second.
    Pps(u64),
    /// As fast as the core can.
    FlatOut,
}

/// TCP options of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    /// None.
    None,
    /// What a Linux client's SYN carries.
    LinuxSyn,
    /// Timestamps, as every later segment of a Linux client carries.
    Timestamps,
}

/// Where the frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Random addresses of the flood's prefix, random ports.
    Random,
    /// One address and port: a connection to be disturbed.
    Exact(SocketAddr),
}

/// A flood to be started.
#[derive(Clone, Debug)]
pub struct FloodSpec {
    /// Which packets.
    pub kind: Kind,
    /// How fast.
    pub rate: Rate,
    /// It ends by itself after this time.
    pub duration: Duration,
    /// It ends by itself after this many frames.
    pub frames: u64,
    /// Who is flooded.
    pub target: SocketAddr,
    /// Who seems to do it.
    pub source: Source,
    /// TCP options of the frames.
    pub options: Options,
    /// CPU the flood's thread is bound to.
    pub cpu: Option<usize>,
}

impl FloodSpec {
    /// A flood of this kind on `target`, from random sources, for ten seconds at most.
    pub fn new(kind: Kind, rate: Rate, target: SocketAddr) -> Self {
        let options = if kind == Kind::Syn {
            Options::LinuxSyn
        } else {
            Options::None
        };
        let duration = Duration::from_secs(10);
        Self {
            kind,
            rate,
            duration,
            frames: u64::MAX,
            target,
            source: Source::Random,
            options,
            cpu: None,
        }
    }

    /// The frame with zeroes for what varies, and the sums over it. `frame` makes one for a wire with
    /// so many tags.
    fn template(
        &self,
        tags: usize,
        frame: impl FnOnce(SocketAddr, SocketAddr) -> Frame,
    ) -> Result<Template> {
        let (source, source_random, port, port_random) = self.source()?;
        let options = match self.options {
            Options::None => Vec::new(),
            Options::LinuxSyn => TcpOption::linux_syn(1460, 0),
            Options::Timestamps => {
                vec![TcpOption::Nop, TcpOption::Nop, TcpOption::Timestamps(0, 0)]
            }
        };
        let mut bytes = frame(SocketAddr::new(source, port), self.target)
            .flags(0)
            .options(options)
            .build();

        let l3 = 14 + 4 * tags;
        let v4 = source.is_ipv4();
        let l4 = l3 + if v4 { 20 } else { 40 };
        // What the program fills in: source address and port, and both checksums.
        bytes[l4..l4 + 2].fill(0);
        bytes[l4 + 16..l4 + 18].fill(0);
        if v4 {
            bytes[l3 + 10..l3 + 16].fill(0);
        }
        let nobody: IpAddr = if v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let tcp_sum = sum::segment(nobody, self.target.ip(), &bytes[l4..]);
        let ip_sum = if v4 { sum::add(0, &bytes[l3..l4]) } else { 0 };

        let mut template = [0; FRAME_MAX];
        let Some(room) = template.get_mut(..bytes.len()) else {
            bail!(
                "a frame of {} bytes is longer than a flood's may be",
                bytes.len()
            );
        };
        room.copy_from_slice(&bytes);
        Ok(Template {
            template,
            source: octets(source),
            source_random,
            flags: self.kind.flags(),
            gap_ns: gap(self.rate),
            len: bytes.len() as u32,
            l3: l3 as u32,
            l4: l4 as u32,
            timestamp: match self.options {
                Options::None => 0,
                Options::LinuxSyn => l4 as u32 + 28,
                Options::Timestamps => l4 as u32 + 24,
            },
            ip_sum: in_memory(ip_sum),
            tcp_sum: in_memory(tcp_sum),
            port_be: port.to_be(),
            port_random,
            ip_version: if v4 { 4 } else { 6 },
        })
    }

    /// Source address and port, and which of their bits are random.
    fn source(&self) -> Result<(IpAddr, [u8; 16], u16, u16)> {
        match self.source {
            Source::Exact(address) if address.is_ipv4() != self.target.is_ipv4() => {
                bail!("a flood from {address} cannot be on {}", self.target)
            }
            Source::Exact(address) => Ok((address.ip(), [0; 16], address.port(), 0)),
            Source::Random => {
                let mut random = [0; 16];
                let address = if self.target.is_ipv4() {
                    random[..4].copy_from_slice(&(u32::MAX >> FLOOD_V4.1).to_be_bytes());
                    IpAddr::V4(FLOOD_V4.0)
                } else {
                    random[8..].fill(0xff);
                    IpAddr::V6(FLOOD_V6.0)
                };
                // Port 0 is drawn once in 65,536 times: a flooder does not care either.
                Ok((address, random, 0, 0xffff))
            }
        }
    }
}

/// An address at the front of sixteen bytes.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A big-endian sum as the sum over words as they lie in memory (RFC 1071 section 2(B)).
fn in_memory(sum: u32) -> u32 {
    u32::from(sum::fold(sum).to_be())
}

/// Longest gap that `lab_flood` can wait between two frames.
const GAP_MAX: u64 = 25_000;

/// How far apart the frames of one call are: a quarter of what the rate asks for, so that neither
/// the time it takes to set a call up nor a busy machine makes the flood slower. A tenth of a second's
/// frames come in a burst of that density.
fn gap(rate: Rate) -> u64 {
    match rate {
        Rate::FlatOut => 0,
        Rate::Pps(rate) => (250_000_000 / rate.max(1)).min(GAP_MAX),
    }
}

/// A running flood; dropping it ends it.
pub struct Flood {
    shared: Arc<Shared>,
    counters: CounterReader,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Frames the kernel has been told to send, in calls that have returned.
    done: AtomicU64,
}

impl Flood {
    /// Starts a flood from `end`, on a wire with so many tags for which `frame` makes frames.
    pub(crate) fn launch(
        programs: &Mutex<Programs>,
        end: &End,
        tags: usize,
        frame: impl FnOnce(SocketAddr, SocketAddr) -> Frame,
        spec: FloodSpec,
    ) -> Result<Self> {
        let template = spec.template(tags, frame)?;
        let mut programs = programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.set_flood(template)?;
        let program =
            Runner::new(programs.program("lab_flood")?.fd()?).context("cannot share lab_flood")?;
        let counters = programs.counters()?;
        Self::start(end, program, counters, template, spec)
    }

    fn start(
        end: &End,
        program: Runner,
        counters: CounterReader,
        template: Template,
        spec: FloodSpec,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ours, index) = (shared.clone(), end.index);
        let frame = template.template[..template.len as usize].to_vec();
        let thread = end.ns.thread("flood", spec.cpu, move || {
            let generator = Generator {
                program,
                frame,
                index,
                shared: &ours,
            };
            match spec.rate {
                Rate::FlatOut => {
                    cpu::run_when_idle()?;
                    generator.flat_out(spec.duration, spec.frames)
                }
                Rate::Pps(rate) => generator.paced(rate, spec.duration, spec.frames),
            }
        })?;
        Ok(Self {
            shared,
            counters,
            thread: Some(thread),
        })
    }

    /// Frames sent so far, by this and earlier floods of the same topology.
    pub fn sent_in_all(&self) -> Result<u64> {
        Ok(self.counters.read()?.sent)
    }

    /// Whether it has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the flood, which takes up to half a second, and returns the number of frames sent.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until the flood ends by itself and returns the number of frames sent.
    pub fn wait(mut self) -> Result<u64> {
        self.join()
    }

    fn join(&mut self) -> Result<u64> {
        if let Some(thread) = self.thread.take() {
            match thread.join() {
                Ok(result) => result.context("the flood ended early")?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(self.shared.done.load(Ordering::Relaxed))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Err(error) = self.join() {
            eprintln!("lab: {error:#}");
        }
    }
}

/// What the flood's thread works with.
struct Generator<'a> {
    program: Runner,
    frame: Vec<u8>,
    index: u32,
    shared: &'a Shared,
}

impl Generator<'_> {
    /// Calls of up to half a second: long ones, because each costs 20 ms before the first frame, but
    /// not so long that the flood could not be stopped.
    fn flat_out(&self, duration: Duration, frames: u64) -> Result<()> {
        const CALL: Duration = Duration::from_millis(400);
        let end = Instant::now() + duration;
        let mut batch = 200_000;
        while let Some(left) = self.left(end, frames) {
            let started = Instant::now();
            self.call(batch.min(left), 64)?;
            let rate = batch.min(left) as f64 / started.elapsed().as_secs_f64();
            let time = CALL
                .min(end.saturating_duration_since(Instant::now()))
                .as_secs_f64();
            batch = ((rate * time) as u64).clamp(10_000, 10_000_000);
        }
        Ok(())
    }

    /// Calls of as many frames as are due, and a pause between them.
    fn paced(&self, rate: u64, duration: Duration, frames: u64) -> Result<()> {
        const PERIOD: Duration = Duration::from_millis(100);
        let started = Instant::now();
        let end = started + duration;
        let mut sent = 0;
        while let Some(left) = self.left(end, frames) {
            // What is due by the middle of the coming period, so that the mean is met.
            let due = (started.elapsed() + PERIOD / 2).as_secs_f64() * rate as f64;
            let batch = (due as u64)
                .saturating_sub(sent)
                .min(left)
                .min(rate / 2 + 1);
            let next = Instant::now() + PERIOD;
            if batch > 0 {
                self.call(batch, 8)?;
                sent += batch;
            }
            cpu::sleep_until(next.min(end));
        }
        Ok(())
    }

    /// How many frames may still be sent; `None` when it is time to end.
    fn left(&self, end: Instant, frames: u64) -> Option<u64> {
        let left = frames - self.shared.done.load(Ordering::Relaxed);
        let goes_on = left > 0 && Instant::now() < end && !self.shared.stop.load(Ordering::Relaxed);
        goes_on.then_some(left)
    }

    fn call(&self, frames: u64, batch: u32) -> Result<()> {
        self.program
            .receive_often(&self.frame, self.index, frames as u32, batch)
            .with_context(|| format!("cannot send {frames} frames"))?;
        self.shared.done.fetch_add(frames, Ordering::Relaxed);
        Ok(())
    }
}
