//! From what is configured and what the box looks like to the tables: admission and watermarks of
//! every service, and the entries that say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use synguard_common::abi::SERVICE_NONE;
use tracing::info;

use super::{
    admission::{self, Kind},
    guard::Guard,
    links::World,
    listeners::Listener,
    service::Running,
    sysctl::{Profile, Tcp},
    tuning::Tuning,
    watermark::{Listeners, Watermarks},
};
use crate::{
    dataplane::{
        Tables,
        tables::{self, Exception, Facts},
    },
    journal::{Journal, What},
    model::Service,
};

/// MTU to go by without an interface.
pub(crate) const USUAL_MTU: u32 = 1500;

/// What the box looks like, as far as the tables follow from it.
pub(crate) struct Circumstances<'a> {
    /// Why the programs that were loaded make no sockets from cookies, if they do not.
    pub local_error: Option<&'a str>,
    /// The devices.
    pub world: &'a World,
    /// Indices of the guarded ones.
    pub interfaces: &'a [u32],
    /// The kernel's TCP settings.
    pub tcp: &'a Tcp,
    /// Window scale that clients are promised.
    pub rcv_wscale: u8,
    /// The TCP listeners.
    pub listeners: &'a [Listener],
    /// What is normal for the services.
    pub tuning: &'a Tuning,
}

impl Guard {
    /// As [`Circumstances::plan`], in the present ones.
    pub(super) fn plan(&self, services: &mut [Running]) -> anyhow::Result<Tables> {
        let interfaces: Vec<_> = self.interfaces.iter().map(|at| at.index).collect();
        self.circumstances(&interfaces).plan(services, &self.tables)
    }

    pub(super) fn profile(&self) -> Profile {
        let interfaces: Vec<_> = self.interfaces.iter().map(|at| at.index).collect();
        self.circumstances(&interfaces).profile()
    }

    fn circumstances<'a>(&'a self, interfaces: &'a [u32]) -> Circumstances<'a> {
        Circumstances {
            local_error: self.dataplane.local_error.as_deref(),
            world: &self.world,
            interfaces,
            tcp: &self.tcp,
            rcv_wscale: self.rcv_wscale,
            listeners: &self.listeners,
            tuning: &self.tuning,
        }
    }

    /// Why `local` admission is impossible at the moment.
    pub(super) fn local_error(&self) -> Option<String> {
        self.circumstances(&[]).local_error()
    }
}

impl Circumstances<'_> {
    /// Compiles the tables for `services`, whose watermarks and admission it brings up to date.
    pub(crate) fn plan(
        &self,
        services: &mut [Running],
        previous: &Tables,
    ) -> anyhow::Result<Tables> {
        let local_error = self.local_error();
        let own = self.own();
        for running in services.iter_mut() {
            let Service {
                admission,
                addresses,
                ..
            } = &running.service;
            running.admission =
                admission::decide(*admission, addresses, &own, local_error.as_deref());
        }
        let profile = self.profile();
        let targets: Vec<_> = services
            .iter()
            .map(|running| running.target(&profile))
            .collect();
        let mut tables = tables::compile(&targets, &self.facts(), previous)?;
        let backlogs = self.backlogs(&tables);
        for running in services {
            running.listeners = if running.admission.listens_here() {
                Listeners::Here(backlogs.get(&running.number).copied())
            } else {
                Listeners::Behind
            };
            running.watermarks = running.choose(self.tuning);
            tables
                .services
                .insert(running.number, running.config(&profile));
        }
        Ok(tables)
    }

    fn local_error(&self) -> Option<String> {
        self.local_error.map(str::to_owned).or_else(|| {
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
            .filter_map(|at| self.mtu_of(*at))
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
        let indices = || self.interfaces.iter().copied();
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

    /// The addresses of this machine.
    fn own(&self) -> BTreeSet<IpAddr> {
        let addresses = self.world.all_addresses();
        addresses.map(|address| address.to_canonical()).collect()
    }

    /// The smallest backlog among the listeners of each service.
    fn backlogs(&self, tables: &Tables) -> BTreeMap<u16, u32> {
        let mut backlogs = BTreeMap::new();
        let own = self.own();
        for listener in self.listeners {
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

/// Says what has changed. How a service begins is for the log alone: without `news` all of them do.
pub(super) fn report_watermarks(old: &[Running], new: &[Running], journal: &Journal, news: bool) {
    for (old, new) in pairs(old, new) {
        let service = new.service.name.clone();
        let Watermarks { high, low, reason } = new.watermarks;
        match old.map(|old| &old.watermarks) {
            Some(old) if *old == new.watermarks => {}
            Some(old) if news => journal.note(What::ThresholdChanged {
                service,
                high,
                low,
                old_high: old.high,
                old_low: old.low,
                reason: reason.to_string(),
            }),
            _ => info!(
                service,
                "watermarks of {service}: high {high}, low {low} ({reason})"
            ),
        }
    }
}

/// The same of admission, and also where a service cannot be guarded from the beginning.
pub(super) fn report_admission(old: &[Running], new: &[Running], journal: &Journal, news: bool) {
    for (old, new) in pairs(old, new) {
        let service = new.service.name.clone();
        let (kind, reason) = (new.admission.kind, new.admission.reason.clone());
        let admission = kind.to_string();
        let before = old.map(|old| &old.admission);
        if before.is_some_and(|before| *before == new.admission) {
            continue;
        }
        match before.map(|before| before.kind) {
            _ if kind == Kind::None => journal.note(What::AdmissionLost { service, reason }),
            Some(Kind::None) => journal.note(What::AdmissionRegained {
                service,
                admission,
                reason,
            }),
            Some(_) if news => journal.note(What::AdmissionChanged {
                service,
                admission,
                reason,
            }),
            _ => info!(service, "admission of {service}: {kind} ({reason})"),
        }
    }
}
