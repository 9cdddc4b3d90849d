//! What `tuning` says: a table for people, JSON for programs.

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::replay::{Outcome, Score};

/// The results for people, in 80 columns.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["", "", "SYNGUARD", "TCP INTERCEPT", "FIXED RATE"]);
    for outcome in outcomes {
        let scores = [
            outcome.synguard,
            outcome.rivals.tcp_intercept,
            outcome.rivals.fixed_rate,
        ];
        let mut row = |name: &str, what: &str, show: &dyn Fn(&Score) -> String| {
            let cells = [name.to_owned(), what.to_owned()];
            table.add_row(cells.into_iter().chain(scores.iter().map(show)));
        };
        let name = outcome.name;
        if outcome.attack {
            row(name, "time to detect, s", &|score| {
                score.detect_s.map_or("never".into(), |s| format!("{s:.3}"))
            });
        }
        let name = if outcome.attack { "" } else { name };
        row(name, "false guards a week", &|score| {
            format!("{:.1}", score.false_guards_per_week)
        });
        row("", "guarded without need, s", &|score| {
            format!("{:.1}", score.needless_guarded_s)
        });
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// The results for programs.
pub fn json(outcomes: &[Outcome]) -> Result<String> {
    #[derive(Serialize)]
    struct Document<'a> {
        traces: &'a [Outcome],
    }
    serde_json::to_string(&Document { traces: outcomes }).context("cannot write the result as JSON")
}

#[cfg(test)]
mod tests {
    use super::{super::replay::Rivals, *};

    fn outcomes() -> Vec<Outcome> {
        let score = |detect_s| Score {
            detect_s,
            false_guards_per_week: 12_345.6,
            needless_guarded_s: 1_234_567.8,
        };
        let outcome = |name, attack, detect_s| Outcome {
            name,
            attack,
            synguard: score(detect_s),
            rivals: Rivals {
                tcp_intercept: score(None),
                fixed_rate: score(None),
            },
        };
        vec![
            outcome("deploy_reconnect", false, None),
            outcome("slow_ramp", true, Some(0.1234)),
        ]
    }

    #[test]
    fn the_table_fits() {
        let table = table(&outcomes());
        println!("{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80));
        assert_eq!(table.lines().count(), 6);
    }

    #[test]
    fn the_json_is_as_documented() {
        let text = json(&outcomes()).unwrap();
        let rival =
            r#"{"detect_s":null,"false_guards_per_week":12345.6,"needless_guarded_s":1234567.8}"#;
        let first = format!(
            r#"{{"traces":[{{"name":"deploy_reconnect","attack":false,{},"rivals":{{"tcp_intercept":{rival},"fixed_rate":{rival}}}}},"#,
            rival.trim_matches(['{', '}'])
        );
        assert!(text.starts_with(&first), "{text}");
    }
}
