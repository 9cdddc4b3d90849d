//! What the terminal can show: characters beyond ASCII or not, colours or not.
//!
//! Only the eight colours that every terminal with colours has, and never as the only sign of
//! anything.

use ratatui::style::{Color, Modifier, Style};

/// Eighths, the lowest first; nothing is the lowest too, so that it differs from a gap. The highest is
/// short of the row above, whose graph may stand there.
const BLOCKS: [&str; 7] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇"];
const LETTERS: [&str; 7] = ["_", ".", ":", "-", "=", "+", "#"];

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Characters beyond ASCII: the locale is UTF-8, and the font has blocks and arrows.
    pub unicode: bool,
    /// Colours.
    pub colours: bool,
}

impl Look {
    /// What the environment promises; `var` looks up a variable.
    pub fn of(var: impl Fn(&str) -> Option<String>) -> Self {
        let said = |name: &str| var(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(said)
            .unwrap_or_default()
            .to_lowercase();
        let terminal = said("TERM").unwrap_or_default();
        Self {
            // The console of Linux has a font of 256 characters, with half of the blocks.
            unicode: (locale.contains("utf-8") || locale.contains("utf8")) && terminal != "linux",
            // The terminals that serial lines claim to be have no colours, and take the sequences
            // for something else.
            colours: said("NO_COLOR").is_none()
                && !["vt1", "vt2", "vt5"]
                    .iter()
                    .any(|vt| terminal.starts_with(vt))
                && !terminal.ends_with("-m")
                && !terminal.ends_with("-mono"),
        }
    }

    fn colour(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    /// As it should be.
    pub fn good(self) -> Style {
        self.colour(Color::Green)
    }

    /// To be looked at.
    pub fn notable(self) -> Style {
        self.colour(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// To be acted on.
    pub fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// Of a graph.
    pub fn graph(self) -> Style {
        self.colour(Color::Cyan)
    }

    /// Headings and what matters less.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// What is selected.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Stands for what was cut off.
    pub const fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "~" }
    }

    /// A line across.
    pub const fn rule(self) -> &'static str {
        if self.unicode { "─" } else { "-" }
    }

    /// What the arrow keys are called.
    pub const fn arrows(self) -> &'static str {
        if self.unicode { "↑↓" } else { "arrows" }
    }

    /// `text` in at most `width` characters.
    pub fn clip(self, text: &str, width: usize) -> String {
        if text.chars().count() <= width {
            return text.to_owned();
        }
        let kept = text.chars().take(width.saturating_sub(1));
        kept.chain(self.ellipsis().chars().take(width)).collect()
    }

    /// One character for each sample, by its share of `peak`; a gap is a blank.
    pub fn sparkline(self, samples: impl Iterator<Item = Option<f64>>, peak: f64) -> String {
        let levels = if self.unicode { BLOCKS } else { LETTERS };
        let top = levels.len() - 1;
        samples
            .map(|sample| match sample {
                None => " ",
                Some(value) if value <= 0.0 || peak <= 0.0 => levels[0],
                // The least that is more than nothing is seen.
                Some(value) => {
                    let level = (value / peak * top as f64).ceil() as usize;
                    levels[level.clamp(1, top)]
                }
            })
            .collect()
    }

    /// A bar of `width` characters, filled to this share.
    pub fn bar(self, share: f64, width: usize) -> String {
        let [full, empty] = if self.unicode {
            ["█", "░"]
        } else {
            ["#", "."]
        };
        let filled = ((share.clamp(0.0, 1.0) * width as f64).ceil() as usize).min(width);
        full.repeat(filled) + &empty.repeat(width - filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNICODE: Look = Look {
        unicode: true,
        colours: true,
    };
    const ASCII: Look = Look {
        unicode: false,
        colours: false,
    };

    fn of(variables: &[(&str, &str)]) -> (bool, bool) {
        let look = Look::of(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        (look.unicode, look.colours)
    }

    #[test]
    fn the_environment_says_what_can_be_shown() {
        for (variables, expected) in [
            (
                &[("LANG", "de_DE.UTF-8"), ("TERM", "xterm-256color")][..],
                (true, true),
            ),
            (&[("LANG", "C.utf8"), ("TERM", "tmux")], (true, true)),
            (&[("TERM", "xterm")], (false, true)),
            (&[("LANG", "C"), ("TERM", "screen")], (false, true)),
            (&[("LC_ALL", "C"), ("LANG", "C.UTF-8")], (false, true)),
            (&[("LC_ALL", ""), ("LANG", "C.UTF-8")], (true, true)),
            (&[("LANG", "C.UTF-8"), ("TERM", "linux")], (false, true)),
            (&[("LANG", "C.UTF-8"), ("NO_COLOR", "1")], (true, false)),
            (&[("LANG", "C.UTF-8"), ("NO_COLOR", "")], (true, true)),
            (&[("LANG", "C"), ("TERM", "vt220")], (false, false)),
        ] {
            assert_eq!(of(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn sparklines_tell_nothing_little_much_and_unknown_apart() {
        let samples = [None, Some(0.0), Some(1.0), Some(500_000.0), Some(1e6)];
        assert_eq!(UNICODE.sparkline(samples.into_iter(), 1e6), " ▁▂▄▇");
        assert_eq!(ASCII.sparkline(samples.into_iter(), 1e6), " _.-#");
        assert_eq!(ASCII.sparkline([Some(0.0)].into_iter(), 0.0), "_");
        assert_eq!(ASCII.sparkline([Some(9.0)].into_iter(), 3.0), "#");
    }

    #[test]
    fn bars_show_the_least() {
        assert_eq!(UNICODE.bar(0.0, 4), "░░░░");
        assert_eq!(UNICODE.bar(0.001, 4), "█░░░");
        assert_eq!(ASCII.bar(0.5, 4), "##..");
        assert_eq!(ASCII.bar(7.0, 4), "####");
    }

    #[test]
    fn what_is_cut_off_is_marked() {
        assert_eq!(UNICODE.clip("sixteen", 7), "sixteen");
        assert_eq!(UNICODE.clip("sixteen", 4), "six…");
        assert_eq!(ASCII.clip("sixteen", 1), "~");
        assert_eq!(ASCII.clip("sixteen", 0), "");
    }
}
