//! What is wrong with a file, and where.

use std::{
    collections::BTreeSet,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// One mistake: a line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    file: PathBuf,
    /// Line and column (in characters), from 1; none for the file as a whole.
    position: Option<(usize, usize)>,
    text: String,
}

impl Mistake {
    pub(super) fn of_file(file: &Path, text: String) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            text,
        }
    }

    /// The line without the place, where that is in `file`, which the user knows of.
    pub fn about(&self, file: &Path) -> String {
        if self.file == file {
            self.text.clone()
        } else {
            self.to_string()
        }
    }

    /// The file that it is in.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Line and column, from 1, unless it is the file as a whole.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.position
    }

    /// What is wrong, and what would be right.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A mistake at a line and column.
    pub(super) fn at(file: &Path, position: (usize, usize), text: String) -> Self {
        Self {
            file: file.to_owned(),
            position: Some(position),
            text,
        }
    }

    /// A mistake at the position that follows `before`.
    pub(super) fn at_end_of(file: &Path, before: &str, text: String) -> Self {
        let line = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let column = before[line_start..].chars().count() + 1;
        Self::at(file, (line, column), text)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// Everything that is wrong with a file; at least one mistake. Displayed as one line, the first
/// mistake; [`Error::mistakes`] has them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    first: Mistake,
    others: Vec<Mistake>,
    /// The file to check for the others.
    main: PathBuf,
}

impl Error {
    /// These mistakes, if there are any, in what `main` is the main file of.
    pub(super) fn of(mistakes: Vec<Mistake>, main: &Path) -> Option<Self> {
        let mut mistakes = mistakes.into_iter();
        Some(Self {
            first: mistakes.next()?,
            others: mistakes.collect(),
            main: main.to_owned(),
        })
    }

    /// The mistakes in the order of the file.
    pub fn mistakes(&self) -> impl Iterator<Item = &Mistake> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl From<Mistake> for Error {
    fn from(first: Mistake) -> Self {
        Self {
            main: first.file.clone(),
            first,
            others: Vec::new(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        match self.others.len() {
            0 => Ok(()),
            n => write!(
                f,
                " (and {n} more: `synguard config check {}` lists them)",
                self.main.display()
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Collects the mistakes of one file.
pub(super) struct Report<'a> {
    file: &'a Path,
    input: &'a str,
    /// By byte offset; a set, because what [defaults] says wrong is found once per service.
    mistakes: BTreeSet<(usize, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path, input: &'a str) -> Self {
        Self {
            file,
            input,
            mistakes: BTreeSet::new(),
        }
    }

    /// Notes a mistake at the beginning of `span`.
    pub(super) fn add(&mut self, span: &Range<usize>, text: impl Into<String>) {
        self.mistakes
            .insert((span.start, crate::one_line(&text.into())));
    }

    pub(super) fn is_clean(&self) -> bool {
        self.mistakes.is_empty()
    }

    /// What was wrong, in the order of the file.
    pub(super) fn mistakes(self) -> impl Iterator<Item = Mistake> {
        self.mistakes.into_iter().map(|(offset, text)| {
            let before = self.input.get(..offset).unwrap_or(self.input);
            Mistake::at_end_of(self.file, before, text)
        })
    }
}
