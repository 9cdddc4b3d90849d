//! One panel of each type, drawn as Grafana's dark theme does.

use std::collections::BTreeMap;

use anyhow::Result;
use plotters::{
    chart::ChartBuilder,
    element::{PathElement, Polygon, Rectangle},
    series::{DashedLineSeries, LineSeries},
    style::{
        Color as _, IntoFont as _, RGBAColor, RGBColor, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};
use serde_json::Value;

use super::{
    Field, Panel,
    picture::{Area, Line},
    unit,
};

/// What the panels lie on.
pub(super) const GROUND: RGBColor = RGBColor(17, 18, 23);
const PANEL: RGBColor = RGBColor(24, 27, 31);
const GRID: RGBColor = RGBColor(44, 48, 53);
const TEXT: RGBColor = RGBColor(204, 204, 220);
const FAINT: RGBColor = RGBColor(142, 142, 160);

/// Colours of series, in order.
const PALETTE: [RGBColor; 10] = [
    RGBColor(115, 191, 105),
    RGBColor(242, 204, 12),
    RGBColor(138, 184, 255),
    RGBColor(255, 120, 10),
    RGBColor(242, 73, 92),
    RGBColor(87, 148, 242),
    RGBColor(184, 119, 217),
    RGBColor(112, 93, 160),
    RGBColor(55, 135, 45),
    RGBColor(250, 222, 42),
];

const FONT: f64 = 12.0;
/// Width of a character of the legend: the picture's reader chooses the font.
const CHARACTER: i32 = 7;
const LEGEND_ROW: i32 = 16;
const TITLE: i32 = 26;
const MARGIN: i32 = 10;

/// A time, in seconds since the epoch.
type Span = (f64, f64);

fn named(color: &str) -> RGBColor {
    match color {
        "orange" => RGBColor(255, 152, 48),
        "red" => RGBColor(242, 73, 92),
        "blue" => RGBColor(87, 148, 242),
        _ => RGBColor(115, 191, 105),
    }
}

fn style(size: f64, color: RGBColor, at: (HPos, VPos)) -> TextStyle<'static> {
    TextStyle {
        font: ("sans-serif", size).into_font(),
        color: color.to_backend_color(),
        pos: Pos::new(at.0, at.1),
    }
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), style: &TextStyle<'_>) -> Result<()> {
    Ok(area.draw_text(text, style, at)?)
}

fn size(area: &Area<'_>) -> (i32, i32) {
    let (width, height) = area.dim_in_pixel();
    (width as i32, height as i32)
}

fn frame(area: &Area<'_>, panel: &Panel) -> Result<()> {
    area.fill(&PANEL)?;
    let left = style(FONT + 1.0, TEXT, (HPos::Left, VPos::Top));
    write(area, &panel.title, (MARGIN, 7), &left)
}

/// The title of a row.
pub(super) fn row(area: &Area<'_>, panel: &Panel) -> Result<()> {
    let left = style(FONT + 3.0, TEXT, (HPos::Left, VPos::Center));
    write(
        area,
        &format!("▾ {}", panel.title),
        (4, size(area).1 / 2),
        &left,
    )
}

/// One number, with where it came from behind it.
pub(super) fn stat(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    frame(area, panel)?;
    let (width, height) = size(area);
    let field = &panel.field_config.defaults;
    let points = lines.first().map_or(&[][..], |line| &line.series.points);
    let last = points.last().map(|(_, value)| *value);
    let color = last.map_or(FAINT, |value| threshold(field, value));
    let most = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if most > 0.0 && span.1 > span.0 {
        let (floor, room) = (height, f64::from(height) * 0.35);
        let place = |(at, value): &(f64, f64)| {
            let x = (at - span.0) / (span.1 - span.0) * f64::from(width);
            (x as i32, floor - (value.max(0.0) / most * room) as i32)
        };
        let mut shape: Vec<(i32, i32)> = points.iter().map(place).collect();
        area.draw(&PathElement::new(shape.clone(), color.stroke_width(1)))?;
        if let (Some(first), Some(end)) = (shape.first().copied(), shape.last().copied()) {
            shape.extend([(end.0, floor), (first.0, floor)]);
        }
        area.draw(&Polygon::new(shape, color.mix(0.2)))?;
    }
    let text = last.map_or("No data".into(), |value| {
        unit::show(value, &field.unit, field.decimals)
    });
    let middle = style(30.0, color, (HPos::Center, VPos::Center));
    write(area, &text, (width / 2, height / 2 + 4), &middle)
}

fn threshold(field: &Field, value: f64) -> RGBColor {
    let steps = field.thresholds.steps.iter();
    let mut reached = steps.filter(|step| step.value.is_none_or(|from| value >= from));
    reached.next_back().map_or(TEXT, |step| named(&step.color))
}

