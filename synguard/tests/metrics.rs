//! The exporter's output: which metrics there are, their values, and what promtool thinks.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;

use synguard::{
    metrics::{Format, render},
    model::Snapshot,
};
use synguard_common::verdict::{Action, Reason};
use synguard_lab::tool::Promtool;

/// Dashboards and alerts are built on these names: a change here breaks them.
const NAMES: &[(&str, &str)] = &[
    ("process_cpu_seconds_total", "counter"),
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_threads", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
    ("synguard_acks_total", "counter"),
    ("synguard_admissions_total", "counter"),
    ("synguard_build_info", "gauge"),
    ("synguard_challenges_total", "counter"),
    ("synguard_config_applied_timestamp_seconds", "gauge"),
    ("synguard_config_last_reload_successful", "gauge"),
    ("synguard_drops_total", "counter"),
    ("synguard_errands_total", "counter"),
    ("synguard_events_total", "counter"),
    ("synguard_flows", "gauge"),
    ("synguard_flows_closing", "gauge"),
    ("synguard_flows_created_total", "counter"),
    ("synguard_flows_evicted_total", "counter"),
    ("synguard_flows_expired_total", "counter"),
    ("synguard_guarded", "gauge"),
    ("synguard_half_open", "gauge"),
    ("synguard_half_open_ages", "gauge"),
    ("synguard_half_open_expired_total", "counter"),
    ("synguard_half_open_high", "gauge"),
    ("synguard_half_open_low", "gauge"),
    ("synguard_half_open_normal", "gauge"),
    ("synguard_half_open_oldest_seconds", "gauge"),
    ("synguard_half_open_projected", "gauge"),
    ("synguard_half_open_released_total", "counter"),
    ("synguard_handshake_rtt_seconds", "histogram"),
    ("synguard_interface_info", "gauge"),
    ("synguard_interface_up", "gauge"),
    ("synguard_key_epoch", "gauge"),
    ("synguard_key_epoch_length_seconds", "gauge"),
    ("synguard_key_last_rotation_timestamp_seconds", "gauge"),
    ("synguard_keys_expiry_timestamp_seconds", "gauge"),
    ("synguard_keys_ready_ahead", "gauge"),
    ("synguard_local_admission_available", "gauge"),
    ("synguard_map_capacity", "gauge"),
    ("synguard_map_entries", "gauge"),
    ("synguard_observed_packets_total", "counter"),
    ("synguard_packets_total", "counter"),
    ("synguard_server_profile_info", "gauge"),
    ("synguard_service_exceptions", "gauge"),
    ("synguard_service_info", "gauge"),
    ("synguard_sources", "gauge"),
    ("synguard_sources_verified_total", "counter"),
    ("synguard_start_time_seconds", "gauge"),
    ("synguard_state_changes_total", "counter"),
    ("synguard_syn_acks_retransmitted_total", "counter"),
    ("synguard_syn_rate_normal", "gauge"),
    ("synguard_syns_total", "counter"),
    ("synguard_unprotected_packets_total", "counter"),
];

fn snapshot() -> Snapshot {
    serde_json::from_str(include_str!("fixtures/snapshot.json")).unwrap()
}

/// The value of a series, which must be there once.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let values: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .collect();
    assert_eq!(values.len(), 1, "{series} in\n{text}");
    values[0].parse().unwrap()
}

#[test]
fn the_names_are_these() {
    let text = render(snapshot(), Format::Prometheus).unwrap();
    let types: BTreeSet<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    assert_eq!(types.into_iter().collect::<Vec<_>>(), NAMES);
}

