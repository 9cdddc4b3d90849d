//! What the bench says: a table for people, JSON for programs.

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{
    paths::Goal,
    run::{Results, Samples},
};

/// What SipHash-2-4 of 24 bytes takes on the machine that the goals are written for, ns.
const GOAL_SIPHASH: f64 = 24.0;

/// A goal on a machine where the hash takes `siphash` ns.
fn scaled(goal: Goal, siphash: f64) -> f64 {
    if goal.hash {
        goal.ns * siphash / GOAL_SIPHASH
    } else {
        goal.ns
    }
}

/// The results for people.
pub fn table(results: &Results) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["ns per packet", "min", "median", "max", "goal", "", ""]);
    for (name, samples, about) in [
        ("empty", &results.empty, "floor: an empty program, gross"),
        (
            "harness",
            &results.harness,
            "what is subtracted: restoring the packet and a tail call, gross",
        ),
        (
            "xdp_tx",
            &results.tx,
            "floor: swap the MAC addresses, send back",
        ),
        (
            "siphash24_24b",
            &results.siphash,
            "floor: SipHash-2-4 of 24 bytes",
        ),
        (
            "hash_lookup_40b",
            &results.hash,
            "floor: a connection found in a hash table",
        ),
        (
            "lru_lookup_40b",
            &results.lru,
            "floor: the same in an LRU hash table",
        ),
        (
            "lru_insert_40b",
            &results.insert,
            "floor: a connection entered in an LRU hash table that has room",
        ),
        (
            "lookup_listener",
            &results.listener,
            "floor: socket lookup that finds a listener, and release",
        ),
        (
            "lookup_connection",
            &results.connection,
            "floor: socket lookup that finds a connection, and release",
        ),
        (
            "tc_empty",
            &results.tc_empty,
            "floor: an empty TC program, gross",
        ),
        (
            "tc_harness",
            &results.tc_harness,
            "what is subtracted from TC programs, gross",
        ),
    ] {
        table.add_row(row(name, samples, ["", "", about]));
    }
    let [_, siphash, _] = results.siphash.spread();
    for (path, samples) in &results.paths {
        let [_, median, _] = samples.spread();
        let (goal, mark) = match path.goal {
            None => (String::new(), ""),
            Some(goal) => {
                let goal = scaled(goal, siphash);
                (format!("{goal:.0}"), if median <= goal { "✓" } else { "✗" })
            }
        };
        table.add_row(row(path.name, samples, [&goal, mark, path.about]));
    }
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\nPaths and floors are net of the harness unless they say gross. Goals of paths with a hash in \
         them are scaled by {siphash:.1} / {GOAL_SIPHASH:.0}, what the hash takes here and took where they were set; \
         the median is held against them."
    )
}

fn row(name: &str, samples: &Samples, rest: [&str; 3]) -> Vec<String> {
    let spread = samples.spread().map(|ns| format!("{ns:.1}"));
    std::iter::once(name.to_owned())
        .chain(spread)
        .chain(rest.map(str::to_owned))
        .collect()
}

#[derive(Serialize)]
struct Document {
    floors: Floors,
    paths: Vec<PathResult>,
}

#[derive(Serialize)]
struct Floors {
    empty_ns: f64,
    xdp_tx_ns: f64,
    siphash24_24b_ns: f64,
    hash_lookup_40b_ns: f64,
    lru_lookup_40b_ns: f64,
    lru_insert_40b_ns: f64,
    tc_empty_ns: f64,
}

#[derive(Serialize)]
struct PathResult {
    name: &'static str,
    net_ns_min: f64,
    net_ns_median: f64,
    net_ns_max: f64,
}

/// The results for programs. Floors are medians.
pub fn json(results: &Results) -> Result<String> {
    let median = |samples: &Samples| rounded(samples.spread()[1]);
    let document = Document {
        floors: Floors {
            empty_ns: median(&results.empty),
            xdp_tx_ns: median(&results.tx),
            siphash24_24b_ns: median(&results.siphash),
            hash_lookup_40b_ns: median(&results.hash),
            lru_lookup_40b_ns: median(&results.lru),
            lru_insert_40b_ns: median(&results.insert),
            tc_empty_ns: median(&results.tc_empty),
        },
        paths: results
            .paths
            .iter()
            .map(|(path, samples)| {
                let [min, median, max] = samples.spread().map(rounded);
                PathResult {
                    name: path.name,
                    net_ns_min: min,
                    net_ns_median: median,
                    net_ns_max: max,
                }
            })
            .collect(),
    };
    serde_json::to_string(&document).context("cannot write the result as JSON")
}

/// Two decimals: there is no more to it than that.
fn rounded(ns: f64) -> f64 {
    (ns * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_goals_with_a_hash_in_them_scale() {
        assert_eq!(
            scaled(
                Goal {
                    ns: 75.0,
                    hash: true
                },
                48.0
            ),
            150.0
        );
        assert_eq!(
            scaled(
                Goal {
                    ns: 40.0,
                    hash: false
                },
                48.0
            ),
            40.0
        );
    }

    #[test]
    fn two_decimals() {
        assert_eq!(rounded(1.23456), 1.23);
        assert_eq!(rounded(-0.005), -0.01);
    }
}
