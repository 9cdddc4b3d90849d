//! The table of services. Columns that there is no room for are left out, the least needed first.

use ratatui::{
    buffer::Buffer,
    layout::{Alignment, Constraint, Rect},
    style::Style,
    text::{Line, Text},
    widgets::{Cell, Row, StatefulWidget, Table, Widget as _},
};

use super::{Scene, head::per_second};
use crate::{
    human::count,
    model::{Mode, ServiceStatus},
    top::{
        model::{HISTORY, Rates, Track},
        ui::Ui,
    },
};

/// Longest name that is shown whole, where there is room.
const NAME_MOST: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Column {
    Name,
    State,
    Rate(fn(Rates) -> f64),
    HalfOpen,
    Bar,
    Spark,
}

/// Columns from left to right, each with its heading and its width.
fn columns(width: u16, longest_name: usize) -> Vec<(Column, &'static str, u16)> {
    // Headings in full where there is room.
    let wide = width >= 120;
    let rate = |title: [&'static str; 2], of: fn(Rates) -> f64| {
        let title = title[usize::from(wide)];
        (Column::Rate(of), title, (title.len() as u16).max(6))
    };
    let mut columns = vec![
        (Column::Name, "SERVICE", 0),
        (Column::State, "STATE", if width < 72 { 8 } else { 13 }),
        rate(["SYN/s", "SYN/s"], |r| r.syns),
        rate(["CHAL/s", "CHALLENGED/s"], |r| r.challenged),
        rate(["ADM/s", "ADMITTED/s"], |r| r.admitted),
        rate(["DROP/s", "DROPPED/s"], |r| r.dropped),
        (Column::HalfOpen, "OPEN/HIGH", 11),
    ];
    if width >= 100 {
        columns.push((Column::Bar, "", 10));
    }
    if width >= 76 {
        columns.push((Column::Spark, "SYN/s", 0));
    }
    let taken: u16 = columns.iter().map(|(_, _, width)| width + 1).sum();
    let mut room = (width + 1).saturating_sub(taken);
    let has_spark = matches!(columns.last(), Some((Column::Spark, ..)));
    let name = if has_spark {
        // The sparkline gets what names do not need, and half of it at least.
        (longest_name.clamp(7, NAME_MOST) as u16).min((room / 2).max(14))
    } else {
        room
    };
    room = room.saturating_sub(name);
    for column in &mut columns {
        match column.0 {
            Column::Name => column.2 = name,
            Column::Spark => column.2 = room.min(HISTORY as u16),
            _ => {}
        }
    }
    columns
}

/// Draws the table, scrolled to the selected service.
pub(super) fn draw(
    scene: &Scene<'_>,
    ui: &mut Ui,
    order: &[usize],
    area: Rect,
    buffer: &mut Buffer,
) {
    let services = &scene.model.snapshot().services;
    let longest = services.iter().map(|s| s.name.chars().count()).max();
    let columns = columns(area.width, longest.unwrap_or(0));
    ui.page = area.height.saturating_sub(1).into();
    ui.table.select(ui.position(scene.model, order));
    // Rows that went away leave no blanks at the end.
    let last = order.len().saturating_sub(ui.page);
    *ui.table.offset_mut() = ui.table.offset().min(last);

    let heading = columns
        .iter()
        .map(|(column, title, _)| Cell::from(Text::from(*title).alignment(alignment(*column))));
    let selected = ui.selected.as_deref();
    let rows = order
        .iter()
        .filter_map(|at| scene.model.service(*at))
        .map(|(status, track)| {
            Row::new(columns.iter().map(|(column, _, width)| {
                let (mut style, text) = cell(scene, *column, (*width).into(), status, track);
                // The name alone: colours and graphs are not what they were when reversed.
                if matches!(column, Column::Name) && selected == Some(&*status.name) {
                    style = scene.look.selected();
                }
                Cell::from(Text::from(text).alignment(alignment(*column))).style(style)
            }))
        });
    let widths = columns
        .iter()
        .map(|(_, _, width)| Constraint::Length(*width));
    let table = Table::new(rows, widths).header(Row::new(heading).style(scene.look.faint()));
    StatefulWidget::render(table, area, buffer, &mut ui.table);
    if order.is_empty()
        && let Some(row) = area.rows().nth(1)
    {
        Line::from("no services").render(row, buffer);
    }
}

