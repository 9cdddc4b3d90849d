//! The dashboard as a picture: what its panels ask is asked of a real Prometheus, and drawn with their
//! own titles, units, legends, colours and places.

use anyhow::Result;
use plotters::{
    backend::SVGBackend,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea as _},
};

use super::{Dashboard, Panel, chart};
use crate::prometheus::{Prometheus, Series};

/// Size of a cell of the grid, and the space between panels.
const CELL: (u32, u32) = (50, 33);
const GAP: u32 = 6;

/// Where something is drawn.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A series as a panel shows it.
pub(super) struct Line {
    /// Its name in the legend.
    pub name: String,
    /// The letter of its query.
    pub ref_id: String,
    /// What it is.
    pub series: Series,
}

/// Draws the dashboard with what Prometheus knows of a time, as SVG.
pub fn draw(dashboard: &Dashboard, prometheus: &Prometheus, from: f64, to: f64) -> Result<String> {
    let rows = dashboard.panels.iter().map(|p| p.grid_pos.y + p.grid_pos.h);
    let size = (24 * CELL.0 + GAP, rows.max().unwrap_or(0) * CELL.1 + GAP);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&chart::GROUND)?;
        for panel in &dashboard.panels {
            let at = panel.grid_pos;
            let area = root.clone().shrink(
                ((at.x * CELL.0 + GAP) as i32, (at.y * CELL.1 + GAP) as i32),
                ((at.w * CELL.0 - GAP) as i32, (at.h * CELL.1 - GAP) as i32),
            );
            let lines = ask(panel, prometheus, from, to)?;
            match panel.kind.as_str() {
                "row" => chart::row(&area, panel)?,
                "stat" => chart::stat(&area, panel, &lines, (from, to))?,
                "state-timeline" => chart::states(&area, panel, &lines, (from, to))?,
                "table" => chart::table(&area, panel, &lines)?,
                _ => chart::graph(&area, panel, &lines, (from, to))?,
            }
        }
        root.present()?;
    }
    Ok(svg)
}

fn ask(panel: &Panel, prometheus: &Prometheus, from: f64, to: f64) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for target in &panel.targets {
        for series in prometheus.query_range(&target.query(), from, to)? {
            lines.push(Line {
                name: target.legend(&series.labels),
                ref_id: target.ref_id.clone(),
                series,
            });
        }
    }
    Ok(lines)
}
