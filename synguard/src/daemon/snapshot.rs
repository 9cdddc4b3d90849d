//! Puts together what the daemon knows at one moment.

use std::net::IpAddr;

use synguard_common::{
    abi::{RTT_BUCKETS, ServiceStats},
    verdict::{Action, Reason},
};
use tracing::error;

use super::{guard::Guard, service::Running};
use crate::{
    dataplane::{error::one_line, health, load::kernel_release, stats},
    model::{InterfaceStatus, ReasonCount, ServiceStatus, Snapshot},
};

impl Guard {
    /// Everything, read from the kernel now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel_release(),
            started_at: self.started_at,
            config: self.config_path.clone(),
            config_applied_at: self.applied_at,
            local_admission_error: self.local_error(),
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
            maps: health::fill(&self.dataplane.maps, &self.tables, self.sweeper.entries()),
        }
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
        let counted = self.counted(running.number);
        let state = self
            .states
            .get(running.number)
            .map(|slot| slot.read())
            .unwrap_or_default();
        ServiceStatus {
            name: running.service.name.clone(),
            covers: running.covers(),
            excepted: super::plan::excepted(&self.tables, running.number),
            mode: running.service.mode,
            admission: running.admission.kind.to_string(),
            admission_reason: running.admission.reason.clone(),
            state: if running.guarded { "guarded" } else { "calm" }.to_owned(),
            state_since: running.state_since,
            half_open: state.half_open,
            high: running.watermarks.high,
            low: running.watermarks.low,
            projected_half_open: if running.guarded {
                running.projected()
            } else {
                0
            },
            guarded_total: u64::from(state.guarded_count),
            calmed_total: running.calmed_total,
            expired_total: self.sweeper.expired(running.number),
            syns: counted.syns,
            packets: reasons(&counted.reasons),
            observed: reasons(&counted.observed),
            rtt: rtt(&counted.rtt),
            rtt_sum: counted.rtt_sum_ms as f64 / 1000.0,
        }
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
    use super::*;

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