/// States as bars over time.
pub(super) fn states(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    const NAMES: i32 = 60;
    const AXIS: i32 = 18;
    frame(area, panel)?;
    let (width, height) = size(area);
    let rows = lines.len().max(1) as i32;
    let row = (height - TITLE - AXIS) / rows;
    let x = |at: f64| {
        let share = (at - span.0) / (span.1 - span.0);
        NAMES + (share * f64::from(width - NAMES - MARGIN)) as i32
    };
    let right = style(FONT, TEXT, (HPos::Right, VPos::Center));
    for (n, line) in lines.iter().enumerate() {
        let top = TITLE + n as i32 * row;
        let bottom = top + row * 8 / 10;
        write(area, &line.name, (NAMES - 8, (top + bottom) / 2), &right)?;
        let points = &line.series.points;
        let mut from = 0;
        for (at, (_, value)) in points.iter().enumerate() {
            let next = points.get(at + 1);
            if next.is_some_and(|(_, next)| next == value) {
                continue;
            }
            let end = next.map_or(span.1, |(time, _)| *time);
            let (left, right) = (x(points[from].0), x(end));
            let mapped = panel.field_config.defaults.mappings.iter();
            let mapped = mapped
                .filter_map(|all| all.options.get(&value.to_string()))
                .next();
            let color = mapped.map_or(FAINT, |mapped| named(&mapped.color));
            area.draw(&Rectangle::new(
                [(left, top), (right, bottom)],
                color.mix(0.8).filled(),
            ))?;
            if let Some(mapped) = mapped
                && right - left > mapped.text.len() as i32 * CHARACTER
            {
                let inside = style(FONT, GROUND, (HPos::Left, VPos::Center));
                write(area, &mapped.text, (left + 5, (top + bottom) / 2), &inside)?;
            }
            from = at + 1;
        }
    }
    let below = style(FONT - 1.0, FAINT, (HPos::Center, VPos::Bottom));
    let length = span.1 - span.0;
    let mut tick = 0.0;
    while tick < length {
        write(
            area,
            &clock(tick),
            (x(span.0 + tick).max(NAMES), height - 3),
            &below,
        )?;
        tick += 10.0;
    }
    Ok(())
}

/// Minutes and seconds since the beginning.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Labels in columns.
pub(super) fn table(area: &Area<'_>, panel: &Panel, lines: &[Line]) -> Result<()> {
    frame(area, panel)?;
    let options = panel
        .transformations
        .iter()
        .find(|t| t.id == "organize")
        .map(|t| &t.options);
    let option = |which: &str, name: &str| options.map_or(&Value::Null, |o| &o[which][name]);
    let mut columns: Vec<&String> = lines
        .iter()
        .flat_map(|line| line.series.labels.keys())
        .filter(|name| option("excludeByName", name) != true)
        .collect();
    columns.sort_by_key(|name| {
        (
            option("indexByName", name).as_u64().unwrap_or(u64::MAX),
            *name,
        )
    });
    columns.dedup();
    let (width, _) = size(area);
    let column = (width - 2 * MARGIN) / columns.len().max(1) as i32;
    for (n, name) in columns.iter().enumerate() {
        let x = MARGIN + n as i32 * column;
        let shown = option("renameByName", name).as_str().unwrap_or(name);
        let head = style(FONT, named("blue"), (HPos::Left, VPos::Top));
        write(area, shown, (x, TITLE + 6), &head)?;
        for (row, line) in lines.iter().enumerate() {
            let value = line.series.labels.get(*name).map_or("", String::as_str);
            let y = TITLE + 30 + row as i32 * 22;
            area.draw(&PathElement::new(
                [(MARGIN, y - 5), (width - MARGIN, y - 5)],
                GRID,
            ))?;
            write(
                area,
                value,
                (x, y),
                &style(FONT, TEXT, (HPos::Left, VPos::Top)),
            )?;
        }
    }
    Ok(())
}

/// How a series is drawn.
struct Look {
    color: RGBColor,
    dashed: bool,
    fill: f64,
}

impl Look {
    fn of(panel: &Panel, line: &Line, n: usize) -> Self {
        let custom = &panel.field_config.defaults.custom;
        let mut look = Self {
            color: PALETTE[n % PALETTE.len()],
            dashed: false,
            fill: custom["fillOpacity"].as_f64().unwrap_or(0.0) / 100.0,
        };
        for rule in &panel.field_config.overrides {
            if rule.matcher.id != "byFrameRefID" || rule.matcher.options != line.ref_id.as_str() {
                continue;
            }
            for property in &rule.properties {
                match property.id.as_str() {
                    "color" => {
                        look.color = named(property.value["fixedColor"].as_str().unwrap_or(""))
                    }
                    "custom.lineStyle" => look.dashed = property.value["fill"] == "dash",
                    "custom.fillOpacity" => {
                        look.fill = property.value.as_f64().unwrap_or(0.0) / 100.0
                    }
                    _ => {}
                }
            }
        }
        look
    }
}

