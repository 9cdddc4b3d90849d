//! What the daemon guards: interfaces, services, and the tables between them. Owned by the run
//! loop alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use synguard_common::abi::{Clock, SERVICE_NONE, map};
use tracing::{error, info, warn};

use super::{
    clock::{self, Offset},
    keys::KeyRing,
    links::World,
    listeners::{self, Listener},
    numbers::Numbers,
    service::Running,
    sweep::Sweeper,
    sysctl::{self, Profile, Tcp},
    watermark,
};
use crate::{
    config::Overrides,
    dataplane::{
        Attachment, Dataplane, States, Tables, apply, attach,
        error::{AttachError, NearNames, one_line},
        stats,
        tables::{self, Exception, Facts},
        wire::Wire,
    },
    model::{Config, Mode},
};

/// MTU to go by without an interface.
const USUAL_MTU: u32 = 1500;

/// An interface that is guarded, or about to be.
pub(super) struct Interface {
    pub index: u32,
    pub name: String,
    pub attachment: Option<Attachment>,
}

/// Everything the run loop owns.
pub struct Guard {
    pub(super) config: Config,
    pub(super) config_path: Option<PathBuf>,
    pub(super) overrides: Overrides,
    pub(super) dataplane: Dataplane,
    pub(super) states: Arc<States>,
    pub(super) sweeper: Sweeper,
    pub(super) interfaces: Vec<Interface>,
    pub(super) world: World,
    pub(super) services: Vec<Running>,
    pub(super) tables: Tables,
    pub(super) keys: KeyRing,
    pub(super) started_at: u64,
    pub(super) applied_at: u64,
    numbers: Numbers,
    tcp: Tcp,
    /// A scale that was promised must hold when the ACK comes back: it stays for life.
    rcv_wscale: u8,
    listeners: Vec<Listener>,
    offset: Offset,
}

/// Where to start from.
pub struct Beginnings {
    /// The configuration, and where it came from.
    pub config: Config,
    /// Its file.
    pub config_path: Option<PathBuf>,
    /// What the command line said.
    pub overrides: Overrides,
    /// The loaded programs.
    pub dataplane: Dataplane,
    /// The key ring, still empty.
    pub keys: KeyRing,
    /// The devices.
    pub world: World,
}

