//! Files of prefixes: one a line, and `#` or `;` begins a comment, as in the lists that are published.

use std::io::{self, BufRead, Read as _};

use super::{Prefix, PrefixError};

/// Mistakes after which a file is read no further: it is another kind of file.
const ENOUGH: usize = 20;
/// Longest line, bytes.
const LINE_LIMIT: u64 = 4096;

/// A prefix and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// It.
    pub prefix: Prefix,
    /// Its line, from 1.
    pub line: u32,
}

/// What is wrong with a line, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The line, from 1.
    pub line: u32,
    /// The character, from 1.
    pub column: usize,
    /// One line.
    pub text: String,
}

/// The prefixes in the order of the file, and what is wrong.
pub fn read_lines(mut input: impl BufRead) -> io::Result<(Vec<Line>, Vec<Wrong>)> {
    let mut lines = Vec::new();
    let mut wrong = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let length = input
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut bytes)?;
        if length == 0 || wrong.len() == ENOUGH {
            break;
        }
        let mut note = |column, text| wrong.push(Wrong { line, column, text });
        if length as u64 == LINE_LIMIT && !bytes.ends_with(b"\n") {
            note(
                1,
                "the line has no end; give a file with one prefix a line".into(),
            );
            break;
        }
        let text = String::from_utf8_lossy(&bytes);
        let said = text.split(['#', ';']).next().unwrap_or_default();
        let word = said.trim();
        if word.is_empty() {
            continue;
        }
        let column = 1 + said.chars().take_while(|c| c.is_whitespace()).count();
        match word.parse() {
            Ok(prefix) => lines.push(Line { prefix, line }),
            Err(PrefixError::Unreadable(_)) if word.contains(char::is_whitespace) => note(
                column,
                "there is more than a prefix; give one a line, and comments behind `#`".into(),
            ),
            Err(error) => note(column, error.to_string()),
        }
    }
    Ok((lines, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> (Vec<String>, Vec<String>) {
        let (lines, wrong) = read_lines(text).unwrap();
        let lines = lines.iter().map(|l| format!("{}: {}", l.line, l.prefix));
        let wrong = wrong
            .iter()
            .map(|w| format!("{}:{}: {}", w.line, w.column, w.text));
        (lines.collect(), wrong.collect())
    }

    #[test]
    fn comments_and_empty_lines_are_passed_over() {
        let (lines, wrong) = read(
            b"# a list\r\n\n192.0.2.0/24 # why\n  2001:db8::1\r\n10.0.0.0/8 ; SBL1\n\t192.0.2.1",
        );
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(
            lines,
            [
                "3: 192.0.2.0/24",
                "4: 2001:db8::1",
                "5: 10.0.0.0/8",
                "6: 192.0.2.1"
            ]
        );
    }

    #[test]
    fn each_mistake_has_its_place() {
        let (lines, wrong) = read(b"192.0.2.1\n  10.0.0.1/8\nexample.org\n10.0.0.0/8 x\n\xff\n");
        assert_eq!(lines.len(), 1);
        assert_eq!(wrong.len(), 4);
        assert!(
            wrong[0].starts_with("2:3: 10.0.0.1/8 has host bits"),
            "{wrong:?}"
        );
        assert!(
            wrong[1].starts_with("3:1: \"example.org\" is neither"),
            "{wrong:?}"
        );
        assert!(
            wrong[2].starts_with("4:1: there is more than a prefix"),
            "{wrong:?}"
        );
        let (_, endless) = read(&[b'x'; 10_000]);
        assert_eq!(endless.len(), 1);
        let (_, other) = read(&b"<html>\n".repeat(100_000));
        assert_eq!(other.len(), ENOUGH);
    }
}