fn alignment(column: Column) -> Alignment {
    match column {
        Column::Rate(_) | Column::HalfOpen => Alignment::Right,
        // The newest sample is at the right edge from the first one on.
        Column::Spark => Alignment::Right,
        Column::Name | Column::State | Column::Bar => Alignment::Left,
    }
}

fn cell(
    scene: &Scene<'_>,
    column: Column,
    width: usize,
    status: &ServiceStatus,
    track: &Track,
) -> (Style, String) {
    let look = scene.look;
    match column {
        Column::Name => (Style::new(), look.clip(&status.name, width)),
        Column::State => {
            let (style, text) = state(scene, status, track, width);
            (style, look.clip(&text, width))
        }
        Column::Rate(of) => (
            Style::new(),
            match track.rates {
                Some(rates) => per_second(of(rates)),
                None => "-".to_owned(),
            },
        ),
        Column::HalfOpen => (
            fill_style(scene, status),
            format!("{}/{}", count(status.half_open), count(status.high.into())),
        ),
        Column::Bar => {
            let share = status.half_open as f64 / f64::from(status.high.max(1));
            (fill_style(scene, status), look.bar(share, width))
        }
        Column::Spark => {
            let samples = track.syns.last(width);
            let peak = track.syns.last(width).flatten().fold(0.0, f64::max);
            (look.graph(), look.sparkline(samples, peak))
        }
    }
}

/// A state in few words.
fn state(
    scene: &Scene<'_>,
    status: &ServiceStatus,
    track: &Track,
    width: usize,
) -> (Style, String) {
    let look = scene.look;
    if status.mode == Mode::Observe {
        let would = track.rates.is_some_and(|rates| rates.challenged > 0.0);
        return match (would, width < 12) {
            (false, _) => (look.good(), "observed".to_owned()),
            (true, true) => (look.notable(), "would".to_owned()),
            (true, false) => (look.notable(), "would guard".to_owned()),
        };
    }
    let style = if status.state == "guarded" {
        look.notable()
    } else {
        look.good()
    };
    let since = status
        .state_since
        .map(|since| format!(" {}", short(scene.wall.saturating_sub(since))));
    let text = match since {
        Some(since) if status.state.len() + since.len() <= width => {
            format!("{}{since}", status.state)
        }
        _ => status.state.clone(),
    };
    (style, text)
}

/// By how near the watermarks are.
fn fill_style(scene: &Scene<'_>, status: &ServiceStatus) -> Style {
    if status.half_open >= status.high.into() {
        scene.look.bad()
    } else if status.half_open >= status.low.into() {
        scene.look.notable()
    } else {
        Style::new()
    }
}

/// Seconds in at most five characters.
fn short(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m"),
        3_600..36_000 => format!("{hours}h{}m", minutes % 60),
        36_000..86_400 => format!("{hours}h"),
        86_400..864_000 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_599, "59m"),
            (3_600, "1h0m"),
            (35_999, "9h59m"),
            (36_000, "10h"),
            (90_000, "1d1h"),
            (863_999, "9d23h"),
            (864_000, "10d"),
        ] {
            assert_eq!(short(seconds), text);
        }
    }

    #[test]
    fn columns_fill_any_width() {
        for width in 40..400 {
            for longest in [0, 7, 30, 63] {
                let columns = columns(width, longest);
                let sum: u16 = columns.iter().map(|(_, _, width)| width + 1).sum();
                assert!(sum <= width.max(62) + 1, "{width}: {columns:?}");
                let sparks = columns
                    .iter()
                    .find(|column| matches!(column.0, Column::Spark));
                if let Some(spark) = sparks {
                    assert_eq!(sum, width + 1, "{columns:?}");
                    assert!(spark.2 >= 5, "{width}: {columns:?}");
                }
                if width >= 60 {
                    assert!(columns[0].2 >= 7, "{width}: {columns:?}");
                }
            }
        }
    }
}