#[test]
fn values_come_from_the_snapshot() {
    let text = render(snapshot(), Format::Prometheus).unwrap();
    for (series, expected) in [
        ("synguard_syns_total{service=\"web\"}", 1_234_567.0),
        ("synguard_challenges_total{service=\"web\"}", 1_200_000.0),
        ("synguard_admissions_total{service=\"web\"}", 1500.0),
        (
            "synguard_acks_total{service=\"web\",verdict=\"established\"}",
            40_000.0,
        ),
        (
            "synguard_acks_total{service=\"web\",verdict=\"cookie_valid\"}",
            1510.0,
        ),
        (
            "synguard_acks_total{service=\"web\",verdict=\"invalid\"}",
            150_000.0,
        ),
        (
            "synguard_acks_total{service=\"rest\",verdict=\"invalid\"}",
            0.0,
        ),
        (
            "synguard_drops_total{service=\"web\",reason=\"rst_unknown\"}",
            10.0,
        ),
        (
            "synguard_packets_total{service=\"rest\",reason=\"calm\",action=\"pass\"}",
            9.0,
        ),
        (
            "synguard_packets_total{service=\"web\",reason=\"challenged\",action=\"answer\"}",
            1.2e6,
        ),
        (
            "synguard_observed_packets_total{service=\"rest\",reason=\"challenged\",action=\"answer\"}",
            2.0,
        ),
        (
            "synguard_observed_packets_total{service=\"rest\",reason=\"established\",action=\"pass\"}",
            4.0,
        ),
        (
            "synguard_unprotected_packets_total{reason=\"not_tcp\",action=\"pass\"}",
            77.0,
        ),
        ("synguard_events_total{kind=\"attack_began\"}", 3.0),
        ("synguard_guarded{service=\"web\"}", 1.0),
        ("synguard_guarded{service=\"rest\"}", 0.0),
        ("synguard_half_open{service=\"web\"}", 12.0),
        ("synguard_half_open_oldest_seconds{service=\"web\"}", 4.25),
        ("synguard_half_open_released_total{service=\"web\"}", 6.0),
        (
            "synguard_half_open_ages{service=\"web\",up_to_seconds=\"3\"}",
            2.0,
        ),
        (
            "synguard_half_open_ages{service=\"web\",up_to_seconds=\"inf\"}",
            1.0,
        ),
        ("synguard_half_open_high{service=\"web\"}", 2000.0),
        ("synguard_half_open_low{service=\"web\"}", 500.0),
        ("synguard_half_open_projected{service=\"web\"}", 1500.0),
        ("synguard_half_open_expired_total{service=\"web\"}", 7.0),
        (
            "synguard_state_changes_total{service=\"web\",to=\"guarded\"}",
            3.0,
        ),
        (
            "synguard_state_changes_total{service=\"web\",to=\"calm\"}",
            2.0,
        ),
        ("synguard_service_exceptions{service=\"web\"}", 1.0),
        (
            "synguard_service_info{service=\"rest\",mode=\"observe\",admission=\"none\"}",
            1.0,
        ),
        (
            "synguard_interface_info{interface=\"eth0\",xdp_mode=\"native\",driver=\"veth\"}",
            1.0,
        ),
        ("synguard_interface_up{interface=\"quo\\\"te\"}", 0.0),
        (
            "synguard_build_info{version=\"0.1.0\",kernel=\"6.18.0\"}",
            1.0,
        ),
        ("synguard_local_admission_available", 1.0),
        ("synguard_start_time_seconds", 1_799_726_400.0),
        ("synguard_config_applied_timestamp_seconds", 1_799_999_700.0),
        ("synguard_key_epoch", 112_500_000.0),
        ("synguard_key_epoch_length_seconds", 16.0),
        (
            "synguard_key_last_rotation_timestamp_seconds",
            1_799_999_997.0,
        ),
        ("synguard_keys_ready_ahead", 2.0),
        // The present epoch and two more.
        ("synguard_keys_expiry_timestamp_seconds", 1_800_000_048.0),
        ("synguard_config_last_reload_successful", 1.0),
        ("synguard_admissions_total{service=\"forwarded\"}", 60.0),
        (
            "synguard_acks_total{service=\"forwarded\",verdict=\"translated\"}",
            800.0,
        ),
        ("synguard_flows{state=\"pending\"}", 2.0),
        ("synguard_flows{state=\"spliced\"}", 50.0),
        ("synguard_flows{state=\"known\"}", 5.0),
        ("synguard_flows_closing", 9.0),
        ("synguard_flows_created_total", 1000.0),
        ("synguard_flows_expired_total", 900.0),
        ("synguard_flows_evicted_total", 43.0),
        ("synguard_sources_verified_total", 77.0),
        ("synguard_errands_total{outcome=\"retried\"}", 6.0),
        ("synguard_errands_total{outcome=\"refused\"}", 3.0),
        ("synguard_errands_total{outcome=\"failed\"}", 0.0),
        ("synguard_errands_total{outcome=\"lost\"}", 1.0),
        (
            "synguard_server_profile_info{service=\"forwarded\",source=\"learned\",timestamps=\"yes\",\
             sack=\"no\",window_scale=\"7\",ecn=\"no\",mss=\"1400\",withheld=\"sack,ecn\"}",
            1.0,
        ),
        ("synguard_sources{list=\"allow\"}", 3.0),
        ("synguard_sources{list=\"block\"}", 100_000.0),
        ("synguard_map_entries{map=\"HALF_OPEN\"}", 12.0),
        ("synguard_map_capacity{map=\"HALF_OPEN\"}", 65_536.0),
        // Buckets are cumulative here.
        (
            "synguard_handshake_rtt_seconds_bucket{le=\"0.001\",service=\"web\"}",
            10.0,
        ),
        (
            "synguard_handshake_rtt_seconds_bucket{le=\"0.016\",service=\"web\"}",
            10.0,
        ),
        (
            "synguard_handshake_rtt_seconds_bucket{le=\"0.032\",service=\"web\"}",
            15.0,
        ),
        (
            "synguard_handshake_rtt_seconds_bucket{le=\"+Inf\",service=\"web\"}",
            16.0,
        ),
        (
            "synguard_handshake_rtt_seconds_count{service=\"web\"}",
            16.0,
        ),
        ("synguard_handshake_rtt_seconds_sum{service=\"web\"}", 2.5),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert!(value(&text, "process_resident_memory_bytes") > 0.0);
}

#[test]
fn series_are_there_before_their_first_packet() {
    let mut idle = snapshot();
    for service in &mut idle.services {
        service.packets.clear();
        service.observed.clear();
        service.rtt.clear();
    }
    idle.unprotected.clear();
    let text = render(idle, Format::Prometheus).unwrap();
    for reason in Reason::ALL.iter().filter(|r| r.action() == Action::Drop) {
        let label = reason.label();
        assert_eq!(
            value(
                &text,
                &format!("synguard_drops_total{{service=\"web\",reason=\"{label}\"}}")
            ),
            0.0
        );
    }
    assert_eq!(
        value(
            &text,
            "synguard_handshake_rtt_seconds_count{service=\"web\"}"
        ),
        0.0
    );
    let busy = render(snapshot(), Format::Prometheus).unwrap();
    let series = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter(|l| l.starts_with("synguard_packets") || l.starts_with("synguard_acks"))
            .filter_map(|l| Some(l.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    assert_eq!(series(&text), series(&busy));
}

#[test]
fn no_label_carries_an_address() {
    let text = render(snapshot(), Format::Prometheus).unwrap();
    for address in ["192.0.2.1", "2001:db8::1"] {
        assert!(!text.contains(address), "{address}");
    }
}

#[test]
fn promtool_finds_nothing() {
    let Some(promtool) = Promtool::or_skip("promtool_finds_nothing") else {
        return;
    };
    let text = render(snapshot(), Format::Prometheus).unwrap();
    promtool.check_metrics(&text).unwrap();
}
