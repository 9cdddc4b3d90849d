//! The tuners of all services, and what of them outlives the daemon.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{
    Advice, Tuner,
    history::Normal,
    minute::Sample,
    store::{self, Store},
};

/// The tuners, by the names of the services.
#[derive(Debug, Default)]
pub struct Tuning {
    tuners: BTreeMap<String, Tuner>,
    store: Option<Store>,
}

impl Tuning {
    /// Goes on with what an earlier daemon kept in this directory, if there is one.
    pub fn open(directory: Option<&Path>) -> Self {
        let Some(directory) = directory else {
            return Self::default();
        };
        Self {
            tuners: store::read(directory),
            store: Some(Store::new(directory)),
        }
    }

    /// What is advised for a service.
    pub fn advice(&self, service: &str) -> Advice {
        let tuner = self.tuners.get(service);
        tuner.map(Tuner::advice).unwrap_or_default()
    }

    /// What is normal for a service, once that is known.
    pub fn normal(&self, service: &str) -> Option<Normal> {
        self.tuners.get(service)?.normal()
    }

    /// Takes note of the counters of a service whose half-open connections live for that long.
    pub fn observe(&mut self, service: &str, half_open_timeout: Duration, sample: Sample) {
        if !self.tuners.contains_key(service) {
            self.tuners.insert(service.to_owned(), Tuner::default());
        }
        let Some(tuner) = self.tuners.get_mut(service) else {
            return;
        };
        tuner.set_half_open_timeout(half_open_timeout);
        if tuner.observe(sample)
            && let Some(store) = &mut self.store
        {
            store.is_due();
        }
    }

    /// Forgets the services that are no more.
    pub fn keep_only<'a>(&mut self, services: impl Iterator<Item = &'a str> + Clone) {
        self.tuners
            .retain(|name, _| services.clone().any(|service| service == name));
    }

    /// Writes down what there is to keep, if it is time, without waiting for the disk.
    pub fn save_if_due(&mut self) {
        if let Some(store) = &mut self.store {
            store.write_if_due(&self.tuners);
        }
    }

    /// Writes it down before the daemon ends.
    pub fn close(&mut self) {
        if let Some(store) = self.store.take() {
            store.close(&self.tuners);
        }
    }
}
