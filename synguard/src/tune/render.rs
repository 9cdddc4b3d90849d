//! Advice and outcomes for people, in 80 columns.

use std::fmt::{self, Write as _};

use super::{
    Tuning,
    advice::{Advice, Standing},
    apply::Outcome,
    fit::Fit,
};
use crate::fold::fold;

/// Where reasons begin.
const INDENT: usize = 4;
/// Services that are named.
const FEW: usize = 3;

/// What is advised.
pub fn render_advice(tuning: &Tuning) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let gib = tuning.memory as f64 / f64::from(1 << 30);
    writeln!(text, "Advice for {gib:.1} GiB of memory:\n")?;
    let (good, open): (Vec<_>, Vec<_>) = tuning
        .settings
        .iter()
        .partition(|advice| advice.status == Standing::Good);
    for advice in &open {
        setting(&mut text, advice)?;
    }
    if !good.is_empty() {
        let title = if open.is_empty() {
            "As advised, all of them:"
        } else {
            "\nAs advised already:"
        };
        writeln!(text, "{title}\n")?;
        for advice in &good {
            setting(&mut text, advice)?;
        }
    }
    let count = |status| open.iter().filter(|advice| advice.status == status).count();
    match count(Standing::Change) {
        0 => {}
        n => writeln!(text, "\n{n} to change: `synguard tune --apply`")?,
    }
    configuration(
        &mut text,
        tuning.configuration.as_ref(),
        "To go with them, ",
    )?;
    Ok(text)
}

fn setting(text: &mut String, advice: &Advice) -> fmt::Result {
    let name = &advice.setting;
    let current = advice.current.as_deref().unwrap_or("-");
    let values = match (&advice.advised, advice.status) {
        (_, Standing::Good) | (None, _) => current.to_owned(),
        (Some(advised), Standing::ReadOnly) => {
            format!("{current} -> {advised}  (only in the first namespace)")
        }
        (Some(advised), _) => format!("{current} -> {advised}"),
    };
    writeln!(text, "{name:<36} {values}")?;
    fold(text, &" ".repeat(INDENT), INDENT, &advice.why)
}

/// What the daemon's configuration should have.
fn configuration(text: &mut String, fit: Option<&Fit>, when: &str) -> fmt::Result {
    let Some(fit) = fit else {
        return Ok(());
    };
    // One after the other where they are few.
    let mut current: Vec<String> = fit
        .current
        .iter()
        .take(FEW)
        .map(|(service, value)| format!("{service}: {value}"))
        .collect();
    if fit.current.len() > FEW {
        current.push(format!("and {} more", fit.current.len() - FEW));
    }
    let Fit {
        key,
        file,
        advised,
        why,
        ..
    } = fit;
    let (file, current) = (file.display(), current.join(", "));
    let line = format!("{when}{key} = \"{advised}\" in {file} ({current}): {why}");
    text.push('\n');
    fold(text, "", INDENT, &line)
}

/// What `--apply` (or `--revert`) did.
pub fn render_outcome(outcome: &Outcome, reverted: bool) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for change in &outcome.changed {
        let from = change.from.as_deref().unwrap_or("-");
        writeln!(text, "{:<36} {from} -> {}", change.setting, change.to)?;
    }
    for left in &outcome.left {
        fold(&mut text, "left alone: ", INDENT, left)?;
    }
    for line in &outcome.undone_at_boot {
        fold(&mut text, "undone at the next boot: ", INDENT, line)?;
    }
    let file = outcome.file.display();
    match (reverted, outcome.changed.len()) {
        (true, n) => writeln!(text, "{n} reverted, {file} removed")?,
        (false, 0) => writeln!(text, "nothing to change")?,
        (false, n) => writeln!(text, "{n} changed, and at every boot by {file}")?,
    }
    configuration(&mut text, outcome.configuration.as_ref(), "To go with it, ")?;
    Ok(text)
}
