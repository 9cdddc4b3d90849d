//! Puts together what the daemon knows at one moment.

use std::{net::IpAddr, path::Path};

use synguard_common::{
    abi::{
        OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE, RTT_BUCKETS, SYN_CACHE_SLOTS,
        ServiceConfig, ServiceState, ServiceStats, map,
    },
    flow::{Net as _, V4},
    profile::{self, Offer, Profile},
    verdict::{Action, Reason},
};
use tracing::error;

use super::{
    clock,
    guard::Guard,
    patience::{AGE_BOUNDS, Ages},
    service::Running,
};
use crate::{
    config::Origin,
    dataplane::{error::one_line, health, ledger::Count, load::kernel_release, stats},
    model::{InterfaceStatus, MapFill, ReasonCount, ServerStatus, ServiceStatus, Snapshot},
};

impl Guard {
    /// Everything, read from the kernel now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel_release(),
            started_at: self.started_at,
            config: self.sources.main_path().map(Path::to_owned),
            config_applied_at: self.applied_at,
            config_error: self.config_error.clone(),
            local_admission_error: self.local_error(),
            draining: self.draining.is_some(),
            interfaces: self
                .interfaces
                .iter()
                .filter_map(|interface| self.interface_status(&interface.name))
                .collect(),
            unprotected: reasons(&self.counted(0).reasons),
            services: self
                .services
                .iter()
                .map(|running| self.service_status(running))
                .collect(),
            keys: self.keys.status(),
            maps: self.fills().into_iter().chain([self.syn_cache()]).collect(),
            flows: self.flows.status(),
            sources: self.source_status(),
            events: self.journal.counts(),
        }
    }

    /// How full the SYN cache is, which every flood fills: that is nobody's worry.
    fn syn_cache(&self) -> MapFill {
        MapFill {
            name: map::SYN_CACHE.to_owned(),
            entries: self.reminder.entries(),
            capacity: SYN_CACHE_SLOTS.into(),
        }
    }

    /// How full the kernel's tables are.
    pub(super) fn fills(&self) -> Vec<MapFill> {
        let swept = health::Swept {
            half_open: self.sweeper.entries(),
            flows: self.flows.status().entries(),
            verified: self.flows.verified(),
        };
        health::fill(
            &self.dataplane.maps,
            &self.tables,
            self.lists.entries(),
            swept,
        )
    }

    /// One attached interface.
    pub fn interface_status(&self, name: &str) -> Option<InterfaceStatus> {
        let interface = self
            .interfaces
            .iter()
            .find(|interface| interface.name == name)?;
        let link = self.world.by_index(interface.index)?;
        let addresses = self.world.addresses_at(interface.index);
        let mut addresses: Vec<IpAddr> = addresses.into_iter().map(|local| local.address).collect();
        addresses.sort();
        addresses.dedup();
        Some(InterfaceStatus {
            name: interface.name.clone(),
            index: interface.index,
            mtu: link.device.mtu,
            xdp_mode: interface
                .attachment
                .as_ref()
                .map_or("none", |at| at.xdp_mode)
                .to_owned(),
            driver: link.device.driver.clone(),
            up: link.up,
            addresses,
        })
    }

    fn counted(&self, number: u16) -> ServiceStats {
        stats::read(&self.dataplane.maps.stats, number).unwrap_or_else(|error| {
            error!(error = one_line(&error), "cannot read map STATS");
            stats::ZERO
        })
    }

    fn service_status(&self, running: &Running) -> ServiceStatus {
        let normal = self.tuning.normal(&running.service.name);
        let counted = self.counted(running.number);
        let state = self
            .states
            .get(running.number)
            .map(|slot| slot.read())
            .unwrap_or_default();
        let ages = self.sweeper.ages(running.number);
        ServiceStatus {
            name: running.service.name.clone(),
            number: running.number,
            covers: running.covers(),
            excepted: super::plan::excepted(&self.tables, running.number),
            mode: running.service.mode,
            admission: running.admission.kind.to_string(),
            admission_reason: running.admission.reason.clone(),
            server: running
                .is_proxied()
                .then(|| server(&running.config(&self.profile()), &state, clock::tick())),
            state: if running.guarded { "guarded" } else { "calm" }.to_owned(),
            state_since: running.state_since,
            half_open: state.half_open,
            high: running.watermarks.high,
            low: running.watermarks.low,
            high_reason: running.watermarks.reason.to_string(),
            normal_half_open: normal.map(|normal| normal.half_open.location),
            normal_syn_rate: normal.map(|normal| normal.syn_rate),
            projected_half_open: if running.guarded {
                running.projected()
            } else {
                0
            },
            guarded_total: u64::from(state.guarded_count),
            calmed_total: running.calmed_total,
            expired_total: self.books.counted(running.number, Count::Expired),
            released_total: self.books.counted(running.number, Count::Released),
            reminded_total: self.books.counted(running.number, Count::Reminded),
            half_open_ages: histogram(&ages),
            half_open_age_sum: ages.sum as f64 / 1e9,
            half_open_oldest: ages.oldest as f64 / 1e9,
            syns: counted.syns,
            syn_rate: running.syn_rate.per_second(),
            origin: self
                .origins
                .get(&running.service.name)
                .unwrap_or(&Origin::BuiltIn)
                .to_string(),
            packets: reasons(&counted.reasons),
            observed: reasons(&counted.observed),
            rtt: rtt(&counted.rtt),
            rtt_sum: counted.rtt_sum_ms as f64 / 1000.0,
        }
    }
}

