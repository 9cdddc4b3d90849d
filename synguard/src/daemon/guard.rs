//! What the daemon guards: interfaces, services, and the tables between them. Owned by the run
//! loop alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use aya::maps::MapError;
use synguard_common::abi::{
    ADMISSION_LOCAL, ADMISSION_PROXY, Clock, Runtime, SERVICE_NONE, TICKS_PER_SECOND,
};
use synguard_common::verdict::Reason;
use tracing::{error, warn};

use super::{
    clock::{self, Offset},
    drain::Draining,
    flows::Flows,
    inject::{Injector, Ports},
    interfaces::Interface,
    keys::KeyRing,
    links::World,
    listeners::{self, Listener},
    lists::Lists,
    numbers::Numbers,
    plan::{USUAL_MTU, excepted, report_admission, report_watermarks},
    remind::Reminder,
    room::Room,
    service::Running,
    snapshot,
    sweep::{Sweeper, Wants},
    sysctl::{self, Tcp},
    tuning::Tuning,
};
use crate::{
    config::{Origin, Sources},
    dataplane::{
        self, Books, Dataplane, Jiffies, Pins, States, Tables, apply,
        error::{NearNames, one_line},
        ledger::Count,
        severed, stats,
        wire::Wire,
    },
    journal::{End, Journal, What},
    lists::SourceRules,
    model::{Config, Mode, Service},
};

/// How long unknown segments of a proxied service pass, so that connections older than the daemon
/// become known: a minute, in which most that are alive say something.
const SETTLING_TICKS: u32 = 60 * TICKS_PER_SECOND;

/// Everything the run loop owns.
pub struct Guard {
    pub(super) journal: Journal,
    pub(super) config: Config,
    pub(super) sources: Sources,
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) dataplane: Dataplane,
    pub(super) states: Arc<States>,
    pub(super) books: Arc<Books>,
    /// What outlives us, if anything does.
    pub(super) pins: Option<Pins>,
    pub(super) draining: Option<Draining>,
    pub(super) sweeper: Sweeper,
    pub(super) reminder: Reminder,
    /// Where frames can be injected.
    ports: Arc<Ports>,
    pub(super) interfaces: Vec<Interface>,
    /// Interfaces that are gone, and are to be guarded again when they return.
    pub(super) missing: Vec<String>,
    pub(super) world: World,
    pub(super) services: Vec<Running>,
    pub(super) tables: Tables,
    pub(super) keys: KeyRing,
    pub(super) started_at: u64,
    pub(super) applied_at: u64,
    /// Why the last reload failed, if it did.
    pub(super) config_error: Option<String>,
    numbers: Numbers,
    pub(super) tcp: Tcp,
    pub(super) flows: Flows,
    /// Sweeps of the flow table when a service was last proxied, if one ever was.
    forwarded_at: Option<u64>,
    /// Tick from which on every connection of a proxied service should be known.
    pub(super) settled_at: u32,
    /// A scale that was promised must hold when the ACK comes back: it stays for life.
    pub(super) rcv_wscale: u8,
    pub(super) listeners: Vec<Listener>,
    pub(super) tuning: Tuning,
    pub(super) lists: Lists,
    offset: Offset,
    jiffies: Jiffies,
    room: Room,
    /// Whether what changes from here on is news.
    ready: bool,
    /// Whether watermarks could not be applied, and wait for the next look at everything.
    retuning_failed: bool,
}

/// Where to start from.
pub struct Beginnings {
    /// Where to say what happens.
    pub journal: Journal,
    /// The configuration, and where it came from.
    pub config: Config,
    /// That.
    pub sources: Sources,
    /// The loaded programs.
    pub dataplane: Dataplane,
    /// What outlives the daemon.
    pub pins: Option<Pins>,
    /// The key ring, still empty.
    pub keys: KeyRing,
    /// The devices.
    pub world: World,
}