/// Lines over time, on one another where the panel says so.
pub(super) fn graph(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    frame(area, panel)?;
    let (width, height) = size(area);
    let field = &panel.field_config.defaults;
    let logarithmic = field.custom["scaleDistribution"]["type"] == "log";
    let stacked = field.custom["stacking"]["mode"] == "normal";

    let looks: Vec<Look> = lines
        .iter()
        .enumerate()
        .map(|(n, line)| Look::of(panel, line, n))
        .collect();
    let legend = legend(lines, width);
    let below = legend.last().map_or(0, |(_, y)| y + LEGEND_ROW) + 4;
    for ((line, look), (x, y)) in lines.iter().zip(&looks).zip(&legend) {
        let (x, y) = (*x, height - below + y + LEGEND_ROW / 2);
        let mark = Rectangle::new([(x, y - 1), (x + 12, y + 1)], look.color.filled());
        area.draw(&mark)?;
        let left = style(FONT - 1.0, TEXT, (HPos::Left, VPos::Center));
        write(area, &line.name, (x + 16, y), &left)?;
    }

    let scale = |value: f64| {
        if logarithmic {
            value.max(1.0).log10()
        } else {
            value
        }
    };
    let shapes = shapes(lines, span, stacked);
    let most = shapes
        .iter()
        .flatten()
        .flatten()
        .map(|(_, _, top)| scale(*top))
        .fold(0.0, f64::max);
    let top = match (most, logarithmic) {
        (0.0, _) => 1.0,
        (most, true) => most.ceil(),
        (most, false) => most * 1.08,
    };
    let plot = area
        .clone()
        .shrink((0, TITLE), (width, height - TITLE - below));
    let mut chart = ChartBuilder::on(&plot)
        .margin_right(MARGIN + 4)
        .x_label_area_size(20)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..span.1 - span.0, 0.0..top)?;
    let labels = if logarithmic { top as usize + 1 } else { 5 };
    chart
        .configure_mesh()
        .light_line_style(RGBAColor(0, 0, 0, 0.0))
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(style(FONT - 1.0, FAINT, (HPos::Center, VPos::Center)))
        .x_labels(6)
        .y_labels(labels)
        .x_label_formatter(&|seconds| clock(*seconds))
        .y_label_formatter(&|value| {
            let value = if logarithmic {
                10f64.powf(*value)
            } else {
                *value
            };
            unit::show(value, &field.unit, None)
        })
        .draw()?;
    for (parts, look) in shapes.iter().zip(&looks) {
        for part in parts {
            let line: Vec<(f64, f64)> = part.iter().map(|(x, _, top)| (*x, scale(*top))).collect();
            let floor = part.iter().rev().map(|(x, bottom, _)| (*x, scale(*bottom)));
            let stroke = look.color.stroke_width(1);
            if look.fill > 0.0 {
                let shape: Vec<_> = line.iter().copied().chain(floor).collect();
                chart.draw_series([Polygon::new(shape, look.color.mix(look.fill))])?;
            }
            if look.dashed {
                chart.draw_series(DashedLineSeries::new(line, 6, 4, stroke))?;
            } else {
                chart.draw_series(LineSeries::new(line, stroke))?;
            }
        }
    }
    if lines.is_empty() {
        let middle = style(FONT + 2.0, FAINT, (HPos::Center, VPos::Center));
        write(area, "No data", (width / 2, height / 2), &middle)?;
    }
    Ok(())
}

/// Where each name of the legend is, in as many rows as it takes.
fn legend(lines: &[Line], width: i32) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (MARGIN, 0);
    lines
        .iter()
        .map(|line| {
            let needs = 28 + line.name.chars().count() as i32 * CHARACTER;
            if x > MARGIN && x + needs > width {
                (x, y) = (MARGIN, y + LEGEND_ROW);
            }
            let at = (x, y);
            x += needs;
            at
        })
        .collect()
}

/// The parts of each series without a gap: seconds since the beginning, bottom and top.
fn shapes(lines: &[Line], span: Span, stacked: bool) -> Vec<Vec<Vec<(f64, f64, f64)>>> {
    /// Two samples apart.
    const GAP: f64 = 1.5;
    let mut floor: BTreeMap<u64, f64> = BTreeMap::new();
    lines
        .iter()
        .map(|line| {
            let mut parts: Vec<Vec<(f64, f64, f64)>> = Vec::new();
            for (at, value) in line
                .series
                .points
                .iter()
                .filter(|(_, value)| value.is_finite())
            {
                let bottom = if stacked {
                    // Samples of all series are of the same moments.
                    floor.entry((at * 1000.0) as u64).or_default()
                } else {
                    &mut 0.0
                };
                let point = (at - span.0, *bottom, *bottom + value);
                *bottom += value;
                match parts.last_mut() {
                    Some(part) if part.last().is_some_and(|last| point.0 - last.0 < GAP) => {
                        part.push(point)
                    }
                    _ => parts.push(vec![point]),
                }
            }
            parts
        })
        .collect()
}
