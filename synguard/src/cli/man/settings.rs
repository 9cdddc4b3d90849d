//! synguard.toml(5), made from the shipped configuration: its comments are the documentation, and
//! the tests of [`crate::config`] see to it that every key is there with its default.

use roff::{Roff, bold, roman};

use super::{MANUAL, source, verbatim};
use crate::config::DEFAULT_PATH;

static SHIPPED: &str = include_str!("../../../../deploy/synguard.toml");

/// What stands between two empty lines of the file.
#[derive(Debug, Default, PartialEq)]
struct Block<'a> {
    /// The comment, without `#` and the space behind it.
    comment: Vec<&'a str>,
    /// `[daemon]` or the like.
    section: Option<&'a str>,
    /// `key = value`.
    settings: Vec<&'a str>,
}

/// The page.
pub(super) fn page(date: &str) -> Vec<u8> {
    let mut roff = Roff::new();
    let source = source();
    roff.control("TH", ["synguard.toml", "5", date, source.as_str(), MANUAL])
        .control("SH", ["NAME"])
        .text([roman("synguard.toml - configuration of synguard")])
        .control("SH", ["SYNOPSIS"])
        .text([roff::italic(DEFAULT_PATH)])
        .control("SH", ["DESCRIPTION"]);
    for block in blocks(SHIPPED) {
        match (block.section, &*block.settings) {
            (Some(section), _) => {
                roff.control("SH", [section]);
                prose(&mut roff, &block.comment);
            }
            (None, []) => match block.comment.split_first() {
                // An example that is commented out.
                Some((title, example)) if title.ends_with(':') => {
                    roff.control("SH", ["EXAMPLES"])
                        .text([roman(*title)])
                        .control("PP", []);
                    verbatim(&mut roff, example.join("\n").trim());
                }
                _ => prose(&mut roff, &block.comment),
            },
            (None, [first, others @ ..]) => {
                roff.control("TP", []).text([bold(*first)]);
                for other in others {
                    roff.control("TQ", []).text([bold(*other)]);
                }
                prose(&mut roff, &block.comment);
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]).text([
        bold("synguard"),
        roman("(1), "),
        bold("synguard-run"),
        roman("(1), "),
        bold("synguard-config-check"),
        roman("(1)"),
    ]);
    // In groff's own words, so that no line depends on the locale.
    roff.to_roff().into_bytes()
}

fn blocks(file: &str) -> Vec<Block<'_>> {
    let mut blocks = vec![Block::default()];
    for line in file.lines() {
        let fresh = blocks.last().is_some_and(|b| *b == Block::default());
        if line.is_empty() {
            if !fresh {
                blocks.push(Block::default());
            }
            continue;
        }
        let Some(block) = blocks.last_mut() else {
            continue;
        };
        if let Some(comment) = line.strip_prefix('#') {
            block
                .comment
                .push(comment.strip_prefix(' ').unwrap_or(comment));
        } else if line.starts_with('[') {
            block.section = Some(line);
        } else {
            block.settings.push(line);
        }
    }
    blocks.retain(|block| *block != Block::default());
    blocks
}

/// A comment as text; lines such as `"auto": …` are items of a list.
fn prose(roff: &mut Roff, comment: &[&str]) {
    let mut in_list = false;
    for line in comment {
        let item = line
            .split_once("\":")
            .filter(|(value, _)| value.starts_with('"') && !value.contains(' '));
        if let Some((value, what)) = item {
            if !in_list {
                roff.control("RS", []);
                in_list = true;
            }
            roff.control("TP", [])
                .text([bold(format!("{value}\""))])
                .text([roman(what.trim())]);
        } else {
            roff.text([roman(line.trim())]);
        }
    }
    if in_list {
        roff.control("RE", []);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained() {
        let page = String::from_utf8(page("2026-01-31")).unwrap();
        let shipped: toml::Table = SHIPPED.parse().unwrap();
        let mut keys = 0;
        for (section, value) in &shipped {
            let tables = match value {
                toml::Value::Array(tables) => tables.as_slice(),
                table => std::slice::from_ref(table),
            };
            for key in tables.iter().flat_map(|t| t.as_table().unwrap().keys()) {
                let entry = format!("\\fB{key} = ");
                let at = page
                    .find(&entry)
                    .unwrap_or_else(|| panic!("{section}.{key}"));
                let explanation = page[at..].lines().nth(1).unwrap();
                assert!(!explanation.starts_with(".SH"), "{section}.{key}");
                keys += 1;
            }
        }
        assert!(keys > 15, "{keys} keys");
        for section in [
            ".SH [daemon]",
            ".SH [defaults]",
            ".SH [[service]]",
            ".SH EXAMPLES",
        ] {
            assert!(page.contains(section), "{section}: {page}");
        }
    }

    #[test]
    fn a_file_falls_into_blocks() {
        let blocks = blocks("# a\n# b\n\n\n# c\n[s]\n\n#  d\nx = 1\ny = 2\n");
        assert_eq!(blocks.len(), 3);
        assert_eq!(blocks[0].comment, ["a", "b"]);
        assert_eq!(blocks[1].section, Some("[s]"));
        assert_eq!(blocks[2].comment, [" d"]);
        assert_eq!(blocks[2].settings, ["x = 1", "y = 2"]);
    }
}
