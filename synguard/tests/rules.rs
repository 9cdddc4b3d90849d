//! The shipped Prometheus rules: promtool's own checks and unit tests of them, and whether each alert
//! is tested and says what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{ffi::OsStr, fs, path::PathBuf};

use synguard_lab::{observed::deploy, tool::Promtool};

const ALERTS: &str = "synguard.alerts.yml";
const RULES: &str = "synguard.rules.yml";
const TESTS: &str = "synguard.test.yml";

fn path(name: &str) -> PathBuf {
    deploy().join("prometheus").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// What follows `key` on lines that begin with it, spaces aside.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix(key))
        .map(str::trim)
        .collect()
}

fn promtool(what: &str, arguments: &[&str], file: &str) {
    let Some(promtool) = Promtool::or_skip(what) else {
        return;
    };
    let file = path(file);
    let arguments: Vec<&OsStr> = arguments
        .iter()
        .map(OsStr::new)
        .chain([file.as_os_str()])
        .collect();
    println!("{}", promtool.run(&arguments, "").unwrap());
}

#[test]
fn the_configuration_and_its_rules_are_valid() {
    // Follows `rule_files`; all lints are errors.
    promtool(
        "the_configuration_and_its_rules_are_valid",
        &["check", "config"],
        "scrape.yml",
    );
    for rules in [RULES, ALERTS] {
        let what = "the_configuration_and_its_rules_are_valid";
        promtool(
            what,
            &["check", "rules", "--lint=all", "--lint-fatal"],
            rules,
        );
    }
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let what = "alerts_fire_when_they_should_and_only_then";
    promtool(what, &["test", "rules"], TESTS);
}

/// promtool is content with an alert that no test mentions.
#[test]
fn every_alert_is_tested_both_ways() {
    let tests = read(TESTS);
    let alerts = read(ALERTS);
    let names = values(&alerts, "- alert: ");
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let question = format!("- expr: ALERTS{{alertname=\"{name}\", alertstate=\"firing\"");
        let answers: Vec<&str> = tests
            .split(&question)
            .skip(1)
            .filter_map(|rest| rest.lines().find(|line| line.contains("exp_samples:")))
            .map(str::trim)
            .collect();
        assert!(
            answers.contains(&"exp_samples:"),
            "{name} is never tested to fire"
        );
        assert!(
            answers.contains(&"exp_samples: []"),
            "{name} is never tested not to fire"
        );
    }
    let rules = read(RULES);
    for name in values(&rules, "- record: ") {
        let used = tests.contains(&format!("- expr: {name}\n")) || alerts.contains(name);
        assert!(used, "{name} is neither tested nor used");
    }
}

#[test]
fn every_alert_says_what_it_is_and_what_to_do() {
    let alerts = read(ALERTS);
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        for key in ["summary: ", "description: ", "runbook: "] {
            assert_eq!(values(alert, key).len(), 1, "{name}: {key}");
        }
        let severity = values(alert, "severity: ");
        assert!(
            matches!(severity[..], ["critical" | "warning" | "info"]),
            "{name}: {severity:?}"
        );
        assert!(
            alert.contains("1. "),
            "{name}: the runbook has no first step"
        );
    }
}
