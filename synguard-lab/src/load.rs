//! Legitimate clients: they connect, ask for `/`, read the answer and check it.
//!
//! In an open loop connections begin when the schedule says, however slow the ones before are, and
//! latency counts from that moment: a stalled client hides nothing (no coordinated omission). In a
//! closed loop each worker begins the next connection when its last has ended.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd, RawFd},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, unix::AsyncFd},
    net::TcpStream,
    task::LocalSet,
};

use crate::{client, http::GREETING, netns::Netns};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";

/// When connections begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This many per second.
    Open(u32),
    /// By this many workers, one after another.
    Closed(usize),
}

/// How clients behave.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where they connect to.
    pub target: SocketAddr,
    /// When.
    pub pattern: Pattern,
    /// Addresses they come from, in turn; none for the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// How long a connection may take to be made, and again how long an answer may take.
    pub limit: Duration,
    /// It ends by itself after this time.
    pub duration: Duration,
    /// It ends by itself after this many connections.
    pub connections: u64,
    /// CPU the clients are bound to.
    pub cpu: Option<usize>,
}

impl LoadOptions {
    /// Clients that connect to `target`, for a minute at most.
    pub fn new(target: SocketAddr, pattern: Pattern) -> Self {
        Self {
            target,
            pattern,
            sources: Vec::new(),
            limit: Duration::from_secs(3),
            duration: Duration::from_secs(60),
            connections: u64::MAX,
            cpu: None,
        }
    }
}

/// What became of the connections of a measurement.
#[derive(Clone)]
pub struct Report {
    /// Connections begun.
    pub attempted: u64,
    /// Connections that got the right answer.
    pub ok: u64,
    /// Connections that were not made in time.
    pub connect_timeouts: u64,
    /// Connections that were made, but got no answer in time.
    pub answer_timeouts: u64,
    /// Connections refused or reset.
    pub resets: u64,
    /// What else went wrong, by message.
    pub others: BTreeMap<String, u64>,
    /// Microseconds from the scheduled begin to the end of the answer, of those that got it.
    pub latency: Histogram<u64>,
    /// Microseconds until the connection was made, of the same.
    pub connect: Histogram<u64>,
}

impl Report {
    fn new() -> Result<Self> {
        let histogram =
            Histogram::new_with_bounds(1, 120_000_000, 3).context("cannot make a histogram")?;
        Ok(Self {
            attempted: 0,
            ok: 0,
            connect_timeouts: 0,
            answer_timeouts: 0,
            resets: 0,
            others: BTreeMap::new(),
            connect: histogram.clone(),
            latency: histogram,
        })
    }

    /// Connections that failed, in whatever way.
    pub fn failed(&self) -> u64 {
        self.connect_timeouts
            + self.answer_timeouts
            + self.resets
            + self.others.values().sum::<u64>()
    }

    /// Share of the ended connections that got their answer, in percent; 100 where none has ended.
    pub fn ok_percent(&self) -> f64 {
        let ended = self.ok + self.failed();
        if ended == 0 {
            100.0
        } else {
            self.ok as f64 * 100.0 / ended as f64
        }
    }

    /// A percentile of the latency, in milliseconds; `None` where no connection got its answer.
    pub fn latency_ms(&self, percentile: f64) -> Option<f64> {
        (!self.latency.is_empty())
            .then(|| self.latency.value_at_percentile(percentile) as f64 / 1e3)
    }

    fn record(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok { connect, total } => {
                self.ok += 1;
                self.connect.saturating_record(connect.as_micros() as u64);
                self.latency.saturating_record(total.as_micros() as u64);
            }
            Outcome::ConnectTimeout => self.connect_timeouts += 1,
            Outcome::AnswerTimeout => self.answer_timeouts += 1,
            Outcome::Reset => self.resets += 1,
            Outcome::Other(message) => *self.others.entry(message.clone()).or_default() += 1,
        }
    }
}