impl Guard {
    /// Puts clock, keys and tables in place; nothing is attached yet.
    pub fn start(from: Beginnings) -> anyhow::Result<Self> {
        let Beginnings {
            config,
            config_path,
            overrides,
            dataplane,
            keys,
            world,
        } = from;
        let states = Arc::clone(&dataplane.maps.states);
        let half_open = dataplane
            .maps
            .open_half_open()
            .context("cannot open map HALF_OPEN")?;
        let capacity = dataplane.maps.capacity(map::HALF_OPEN).unwrap_or(0);
        let sweeper = Sweeper::start(half_open, capacity, Arc::clone(&states))
            .context("cannot start the sweep of half-open connections")?;
        let tcp = Tcp::read(Path::new(sysctl::ROOT));
        let mut guard = Self {
            rcv_wscale: tcp.profile(USUAL_MTU).rcv_wscale,
            numbers: Numbers::default(),
            services: Vec::new(),
            tables: Tables::default(),
            interfaces: Vec::new(),
            listeners: Vec::new(),
            offset: Offset::now(),
            started_at: clock::wall_seconds(),
            applied_at: 0,
            config_path,
            overrides,
            dataplane,
            states,
            sweeper,
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
        for service in &guard.services {
            if let Some(reason) = &service.admission_error {
                warn!(
                    service = service.service.name,
                    "service {} is watched but cannot be guarded: {reason}", service.service.name
                );
            }
        }
        Ok(guard)
    }

    /// Applies a configuration, whole or not at all. Services that keep their name keep their
    /// number, their counters and what is known of them.
    pub(super) fn configure(&mut self, config: Config) -> anyhow::Result<()> {
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
                Some(running) => running.reconfigured(service.clone()),
                None => Running::new(number, service.clone()),
            });
        }
        let tables = self.plan(&mut services)?;
        // No entry of a new service may meet a sweep that does not know it.
        self.sweeper
            .set_timeouts(timeouts(&self.services).chain(timeouts(&services)));
        for next in &services {
            if let Some(running) = old.get(next.service.name.as_str())
                && let Some(slot) = self.states.get(next.number)
            {
                running.leave_mode(next.service.mode, slot);
            }
        }
        let applied = apply::apply(&mut self.dataplane.maps, &self.tables, &tables);
        if let Err(error) = applied {
            self.sweeper.set_timeouts(timeouts(&self.services));
            return Err(error.into());
        }
        self.sweeper.set_timeouts(timeouts(&services));
        report_watermarks(&self.services, &services);
        self.commit(tables, services);
        self.numbers = numbers;
        self.config = config;
        self.applied_at = clock::wall_seconds();
        Ok(())
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
        apply::apply(&mut self.dataplane.maps, &self.tables, &tables)
            .map_err(|error| error.to_string())?;
        self.commit(tables, services);
        info!("mode of {} is {mode} now", name.unwrap_or("every service"));
        Ok(())
    }

    /// Looks at devices, addresses, listeners and settings again, and applies what changed.
    pub fn refresh(&mut self, world: World) {
        self.world = world;
        self.drop_vanished();
        let tcp = Tcp::read(Path::new(sysctl::ROOT));
        if tcp != self.tcp {
            info!("the TCP settings of the kernel have changed");
            self.tcp = tcp;
        }
        self.listen_again();
        for interface in &mut self.interfaces {
            if let Some(attachment) = &mut interface.attachment {
                attachment.follow(&mut self.dataplane, &self.world.vlans_on(interface.index));
            }
        }
        if let Err(error) = self.replan() {
            error!("the tables stay as they were: {error:#}");
        }
    }

    fn replan(&mut self) -> anyhow::Result<()> {
        let mut services = self.services.clone();
        let tables = self.plan(&mut services)?;
        apply::apply(&mut self.dataplane.maps, &self.tables, &tables)?;
        report_watermarks(&self.services, &services);
        report_admission(&self.services, &services);
        self.commit(tables, services);
        Ok(())
    }

    /// Compiles the tables for `services`, whose watermarks and admission it brings up to date.
    fn plan(&self, services: &mut [Running]) -> anyhow::Result<Tables> {
        let admission_error = self.admission_error();
        for running in services.iter_mut() {
            running.admission_error.clone_from(&admission_error);
        }
        let profile = self.profile();
        let targets: Vec<_> = services
            .iter()
            .map(|running| running.target(&profile))
            .collect();
        let mut tables = tables::compile(&targets, &self.facts(), &self.tables)?;
        let backlogs = self.backlogs(&tables);
        for running in services {
            let backlog = backlogs.get(&running.number).copied();
            running.watermarks =
                watermark::choose(running.service.high, running.service.low, backlog);
            tables
                .services
                .insert(running.number, running.config(&profile));
        }
        Ok(tables)
    }

    fn commit(&mut self, tables: Tables, services: Vec<Running>) {
        for running in &services {
            let before = excepted(&self.tables, running.number);
            for line in excepted(&tables, running.number) {
                if !before.contains(&line) {
                    let name = &running.service.name;
                    warn!(service = name, "service {name} must leave out {line}");
                }
            }
        }
        self.tables = tables;
        self.services = services;
    }

    /// Why `local` admission is impossible at the moment.
    pub(super) fn admission_error(&self) -> Option<String> {
        self.dataplane.local_error.clone().or_else(|| {
            (self.tcp.syncookies == 0).then(|| {
                "net.ipv4.tcp_syncookies is 0, with which the kernel refuses sockets made from \
                 cookies: sysctl -w net.ipv4.tcp_syncookies=1"
                    .to_owned()
            })
        })
    }

    fn profile(&self) -> Profile {
        let mtu = self
            .interfaces
            .iter()
            .filter_map(|interface| self.mtu_of(interface.index))
            .max();
        Profile {
            rcv_wscale: self.rcv_wscale,
            ..self.tcp.profile(mtu.unwrap_or(USUAL_MTU))
        }
    }

    fn mtu_of(&self, index: u32) -> Option<u32> {
        self.world.by_index(index).map(|link| link.device.mtu)
    }

    fn facts(&self) -> Facts {
        let indices = || self.interfaces.iter().map(|interface| interface.index);
        let exceptions = self.listeners.iter().filter(|listener| listener.mptcp);
        Facts {
            addresses: indices()
                .flat_map(|index| self.world.addresses_at(index))
                .collect(),
            others: self.world.all_addresses().collect(),
            mtu: indices()
                .filter_map(|index| self.mtu_of(index))
                .min()
                .unwrap_or(USUAL_MTU),
            exceptions: exceptions
                .map(|listener| Exception {
                    address: listener.address,
                    port: listener.port,
                })
                .collect(),
        }
    }

    /// The smallest backlog among the listeners of each service.
    fn backlogs(&self, tables: &Tables) -> BTreeMap<u16, u32> {
        let mut backlogs = BTreeMap::new();
        let own: BTreeSet<_> = self.world.all_addresses().collect();
        for listener in &self.listeners {
            let everywhere = own.iter().copied().filter(|_| listener.address.is_none());
            for address in everywhere.chain(listener.address) {
                let number = tables.lookup(address, listener.port);
                if number != SERVICE_NONE {
                    let smallest = backlogs.entry(number).or_insert(listener.backlog);
                    *smallest = listener.backlog.min(*smallest);
                }
            }
        }
        backlogs
    }

    fn listen_again(&mut self) {
        match listeners::list() {
            Ok(listeners) => self.listeners = listeners,
            Err(error) => warn!(%error, "cannot list the TCP listeners"),
        }
    }

    /// Attaches to an interface. The tables know its addresses before the programs run there.
    pub fn attach(&mut self, name: &str) -> Result<(), AttachError> {
        let Some(link) = self.world.by_name(name).cloned() else {
            let hint = NearNames::new(name, self.world.names());
            return Err(AttachError::UnknownInterface {
                name: name.to_owned(),
                hint,
            });
        };
        let device = link.device;
        let vlans = self.world.vlans_on(device.index);
        self.interfaces.push(Interface {
            index: device.index,
            name: device.name.clone(),
            attachment: None,
        });
        let attached = self
            .replan()
            .map_err(|error| AttachError::Kernel {
                name: name.to_owned(),
                program: "the tables",
                reason: format!("{error:#}"),
            })
            .and_then(|()| {
                attach::attach(&mut self.dataplane, &device, &vlans, self.config.xdp_mode)
            });
        match attached {
            Ok(attachment) => {
                info!(
                    interface = name,
                    "guarding {name} ({} XDP, driver {}, MTU {})",
                    attachment.xdp_mode,
                    device.driver.as_deref().unwrap_or("unknown"),
                    device.mtu
                );
                if let Some(interface) = self.interfaces.last_mut() {
                    interface.attachment = Some(attachment);
                }
                Ok(())
            }
            Err(error) => {
                self.interfaces.pop();
                if let Err(again) = self.replan() {
                    error!("the tables keep addresses of {name}: {again:#}");
                }
                Err(error)
            }
        }
    }

    /// Whether an interface of this name is guarded.
    pub fn guards(&self, name: &str) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.name == name)
    }

    /// Detaches from an interface and leaves it as it was found.
    pub fn detach(&mut self, name: &str) -> Result<(), String> {
        let Some(at) = self
            .interfaces
            .iter()
            .position(|interface| interface.name == name)
        else {
            let names = self
                .interfaces
                .iter()
                .map(|interface| interface.name.clone())
                .collect();
            return Err(format!(
                "interface {name} is not guarded{}",
                NearNames::new(name, names)
            ));
        };
        drop(self.interfaces.remove(at));
        info!(interface = name, "no longer guarding {name}");
        self.replan().map_err(|error| format!("{error:#}"))
    }

    /// Detaches from everything.
    pub fn stop(&mut self) {
        for interface in self.interfaces.drain(..).rev() {
            let name = interface.name.clone();
            drop(interface);
            info!(interface = name, "no longer guarding {name}");
        }
    }

    fn drop_vanished(&mut self) {
        let world = &self.world;
        for gone in self
            .interfaces
            .extract_if(.., |each| world.by_index(each.index).is_none())
        {
            error!(
                interface = gone.name,
                "interface {} is gone: no longer guarding it", gone.name
            );
        }
        for interface in &mut self.interfaces {
            if let Some(link) = world.by_index(interface.index)
                && link.device.name != interface.name
            {
                info!(
                    "interface {} is called {} now",
                    interface.name, link.device.name
                );
                interface.name.clone_from(&link.device.name);
            }
        }
    }

    /// Keeps clock and keys up to date. Keys follow the clock at once, so that a step costs no
    /// more than the cookies that were on their way.
    pub fn write_clock(&mut self) -> anyhow::Result<()> {
        let offset = Offset::now();
        if let Some(seconds) = offset.step_since(self.offset) {
            warn!(
                "the wall clock was set by {seconds:+.3} s: cookies of the last seconds may be lost"
            );
        }
        self.offset = offset;
        let maps = &mut self.dataplane.maps;
        // Keys first: no packet meets an epoch without one.
        self.keys
            .rotate(&mut maps.keys, offset.moment().epoch())
            .context("cannot write map KEYS")?;
        let clock = Clock {
            tick: 0,
            pad: 0,
            wall_offset: offset.0,
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
        for running in &mut self.services {
            let Some(slot) = self.states.get(running.number) else {
                continue;
            };
            match stats::read(&self.dataplane.maps.stats, running.number) {
                Ok(counted) => running.tick(now, slot, &counted),
                Err(error) => error!(error = one_line(&error), "cannot read map STATS"),
            }
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
            self.sweeper.forget(number);
        }
    }
}

