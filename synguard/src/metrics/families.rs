//! Which metrics there are, and what of a [`Snapshot`] they show.
//!
//! A service's series are the same from its first scrape on, zero or not, so that `rate()` sees
//! the first packet and no panel loses its line. No label carries an address.

use std::{collections::HashMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue},
    metrics::{MetricType, exemplar::Exemplar},
};
use synguard_common::verdict::{Action, Reason};

use crate::{
    dataplane::stats::LET_IN,
    lists::List,
    model::{Mode, ReasonCount, ServiceStatus, Snapshot},
};

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Name, help and value of a gauge that each service has.
type ServiceGauge = (&'static str, &'static str, fn(&ServiceStatus) -> u64);

/// Reasons of packets that never concerned a service.
const NO_SERVICE: [Reason; 3] = [Reason::NotTcp, Reason::Unprotected, Reason::NotForHost];

/// The reasons that are verdicts on a segment that acknowledges something, as
/// `synguard_acks_total` calls them.
const ACK_VERDICTS: [(Reason, &str); 8] = [
    (Reason::HandshakeDone, "handshake_done"),
    (Reason::Established, "established"),
    (Reason::CookieValid, "cookie_valid"),
    (Reason::JustAdmitted, "just_admitted"),
    (Reason::SpliceStarted, "splice_started"),
    (Reason::Translated, "translated"),
    (Reason::FlowKnown, "flow_known"),
    (Reason::AckInvalid, "invalid"),
];

/// A snapshot as metrics.
#[derive(Debug)]
pub(super) struct Families(pub(super) Snapshot);

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.daemon(&mut writer)?;
        self.packets(&mut writer)?;
        self.states(&mut writer)?;
        self.forwarding(&mut writer)?;
        self.health(&mut writer)
    }
}

impl Families {
    fn daemon(&self, w: &mut Writer<'_>) -> fmt::Result {
        let snapshot = &self.0;
        w.info(
            "synguard_build",
            "Version of synguard and release of the kernel.",
            [vec![
                ("version", &*snapshot.version),
                ("kernel", &*snapshot.kernel),
            ]],
        )?;
        w.gauge(
            "synguard_start_time_seconds",
            "When the daemon started, in seconds since the epoch.",
            [(vec![], snapshot.started_at)],
        )?;
        w.gauge(
            "synguard_config_applied_timestamp_seconds",
            "When the present configuration was applied, in seconds since the epoch.",
            [(vec![], snapshot.config_applied_at)],
        )?;
        w.gauge(
            "synguard_config_last_reload_successful",
            "Whether the last reload of the configuration succeeded (1), or the one before it is \
             still in force (0).",
            [(vec![], u64::from(snapshot.config_error.is_none()))],
        )?;
        w.gauge(
            "synguard_local_admission_available",
            "Whether this kernel can turn a valid cookie into a socket (1) or not (0).",
            [(vec![], u64::from(snapshot.local_admission_error.is_none()))],
        )?;
        let interfaces = &snapshot.interfaces;
        w.info(
            "synguard_interface",
            "Guarded interfaces, how XDP runs on them, and their driver.",
            interfaces.iter().map(|i| {
                let driver = i.driver.as_deref().unwrap_or("unknown");
                vec![
                    ("interface", &*i.name),
                    ("xdp_mode", &*i.xdp_mode),
                    ("driver", driver),
                ]
            }),
        )?;
        w.gauge(
            "synguard_interface_up",
            "Whether the interface has link (1) or not (0).",
            interfaces
                .iter()
                .map(|i| (vec![("interface", &*i.name)], u64::from(i.up))),
        )
    }

