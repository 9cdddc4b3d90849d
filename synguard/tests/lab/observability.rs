//! What operators look at, on a real Prometheus that scraped a real daemon under a flood: every query of
//! the dashboard, every rule, and what a scrape costs.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use synguard_lab::{
    dashboard::{Dashboard, picture},
    edge::{Edge, EdgeOptions},
    flood::Kind,
    observed::{Act, Observed},
    prometheus::{Prometheus, Rule},
    skip_unless_root, tool,
};

use crate::{
    daemon::scrape,
    guard::{Guard, binary, within},
};

/// Queries of the dashboard that may find nothing in this flood, or nothing but zero, and why: panel
/// and letter.
const QUIET: [(&str, &str, &str); 4] = [
    ("Connections completed", "C", "nobody's cookie is lost"),
    (
        "Coming and going",
        "B",
        "flows stay for two minutes after their end",
    ),
    ("Coming and going", "C", "the flow table is not full"),
    ("Coming and going", "D", "no server keeps silent"),
];

/// Names of metrics and recorded series in a query.
fn names(query: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let ours = |name: &&str| {
        let name = name.rsplit(':').nth(1).unwrap_or(name);
        ["synguard_", "process_", "scrape_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || name == "up"
    };
    query.split(word).filter(ours).map(str::to_owned).collect()
}

#[test]
fn names_are_found_in_queries() {
    let query =
        "max by (map) (synguard_a_total{x=\"y\"}) and on (job) up == 0 > i:synguard_b:rate2m";
    let expected = ["i:synguard_b:rate2m", "synguard_a_total", "up"];
    assert_eq!(names(query), expected.map(str::to_owned).into());
}

fn alert<'a>(rules: &'a [Rule], name: &str) -> &'a Rule {
    rules.iter().find(|rule| rule.name == name).unwrap()
}

/// Every query of every panel has something to show.
fn dashboard_shows(prometheus: &Prometheus, from: f64, to: f64) {
    let dashboard = Dashboard::shipped().unwrap();
    let (mut asked, mut quiet) = (0, 0);
    for panel in dashboard.asking() {
        for target in &panel.targets {
            let series = prometheus.query_range(&target.query(), from, to).unwrap();
            let values = series
                .iter()
                .flat_map(|series| &series.points)
                .map(|point| point.1);
            let shows = values
                .clone()
                .any(|value| value.is_finite() && value != 0.0);
            let reason = QUIET
                .iter()
                .find(|(title, letter, _)| *title == panel.title && *letter == target.ref_id);
            if let Some((.., why)) = reason {
                quiet += 1;
                println!("{}, {}: may be empty, as {why}", panel.title, target.ref_id);
            } else {
                assert!(shows, "{}: {}: {series:?}", panel.title, target.query());
            }
            asked += 1;
        }
    }
    assert_eq!(quiet, QUIET.len(), "QUIET names a query that is not there");
    println!("{asked} queries of the dashboard, {quiet} of which may be empty");
    let svg = picture::draw(&dashboard, prometheus, from, to).unwrap();
    for panel in &dashboard.panels {
        assert!(svg.contains(&panel.title), "{} is not drawn", panel.title);
    }
}

/// Every rule is evaluated without an error, asks for metrics that exist, and records something.
fn rules_work(prometheus: &Prometheus, rules: &[Rule]) {
    let known: BTreeSet<String> = prometheus
        .label_values("__name__")
        .unwrap()
        .into_iter()
        .collect();
    for rule in rules {
        assert_eq!(
            (rule.health.as_str(), rule.error.as_str()),
            ("ok", ""),
            "{rule:?}"
        );
        let asked = names(&rule.query);
        assert!(!asked.is_empty(), "{rule:?}");
        for name in asked {
            assert!(known.contains(&name), "{}: there is no {name}", rule.name);
        }
        prometheus.query(&rule.query).unwrap();
        if rule.kind == "recording" {
            assert!(
                !prometheus.query(&rule.name).unwrap().is_empty(),
                "{rule:?}"
            );
        }
    }
    println!("{} rules", rules.len());
}

#[test]
fn dashboard_and_rules_in_a_real_prometheus() {
    let name = "dashboard_and_rules_in_a_real_prometheus";
    if !skip_unless_root(name) {
        return;
    }
    let Some(prometheus) = tool::find_or_skip("prometheus", name) else {
        return;
    };
    let observed = Observed::new(&binary(), &prometheus).unwrap();
    let (from, to) = observed
        .play(&[
            Act::Calm(Duration::from_secs(6)),
            Act::Flood(Kind::Mixed, 0, 50_000, Duration::from_secs(8)),
        ])
        .unwrap();
    let prometheus = &observed.prometheus;
    dashboard_shows(prometheus, from, to);
    let rules = prometheus.rules().unwrap();
    rules_work(prometheus, &rules);

    // The flood is over, but not for the daemon: it holds the guard for a while.
    let firing = rules.iter().filter(|rule| rule.state == "firing");
    let firing: Vec<&str> = firing.map(|rule| rule.name.as_str()).collect();
    assert_eq!(firing, ["SynguardUnderAttack"], "{rules:?}");
    let [attack] = &alert(&rules, "SynguardUnderAttack").alerts[..] else {
        panic!("not one service is under attack: {rules:?}");
    };
    assert_eq!(attack.labels["service"], "web");
    println!(
        "{}: {}",
        attack.annotations["summary"], attack.annotations["description"]
    );

    // What Prometheus knows when the daemon is gone: until when its keys last.
    observed.kill_daemon().unwrap();
    let down = within(Duration::from_secs(15), "the daemon is missed", || {
        let rules = prometheus.rules().unwrap();
        let down = alert(&rules, "SynguardDaemonDown")
            .alerts
            .first()
            .cloned()?;
        Some(down)
    });
    let told = &down.annotations["description"];
    println!("{}: {told}", down.annotations["summary"]);
    assert_eq!(down.state, "pending");
    assert!(
        told.contains("guards with the keys it has, until 20"),
        "{told}"
    );
}

#[test]
fn a_scrape_of_200_services_takes_less_than_50_ms() {
    const SERVICES: usize = 200;
    const LIMIT: Duration = Duration::from_millis(50);
    let name = "a_scrape_of_200_services_takes_less_than_50_ms";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let mut config = String::new();
    for n in 0..SERVICES {
        let address = Ipv4Addr::new(10, 77, 1, n as u8);
        writeln!(
            config,
            "[[service]]\nname = \"service-{n}\"\naddresses = [\"{address}\"]\nports = [80, 443]\n\
             admission = \"{}\"\n",
            ["proxy", "reset"][n % 2]
        )
        .unwrap();
    }
    let guard = Guard::with_config(&edge, &config, &[]);
    assert_eq!(guard.status().services.len(), SERVICES);
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..21 {
        let begin = Instant::now();
        bytes = scrape(&edge).len();
        times.push(begin.elapsed());
    }
    times.sort();
    let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!(
        "a scrape of {SERVICES} services, {} KiB: {median:.1?} ({least:.1?} to {most:.1?})",
        bytes / 1024
    );
    assert!(median < LIMIT, "{times:?}");
}