impl Guard {
    /// Puts clock, keys and tables in place; nothing is attached yet.
    pub fn start(from: Beginnings) -> anyhow::Result<Self> {
        let Beginnings {
            journal,
            config,
            sources,
            mut dataplane,
            pins,
            mut keys,
            world,
        } = from;
        let states = Arc::clone(&dataplane.maps.states);
        let books = Arc::clone(&dataplane.maps.books);
        let adopted = dataplane.adopted;
        if adopted {
            keys.adopt(&dataplane.maps.keys)
                .context("cannot read map KEYS")?;
        }
        let lists = if adopted {
            dataplane::sources::read_back(&dataplane.maps)?
        } else {
            Vec::new()
        };
        let lists = Lists::start(config.state.as_deref(), lists)?;
        let (tables, before) = if adopted {
            let before = dataplane.maps.runtime.get(&0, 0);
            let Wire(before) = before.context("cannot read map RUNTIME")?;
            (apply::read_back(&dataplane.maps)?, before)
        } else {
            (Tables::default(), Runtime::default())
        };
        let ports = Arc::<Ports>::default();
        let injector = || Injector::new(&dataplane, Arc::clone(&ports));
        let sweeper = Sweeper::start(&dataplane, injector()?)?;
        let reminder = Reminder::start(&dataplane, injector()?)?;
        let injector = injector()?;
        let flows =
            Flows::start(&mut dataplane, injector).context("cannot start the sweep of flows")?;
        let jiffies = dataplane
            .jiffies()
            .context("cannot compare the kernel's clocks")?;
        let tcp = Tcp::read(Path::new(sysctl::ROOT));
        // Cookies are out that promise it.
        let promised = tables
            .services
            .values()
            .find(|config| config.admission == ADMISSION_LOCAL)
            .map(|config| config.rcv_wscale);
        let mut guard = Self {
            journal,
            room: Room::default(),
            ready: false,
            retuning_failed: false,
            rcv_wscale: promised.unwrap_or(tcp.profile(USUAL_MTU).rcv_wscale),
            numbers: Numbers::adopt(books.names()),
            services: Vec::new(),
            tables,
            interfaces: Vec::new(),
            missing: Vec::new(),
            draining: None,
            pins,
            listeners: Vec::new(),
            tuning: Tuning::open(config.state.as_deref()),
            lists,
            offset: Offset::now(),
            jiffies,
            flows,
            forwarded_at: (before.forwards != 0).then_some(0),
            settled_at: before.settled_at,
            started_at: clock::wall_seconds(),
            applied_at: 0,
            origins: sources.origins(),
            sources,
            config_error: None,
            dataplane,
            states,
            books,
            sweeper,
            reminder,
            ports,
            world,
            keys,
            tcp,
            config: Config {
                services: Vec::new(),
                ..config.clone()
            },
        };
        guard.write_clock()?;
        guard.listen_again();
        guard.configure(config)?;
        Ok(guard)
    }

    /// Applies a configuration, whole or not at all. Services that keep their name keep their
    /// number, their counters and what is known of them.
    pub(super) fn configure(&mut self, config: Config) -> anyhow::Result<()> {
        self.configure_with(config, false)
    }

    /// The same; `keep_modes` leaves modes as they are that were changed by command.
    pub(super) fn configure_with(
        &mut self,
        config: Config,
        keep_modes: bool,
    ) -> anyhow::Result<()> {
        let names = config.services.iter().map(|service| service.name.as_str());
        let numbers = self.numbers.assign(names, self.sweeper.passes())?;
        let old: BTreeMap<&str, &Running> = self
            .services
            .iter()
            .map(|running| (running.service.name.as_str(), running))
            .collect();
        let mut services = Vec::new();
        for service in &config.services {
            let number = numbers.get(&service.name).unwrap_or(SERVICE_NONE);
            services.push(match old.get(service.name.as_str()) {
                Some(running) => {
                    let mode = if keep_modes {
                        running.service.mode
                    } else {
                        service.mode
                    };
                    running.reconfigured(Service {
                        mode,
                        ..service.clone()
                    })
                }
                None => self.running(number, service.clone()),
            });
        }
        let tables = self.plan(&mut services)?;
        // Whoever comes after us must know whose a number is before it means anything.
        for (name, number) in numbers.iter() {
            if self.numbers.get(name).is_none()
                && let Some(book) = self.books.get(number)
            {
                book.set_name(name);
            }
        }
        // No entry of a new service may meet a sweep that does not know it.
        self.sweeper
            .set(wants(&self.services).chain(wants(&services)));
        for next in &services {
            if let Some(running) = old.get(next.service.name.as_str())
                && let Some(slot) = self.states.get(next.number)
            {
                running.leave_mode(next.service.mode, slot);
            }
        }
        let applied = self
            .lists
            .apply(&mut self.dataplane.maps, &config.sources.listed)
            .and_then(|()| self.apply(&tables, &services));
        if let Err(error) = applied {
            self.sweeper.set(wants(&self.services));
            let maps = &mut self.dataplane.maps;
            if let Err(again) = self.lists.apply(maps, &self.config.sources.listed) {
                error!("cannot take back a change of the lists of sources: {again:#}");
            }
            return Err(error);
        }
        self.sweeper.set(wants(&services));
        self.report_lists(&config.sources);
        self.report_services(&config.services);
        self.commit(tables, services);
        self.numbers = numbers;
        self.config = config;
        self.applied_at = clock::wall_seconds();
        self.write_runtime().context("cannot write map RUNTIME")
    }