    fn packets(&self, w: &mut Writer<'_>) -> fmt::Result {
        let services = &self.0.services;
        let counts: Vec<Counts<'_>> = services.iter().map(|s| Counts::new(&s.packets)).collect();
        let each = || {
            services
                .iter()
                .zip(&counts)
                .map(|(s, counts)| (&*s.name, counts))
        };
        w.counter(
            "synguard_syns",
            "SYNs received, whatever became of them.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.syns)),
        )?;
        w.counter(
            "synguard_challenges",
            "SYNs answered with a SYN cookie.",
            each().map(|(s, c)| (vec![("service", s)], c.of(Reason::Challenged))),
        )?;
        w.counter(
            "synguard_admissions",
            "Challenged clients let in: sockets made from a valid cookie, connections spliced, sources \
             verified.",
            each().map(|(s, c)| {
                let let_in = LET_IN.iter().map(|reason| c.of(*reason)).sum::<u64>();
                (vec![("service", s)], let_in)
            }),
        )?;
        w.counter(
            "synguard_acks",
            "Segments that acknowledge something, by verdict: the end of a watched handshake, an \
             established connection, a valid cookie, a connection just admitted, one just spliced, one \
             translated, one known from its server's packets, or invalid.",
            each().flat_map(|(s, c)| {
                ACK_VERDICTS.iter().map(move |(reason, verdict)| {
                    (vec![("service", s), ("verdict", *verdict)], c.of(*reason))
                })
            }),
        )?;
        w.counter(
            "synguard_drops",
            "Packets dropped, by reason.",
            each().flat_map(|(s, c)| {
                let drops = Reason::ALL.iter().filter(|r| r.action() == Action::Drop);
                drops.map(move |r| (vec![("service", s), ("reason", r.label())], c.of(*r)))
            }),
        )?;
        w.counter(
            "synguard_packets",
            "Packets seen by each program, by reason and what happened to them.",
            each().flat_map(|(s, c)| {
                c.shown(|reason| !NO_SERVICE.contains(&reason))
                    .map(move |(r, n)| (reason_labels(Some(s), r), n))
            }),
        )?;
        let observed: Vec<_> = services
            .iter()
            .map(|s| (&*s.name, Counts::new(&s.observed)))
            .collect();
        w.counter(
            "synguard_observed_packets",
            "Packets that mode observe passed, by the reason and action it would have had for them.",
            observed.iter().flat_map(|(s, c)| {
                c.shown(|reason| reason.action() != Action::Pass)
                    .map(move |(r, n)| (reason_labels(Some(s), r), n))
            }),
        )?;
        let unprotected = Counts::new(&self.0.unprotected);
        w.counter(
            "synguard_unprotected_packets",
            "Packets of no service, by reason and what happened to them.",
            unprotected
                .shown(|reason| NO_SERVICE.contains(&reason))
                .map(|(r, n)| (reason_labels(None, r), n)),
        )
    }

