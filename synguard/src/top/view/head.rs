//! What concerns the whole daemon: versions, interfaces, keys, tables; and what is wrong.

use std::time::{Duration, UNIX_EPOCH};

use ratatui::{
    style::{Modifier, Style},
    text::{Line, Span},
};

use super::Scene;
use crate::{
    human::{self, count},
    model::{Mode, Snapshot},
};

/// Seconds that a key may be late before it is worth a warning.
const LATE: u64 = 5;

/// Three lines.
pub(super) fn lines(scene: &Scene<'_>, width: usize) -> Vec<Line<'static>> {
    vec![
        daemon(scene, width),
        wires(scene, width),
        keys(scene, width),
    ]
}

fn daemon(scene: &Scene<'_>, width: usize) -> Line<'static> {
    let snapshot = scene.model.snapshot();
    let now = UNIX_EPOCH + Duration::from_secs(scene.wall);
    let every = humantime::format_duration(scene.delay);
    let name = Span::styled(
        format!("synguard {}", snapshot.version),
        Style::new().add_modifier(Modifier::BOLD),
    );
    let up = human::ago(scene.wall, snapshot.started_at);
    between(
        scene,
        width,
        vec![
            name,
            format!(", up {up}").into(),
            format!(", Linux {}", snapshot.kernel).into(),
        ],
        vec![
            humantime::format_rfc3339_seconds(now).to_string().into(),
            Span::styled(format!(" every {every}"), scene.look.faint()),
        ],
    )
}

fn wires(scene: &Scene<'_>, width: usize) -> Line<'static> {
    let look = scene.look;
    let mut left = Vec::new();
    for interface in &scene.model.snapshot().interfaces {
        if !left.is_empty() {
            left.push(", ".into());
        }
        left.push(Span::raw(format!("{} ", interface.name)));
        left.push(Span::styled(
            interface.xdp_mode.clone(),
            match interface.xdp_mode.as_str() {
                "native" => look.good(),
                "generic" => look.notable(),
                _ => look.bad(),
            },
        ));
        if !interface.up {
            left.push(Span::styled(" down", look.bad()));
        }
    }
    let right = match scene.model.unprotected() {
        Some(rate) => format!("unprotected {}/s", per_second(rate)),
        None => String::new(),
    };
    between(scene, width, left, vec![Span::styled(right, look.faint())])
}

fn keys(scene: &Scene<'_>, width: usize) -> Line<'static> {
    let snapshot = scene.model.snapshot();
    let keys = &snapshot.keys;
    let age = key_age(snapshot, scene.taken);
    let next = match keys.epoch_seconds.saturating_sub(age) {
        0 => "due".to_owned(),
        seconds => format!("in {seconds}s"),
    };
    let left = vec![
        format!("key {age}s old, next {next}").into(),
        Span::styled(
            format!(", {} ahead", keys.ready_ahead),
            if keys.ready_ahead == 0 {
                scene.look.bad()
            } else {
                Style::new()
            },
        ),
    ];
    let mut right = Vec::new();
    for (map, what) in [
        ("HALF_OPEN", "half-open"),
        ("FLOWS", "flows"),
        ("VERIFIED", "verified"),
    ] {
        let found = snapshot.maps.iter().find(|fill| fill.name == map);
        // Those of other admissions than `local` stay empty where there is none.
        let Some(fill) = found.filter(|fill| fill.entries > 0 || map == "HALF_OPEN") else {
            continue;
        };
        let style = if fill.is_nearly_full() {
            scene.look.bad()
        } else {
            Style::new()
        };
        let space = if right.is_empty() { "" } else { "  " };
        right.push(Span::styled(format!("{space}{what} "), scene.look.faint()));
        right.push(Span::styled(
            format!("{} of {}", count(fill.entries), count(fill.capacity)),
            style,
        ));
    }
    between(scene, width, left, right)
}

/// What an operator should know, the worst first.
pub(super) fn warnings(scene: &Scene<'_>) -> Vec<(Style, String)> {
    let snapshot = scene.model.snapshot();
    let (bad, notable) = (scene.look.bad(), scene.look.notable());
    let mut warnings = Vec::new();
    if let Some((age, why)) = scene.silence {
        let age = age.as_secs();
        warnings.push((
            bad,
            format!("daemon does not answer, data is {age}s old: {why}"),
        ));
    }
    if snapshot.interfaces.is_empty() {
        let cure = "no interface is guarded: synguard attach IFACE";
        warnings.push((bad, cure.to_owned()));
    }
    for interface in &snapshot.interfaces {
        let name = &interface.name;
        match interface.xdp_mode.as_str() {
            "native" => {}
            "generic" => {
                let slow = "generic XDP: far slower than in the driver";
                warnings.push((notable, format!("{name} has {slow}")));
            }
            _ => warnings.push((bad, format!("{name} is not guarded: no XDP program on it"))),
        }
        if !interface.up {
            warnings.push((notable, format!("{name} is down")));
        }
    }
    if snapshot.draining {
        let left = count(snapshot.flows.left);
        let text = format!("draining: leaves when {left} spliced connections have ended");
        warnings.push((notable, text));
    }
    let keys = &snapshot.keys;
    let age = key_age(snapshot, scene.taken);
    if age > keys.epoch_seconds + LATE {
        let late = age - keys.epoch_seconds;
        warnings.push((bad, format!("key rotation is {late}s late")));
    }
    if keys.ready_ahead == 0 {
        let after = "nothing is challenged after this epoch";
        warnings.push((bad, format!("no key ahead is in place: {after}")));
    }
    for map in &snapshot.maps {
        if map.is_nearly_full() {
            let full = map.percent();
            warnings.push((bad, format!("table {} is {full} % full", map.name)));
        }
    }
    for service in &snapshot.services {
        if service.admission == "none" && service.mode != Mode::Observe {
            let why = &service.admission_reason;
            warnings.push((notable, format!("{} is never guarded: {why}", service.name)));
        }
    }
    if let Some(error) = &snapshot.local_admission_error {
        warnings.push((notable, format!("local admission is not possible: {error}")));
    }
    warnings
}

/// Seconds that the present key has been the present one.
fn key_age(snapshot: &Snapshot, now: u64) -> u64 {
    let keys = &snapshot.keys;
    now.saturating_sub(keys.epoch.saturating_mul(keys.epoch_seconds))
}

/// A rate in at most five characters; small ones have a decimal.
pub(super) fn per_second(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        // Half an event in ten seconds is not none.
        let text = format!("{:.1}", rate.max(0.1));
        text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
    } else {
        count(rate.round() as u64)
    }
}

/// The two ends of a line; where there is no room for both, the left one, and of that what fits.
fn between(
    scene: &Scene<'_>,
    width: usize,
    left: Vec<Span<'static>>,
    right: Vec<Span<'static>>,
) -> Line<'static> {
    let mut spans = Vec::new();
    let mut room = width;
    for span in left {
        if span.width() > room {
            let style = span.style;
            spans.push(Span::styled(scene.look.clip(&span.content, room), style));
            room = 0;
            break;
        }
        room -= span.width();
        spans.push(span);
    }
    let needed: usize = right.iter().map(Span::width).sum();
    if needed + 2 <= room {
        spans.push(Span::raw(" ".repeat(room - needed)));
        spans.extend(right);
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rates_are_not_none() {
        for (rate, text) in [
            (0.0, "0"),
            (0.01, "0.1"),
            (0.5, "0.5"),
            (1.004, "1"),
            (9.94, "9.9"),
            (9.96, "10"),
            (1_234.4, "1234"),
            (1_250_000.0, "1.2M"),
        ] {
            assert_eq!(per_second(rate), text);
        }
    }
}
