//! A terminal's screen as SVG.
//!
//! Blocks and lines are drawn as shapes, because fonts differ in where they put them; text is
//! stretched to its cells.

use std::fmt::Write as _;

use ratatui::{
    buffer::{Buffer, Cell},
    layout::Position,
    style::{Color, Modifier},
};

/// Size of a character, and where it stands in it.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 17.0;
const BASELINE: f32 = 13.0;
const FONT: f32 = 14.0;
/// Around the screen.
const MARGIN: f32 = 10.0;

const PAPER: &str = "#16181d";
const INK: &str = "#d4d7dd";

/// Neighbours that look the same.
struct Run {
    x: u16,
    text: String,
    ink: &'static str,
    paper: &'static str,
    modifier: Modifier,
}

/// Draws a buffer.
pub fn render(buffer: &Buffer, title: &str) -> String {
    let area = buffer.area;
    let (columns, rows) = (f32::from(area.width), f32::from(area.height));
    let width = columns * WIDTH + 2.0 * MARGIN;
    let height = rows * HEIGHT + 2.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
         font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" \
         font-size=\"{FONT}\">\n<title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{PAPER}\"/>\n",
        escaped(title)
    );
    for y in area.top()..area.bottom() {
        let top = MARGIN + f32::from(y - area.top()) * HEIGHT;
        for run in runs(buffer, y) {
            let left = MARGIN + f32::from(run.x - area.left()) * WIDTH;
            draw(&mut out, &run, left, top);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// A line of the screen in pieces that look the same.
fn runs(buffer: &Buffer, y: u16) -> Vec<Run> {
    let area = buffer.area;
    let mut runs: Vec<Run> = Vec::new();
    for x in area.left()..area.right() {
        let Some(cell) = buffer.cell(Position { x, y }) else {
            continue;
        };
        let (ink, paper) = colours(cell);
        let is_shape = |text: &str| text.chars().all(|c| shape(c).is_some());
        match runs.last_mut() {
            Some(run)
                if (run.ink, run.paper, run.modifier) == (ink, paper, cell.modifier)
                    && is_shape(&run.text) == is_shape(cell.symbol()) =>
            {
                run.text.push_str(cell.symbol());
            }
            _ => runs.push(Run {
                x,
                text: cell.symbol().to_owned(),
                ink,
                paper,
                modifier: cell.modifier,
            }),
        }
    }
    runs
}

fn draw(out: &mut String, run: &Run, left: f32, top: f32) {
    let length = run.text.chars().count() as f32 * WIDTH;
    if run.paper != PAPER {
        rect(out, left, top, length, HEIGHT, run.paper, "");
    }
    let dim = if run.modifier.contains(Modifier::DIM) {
        " opacity=\"0.65\""
    } else {
        ""
    };
    let shapes = run.text.chars().map(shape);
    if let Some(shapes) = shapes.collect::<Option<Vec<_>>>() {
        let mut x = left;
        for same in shapes.chunk_by(PartialEq::eq) {
            let (from, to) = same[0];
            let width = same.len() as f32 * WIDTH;
            let (top, height) = (top + from * HEIGHT, (to - from) * HEIGHT);
            // They overlap, so that no seam is seen between them.
            rect(out, x, top, width + 0.3, height, run.ink, dim);
            x += width;
        }
        return;
    }
    // Blanks at both ends need no drawing.
    let text = run.text.trim_end();
    let blanks = text.len() - text.trim_start().len();
    let (text, left) = (text.trim_start(), left + blanks as f32 * WIDTH);
    if text.is_empty() {
        return;
    }
    let length = text.chars().count() as f32 * WIDTH;
    let bold = if run.modifier.contains(Modifier::BOLD) {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let baseline = top + BASELINE;
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<text x=\"{left:.1}\" y=\"{baseline:.1}\" textLength=\"{length:.1}\" \
         lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\" fill=\"{}\"{bold}{dim}>{}</text>",
        run.ink,
        escaped(text)
    );
}

fn rect(out: &mut String, x: f32, y: f32, width: f32, height: f32, fill: &str, style: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"{style}/>"
    );
}

/// Which part of a cell's height a character fills, from the top; `None` for text.
fn shape(character: char) -> Option<(f32, f32)> {
    match character {
        '▁'..='█' => {
            let eighths = character as u32 - '▁' as u32 + 1;
            Some((1.0 - eighths as f32 / 8.0, 1.0))
        }
        '─' => Some((0.47, 0.53)),
        _ => None,
    }
}

fn colours(cell: &Cell) -> (&'static str, &'static str) {
    let ink = colour(cell.fg, INK);
    let paper = colour(cell.bg, PAPER);
    if cell.modifier.contains(Modifier::REVERSED) {
        (paper, ink)
    } else {
        (ink, paper)
    }
}

/// The eight colours, as terminals of today show them.
fn colour(colour: Color, otherwise: &'static str) -> &'static str {
    match colour {
        Color::Black => "#000000",
        Color::Red => "#f0616d",
        Color::Green => "#74c476",
        Color::Yellow => "#e8b84a",
        Color::Blue => "#5c9cf5",
        Color::Magenta => "#c678dd",
        Color::Cyan => "#4cb8c9",
        _ => otherwise,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use ratatui::{layout::Rect, style::Style};

    use super::*;

    fn lines(svg: &str) -> Vec<&str> {
        svg.lines().filter(|line| !line.contains("100%")).collect()
    }

    #[test]
    fn text_is_stretched_to_its_cells_and_blocks_are_shapes() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 2));
        buffer.set_string(1, 0, "a<b & c", Style::new().fg(Color::Yellow));
        buffer.set_string(10, 0, "▄█", Style::new());
        buffer.set_string(0, 1, "x", Style::new().add_modifier(Modifier::REVERSED));
        buffer.set_string(3, 1, "─", Style::new().add_modifier(Modifier::DIM));
        let svg = render(&buffer, "T&T");
        assert_eq!(
            lines(&svg)[1..],
            [
                "<title>T&amp;T</title>",
                "<text x=\"18.4\" y=\"23.0\" textLength=\"58.8\" lengthAdjust=\"spacingAndGlyphs\" \
                 xml:space=\"preserve\" fill=\"#e8b84a\">a&lt;b &amp; c</text>",
                "<rect x=\"94.0\" y=\"18.5\" width=\"8.7\" height=\"8.5\" fill=\"#d4d7dd\"/>",
                "<rect x=\"102.4\" y=\"10.0\" width=\"8.7\" height=\"17.0\" fill=\"#d4d7dd\"/>",
                "<rect x=\"10.0\" y=\"27.0\" width=\"8.4\" height=\"17.0\" fill=\"#d4d7dd\"/>",
                "<text x=\"10.0\" y=\"40.0\" textLength=\"8.4\" lengthAdjust=\"spacingAndGlyphs\" \
                 xml:space=\"preserve\" fill=\"#16181d\">x</text>",
                "<rect x=\"35.2\" y=\"35.0\" width=\"8.7\" height=\"1.0\" fill=\"#d4d7dd\" \
                 opacity=\"0.65\"/>",
                "</svg>",
            ]
        );
    }
}
