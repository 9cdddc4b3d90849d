//! Fixtures in the kernel, held against the host step by step.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{PerCpuValues, lpm_trie::Key},
    programs::SchedClassifier,
    util::nr_cpus,
};
use rustix::time::{ClockId, clock_gettime};
use synguard::dataplane::{
    Dataplane, Options, load,
    load::{PROGRAM_ADMIT, PROGRAM_OUT, PROGRAM_OUT_GENERIC},
    wire::Wire as Layout,
    witness::Witness,
};
use synguard_common::{
    abi::{
        BUDGET_SLOTS, Clock, EpochKey, FlowEntry, HalfOpen, PortEntry, Runtime, ServiceConfig,
        ServiceState, Tuple,
    },
    admit::RequestAttributes,
    profile::Profile,
    tables::{Tables as _, Verdict},
    verdict::{Action, Reason},
};
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    fixtures::{
        HALF_OPEN_ROOM, Lane, OTHER, Outcome, Present, SUBJECT, Side, WEB, action_of, wall,
    },
    host::{Departure, HostTables},
    link::End,
    testrun,
    wire::Wire,
};

use crate::{
    flows::{self, Flows},
    fuzz::{CALM_PORT, OBSERVED_PORT},
    sockets::Sockets,
};

/// The word in front of a frame that tells `synguard_admit` to look at it.
const MARK: [u8; 4] = 0x5379_6e47_u32.to_ne_bytes();
/// Services that frames may be counted for: none, the fixtures' two, and the fuzzer's.
const SERVICES: [u16; 4] = [0, SUBJECT, OTHER, 900];
/// How long a copy may be on its way.
const COPY_TIMEOUT: Duration = Duration::from_secs(1);

/// Ports on which something listens.
const LISTENED: [u16; 3] = [WEB, CALM_PORT, OBSERVED_PORT];

/// What a TC program says.
/// Passed: what other filters there are have their say.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;

/// The programs with their maps, a real socket table, and the same tables on the host.
pub struct KernelSide {
    dataplane: Dataplane,
    host: HostTables,
    witness: Witness,
    /// The clock ticked while an admission was noted: the two sides may differ by a tick on when
    /// it is forgotten.
    unsure: bool,
    sockets: Sockets,
    flows: Flows,
    wall_offset: u64,
    /// What `synguard_out` has the interface receive: a test run's is loopback.
    loopback: Wire,
    /// A frame left since it was last listened to.
    sent: bool,
    wire: Wire,
    edge: Edge,
}

impl KernelSide {
    /// Loads the programs. The calling thread moves into the server's namespace: programs that are
    /// run by it look sockets up there.
    pub fn new() -> Result<Self> {
        let edge = Edge::new(EdgeOptions::default())?;
        let wire = edge.client_wire()?;
        edge.server.enter()?;
        let listeners: Vec<_> = [Lane::KINDS[0], Lane::KINDS[3]]
            .into_iter()
            .flat_map(|kind| LISTENED.map(|port| Lane::new(kind, 0).server_at(port)))
            .collect();
        let options = Options {
            half_open_entries: HALF_OPEN_ROOM,
            flow_entries: flows::ROOM,
            verified_entries: flows::ROOM,
        };
        let mut dataplane = load(&options)?;
        ensure!(
            dataplane.local_error.is_none(),
            "{:?}",
            dataplane.local_error
        );
        let loopback = Wire::open(&End {
            ns: edge.server.clone(),
            name: "lo".into(),
            index: 1,
            mac: [0; 6],
        })?;
        Ok(Self {
            flows: Flows::take(&mut dataplane)?,
            wall_offset: 0,
            loopback,
            sent: false,
            dataplane,
            host: HostTables::default(),
            witness: Witness::default(),
            unsure: false,
            sockets: Sockets::listen(&listeners)?,
            wire,
            edge,
        })
    }

    /// The topology, and a wire into it.
    pub fn wire(&self) -> (&Edge, &Wire) {
        (&self.edge, &self.wire)
    }

    /// What the kernel makes of a frame that arrives, by itself.
    pub fn kernel(&mut self, frame: &[u8]) -> Result<Outcome> {
        let run = testrun::run(self.dataplane.xdp()?, frame)?;
        let verdict = self.counted()?.context("the frame was not counted")?;
        let action = match run.action {
            testrun::Action::Pass => Action::Pass,
            testrun::Action::Tx => Action::Answer,
            testrun::Action::Drop => Action::Drop,
            other => bail!("the program says {other}"),
        };
        let mut frame = run.frame;
        if verdict.reason == Reason::CookieValid && !verdict.observe {
            ensure!(frame.starts_with(&MARK), "there is no mark");
            frame.drain(..MARK.len());
        }
        Ok(Outcome {
            verdict,
            action,
            frame,
        })
    }