    /// A service that is new to us, though it may not be new to the tables.
    fn running(&self, number: u16, service: Service) -> Running {
        match self.states.get(number) {
            Some(slot) if self.numbers.get(&service.name) == Some(number) => {
                let calmed = self.books.counted(number, Count::Calmed);
                Running::resumed(number, service, &slot.read(), calmed, &self.journal)
            }
            _ => Running::new(number, service),
        }
    }

    /// Changes the mode of one service or of all.
    pub fn set_mode(&mut self, name: Option<&str>, mode: Mode) -> Result<(), String> {
        if let Some(name) = name
            && !self
                .services
                .iter()
                .any(|running| running.service.name == name)
        {
            let names = self
                .services
                .iter()
                .map(|running| running.service.name.clone())
                .collect();
            return Err(format!("no service {name}{}", NearNames::new(name, names)));
        }
        let mut services = self.services.clone();
        for running in &mut services {
            if name.is_none_or(|name| running.service.name == name) {
                if let Some(slot) = self.states.get(running.number) {
                    running.leave_mode(mode, slot);
                }
                running.service.mode = mode;
            }
        }
        let tables = self
            .plan(&mut services)
            .map_err(|error| format!("{error:#}"))?;
        self.apply(&tables, &services)
            .map_err(|error| format!("{error:#}"))?;
        self.commit(tables, services);
        self.journal.note(What::ModeChanged {
            service: name.map(str::to_owned),
            mode,
        });
        Ok(())
    }

    /// Looks at devices, addresses, listeners and settings again, and applies what changed.
    pub fn refresh(&mut self, world: World) {
        self.world = world;
        let severed = severed::links().unwrap_or_else(|error| {
            warn!(%error, "cannot see whether all programs are still attached");
            BTreeSet::new()
        });
        self.drop_vanished();
        self.attach_severed(&severed);
        self.attach_returned();
        let tcp = Tcp::read(Path::new(sysctl::ROOT));
        if tcp != self.tcp {
            self.journal.note(What::KernelSettingsChanged);
            self.tcp = tcp;
        }
        self.listen_again();
        for interface in &mut self.interfaces {
            if let Some(attachment) = &mut interface.attachment {
                let vlans = self.world.vlans_on(interface.index);
                attachment.follow(&mut self.dataplane, &vlans, &severed);
            }
        }
        if let Err(error) = self.replan() {
            error!("the tables stay as they were: {error:#}");
        }
    }

    pub(super) fn replan(&mut self) -> anyhow::Result<()> {
        let mut services = self.services.clone();
        let tables = self.plan(&mut services)?;
        self.apply(&tables, &services)?;
        self.commit(tables, services);
        Ok(())
    }

    /// Writes `tables`, and before them what the programs must know to follow them.
    fn apply(&mut self, tables: &Tables, services: &[Running]) -> anyhow::Result<()> {
        let was_proxied = |number| {
            let before = self.tables.services.get(&number);
            before.is_some_and(|config| config.admission == ADMISSION_PROXY)
        };
        if services
            .iter()
            .any(|running| running.is_proxied() && !was_proxied(running.number))
        {
            // It has connections that are in no table of flows yet.
            self.settle();
            self.forwarded_at = Some(self.flows.passes());
        }
        self.write_runtime().context("cannot write map RUNTIME")?;
        apply::apply(&mut self.dataplane.maps, &self.tables, tables)?;
        Ok(())
    }

    /// Whether there are flows, or may be.
    pub(super) fn forwards(&self) -> bool {
        // The sweep under way at that time may have begun before.
        let swept = |at: u64| self.flows.passes() >= at.saturating_add(2);
        self.forwarded_at
            .is_some_and(|at| !swept(at) || self.flows.status().entries() > 0)
    }