fn timeouts(services: &[Running]) -> impl Iterator<Item = (u16, Duration)> {
    services
        .iter()
        .map(|running| (running.number, running.service.half_open_timeout))
}

/// What a service must leave alone, a line for each port.
pub(super) fn excepted(tables: &Tables, number: u16) -> Vec<String> {
    let mut ports: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (_, address, port) in tables.excepted.iter().filter(|(of, ..)| *of == number) {
        ports.entry(*port).or_default().push(address.to_string());
    }
    ports
        .into_iter()
        .map(|(port, addresses)| {
            format!(
                "port {port} of {}: its listener speaks MPTCP, and the kernel takes no cookie \
                 connections for it; turn MPTCP off there (a Go server: GODEBUG=multipathtcp=0)",
                addresses.join(", ")
            )
        })
        .collect()
}

fn pairs<'a>(
    old: &'a [Running],
    new: &'a [Running],
) -> impl Iterator<Item = (Option<&'a Running>, &'a Running)> {
    new.iter()
        .map(|new| (old.iter().find(|old| old.number == new.number), new))
}

fn report_watermarks(old: &[Running], new: &[Running]) {
    for (old, new) in pairs(old, new) {
        if old.is_none_or(|old| old.watermarks != new.watermarks) {
            info!(
                service = new.service.name,
                high = new.watermarks.high,
                low = new.watermarks.low,
                "watermarks of {}: high {}, low {} ({})",
                new.service.name,
                new.watermarks.high,
                new.watermarks.low,
                new.watermarks.reason
            );
        }
    }
}

fn report_admission(old: &[Running], new: &[Running]) {
    for (old, new) in pairs(old, new) {
        let before = old.and_then(|old| old.admission_error.as_ref());
        let name = &new.service.name;
        match (before, &new.admission_error) {
            (None, Some(reason)) => {
                warn!(
                    service = name,
                    "service {name} cannot be guarded any more: {reason}"
                );
            }
            (Some(_), None) => info!(service = name, "service {name} can be guarded again"),
            _ => {}
        }
    }
}
