//! `synguard-bench`: every path leads where its name says, and the JSON is what was agreed on. No
//! figure is looked at: a machine that runs tests has other things to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use serde_json::Value;

fn bench(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_synguard-bench"))
        .args(args)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn packets_of_every_path_leave_for_the_expected_reason() {
    if !synguard_lab::skip_unless_root("bench path") {
        return;
    }
    // The second round finds what the first one left behind.
    let (ok, out, err) = bench(&["path", "--json", "--rounds", "2", "--packets", "1000"]);
    assert!(ok, "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(keys(&document), ["floors", "paths"]);
    assert_eq!(
        keys(&document["floors"]),
        [
            "empty_ns",
            "hash_lookup_40b_ns",
            "lru_insert_40b_ns",
            "lru_lookup_40b_ns",
            "siphash24_24b_ns",
            "tc_empty_ns",
            "xdp_tx_ns"
        ]
    );
    let paths = document["paths"].as_array().unwrap();
    for path in paths {
        assert_eq!(
            keys(path),
            ["name", "net_ns_max", "net_ns_median", "net_ns_min"]
        );
        assert!(
            path["net_ns_min"].as_f64() <= path["net_ns_median"].as_f64(),
            "{path}"
        );
        assert!(
            path["net_ns_median"].as_f64() <= path["net_ns_max"].as_f64(),
            "{path}"
        );
    }
    for name in [
        "guarded_syn_v4",
        "forged_ack_v4",
        "established_v4",
        "unprotected_v4",
        "proxy_guarded_syn_v4",
        "proxy_guarded_syn_v4_vlan1",
        "proxy_guarded_syn_v6",
        "proxy_forged_ack_v4",
        "proxy_forged_ack_v6",
        "proxy_valid_ack_v4",
        "proxy_valid_ack_v6",
        "proxy_translated_in_v4",
        "proxy_translated_in_v4_sack",
        "proxy_translated_in_v6",
        "proxy_translated_out_v4",
        "proxy_translated_out_v6",
        "proxy_known_in_v4",
        "proxy_calm_non_syn_v4",
        "reset_guarded_syn_v4",
        "reset_guarded_syn_v6",
        "reset_forged_rst_v4",
        "reset_forged_rst_v6",
    ] {
        assert!(paths.iter().any(|path| path["name"] == name), "{name}");
    }
}

#[test]
fn a_mistake_is_one_line() {
    if !synguard_lab::skip_unless_root("bench mistakes") {
        return;
    }
    for (args, said) in [
        (
            ["path", "--filter", "no_such_path"],
            "no path's name contains \"no_such_path\"",
        ),
        (["path", "--cpu", "100000"], "there is no CPU 100000"),
    ] {
        let (ok, out, err) = bench(&args);
        assert!(!ok);
        assert_eq!(out, "");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains(said), "{err}");
    }
}
