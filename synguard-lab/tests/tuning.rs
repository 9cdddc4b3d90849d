//! The watermarks that `auto` chooses, on the traces of `cargo xtask bench tuning`, shorter than there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

/// The columns of a defence.
const COLUMNS: [&str; 3] = ["detect_s", "false_guards_per_week", "needless_guarded_s"];

/// The traces, as `synguard-bench tuning --json` with further arguments tells of them.
#[track_caller]
fn traces(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_synguard-bench"))
        .args(["tuning", "--json"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut document: Value = serde_json::from_slice(&output.stdout).unwrap();
    match document["traces"].take() {
        Value::Array(traces) => traces,
        other => panic!("{other}"),
    }
}

/// No worse in anything than any rival, and better wherever one is not perfect.
#[track_caller]
fn assert_better(trace: &Value) {
    let name = &trace["name"];
    let attack = trace["attack"].as_bool().unwrap();
    for rival in ["tcp_intercept", "fixed_rate"] {
        let theirs = &trace["rivals"][rival];
        for column in COLUMNS {
            let told = format!(
                "{name}: {column} {} against {rival}: {trace}",
                trace[column]
            );
            match (trace[column].as_f64(), theirs[column].as_f64()) {
                (Some(ours), Some(theirs)) => {
                    assert!(ours < theirs || ours == 0.0 && theirs == 0.0, "{told}");
                }
                (Some(_), None) => assert!(attack && column == COLUMNS[0], "{told}"),
                (None, theirs) => assert!(!attack && theirs.is_none(), "{told}"),
            }
        }
    }
}

#[test]
fn better_than_both_rivals_on_every_trace() {
    let all = traces(&["--weeks", "0.5", "--peace", "0.3"]);
    assert!(all.len() >= 10, "{}", all.len());
    all.iter().for_each(assert_better);
    let attacks = all.iter().filter(|trace| trace["attack"] == true).count();
    assert!((4..all.len() - 4).contains(&attacks), "{attacks}");
}

/// The constants were not chosen for one seed, nor for one size of the services.
#[test]
fn the_same_with_other_seeds_and_sizes() {
    for (seed, scale) in [("2", "0.7"), ("3", "1.4")] {
        let all = traces(&[
            "--seed", seed, "--scale", scale, "--weeks", "0.4", "--peace", "0.3",
        ]);
        all.iter().for_each(assert_better);
    }
}

/// The same traces come to the same.
#[test]
fn chance_is_the_same_every_time() {
    let once = || traces(&["--filter", "flood", "--weeks", "0.1", "--peace", "0.1"]);
    let first = once();
    assert_eq!(first.len(), 3);
    assert_eq!(first, once());
}
