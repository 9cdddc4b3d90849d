//! Text for people, folded to the width of a terminal.

use std::fmt::{self, Write};

/// Everything fits a terminal of this width.
pub(crate) const WIDTH: usize = 80;

/// Writes `head` and then `text`, folded at [`WIDTH`] with what follows indented. A word that is
/// longer stays whole: it may be a path to copy.
pub(crate) fn fold(out: &mut String, head: &str, indent: usize, text: &str) -> fmt::Result {
    let mut column = head.chars().count();
    let mut at_start = column == 0 || head.ends_with(' ');
    out.push_str(head);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        let gap = usize::from(!at_start);
        if column + gap + length > WIDTH && column > indent {
            write!(out, "\n{:indent$}", "")?;
            column = indent;
        } else if !at_start {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
        at_start = false;
    }
    out.write_char('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_and_what_follows_is_indented() {
        let mut out = String::new();
        fold(&mut out, "head: ", 4, &"word ".repeat(40)).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() > 2 && lines[0].starts_with("head: word word"));
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{out}");
        assert!(lines[1..].iter().all(|line| line.starts_with("    word")));
        assert_eq!(out.matches("word").count(), 40);
    }

    #[test]
    fn a_long_word_stays_whole() {
        let mut out = String::new();
        fold(&mut out, "path", 2, &"x".repeat(100)).unwrap();
        assert_eq!(out, format!("path\n  {}\n", "x".repeat(100)));
    }
}