    fn states(&self, w: &mut Writer<'_>) -> fmt::Result {
        let services = &self.0.services;
        let gauges: [ServiceGauge; 5] = [
            (
                "synguard_guarded",
                "Whether the service is guarded (1) or calm (0).",
                |s| u64::from(s.state == "guarded"),
            ),
            ("synguard_half_open", "Half-open connections.", |s| {
                s.half_open
            }),
            (
                "synguard_half_open_high",
                "Half-open connections at which the service becomes guarded.",
                |s| s.high.into(),
            ),
            (
                "synguard_half_open_low",
                "Half-open connections below which the service may become calm.",
                |s| s.low.into(),
            ),
            (
                "synguard_half_open_projected",
                "Half-open connections there would be, were the service not guarded.",
                |s| s.projected_half_open,
            ),
        ];
        for (name, help, value) in gauges {
            w.gauge(
                name,
                help,
                services
                    .iter()
                    .map(|s| (vec![("service", &*s.name)], value(s))),
            )?;
        }
        let each = |value: fn(&ServiceStatus) -> Option<f64>| {
            services
                .iter()
                .map(move |s| (vec![("service", &*s.name)], value(s).unwrap_or(0.0)))
        };
        w.gauge(
            "synguard_half_open_normal",
            "Half-open connections that are normal now, at the busiest moment of an hour; 0 as long as \
             that is not known.",
            each(|s| s.normal_half_open),
        )?;
        w.gauge(
            "synguard_syn_rate_normal",
            "SYNs per second that are normal now; 0 as long as that is not known.",
            each(|s| s.normal_syn_rate),
        )?;
        w.gauge(
            "synguard_service_exceptions",
            "Addresses and ports the service would cover but must leave alone; `synguard status` \
             says why.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.excepted.len())),
        )?;
        w.info(
            "synguard_service",
            "Services, their mode, and what a valid ACK becomes.",
            services.iter().map(|s| {
                let mode = match s.mode {
                    Mode::Adaptive => "adaptive",
                    Mode::Always => "always",
                    Mode::Observe => "observe",
                };
                vec![
                    ("service", &*s.name),
                    ("mode", mode),
                    ("admission", &*s.admission),
                ]
            }),
        )?;
        w.counter(
            "synguard_state_changes",
            "Changes of state, by the new state.",
            services.iter().flat_map(|s| {
                [("guarded", s.guarded_total), ("calm", s.calmed_total)]
                    .map(|(to, n)| (vec![("service", &*s.name), ("to", to)], n))
            }),
        )?;
        w.counter(
            "synguard_half_open_expired",
            "Half-open connections given up, for their age or under pressure.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.expired_total)),
        )?;
        w.counter(
            "synguard_half_open_released",
            "Half-open connections given up that the server was told to forget.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.released_total)),
        )?;
        w.counter(
            "synguard_syn_acks_retransmitted",
            "SYN-ACKs with a cookie sent again because nobody had answered them.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.reminded_total)),
        )?;
        w.gauge(
            "synguard_half_open_oldest_seconds",
            "Age of the oldest half-open connection; 0 where there is none.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], s.half_open_oldest)),
        )?;
        let bounds: Vec<Vec<String>> = services
            .iter()
            .map(|s| {
                let bounds = s.half_open_ages.iter().map(|(bound, _)| *bound);
                bounds
                    .map(|bound| bound.map_or("inf".into(), |b| b.to_string()))
                    .collect()
            })
            .collect();
        w.gauge(
            "synguard_half_open_ages",
            "Half-open connections by age: up to so many seconds, and more than the bound before.",
            services.iter().zip(&bounds).flat_map(|(s, bounds)| {
                let counts = s.half_open_ages.iter().map(|(_, count)| *count);
                counts.zip(bounds).map(|(count, bound)| {
                    (
                        vec![("service", &*s.name), ("up_to_seconds", &**bound)],
                        count,
                    )
                })
            }),
        )?;
        w.histogram(
            "synguard_handshake_rtt_seconds",
            "Round-trip times between our SYN-ACK and its ACK, of clients with timestamps, where admission \
             is local.",
            services
                .iter()
                .map(|s| (vec![("service", &*s.name)], &*s.rtt, s.rtt_sum)),
        )
    }