    /// Runs `synguard_admit` on a frame as it is; `looks` where nothing can be marked, so that it
    /// looks at every frame.
    pub fn admit_raw(&mut self, frame: &[u8], looks: bool) -> Result<Option<Verdict>> {
        self.set_runtime(|runtime| runtime.no_metadata = u32::from(looks))?;
        let run = testrun::run(self.dataplane.classifier(PROGRAM_ADMIT)?, frame)?;
        self.set_runtime(|runtime| runtime.no_metadata = 0)?;
        ensure!(run.frame == frame, "admission changed the frame");
        let verdict = self.counted()?;
        let dropped = verdict.is_some_and(|verdict| action_of(&verdict) == Action::Drop);
        let expected = if dropped { TC_ACT_SHOT } else { TC_ACT_UNSPEC };
        ensure!(
            run.value == expected,
            "admission says {} for {verdict:?}",
            run.value
        );
        Ok(verdict)
    }

    /// The verdict counted since the last call: one at most.
    fn counted(&mut self) -> Result<Option<Verdict>> {
        let stats = &self.dataplane.maps.stats;
        Ok(self.witness.verdict(stats, &SERVICES)?)
    }

    fn set_runtime(&mut self, change: impl FnOnce(&mut Runtime)) -> Result<Runtime> {
        let map = &mut self.dataplane.maps.runtime;
        let Layout(mut runtime) = map.get(&0, 0)?;
        change(&mut runtime);
        map.set(0, Layout(runtime), 0)?;
        Ok(runtime)
    }

    /// Empties the tables of connections and sets every service calm, on both sides.
    pub fn reset_states(&mut self) -> Result<()> {
        let maps = &mut self.dataplane.maps;
        let keys: Vec<_> = maps.half_open.keys().collect::<Result<_, _>>()?;
        for key in keys {
            maps.half_open.remove(&key)?;
        }
        for service in SERVICES {
            maps.states.get(service).context("no such state")?.clear();
        }
        self.flows.clear()?;
        self.host.reset_states();
        Ok(())
    }

    /// Begins anew with another configuration of the subject, and with these flows.
    pub fn begin(
        &mut self,
        config: ServiceConfig,
        profile: Profile,
        flows: &[(Tuple, FlowEntry)],
    ) -> Result<()> {
        self.reset_states()?;
        let services = &mut self.dataplane.maps.services;
        services.set(SUBJECT.into(), Layout(config), 0)?;
        self.host = std::mem::take(&mut self.host).service(SUBJECT, config);
        self.host.set_profile(SUBJECT, profile);
        for (tuple, flow) in flows {
            self.host.enter_flow(*tuple, flow);
        }
        self.flows.fill(&self.host, &SERVICES)
    }

    /// Turns a service guarded on both sides, as the daemon does.
    pub fn guard(&mut self, service: u16) -> Result<()> {
        let now = monotonic();
        let state = self.dataplane.maps.states.get(service);
        state.context("no such state")?.turn_guarded(now);
        self.host.turn_guarded(service, now);
        Ok(())
    }

    /// The same frame on both sides; the error says where they differ.
    pub fn both(&mut self, frame: &[u8]) -> Result<Outcome> {
        let before = monotonic();
        let kernel = self.kernel(frame)?;
        let after = monotonic();
        self.host.set_monotonic(before);
        let mut host = self.host.run_ingress(frame)?;
        // The kernel's clock may have ticked since. Deciding once more changes nothing here.
        let again = [Reason::Challenged, Reason::JustAdmitted, Reason::AckInvalid];
        let mut now = before;
        while again.contains(&host.0.reason)
            && (host.0, &host.1) != (kernel.verdict, &kernel.frame)
            && now < after
        {
            now = after.min(now + 1_000_000);
            self.host.set_monotonic(now);
            // It was charged for already.
            let (syn, answer) = self.host.budgets();
            self.host.set_budgets(0, 0);
            host = self.host.run_ingress(frame)?;
            self.host.set_budgets(syn, answer);
        }
        let (verdict, bytes) = host;
        self.unsure |= before != after && verdict.reason == Reason::CookieValid;
        ensure!(
            verdict == kernel.verdict,
            "kernel {:?}, host {verdict:?}",
            kernel.verdict
        );
        ensure!(
            bytes == kernel.frame,
            "{verdict:?}\nkernel {:02x?}\nhost   {bytes:02x?}",
            kernel.frame
        );
        Ok(kernel)
    }

