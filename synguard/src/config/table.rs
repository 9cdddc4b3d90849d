//! Reading single keys of a table: unknown ones are mistakes, and so are values of another type
//! or out of range.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::mistake::Report;

/// A value and where it stands.
pub(super) type Located<T> = (T, Range<usize>);

/// A key: what it is called, what it may be, and how it is read. A value that is not taken gets
/// the line "`name` is …REMARK; give RIGHT", where the remark may be empty.
pub(super) struct Key<T> {
    pub(super) name: &'static str,
    pub(super) right: &'static str,
    pub(super) read: fn(&DeValue<'_>) -> Result<T, &'static str>,
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// The table called `title`; each key that is not `known` is a mistake.
    pub(super) fn open(
        table: &'a DeTable<'a>,
        title: &str,
        known: &[&str],
        report: &mut Report<'_>,
    ) -> Self {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let right = suggestion(name, known);
                report.add(
                    &key.span(),
                    format!("unknown key `{}` in {title}; {right}", shorten(name)),
                );
            }
        }
        Self { table: Some(table) }
    }

    /// A table that is not there.
    pub(super) fn absent() -> Self {
        Self { table: None }
    }

    pub(super) fn raw(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table?.get(name)
    }

    /// The value of `key`, if it is given and right.
    pub(super) fn get<T>(&self, key: &Key<T>, report: &mut Report<'_>) -> Option<Located<T>> {
        let value = self.raw(key.name)?;
        match (key.read)(value.get_ref()) {
            Ok(read) => Some((read, value.span())),
            Err(remark) => {
                let is = describe(value.get_ref());
                report.add(
                    &value.span(),
                    format!("`{}` is {is}{remark}; give {}", key.name, key.right),
                );
                None
            }
        }
    }
}

/// The value as a message shows it.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("\"{}\"", shorten(s)),
        DeValue::Integer(i) => match i.radix() {
            10 => shorten(i.as_str()),
            _ => integer(value).map_or_else(|| "an integer".into(), |i| i.to_string()),
        },
        DeValue::Float(f) => shorten(f.as_str()),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(a) if a.is_empty() => "an empty array".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// The integer in `value`; none too if it has more than 128 bits.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// The same as a number that fits.
pub(super) fn number<T: TryFrom<i128>>(value: &DeValue<'_>) -> Option<T> {
    integer(value).and_then(|n| n.try_into().ok())
}

fn suggestion(name: &str, known: &[&str]) -> String {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let nearest = known
        .iter()
        .map(|key| (strsim::damerau_levenshtein(&name, key), key))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, key)) if distance <= 1 + key.len() / 4 => format!("did you mean `{key}`?"),
        _ => format!("its keys are {}", known.join(", ")),
    }
}

fn shorten(s: &str) -> String {
    const LONGEST: usize = 64;
    let escaped = s.escape_debug();
    match escaped.clone().count() {
        0..=LONGEST => escaped.to_string(),
        _ => escaped.take(LONGEST).chain("…".chars()).collect(),
    }
}