    fn health(&self, w: &mut Writer<'_>) -> fmt::Result {
        let keys = &self.0.keys;
        for (name, help, value) in [
            (
                "synguard_key_epoch",
                "The present epoch of the cookie keys.",
                keys.epoch,
            ),
            (
                "synguard_key_epoch_length_seconds",
                "Length of an epoch; a cookie is valid for one to two.",
                keys.epoch_seconds,
            ),
            (
                "synguard_key_last_rotation_timestamp_seconds",
                "When a key was last written to the kernel, in seconds since the epoch.",
                keys.last_rotation,
            ),
            (
                "synguard_keys_ready_ahead",
                "Epochs ahead of the present one whose key is in the kernel.",
                keys.ready_ahead,
            ),
            (
                "synguard_keys_expiry_timestamp_seconds",
                "When the last key in the kernel runs out, in seconds since the epoch: how long \
                 services stay guarded without a daemon.",
                keys.expires_at(),
            ),
        ] {
            w.gauge(name, help, [(vec![], value)])?;
        }
        w.counter(
            "synguard_events",
            "Events noted since the daemon started, by kind; `synguard events` shows them.",
            self.0
                .events
                .iter()
                .map(|(kind, noted)| (vec![("kind", &**kind)], *noted)),
        )?;
        let listed = self.0.sources.listed;
        w.gauge(
            "synguard_sources",
            "Prefixes of sources that are allowed or blocked.",
            [
                (vec![("list", List::Allow.label())], listed.allowed),
                (vec![("list", List::Block.label())], listed.blocked),
            ],
        )?;
        let maps = &self.0.maps;
        w.gauge(
            "synguard_map_entries",
            "Entries in the kernel's table.",
            maps.iter().map(|m| (vec![("map", &*m.name)], m.entries)),
        )?;
        w.gauge(
            "synguard_map_capacity",
            "Entries the kernel's table has room for.",
            maps.iter().map(|m| (vec![("map", &*m.name)], m.capacity)),
        )
    }
}

/// Packets by the label of their reason.
struct Counts<'a>(HashMap<&'a str, u64>);

impl<'a> Counts<'a> {
    fn new(counts: &'a [ReasonCount]) -> Self {
        Self(counts.iter().map(|c| (&*c.reason, c.packets)).collect())
    }

    fn of(&self, reason: Reason) -> u64 {
        self.0.get(reason.label()).copied().unwrap_or(0)
    }

    /// The reasons to show with their counts: those `always` says, and every other that occurred.
    fn shown(&self, always: fn(Reason) -> bool) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL
            .iter()
            .map(|reason| (*reason, self.of(*reason)))
            .filter(move |(reason, count)| always(*reason) || *count > 0)
    }
}

fn reason_labels(service: Option<&str>, reason: Reason) -> Labels<'_> {
    let action = match reason.action() {
        Action::Pass => "pass",
        Action::Answer => "answer",
        Action::Drop => "drop",
    };
    let service = service.map(|service| ("service", service));
    service
        .into_iter()
        .chain([("reason", reason.label()), ("action", action)])
        .collect()
}

/// Writes whole families. Names are without the suffix (`_total`, `_info`) that the format adds.
pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

impl Writer<'_> {
    pub(super) fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, impl EncodeCounterValue)>,
    ) -> fmt::Result {
        const NONE: Option<&Exemplar<[(&str, &str); 0], f64>> = None;
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            match &*labels {
                [] => family.encode_counter(&value, NONE)?,
                labels => family
                    .encode_family(&labels)?
                    .encode_counter(&value, NONE)?,
            }
        }
        Ok(())
    }

    pub(super) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, impl EncodeGaugeValue)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            match &*labels {
                [] => family.encode_gauge(&value)?,
                labels => family.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    pub(super) fn info<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Labels<'l>>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        for labels in samples {
            family.encode_info(&labels)?;
        }
        Ok(())
    }

    /// The samples are labels, buckets (upper bound, none for infinity, and count, not
    /// cumulative) and sum.
    fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, &'l [(Option<f64>, u64)], f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, buckets, sum) in samples {
            let count = buckets.iter().map(|(_, count)| count).sum();
            let mut buckets: Vec<(f64, u64)> = buckets
                .iter()
                .map(|(bound, count)| (bound.unwrap_or(f64::INFINITY), *count))
                .collect();
            if buckets.last().is_none_or(|(bound, _)| bound.is_finite()) {
                buckets.push((f64::INFINITY, 0));
            }
            let no_exemplars = None::<&HashMap<usize, Exemplar<[(&str, &str); 0], f64>>>;
            family
                .encode_family(&labels)?
                .encode_histogram(sum, count, &buckets, no_exemplars)?;
        }
        Ok(())
    }
}