/// One line: the counters, and the latency in a few numbers.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attempted,
            ok,
            connect_timeouts,
            answer_timeouts,
            resets,
            others,
            ..
        } = self;
        write!(
            f,
            "{attempted} attempted, {ok} ok, {connect_timeouts} connect timeouts, "
        )?;
        write!(
            f,
            "{answer_timeouts} answer timeouts, {resets} resets, others {others:?}"
        )?;
        for percentile in [50.0, 99.0, 100.0] {
            if let Some(latency) = self.latency_ms(percentile) {
                write!(f, ", p{percentile} {latency} ms")?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Outcome {
    Ok { connect: Duration, total: Duration },
    ConnectTimeout,
    AnswerTimeout,
    Reset,
    Other(String),
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Running clients; dropping the handle ends them.
pub struct LoadClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    stop: AtomicBool,
    /// The current measurement and its number: a connection counts for the one it began in.
    current: Mutex<(u64, Report)>,
}

impl Shared {
    fn current<T>(&self, f: impl FnOnce(&mut (u64, Report)) -> T) -> T {
        f(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LoadClient {
    /// Starts clients inside a namespace.
    pub fn start(ns: &Netns, options: LoadOptions) -> Result<Self> {
        raise_file_limit()?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            current: Mutex::new((0, Report::new()?)),
        });
        let ours = shared.clone();
        let thread = ns.thread("lab-clients", options.cpu, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, run(options, ours))
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Begins a new measurement: connections that begin from now on.
    pub fn restart_measurement(&self) -> Result<()> {
        let fresh = Report::new()?;
        self.shared.current(|(number, report)| {
            *number += 1;
            *report = fresh;
        });
        Ok(())
    }

    /// The measurement so far. Connections under way are attempted, but neither ok nor failed.
    pub fn snapshot(&self) -> Report {
        self.shared.current(|(_, report)| report.clone())
    }

    /// Begins no more connections, waits for those under way, and returns the measurement.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()?;
        Ok(self.snapshot())
    }

    /// Waits until the clients end by themselves and returns the measurement.
    pub fn wait(mut self) -> Result<Report> {
        self.join()?;
        Ok(self.snapshot())
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("the clients ended early"),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Err(error) = self.join() {
            eprintln!("lab: {error:#}");
        }
    }
}

/// What the clients' thread works with.
struct Clients {
    options: LoadOptions,
    shared: Arc<Shared>,
    begun: Cell<u64>,
    end: Instant,
}

async fn run(options: LoadOptions, shared: Arc<Shared>) -> Result<()> {
    let end = Instant::now() + options.duration;
    let pattern = options.pattern;
    let clients = Rc::new(Clients {
        options,
        shared,
        begun: Cell::new(0),
        end,
    });
    let mut tasks = tokio::task::JoinSet::new();
    match pattern {
        Pattern::Open(rate) => {
            let alarm = Alarm::new()?;
            let (start, interval) = (Instant::now(), Duration::from_secs(1) / rate.max(1));
            let mut due = start;
            while let Some(number) = clients.next() {
                alarm.sleep_until(due).await?;
                let clients = clients.clone();
                let begun = due;
                tasks.spawn_local(async move { clients.connection(number, begun).await });
                due += interval;
                while tasks.try_join_next().is_some() {}
            }
        }
        Pattern::Closed(workers) => {
            for _ in 0..workers {
                let clients = clients.clone();
                tasks.spawn_local(async move {
                    while let Some(number) = clients.next() {
                        clients.connection(number, Instant::now()).await;
                    }
                });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

impl Clients {
    /// The number of the next connection; `None` when it is time to end.
    fn next(&self) -> Option<u64> {
        let number = self.begun.get();
        let goes_on = number < self.options.connections
            && Instant::now() < self.end
            && !self.shared.stop.load(Ordering::Relaxed);
        goes_on.then(|| {
            self.begun.set(number + 1);
            number
        })
    }

    async fn connection(&self, number: u64, begun: Instant) {
        let measurement = self.shared.current(|(measurement, report)| {
            report.attempted += 1;
            *measurement
        });
        let outcome = self
            .exchange(number, begun)
            .await
            .unwrap_or_else(|outcome| outcome);
        self.shared.current(|(current, report)| {
            if *current == measurement {
                report.record(&outcome);
            }
        });
    }

    async fn exchange(&self, number: u64, begun: Instant) -> Result<Outcome, Outcome> {
        let LoadOptions {
            target,
            limit,
            sources,
            ..
        } = &self.options;
        let source = sources
            .get((number % sources.len().max(1) as u64) as usize)
            .copied();
        let left = (begun + *limit).saturating_duration_since(Instant::now());
        let stream = tokio::time::timeout(left, connect(source, *target))
            .await
            .map_err(|_| Outcome::ConnectTimeout)??;
        let connect = begun.elapsed();
        match tokio::time::timeout(*limit, ask(stream)).await {
            Ok(answered) => answered?,
            Err(_) => return Err(Outcome::AnswerTimeout),
        }
        Ok(Outcome::Ok {
            connect,
            total: begun.elapsed(),
        })
    }
}

async fn connect(source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = client::socket(source.map(|ip| SocketAddr::new(ip, 0)), target)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket.connect(target).await
}

async fn ask(mut stream: TcpStream) -> Result<(), Outcome> {
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(256);
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(GREETING.as_bytes()) {
        Ok(())
    } else if answer.is_empty() {
        Err(Outcome::Other("closed without an answer".into()))
    } else {
        Err(Outcome::Other("a wrong answer".into()))
    }
}

/// A clock to wait by. tokio's own counts in milliseconds, half of what the fastest clients take.
struct Alarm {
    timer: AsyncFd<Timer>,
}

/// nix's timer knows only the safer traits, tokio asks for the older one.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    fn new() -> Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .context("cannot make a timer")?;
        // SAFETY: the timer owns its descriptor, always returns the same one, and lives in the AsyncFd.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self {
            timer: timer
                .map_err(io::Error::from)
                .context("cannot wait for a timer")?,
        })
    }

    async fn sleep_until(&self, then: Instant) -> Result<()> {
        let Some(left) = then
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        else {
            // Behind schedule: let the connections under way get on.
            tokio::task::yield_now().await;
            return Ok(());
        };
        let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
        self.timer
            .get_ref()
            .0
            .set(expiration, TimerSetTimeFlags::empty())
            .context("cannot set a timer")?;
        loop {
            let mut ready = self
                .timer
                .readable()
                .await
                .context("cannot wait for a timer")?;
            // Reading makes it unreadable until it fires again.
            if let Ok(fired) = ready.try_io(|timer| Ok(timer.get_ref().0.wait()?)) {
                return fired.context("cannot read a timer");
            }
        }
    }
}

/// Thousands of connections may be open at a time.
fn raise_file_limit() -> Result<()> {
    let (_, most) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}
