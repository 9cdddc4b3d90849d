//! `synguard man`: manual pages, for whoever makes a package. Those of the commands come from the
//! parser, so that a page says what `--help` says; [`settings`] makes the one of the configuration.

mod settings;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use roff::{Roff, bold, roman};

use super::Cli;

const MANUAL: &str = "synguard manual";

/// Write the manual pages of all commands and of the configuration file into a folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  synguard man --date 2026-01-31 man/")]
pub(super) struct Man {
    /// The folder; made when missing.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The date that the pages bear.
    #[arg(long)]
    date: String,
}

impl Man {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        for (name, page) in pages(&self.date)? {
            write(&self.folder, &name, &page)?;
        }
        Ok(())
    }
}

fn write(folder: &Path, name: &str, page: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Every page with the name of its file.
fn pages(date: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = vec![("synguard.toml.5".to_owned(), settings::page(date))];
    let mut waiting = vec![&root];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|c| !c.is_hide_set()));
        let name = command.get_display_name().unwrap_or(command.get_name());
        pages.push((format!("{name}.1"), page(command, date)?));
    }
    Ok(pages)
}

fn source() -> String {
    format!("synguard {}", env!("CARGO_PKG_VERSION"))
}

fn page(command: &clap::Command, date: &str) -> io::Result<Vec<u8>> {
    let man = clap_mangen::Man::new(command.clone())
        .date(date)
        .source(source())
        .manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    let children: Vec<_> = command.get_subcommands().collect();
    if children.iter().any(|child| !child.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(examples) = command
        .get_after_help()
        .and_then(|text| examples(&text.to_string()))
    {
        rest.control("SH", ["EXAMPLES"]);
        verbatim(&mut rest, &examples);
    }
    rest.control("SH", ["EXIT STATUS"])
        .control("TP", [])
        .text([bold("0")])
        .text([roman("Done.")])
        .control("TP", [])
        .text([bold("1")])
        .text([roman("Failed; one line on standard error says why.")])
        .control("TP", [])
        .text([bold("2")])
        .text([roman("Wrong usage.")]);
    if command.get_name() == "synguard" {
        files(&mut rest);
    }
    rest.control("SH", ["SEE ALSO"]).text(see_also(command));
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// What stands below `Example:` or `Examples:` in the help.
fn examples(after_help: &str) -> Option<String> {
    let lines: Vec<_> = after_help
        .lines()
        .skip_while(|line| !line.starts_with("Example"))
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .map(|line| line.strip_prefix("  ").unwrap_or(line))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Lines as they are, indented.
fn verbatim(roff: &mut Roff, text: &str) {
    roff.control("RS", ["4"]).control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []).control("RE", []);
}

fn files(roff: &mut Roff) {
    use crate::config::{DEFAULT_PATH, DEFAULT_SECRET, DEFAULT_SOCKET};
    roff.control("SH", ["FILES"]);
    for (path, what) in [
        (
            DEFAULT_PATH,
            "The configuration that the service reads; see synguard.toml(5).",
        ),
        (
            DEFAULT_SOCKET,
            "The control socket. Who may write to it (its owner and group) commands the daemon.",
        ),
        (
            DEFAULT_SECRET,
            "The master secret of the cookies, made when it is missing.",
        ),
    ] {
        roff.control("TP", [])
            .text([roff::italic(path)])
            .text([roman(what)]);
    }
}

/// The pages above and below this one.
fn see_also(command: &clap::Command) -> Vec<roff::Inline> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut names = Vec::new();
    if let Some((parent, _)) = name.rsplit_once('-') {
        names.push((parent.to_owned(), "(1), "));
    }
    for child in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = child.get_display_name().unwrap_or(child.get_name());
        names.push((name.to_owned(), "(1), "));
    }
    names.push(("synguard.toml".to_owned(), "(5)"));
    names
        .into_iter()
        .flat_map(|(name, section)| [bold(name), roman(section)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let pages = pages("2026-01-31").unwrap();
        let page = |name: &str| -> String {
            let (_, page) = pages.iter().find(|(n, _)| n == name).expect(name);
            String::from_utf8(page.clone()).unwrap()
        };
        fn check(command: &clap::Command, stem: &str, page: &dyn Fn(&str) -> String) {
            let text = page(&format!("{stem}.1"));
            let title = format!(".TH {stem} 1 2026");
            assert!(text.replace(['"', '\\'], "").contains(&title), "{text}");
            let children = || command.get_subcommands().filter(|c| !c.is_hide_set());
            if children().next().is_none() {
                assert!(text.contains("EXAMPLES\n.RS 4\n.nf\nsynguard "), "{text}");
            }
            for child in children() {
                check(child, &format!("{stem}-{}", child.get_name()), page);
            }
        }
        check(&Cli::command(), "synguard", &page);
        assert!(pages.iter().all(|(name, _)| name != "synguard-man.1"));
    }

    #[test]
    fn examples_are_what_is_indented() {
        assert_eq!(
            examples("Examples:\n  a -i b\n    c\n\nExit status: 0").as_deref(),
            Some("a -i b\n  c\n")
        );
        assert_eq!(examples("Exit status: 0"), None);
    }
}
