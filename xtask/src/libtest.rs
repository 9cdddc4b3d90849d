//! Reads what a libtest binary prints, passes on what a person wants to see, and counts.
//!
//! The binary runs with `--show-output`, for a check that a test skipped is known only from a line
//! `SKIP …` in the test's output. The rest of the output of passed tests is not shown.

use std::{
    io::{self, Read, Write},
    ops::AddAssign,
};

/// Results of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests marked `#[ignore]`, and checks inside tests that said `SKIP`.
    pub skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Names and results.
    Results,
    /// Captured output of passed tests.
    Successes,
    /// Captured output of failed tests.
    Failures,
}

/// State of one binary's output.
struct Reader<'a, W> {
    out: W,
    /// Shown before anything else is; a binary without tests stays unmentioned.
    title: Option<&'a str>,
    section: Section,
    line: Vec<u8>,
    /// Bytes of `line` that were shown while it was incomplete.
    shown: usize,
    counts: Counts,
    /// Whether the summary has been seen: without it the binary died.
    complete: bool,
}

/// Reads `from` to its end and shows it on `out`; also tells whether the summary came at all.
pub fn read(title: &str, from: impl Read, out: impl Write) -> io::Result<(Counts, bool)> {
    let mut reader = Reader {
        out,
        title: Some(title),
        section: Section::Results,
        line: Vec::new(),
        shown: 0,
        counts: Counts::default(),
        complete: false,
    };
    let mut from = from;
    let mut buffer = [0; 4096];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        reader.feed(&buffer[..n])?;
    }
    if !reader.line.is_empty() {
        reader.feed(b"\n")?;
    }
    Ok((reader.counts, reader.complete))
}

impl<W: Write> Reader<'_, W> {
    /// Shows what of the line has not been shown.
    fn show(&mut self) -> io::Result<()> {
        if let Some(title) = self.title.take() {
            writeln!(self.out, "\n{title}")?;
        }
        self.out.write_all(&self.line[self.shown..])?;
        self.shown = self.line.len();
        self.out.flush()
    }

    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.split_inclusive(|&c| c == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_of_line()?;
                self.line.clear();
                self.shown = 0;
            } else if self.section == Section::Results && self.line.starts_with(b"test ") {
                // The name of the test that runs, before it has a result.
                self.show()?;
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self) -> io::Result<()> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        let line = line.trim_end();
        // A child of a test writes past libtest's capture, behind the name.
        let said = line
            .strip_prefix("test ")
            .and_then(|l| l.split_once(" ... "))
            .map_or(line, |(_, rest)| rest);
        let skip = said.starts_with("SKIP ");
        if skip {
            self.counts.skipped += 1;
        }
        let summary = summary(line);
        match line {
            "successes:" => self.section = Section::Successes,
            "failures:" => self.section = Section::Failures,
            _ if summary.is_some() => self.section = Section::Results,
            _ => {}
        }
        if let Some(counts) = summary {
            self.counts += counts;
            self.complete = true;
        }
        let frame =
            line.is_empty() || line.starts_with("running ") || summary == Some(Counts::default());
        let show = match self.section {
            Section::Results => !frame,
            Section::Successes => skip,
            Section::Failures => true,
        };
        if show || self.shown > 0 {
            self.show()?;
        }
        Ok(())
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`
fn summary(line: &str) -> Option<Counts> {
    let (_verdict, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let field = numbers
            .split("; ")
            .find_map(|field| field.strip_suffix(what))?;
        field.trim().parse().ok()
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> (Counts, bool, String) {
        let mut out = Vec::new();
        let (counts, complete) = read("crate: lib", text.as_bytes(), &mut out).unwrap();
        (counts, complete, String::from_utf8(out).unwrap())
    }

    const PASSED: &str = "
running 3 tests
test a ... ok
test b ... ok
test c ... ignored

successes:

---- a stdout ----
noise
SKIP ecn: kernel too old

successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

";

    #[test]
    fn counts_skipped_checks_of_passed_tests() {
        let (counts, complete, shown) = run(PASSED);
        assert_eq!(
            counts,
            Counts {
                passed: 2,
                failed: 0,
                skipped: 2
            }
        );
        assert!(complete);
        assert!(shown.contains("test a ... ok\n"));
        assert!(shown.contains("\nSKIP ecn: kernel too old\n"));
        assert!(!shown.contains("noise"));
    }

    #[test]
    fn shows_what_failed_tests_said() {
        let text = "running 1 test\ntest a ... FAILED\n\nsuccesses:\n\nsuccesses:\n\nfailures:\n\n\
                    ---- a stdout ----\nleft: 1\n\nfailures:\n    a\n\n\
                    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let (counts, complete, shown) = run(text);
        assert_eq!(
            counts,
            Counts {
                passed: 0,
                failed: 1,
                skipped: 0
            }
        );
        assert!(complete);
        assert!(shown.contains("left: 1\n"));
    }

    #[test]
    fn a_binary_that_dies_has_no_summary() {
        let (counts, complete, shown) = run("running 1 test\ntest a ... ");
        assert_eq!(counts, Counts::default());
        assert!(!complete);
        assert_eq!(shown, "\ncrate: lib\ntest a ... \n");
    }

    #[test]
    fn shows_the_name_while_the_test_runs() {
        let mut reader = Reader {
            out: Vec::new(),
            title: None,
            section: Section::Results,
            line: Vec::new(),
            shown: 0,
            counts: Counts::default(),
            complete: false,
        };
        reader.feed(b"test slow ... ").unwrap();
        assert_eq!(reader.out, b"test slow ... ");
        reader.feed(b"ok\n").unwrap();
        assert_eq!(reader.out, b"test slow ... ok\n");
    }

    #[test]
    fn a_binary_without_tests_is_not_mentioned() {
        let (_, complete, shown) = run("\nrunning 0 tests\n\nsuccesses:\n\nsuccesses:\n\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\n");
        assert!(complete);
        assert_eq!(shown, "");
    }

    #[test]
    fn counts_a_skip_written_past_the_capture() {
        let (counts, _, _) = run("test a ... SKIP promtool: not installed\nok\n");
        assert_eq!(counts.skipped, 1);
    }
}
