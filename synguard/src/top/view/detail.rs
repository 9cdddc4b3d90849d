//! The selected service: what it is, what its packets leave with, and how that went.

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::Widget as _,
};

use super::{Scene, head::per_second};
use crate::{
    human::{count, offered},
    model::ServiceStatus,
    top::{
        look::Look,
        model::{RTT_INTERVALS, ReasonRate, Series, Track},
    },
};

/// Width of the table of reasons.
const REASONS: u16 = 42;
/// Columns between reasons and graphs.
const GAP: u16 = 3;
/// Width from which graphs are worth it.
const GRAPHS_LEAST: u16 = 26;
/// Width from which they have their peaks in figures too.
const PEAKS_FROM: u16 = 48;

/// Draws the details.
pub(super) fn draw(
    scene: &Scene<'_>,
    status: &ServiceStatus,
    track: &Track,
    area: Rect,
    buffer: &mut Buffer,
) {
    let look = scene.look;
    let facts: Vec<String> = facts(status, track)
        .iter()
        .flat_map(|fact| wrap(fact, area.width.into()))
        .collect();
    // Reasons have half of the room if they need it.
    let reasons_need = (track.reasons.len() as u16 + 1).min(area.height / 2);
    let most = area.height.saturating_sub(1 + reasons_need);
    let [title, top, rest] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(most.min(facts.len() as u16)),
        Constraint::Min(0),
    ])
    .areas(area);
    heading(look, &status.name, title, buffer);
    for (row, fact) in top.rows().zip(&facts) {
        Line::from(fact.as_str()).render(row, buffer);
    }
    if rest.width < REASONS + GAP + GRAPHS_LEAST {
        return reasons(look, &track.reasons, rest, buffer);
    }
    let [left, _, right] = Layout::horizontal([
        Constraint::Length(REASONS),
        Constraint::Length(GAP),
        Constraint::Min(0),
    ])
    .areas(rest);
    reasons(look, &track.reasons, left, buffer);
    graphs(look, track, right, buffer);
}

fn heading(look: Look, name: &str, area: Rect, buffer: &mut Buffer) {
    let width: usize = area.width.into();
    let name = look.clip(name, width.saturating_sub(6));
    let rest = width.saturating_sub(name.chars().count() + 4);
    Line::from(vec![
        Span::styled(look.rule().repeat(2), look.faint()),
        Span::styled(
            format!(" {name} "),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::styled(look.rule().repeat(rest), look.faint()),
    ])
    .render(area, buffer);
}

/// The most important first: the last ones may have no room.
fn facts(status: &ServiceStatus, track: &Track) -> Vec<String> {
    let mut watermarks = format!(
        "{}: guarded at {} half-open, calm below {}; now {}",
        status.mode, status.high, status.low, status.half_open
    );
    if status.projected_half_open > 0 {
        watermarks += &format!(", would be {} unguarded", count(status.projected_half_open));
    }
    let mut facts = vec![
        watermarks,
        format!(
            "admission {} ({})",
            status.admission, status.admission_reason
        ),
    ];
    facts.extend(status.server.as_ref().map(offered));
    match track.round_trips(status) {
        Some(trips) => facts.push(format!(
            "round trips: half within {}, 99 % within {} (of the last {})",
            milliseconds(trips.median, status),
            milliseconds(trips.p99, status),
            count(trips.count)
        )),
        // No other admission times any.
        None if status.admission == "local" => facts.push(format!(
            "no handshake timed in the last {RTT_INTERVALS} intervals"
        )),
        None => {}
    }
    let mut past = format!(
        "turned guarded {}, calm again {}; {} half-open given up, {} released",
        times(status.guarded_total),
        times(status.calmed_total),
        count(status.expired_total),
        count(status.released_total)
    );
    if let Some(rates) = track.rates.filter(|rates| rates.expired > 0.0) {
        past += &format!(", {}/s now", per_second(rates.expired));
    }
    facts.push(past);
    facts.push(format!("covers {}", status.covers.join(" ")));
    let excepted = status.excepted.iter();
    facts.extend(excepted.map(|excepted| format!("leaves alone {excepted}")));
    facts
}

fn times(n: u64) -> String {
    match n {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        n => format!("{} times", count(n)),
    }
}

/// A bound of the histogram; beyond its last one where there is none.
fn milliseconds(bound: Option<f64>, status: &ServiceStatus) -> String {
    match bound {
        Some(seconds) => format!("{:.0} ms", seconds * 1000.0),
        None => {
            let last = status.rtt.iter().filter_map(|(bound, _)| *bound);
            let last = last.fold(0.0, f64::max);
            format!("more than {last:.0} s")
        }
    }
}

fn reasons(look: Look, reasons: &[ReasonRate], area: Rect, buffer: &mut Buffer) {
    let mut rows = area.rows();
    let Some(first) = rows.next() else { return };
    let heading = format!("{:<19} {:<8} {:>6} {:>6}", "REASON", "", "PER S", "TOTAL");
    Line::styled(heading, look.faint()).render(first, buffer);
    for (row, reason) in rows.zip(reasons) {
        let action = match (reason.observed, reason.action.as_str()) {
            (true, "answer") => "(answer)",
            (true, "drop") => "(drop)",
            (true, _) => "(pass)",
            (false, action) => action,
        };
        let rate = reason.rate.map_or_else(|| "-".to_owned(), per_second);
        let style = match reason.rate {
            Some(rate) if rate > 0.0 => Style::new(),
            _ => look.faint(),
        };
        let text = format!(
            "{:<19} {action:<8} {rate:>6} {:>6}",
            reason.reason,
            count(reason.packets)
        );
        Line::styled(look.clip(&text, row.width.into()), style).render(row, buffer);
    }
}

fn graphs(look: Look, track: &Track, area: Rect, buffer: &mut Buffer) {
    let peaks = area.width >= PEAKS_FROM;
    let text = |title: &str, now: &str, peak: &str| match peaks {
        true => format!("{title:<10} {now:>6} {peak:>6}  "),
        false => format!("{title:<10} {now:>6}  "),
    };
    let heading = text("", "PER S", "PEAK");
    let width = usize::from(area.width).saturating_sub(heading.len());
    let mut rows = area.rows();
    let Some(first) = rows.next() else { return };
    Line::styled(heading, look.faint()).render(first, buffer);
    for (row, (title, series)) in rows.zip([
        ("SYNs", &track.syns),
        ("challenged", &track.challenged),
        ("admitted", &track.admitted),
        ("dropped", &track.dropped),
        ("half-open", &track.half_open),
    ]) {
        let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), per_second);
        let text = text(title, &value(latest(series)), &value(series.peak()));
        let peak = series.last(width).flatten().fold(0.0, f64::max);
        // The newest is at the right edge from the first one on.
        let line = format!("{:>width$}", look.sparkline(series.last(width), peak));
        Line::from(vec![Span::raw(text), Span::styled(line, look.graph())]).render(row, buffer);
    }
}

/// Lines of at most `width` characters, those after the first indented. A word that is longer is a
/// line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn latest(series: &Series) -> Option<f64> {
    series.last(1).next().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_wrapped_between_words() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "  def"]);
        assert_eq!(wrap("abcdefgh i", 4), ["abcdefgh", "  i"]);
        assert!(wrap("", 4).is_empty());
    }
}
