//! Metrics of services whose servers are elsewhere: flows, verified sources, and what the servers
//! offer.

use std::fmt;

use super::families::{Families, Writer};
use crate::model::ServerStatus;

impl Families {
    pub(super) fn forwarding(&self, w: &mut Writer<'_>) -> fmt::Result {
        let flows = &self.0.flows;
        w.gauge(
            "synguard_flows",
            "Connections of proxied services, by state: waiting for the server, spliced (translated), \
             or known and not translated.",
            [
                ("pending", flows.pending),
                ("spliced", flows.spliced),
                ("known", flows.known),
            ]
            .map(|(state, n)| (vec![("state", state)], n)),
        )?;
        w.gauge(
            "synguard_flows_closing",
            "How many of these connections are over.",
            [(vec![], flows.closing)],
        )?;
        for (name, help, value) in [
            (
                "synguard_flows_created",
                "Connections entered in the flow table.",
                flows.created_total,
            ),
            (
                "synguard_flows_expired",
                "Connections removed from the flow table: ended a while ago, idle for too long, or \
                 refused.",
                flows.expired_total,
            ),
            (
                "synguard_flows_evicted",
                "Connections that made room for others in the full flow table: those not over are \
                 cut off.",
                flows.evicted_total,
            ),
            (
                "synguard_sources_verified",
                "Sources entered in the table of verified sources.",
                flows.verified_total,
            ),
        ] {
            w.counter(name, help, [(vec![], value)])?;
        }
        w.counter(
            "synguard_errands",
            "What the daemon did for connections whose server kept silent: SYNs retried, clients \
             refused, attempts at either that failed, and those lost for lack of room.",
            [
                ("retried", flows.retried_total),
                ("refused", flows.refused_total),
                ("failed", flows.errands_failed_total),
                ("lost", flows.errands_lost_total),
            ]
            .map(|(outcome, n)| (vec![("outcome", outcome)], n)),
        )?;
        let servers: Vec<_> = self
            .0
            .services
            .iter()
            .filter_map(|service| Some((&*service.name, Shown::new(service.server.as_ref()?))))
            .collect();
        w.info(
            "synguard_server_profile",
            "What clients are offered in the name of a proxied service's servers, where that is \
             known from, and what is withheld because a server fell short of it.",
            servers.iter().map(|(service, shown)| {
                vec![
                    ("service", *service),
                    ("source", shown.server.source.as_str()),
                    ("timestamps", yes_no(shown.server.timestamps)),
                    ("sack", yes_no(shown.server.sack)),
                    ("window_scale", &shown.window_scale),
                    ("ecn", yes_no(shown.server.ecn)),
                    ("mss", &shown.mss),
                    ("withheld", &shown.withheld),
                ]
            }),
        )
    }
}

/// A profile with its numbers as text.
struct Shown<'a> {
    server: &'a ServerStatus,
    window_scale: String,
    mss: String,
    withheld: String,
}

impl<'a> Shown<'a> {
    fn new(server: &'a ServerStatus) -> Self {
        let none = || "none".to_owned();
        Self {
            server,
            window_scale: server.window_scale.map_or_else(none, |n| n.to_string()),
            mss: server.mss.map_or_else(none, |n| n.to_string()),
            withheld: match server.withheld.as_slice() {
                [] => none(),
                names => names.join(","),
            },
        }
    }
}

const fn yes_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