    /// Where the two sides may differ on when an admission is forgotten, waits until it is. Frames
    /// at random come just then; fixtures leave a margin.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.unsure) {
            std::thread::sleep(Duration::from_millis(120));
        }
    }

    /// Makes sure that no copy was received that nobody looked for. Once for all of a fixture's: the
    /// shortest time-out there is takes a tick of the kernel.
    fn no_more_copies(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.sent) {
            return Ok(());
        }
        let more = self.loopback.receive(Duration::ZERO)?;
        ensure!(more.is_none(), "another copy: {more:02x?}");
        Ok(())
    }

    fn write_clock(&mut self) -> Result<()> {
        let clock = Clock {
            wall_offset: self.wall_offset,
            tick: (&self.host).tick(),
            ..Clock::default()
        };
        Ok(self.dataplane.maps.clock.set(0, Layout(clock), 0)?)
    }

    fn entries(&self) -> Result<HashMap<Tuple, HalfOpen>> {
        let entries = self.dataplane.maps.half_open.iter();
        Ok(entries
            .map(|entry| entry.map(|(key, value)| (key.0, timeless(value.0))))
            .collect::<Result<_, _>>()?)
    }
}

/// An entry without the time it was made at.
fn timeless(entry: HalfOpen) -> HalfOpen {
    HalfOpen { since: 0, ..entry }
}

/// `CLOCK_MONOTONIC_COARSE`, ns: the programs' clock.
fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A frame as it is once VLAN devices have taken its tags off.
fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    while matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8])) && frame.len() >= 18 {
        frame.drain(12..16);
    }
    frame
}

