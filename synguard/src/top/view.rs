//! Draws what is known into a buffer: at the top what concerns the whole daemon, then the services,
//! the selected one's details below them, and the keys in the last line.

mod detail;
mod head;
mod services;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Position, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Clear, Paragraph, Widget as _},
};

use super::{look::Look, model::Model, ui::Ui};

/// Nothing can be read below this size.
const SMALLEST: (u16, u16) = (40, 6);
/// Rows of services that stay when details are shown.
const ROWS_KEPT: u16 = 4;
/// Lines of details that are worth the room.
const LEAST_DETAIL: u16 = 5;

/// What is drawn, and as of when.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What is known.
    pub model: &'a Model,
    /// The present, in seconds since the epoch.
    pub wall: u64,
    /// When what is known was true, in seconds since the epoch.
    pub taken: u64,
    /// The daemon does not answer, for so long and for this reason.
    pub silence: Option<(Duration, &'a str)>,
    /// How often the daemon is asked.
    pub delay: Duration,
    /// What the terminal can show.
    pub look: Look,
    /// Whether this is what was, because the user wants to look at it.
    pub paused: bool,
}

/// Draws a frame for a terminal.
pub fn draw(scene: &Scene<'_>, ui: &mut Ui, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (width, height) = SMALLEST;
        let text = format!("needs {width}x{height} or more; q quits");
        return Line::from(text).render(area, buffer);
    }
    let order = ui.sort.order(scene.model);
    let selected = ui.position(scene.model, &order).map(|row| order[row]);
    let mut head = head::lines(scene, area.width.into());
    if area.height < if selected.is_some() { 18 } else { 12 } {
        head.truncate(1);
    }
    head.extend(warnings(scene, area.width.into(), (area.height / 6).into()));

    let room = area.height.saturating_sub(height(head.len()) + 1);
    let detail = match selected {
        Some(_) => detail_lines(room, height(order.len())),
        None => 0,
    };
    let [top, table, below, keys] = Layout::vertical([
        Constraint::Length(height(head.len())),
        Constraint::Min(1),
        Constraint::Length(detail),
        Constraint::Length(1),
    ])
    .areas(area);
    Paragraph::new(head).render(top, buffer);
    services::draw(scene, ui, &order, table, buffer);
    if let Some((status, track)) = selected.and_then(|at| scene.model.service(at))
        && below.height > 0
    {
        detail::draw(scene, status, track, below, buffer);
    }
    footer(scene, ui, &order, keys, buffer);
    if ui.help {
        help(scene.look, area, buffer);
    }
}

/// Lines for details, of the `room` that they share with `rows` services and their heading: half of
/// it, or all that is left, or none where it is too little.
fn detail_lines(room: u16, rows: u16) -> u16 {
    let most = room.saturating_sub(1 + rows.min(ROWS_KEPT));
    if most < LEAST_DETAIL {
        return 0;
    }
    let left = room.saturating_sub(rows.saturating_add(1));
    left.max(room / 2).clamp(LEAST_DETAIL, most)
}

/// More than any terminal has is as good as the most.
fn height(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// A frame as text, with all services, however many there are.
pub fn plain(scene: &Scene<'_>, width: u16) -> Vec<String> {
    let mut head = head::lines(scene, width.into());
    head.extend(warnings(scene, width.into(), usize::MAX));
    let mut ui = Ui::default();
    let order = ui.sort.order(scene.model);
    let area = Rect::new(0, 0, width, height(head.len() + 1 + order.len().max(1)));
    let mut buffer = Buffer::empty(area);
    let [top, table] =
        Layout::vertical([Constraint::Length(height(head.len())), Constraint::Min(1)]).areas(area);
    Paragraph::new(head).render(top, &mut buffer);
    services::draw(scene, &mut ui, &order, table, &mut buffer);
    text(&buffer)
}

/// The characters of a buffer, line by line.
pub fn text(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    let line = |y| -> String {
        let cells = (area.left()..area.right()).filter_map(|x| buffer.cell(Position { x, y }));
        cells.map(|cell| cell.symbol()).collect()
    };
    (area.top()..area.bottom())
        .map(|y| line(y).trim_end().to_owned())
        .collect()
}

/// What is wrong, in at most so many lines.
fn warnings(scene: &Scene<'_>, width: usize, most: usize) -> Vec<Line<'static>> {
    let mut warnings = head::warnings(scene);
    let hidden = warnings.len().saturating_sub(most);
    warnings.truncate(most);
    let last = warnings.len().saturating_sub(1);
    let lines = warnings.into_iter().enumerate().map(|(i, (style, text))| {
        let more = match hidden {
            0 => String::new(),
            hidden if i == last => format!(" (and {hidden} more)"),
            _ => String::new(),
        };
        let text = scene
            .look
            .clip(&format!("! {text}"), width.saturating_sub(more.len()));
        Line::styled(text + &more, style)
    });
    lines.collect()
}

fn footer(scene: &Scene<'_>, ui: &Ui, order: &[usize], area: Rect, buffer: &mut Buffer) {
    let shown = ui.table.offset() + 1..=(ui.table.offset() + ui.page).min(order.len());
    let position = if ui.page < order.len() {
        format!("{}-{} of {}", shown.start(), shown.end(), order.len())
    } else {
        String::new()
    };
    let mut spans = Vec::new();
    if scene.paused {
        spans.push(Span::styled(" PAUSED ", scene.look.selected()));
        spans.push(Span::raw(" "));
    }
    let mut room = usize::from(area.width)
        .saturating_sub(position.len() + 1 + spans.iter().map(Span::width).sum::<usize>());
    let sort = format!("sort: {}", ui.sort.name());
    let pause = if scene.paused { "go on" } else { "pause" };
    for (key, what) in [
        ("q", "quit"),
        ("?", "help"),
        ("s", sort.as_str()),
        (scene.look.arrows(), "details"),
        ("p", pause),
    ] {
        let width = key.chars().count() + what.chars().count() + 3;
        if width > room {
            break;
        }
        room -= width;
        spans.push(Span::styled(
            key.to_owned(),
            Style::new().add_modifier(Modifier::BOLD),
        ));
        spans.push(Span::raw(format!(" {what}  ")));
    }
    Line::from(spans).render(area, buffer);
    Line::from(position).right_aligned().render(area, buffer);
}

const HELP: &str = "\
q, Ctrl-C     quit
s, S          sort by the next column, by the one before
arrows, j, k  select a service and show its details
PgUp, PgDn, Home, End   go further; Esc: no details
p, space      pause, and go on again
Ctrl-L        draw everything again

CHAL/s        SYNs answered with a cookie
ADM/s         clients let in by one
DROP/s        packets dropped
OPEN/HIGH     half-open connections / guarded from there
In mode observe: what would have been done.";

fn help(look: Look, area: Rect, buffer: &mut Buffer) {
    let lines: Vec<&str> = HELP.lines().collect();
    let longest = lines.iter().map(|line| line.chars().count()).max();
    // The keys stay in sight.
    let above = Rect {
        height: area.height - 1,
        ..area
    };
    let area = above.centered(
        Constraint::Length(longest.unwrap_or(0) as u16 + 4),
        Constraint::Length(lines.len() as u16 + 2),
    );
    Clear.render(area, buffer);
    let rule = look.rule().repeat(area.width.into());
    Line::from(rule.as_str()).render(area, buffer);
    for (row, line) in area.rows().skip(1).zip(&lines) {
        Line::from(format!("  {line}")).render(row, buffer);
    }
    if let Some(last) = area.rows().next_back() {
        Clear.render(last, buffer);
        Line::from(rule).render(last, buffer);
    }
}
