//! What the demo says at its end: a table, a sentence, and JSON.

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{
    live::{optional, thousands},
    phase::PhaseResult,
};

/// The results side by side.
pub fn table(results: &[PhaseResult]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "",
        "SYN/s offered",
        "SYN/s answered",
        "legitimate ok",
        "p50 ms",
        "p99 ms",
        "CPU µs per SYN",
    ]);
    for result in results {
        table.add_row([
            result.name.to_owned(),
            thousands(result.offered_pps),
            thousands(result.handled_pps),
            format!(
                "{:.2} % of {}",
                ok_percent(result),
                thousands(result.legit_attempted as f64)
            ),
            optional(result.p50_ms, 2),
            optional(result.p99_ms, 2),
            optional(result.cpu_us_per_syn, 3),
        ]);
    }
    table
}

/// What the numbers come to; `None` where a flooded phase is missing.
pub fn sentence(results: &[PhaseResult]) -> Option<String> {
    let find = |name| results.iter().find(|result| result.name == name);
    let (kernel, guarded) = (find("kernel")?, find("synguard")?);
    let mut sentence = format!(
        "Under the same flood synguard answered {} SYN/s, ",
        thousands(guarded.handled_pps)
    );
    if kernel.handled_pps > 0.0 {
        sentence += &format!(
            "{:.1} times what the kernel did, ",
            guarded.handled_pps / kernel.handled_pps
        );
    }
    if let (Some(ours), Some(theirs)) = (guarded.cpu_us_per_syn, kernel.cpu_us_per_syn) {
        sentence += &format!("at {ours:.2} µs of CPU each instead of {theirs:.2}, ");
    }
    sentence += &format!(
        "and {:.2} % of the legitimate connections got through, instead of {:.2} %.",
        ok_percent(guarded),
        ok_percent(kernel)
    );
    Some(sentence)
}

/// Says where the machine was busy with other things; `None` where it was quiet.
pub fn disturbance(results: &[PhaseResult]) -> Option<String> {
    const TOLERATED: f64 = 0.05;
    let most = results
        .iter()
        .max_by(|a, b| a.others.total_cmp(&b.others))?;
    (most.others > TOLERATED).then(|| {
        format!(
            "Other programs took {:.0} % of the two CPUs during {}; on a quiet machine the numbers are better.",
            most.others * 100.0,
            most.name
        )
    })
}

/// The results for programs.
pub fn json(results: &[PhaseResult]) -> Result<String> {
    #[derive(Serialize)]
    struct Document<'a> {
        phases: &'a [PhaseResult],
    }
    serde_json::to_string(&Document { phases: results }).context("cannot write the result as JSON")
}

/// Share of the legitimate connections that got their answer. What was attempted and not ok has
/// failed: every connection has ended before a phase does.
fn ok_percent(result: &PhaseResult) -> f64 {
    if result.legit_attempted == 0 {
        0.0
    } else {
        result.legit_ok as f64 * 100.0 / result.legit_attempted as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &'static str, handled: f64, ok: u64, cpu: Option<f64>) -> PhaseResult {
        PhaseResult {
            name,
            offered_pps: 5_000_000.0,
            handled_pps: handled,
            legit_attempted: 1000,
            legit_ok: ok,
            p50_ms: Some(0.2),
            p99_ms: None,
            cpu_us_per_syn: cpu,
            others: 0.0,
        }
    }

    #[test]
    fn the_sentence_compares() {
        let results = [
            result("kernel", 300_000.0, 970, Some(3.0)),
            result("synguard", 2_400_000.0, 999, Some(0.25)),
        ];
        let sentence = sentence(&results).unwrap();
        assert!(
            sentence.contains("2,400,000 SYN/s, 8.0 times"),
            "{sentence}"
        );
        assert!(
            sentence.contains("0.25 µs of CPU each instead of 3.00"),
            "{sentence}"
        );
        assert!(
            sentence.ends_with(
                "99.90 % of the legitimate connections got through, instead of 97.00 %."
            )
        );
    }

    #[test]
    fn nothing_to_compare_nothing_to_say() {
        assert_eq!(sentence(&[result("calm", 0.0, 1000, None)]), None);
    }

    #[test]
    fn a_busy_machine_is_named() {
        let busy = PhaseResult {
            others: 0.31,
            ..result("kernel", 1.0, 1, None)
        };
        assert_eq!(disturbance(&[result("calm", 0.0, 1, None)]), None);
        let text = disturbance(&[result("calm", 0.0, 1, None), busy]).unwrap();
        assert!(
            text.contains("31 % of the two CPUs during kernel"),
            "{text}"
        );
    }

    #[test]
    fn json_has_the_agreed_fields() {
        let text = json(&[result("calm", 0.0, 1000, None)]).unwrap();
        assert_eq!(
            text,
            "{\"phases\":[{\"name\":\"calm\",\"offered_pps\":5000000.0,\"handled_pps\":0.0,\
             \"legit_attempted\":1000,\"legit_ok\":1000,\"p50_ms\":0.2,\"p99_ms\":null,\"cpu_us_per_syn\":null}]}"
        );
    }
}