    /// Keeps the sweep of flows, and the programs, informed.
    fn look_after_flows(&mut self) -> Result<(), MapError> {
        if self.services.iter().any(Running::is_proxied) {
            self.forwarded_at = Some(self.flows.passes());
        }
        self.flows.set_wanted(self.forwards());
        self.ports.set(self.open_ports());
        self.sweeper.set(wants(&self.services));
        let guarded = self.services.iter().filter(|running| running.guarded);
        self.reminder
            .set(self.config.syn_cache, guarded.map(|running| running.number));
        self.flows
            .set_verified_ticks(clock::ticks(self.config.verified_timeout));
        self.write_runtime()
    }

    /// Gives connections that the programs have not seen yet time to be seen.
    pub(super) fn settle(&mut self) {
        self.settled_at = clock::tick().wrapping_add(SETTLING_TICKS);
    }

    /// Tells the programs what they must know of the daemon's state.
    pub(super) fn write_runtime(&mut self) -> Result<(), MapError> {
        let (forwards, settled_at) = (self.forwards(), self.settled_at);
        let draining = self.draining.is_some();
        let verified_ticks = clock::ticks(self.config.verified_timeout);
        let syn_cache = self.config.syn_cache.into();
        let flow_idle_ticks = clock::ticks(self.config.flow_idle_timeout);
        let (syn_budget, answer_budget) = {
            let rules = &self.config.sources;
            (rules.syn_budget, rules.answer_budget)
        };
        self.dataplane.maps.change_runtime(|runtime| {
            *runtime = Runtime {
                draining: draining.into(),
                forwards: forwards.into(),
                settled_at,
                verified_ticks,
                flow_idle_ticks,
                syn_cache,
                syn_budget,
                answer_budget,
                ..*runtime
            };
        })
    }

    /// Applies watermarks that are to be others now, and keeps what they follow from.
    fn retune(&mut self) {
        let mut services = self.services.iter();
        let changes = services.any(|running| running.watermarks != running.choose(&self.tuning));
        if changes
            && !self.retuning_failed
            && let Err(error) = self.replan()
        {
            error!("the watermarks stay as they were: {error:#}");
            self.retuning_failed = true;
        }
        self.tuning.save_if_due();
    }

    fn commit(&mut self, tables: Tables, services: Vec<Running>) {
        for running in &services {
            let before = excepted(&self.tables, running.number);
            for line in excepted(&tables, running.number) {
                if !before.contains(&line) {
                    self.journal.note(What::PortLeftOut {
                        service: running.service.name.clone(),
                        why: line,
                    });
                }
            }
        }
        report_watermarks(&self.services, &services, &self.journal, self.ready);
        report_admission(&self.services, &services, &self.journal, self.ready);
        self.tables = tables;
        self.services = services;
        self.retuning_failed = false;
        let names = self
            .services
            .iter()
            .map(|running| running.service.name.as_str());
        self.tuning.keep_only(names);
    }

    /// Says which services come, change and go. At the start all come, which is no news.
    fn report_services(&mut self, next: &[Service]) {
        if !self.ready {
            return;
        }
        let now = clock::monotonic_ns();
        for old in &mut self.services {
            if !next.iter().any(|new| new.name == old.service.name) {
                old.end_attack(now, End::ServiceRemoved, &self.journal);
                self.journal.note(What::ServiceRemoved {
                    service: old.service.name.clone(),
                });
            }
        }
        let configured = |name: &str| self.config.services.iter().find(|old| old.name == name);
        for new in next {
            let service = new.name.clone();
            match configured(&service) {
                None => self.journal.note(What::ServiceAdded { service }),
                Some(old) if old != new => {
                    self.journal.note(What::ServiceChanged { service });
                }
                Some(_) => {}
            }
        }
    }

    /// Says what the configuration lists that it did not before.
    fn report_lists(&self, next: &SourceRules) {
        let [added, removed, changed] = next.listed.changes(&self.config.sources.listed);
        if self.ready && added + removed + changed > 0 {
            self.journal.note(What::SourcesChanged {
                by: "configuration".into(),
                added: added + changed,
                removed: removed + changed,
                list: None,
                prefix: None,
                until: None,
                comment: None,
                now: self.lists.counts(),
            });
        }
    }