fn histogram(ages: &Ages) -> Vec<(Option<u64>, u64)> {
    let bounds = AGE_BOUNDS.into_iter().map(Some).chain([None]);
    bounds.zip(ages.counts).collect()
}

/// What the programs offer in the name of a proxied service's servers.
pub(super) fn server(config: &ServiceConfig, state: &ServiceState, now: u32) -> ServerStatus {
    let learned = Profile(state.profile);
    // The MSS is told for IPv4, where it is the usual number.
    let offer = Offer::of(config, learned, V4::OVERHEAD);
    let has = |bit| offer.offers & bit != 0;
    let withheld = profile::withheld((state.withheld, state.withheld_at), now);
    ServerStatus {
        source: match (config.learns, learned.learned()) {
            (0, _) => "configured",
            (_, true) => "learned",
            (_, false) => "unknown",
        }
        .to_owned(),
        timestamps: has(OFFER_TIMESTAMPS),
        sack: has(OFFER_SACK),
        window_scale: has(OFFER_WINDOW_SCALE).then_some(offer.scale),
        ecn: has(OFFER_ECN),
        mss: (offer.mss != 0).then_some(offer.mss),
        withheld: [
            (OFFER_TIMESTAMPS, "timestamps"),
            (OFFER_SACK, "sack"),
            (OFFER_WINDOW_SCALE, "window_scale"),
            (OFFER_ECN, "ecn"),
        ]
        .into_iter()
        .filter(|(bit, _)| withheld & bit != 0)
        .map(|(_, name)| name.to_owned())
        .collect(),
    }
}

fn reasons(counts: &[u64]) -> Vec<ReasonCount> {
    Reason::ALL
        .iter()
        .zip(counts)
        .filter(|(_, packets)| **packets > 0)
        .map(|(reason, packets)| ReasonCount {
            reason: reason.label().to_owned(),
            action: match reason.action() {
                Action::Pass => "pass",
                Action::Answer => "answer",
                Action::Drop => "drop",
            }
            .to_owned(),
            packets: *packets,
        })
        .collect()
}

/// Bucket `i` ends at 2^i ms; the last has no end.
fn rtt(buckets: &[u64; RTT_BUCKETS]) -> Vec<(Option<f64>, u64)> {
    let bound = |at: usize| (at + 1 < RTT_BUCKETS).then(|| f64::from(1u32 << at) / 1000.0);
    buckets
        .iter()
        .enumerate()
        .map(|(at, count)| (bound(at), *count))
        .collect()
}

#[cfg(test)]
mod tests {
    use synguard_common::{abi::MODE_ADAPTIVE, options::Options};

    use super::*;
    use synguard_common::profile::WITHHELD_TICKS;

    #[test]
    fn what_servers_offer_comes_from_them_or_from_the_file() {
        let learns = ServiceConfig {
            high: 1,
            offers: OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE | OFFER_ECN,
            window: 0,
            mode: MODE_ADAPTIVE,
            admission: 2,
            rcv_wscale: 0,
            ttl: 64,
            learns: 1,
            pad: 0,
            mss: 0,
            pad2: 0,
        };
        let mut state = ServiceState::default();
        let unknown = ServerStatus {
            source: "unknown".into(),
            timestamps: false,
            sack: false,
            window_scale: None,
            ecn: false,
            mss: None,
            withheld: Vec::new(),
        };
        assert_eq!(server(&learns, &state, 0), unknown);
        let seen = Options {
            present: OFFER_SACK | OFFER_WINDOW_SCALE,
            mss: 1400,
            window_scale: 0,
            ..Options::default()
        };
        state.profile = Profile::default().learn(&seen, 0, V4::OVERHEAD).0;
        state.withheld = OFFER_TIMESTAMPS | OFFER_ECN;
        state.withheld_at = u32::MAX;
        let learned = ServerStatus {
            source: "learned".into(),
            sack: true,
            window_scale: Some(0),
            mss: Some(1400),
            withheld: vec!["timestamps".into(), "ecn".into()],
            ..unknown.clone()
        };
        assert_eq!(server(&learns, &state, 5), learned);
        let later = ServerStatus {
            withheld: Vec::new(),
            ..learned
        };
        assert_eq!(server(&learns, &state, WITHHELD_TICKS), later);
        let fixed = ServiceConfig {
            learns: 0,
            offers: OFFER_TIMESTAMPS | OFFER_WINDOW_SCALE,
            rcv_wscale: 9,
            mss: 1200,
            ..learns
        };
        let configured = ServerStatus {
            source: "configured".into(),
            timestamps: true,
            window_scale: Some(9),
            mss: Some(1200),
            ..unknown
        };
        assert_eq!(
            server(&fixed, &ServiceState::default(), WITHHELD_TICKS),
            configured
        );
    }

    #[test]
    fn buckets_have_their_bounds() {
        let rtt = rtt(&std::array::from_fn(|i| i as u64));
        assert_eq!(rtt.len(), RTT_BUCKETS);
        assert_eq!(rtt[0], (Some(0.001), 0));
        assert_eq!(rtt[10], (Some(1.024), 10));
        assert_eq!(rtt[RTT_BUCKETS - 1], (None, RTT_BUCKETS as u64 - 1));
    }

    #[test]
    fn reasons_without_packets_are_left_out() {
        let mut counts = [0; Reason::COUNT];
        counts[Reason::Challenged as usize] = 3;
        let expected = ReasonCount {
            reason: "challenged".into(),
            action: "answer".into(),
            packets: 3,
        };
        assert_eq!(reasons(&counts), [expected]);
    }
}