impl Side for KernelSide {
    fn set_up(&mut self, tables: HostTables) -> Result<()> {
        self.sockets.close();
        let old = std::mem::take(&mut self.host);
        self.reset_states()?;
        let maps = &mut self.dataplane.maps;
        for (key, _) in old.addresses() {
            maps.addresses.remove(&Layout(key))?;
        }
        for ((bits, key), _) in old.prefixes() {
            maps.prefixes.remove(&Key::new(bits, Layout(key)))?;
        }
        for (key, _) in old.ports() {
            maps.ports.remove(&Layout(key))?;
        }
        for (key, entry) in tables.addresses() {
            maps.addresses.insert(Layout(key), Layout(entry), 0)?;
        }
        for ((bits, key), entry) in tables.prefixes() {
            let key = Key::new(bits, Layout(key));
            maps.prefixes.insert(&key, Layout(entry), 0)?;
        }
        for (key, service) in tables.ports() {
            let entry = PortEntry { service, pad: 0 };
            maps.ports.insert(Layout(key), Layout(entry), 0)?;
        }
        for service in SERVICES {
            let config = tables.services()[usize::from(service)];
            maps.services.set(service.into(), Layout(config), 0)?;
        }
        for (slot, key) in tables.keys().iter().enumerate() {
            let key: EpochKey = *key;
            maps.keys.set(slot as u32, Layout(key), 0)?;
        }
        let keys: Vec<_> = maps.sources.keys().collect::<Result<_, _>>()?;
        for key in keys {
            maps.sources.remove(&key)?;
        }
        for ((bits, key), entry) in tables.sources() {
            let key = Key::new(bits, Layout(key));
            maps.sources.insert(&key, Layout(entry), 0)?;
        }
        let (syn_budget, answer_budget) = tables.budgets();
        if (syn_budget, answer_budget) != (0, 0) {
            for slot in 0..BUDGET_SLOTS {
                maps.budgets.set(slot, 0, 0)?;
            }
        }
        if (&tables).syn_cache() {
            for slot in maps.syn_cache.slots() {
                slot.free();
            }
            let cpus = nr_cpus().map_err(|(_, error)| error)?;
            maps.syn_cache_used
                .set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        self.flows.fill(&tables, &SERVICES)?;
        let has_prefixes = tables.prefixes().next().is_some();
        let runtime = self.set_runtime(|runtime| {
            runtime.has_prefixes = u32::from(has_prefixes);
            runtime.no_metadata = 0;
            runtime.draining = 0;
            runtime.forwards = u32::from((&tables).forwards());
            runtime.settled_at = (&tables).settled_at();
            runtime.verified_ticks = tables.verified_ticks();
            runtime.has_sources = u32::from((&tables).has_sources());
            runtime.syn_cache = u32::from((&tables).syn_cache());
            (runtime.syn_budget, runtime.answer_budget) = (syn_budget, answer_budget);
            runtime.generation = runtime.generation.wrapping_add(1);
        })?;
        self.host = tables.seed(runtime.seed);
        self.set_wall(wall(0, Duration::from_secs(1)))
    }

    fn ingress(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.both(frame)
    }

    /// A test run is not at TC ingress, so the kernel makes no socket: what the host admits, the
    /// kernel must at least try to.
    fn admit(&mut self, frame: &[u8]) -> Result<Option<Verdict>> {
        const TIMED: [Reason; 3] = [
            Reason::AdmitRefused,
            Reason::AdmitRepeated,
            Reason::AdmitInvalid,
        ];
        let frame = untagged(frame);
        let before = monotonic();
        let kernel = self.admit_raw(&frame, true)?;
        let ticked = monotonic() != before;
        self.host.set_monotonic(before);
        let host = self.host.run_admit(&frame)?;
        let tried = host.map(|verdict| match verdict.reason {
            Reason::Admitted => Verdict {
                reason: Reason::AdmitRefused,
                ..verdict
            },
            _ => verdict,
        });
        let timed = |verdict: Option<Verdict>| {
            verdict.is_some_and(|verdict| TIMED.contains(&verdict.reason))
        };
        self.unsure |= ticked && timed(kernel);
        ensure!(
            kernel == tried || ticked && timed(kernel) && timed(tried),
            "kernel {kernel:?}, host {host:?}"
        );
        Ok(host)
    }

    fn egress(&mut self, frame: &[u8]) -> Result<Departure> {
        let out = match (&self.host).generic() {
            true => PROGRAM_OUT_GENERIC,
            false => PROGRAM_OUT,
        };
        let run = testrun::run(self.dataplane.programs.get::<SchedClassifier>(out)?, frame)?;
        let verdict = self.counted()?;
        let host = self.host.run_egress_whole(frame)?;
        ensure!(
            verdict == host.verdict,
            "kernel {verdict:?}, host {:?}",
            host.verdict
        );
        let dropped = verdict.is_some_and(|verdict| action_of(&verdict) == Action::Drop);
        let expected = if dropped { TC_ACT_SHOT } else { TC_ACT_UNSPEC };
        ensure!(run.value == expected, "egress says {}", run.value);
        ensure!(
            run.frame == host.frame,
            "{verdict:?}\nkernel {:02x?}\nhost   {:02x?}",
            run.frame,
            host.frame
        );
        for copy in &host.copies {
            let received = self.loopback.receive(COPY_TIMEOUT)?;
            ensure!(
                received.as_ref() == Some(copy),
                "{verdict:?}\nreceived {received:02x?}\nhost     {copy:02x?}"
            );
        }
        self.sent = true;
        Ok(host)
    }

    fn assigned(&mut self) -> Vec<RequestAttributes> {
        self.host.take_assigned()
    }

    fn wait(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        Ok(())
    }

    fn set_wall(&mut self, wall: u64) -> Result<()> {
        self.wall_offset = wall.wrapping_sub(monotonic());
        self.host.set_wall_offset(self.wall_offset);
        self.write_clock()
    }

    fn set_tick(&mut self, tick: u32) -> Result<()> {
        self.host.set_tick(tick);
        self.write_clock()
    }

    fn turn_calm(&mut self, service: u16, grace: Duration) -> Result<()> {
        let until = monotonic() + grace.as_nanos() as u64;
        let state = self.dataplane.maps.states.get(service);
        state.context("no such state")?.turn_calm(until);
        self.host.turn_calm(service, until);
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        self.host.set_draining(true);
        self.set_runtime(|runtime| runtime.draining = 1)?;
        Ok(())
    }

    fn open(&mut self, present: Present) -> Result<()> {
        self.sockets.open(&self.edge, &self.wire, present)?;
        self.host
            .set_socket(present.client, present.server, present.socket());
        Ok(())
    }

    fn state(&mut self, service: u16) -> Result<ServiceState> {
        let kernel = self.dataplane.maps.states.get(service);
        let kernel = kernel.context("no such state")?.read();
        let host = self.host.service_state(service);
        let essence = |state: ServiceState| ServiceState {
            guarded_at: 0,
            grace_until: 0,
            ..state
        };
        ensure!(
            essence(kernel) == essence(host),
            "kernel {kernel:?}, host {host:?}"
        );
        Ok(kernel)
    }

    fn flows(&mut self) -> Result<HashMap<Tuple, FlowEntry>> {
        self.flows.agreed(&self.host)
    }

    fn finish(&mut self) -> Result<()> {
        self.flows.check(&self.host)?;
        self.no_more_copies()?;
        for service in SERVICES {
            self.state(service)?;
        }
        let host = self.host.half_open_entries().into_iter();
        let host = host.map(|(key, entry)| (key, timeless(entry))).collect();
        let kernel = self.entries()?;
        ensure!(
            kernel == host,
            "half-open: kernel {kernel:?}, host {host:?}"
        );
        Ok(())
    }
}