    /// Says that all is in place.
    pub fn ready(&mut self) {
        self.ready = true;
        self.journal.note(What::DaemonStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interfaces: self.interface_names(),
        });
    }

    /// Says how attacks that are going on end with the daemon.
    pub(super) fn end_attacks(&mut self) {
        let now = clock::monotonic_ns();
        for running in &mut self.services {
            running.end_attack(now, End::DaemonStopped, &self.journal);
        }
    }

    fn listen_again(&mut self) {
        match listeners::list() {
            Ok(listeners) => self.listeners = listeners,
            Err(error) => warn!(%error, "cannot list the TCP listeners"),
        }
    }

    /// Keeps clock and keys up to date. Keys follow the clock at once, so that a step costs no
    /// more than the cookies that were on their way.
    pub fn write_clock(&mut self) -> anyhow::Result<()> {
        let offset = Offset::now();
        if let Some(seconds) = offset.step_since(self.offset) {
            self.journal.note(What::ClockSet { seconds });
            self.lists.recheck();
        }
        let first = self.keys.status().epoch == 0;
        let stepped = offset.step_since(self.offset).is_some();
        self.offset = offset;
        let maps = &mut self.dataplane.maps;
        // Keys first: no packet meets an epoch without one.
        let epoch = offset.moment().epoch();
        let rotation = self
            .keys
            .rotate(&mut maps.keys, epoch)
            .context("cannot write map KEYS")?;
        if rotation.written > 0 {
            self.journal.note(What::KeyRotated {
                epoch,
                written: rotation.written,
            });
        }
        if rotation.late && !first && !stepped {
            self.journal.note(What::KeyLate { epoch });
        }
        let (jiffy_ns, jiffy_offset) = self
            .jiffies
            .now()
            .context("cannot read the kernel's jiffies")?;
        let clock = Clock {
            wall_offset: offset.0,
            tick: clock::tick(),
            jiffy_ns,
            jiffy_offset,
        };
        maps.clock
            .set(0, Wire(clock), 0)
            .context("cannot write map CLOCK")
    }

    /// Follows every service, four times a second.
    pub fn tick(&mut self) {
        #[cfg(feature = "trace")]
        self.dataplane.print_trace();
        let now = clock::monotonic_ns();
        let profile = self.profile();
        for running in &mut self.services {
            let Some(slot) = self.states.get(running.number) else {
                continue;
            };
            match stats::read(&self.dataplane.maps.stats, running.number) {
                Ok(mut counted) => {
                    // SYNs that we have shown to the programs again were no more of them.
                    let reminded = self.books.counted(running.number, Count::Reminded);
                    counted.syns = counted.syns.saturating_sub(reminded);
                    if let Some(challenged) = counted.reasons.get_mut(Reason::Challenged as usize) {
                        *challenged = challenged.saturating_sub(reminded);
                    }
                    let calmed = running.calmed_total;
                    running.tick(now, slot, &counted, &self.journal);
                    let calmed = running.calmed_total - calmed;
                    self.books.count(running.number, Count::Calmed, calmed);
                    let sample = running.sample(now, slot, &counted);
                    let Service {
                        name,
                        half_open_timeout,
                        ..
                    } = &running.service;
                    self.tuning.observe(name, *half_open_timeout, sample);
                }
                Err(error) => error!(error = one_line(&error), "cannot read map STATS"),
            }
            if running.is_proxied() {
                let offered =
                    snapshot::server(&running.config(&profile), &slot.read(), clock::tick());
                running.follow_profile(offered, &self.journal);
            }
        }
        self.retune();
        self.expire_sources();
        self.drain_on();
        let fills = self.fills();
        self.room.observe(&fills, &self.journal);
        if let Err(error) = self.look_after_flows() {
            error!(error = one_line(&error), "cannot write map RUNTIME");
        }
        // Slot 0 decides on packets whose service cannot be known. The programs set it with the
        // first service they turn guarded; here it follows the others.
        if let Some(all) = self.states.get(SERVICE_NONE) {
            if self.services.iter().any(|running| running.guarded) {
                all.turn_guarded(now);
            } else {
                all.turn_calm(0);
            }
        }
        for number in self.numbers.reclaim(self.sweeper.passes()) {
            if let Some(slot) = self.states.get(number) {
                slot.clear();
            }
            if let Err(error) = stats::clear(&mut self.dataplane.maps.stats, number) {
                error!(error = one_line(&error), "cannot clear map STATS");
            }
            if let Some(book) = self.books.get(number) {
                book.clear();
            }
        }
    }
}

fn wants(services: &[Running]) -> impl Iterator<Item = Wants> {
    services.iter().map(Running::wants)
}
