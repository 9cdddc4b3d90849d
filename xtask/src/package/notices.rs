//! Whose work the binary contains: every crate with its licence, and the licences' texts, which
//! they ask to be passed on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    fs,
};

use anyhow::{Context as _, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package, PackageId};

use crate::sh;

const HEAD: &str = "\
The program synguard contains, compiled, the crates below, each under its licence as named. The texts
that came with them follow, each with the crates it came with.

";

/// The text.
pub(super) fn text() -> anyhow::Result<String> {
    let mut text = HEAD.to_owned();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in linked()? {
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see below");
        writeln!(text, "{name}: {licence}")?;
        for licence in licences(&package)? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    for (licence, names) in texts {
        let names: Vec<_> = names.into_iter().collect();
        write!(
            text,
            "\n{}\n{}\n\n{licence}\n",
            "-".repeat(72),
            names.join(", ")
        )?;
    }
    Ok(text)
}

/// The crates of others that are linked into the binary, by name.
fn linked() -> anyhow::Result<Vec<Package>> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = MetadataCommand::new();
    command
        .cargo_path(sh::cargo()?.get_program())
        .current_dir(ebpf_build::workspace())
        .other_options([
            "--locked".to_owned(),
            "--offline".to_owned(),
            "--filter-platform".to_owned(),
            platform,
        ]);
    let metadata = command
        .exec()
        .context("cannot ask cargo for the dependencies")?;
    let resolve = metadata.resolve.context("cargo resolved nothing")?;
    let nodes: HashMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut packages: HashMap<PackageId, Package> = metadata
        .packages
        .into_iter()
        .map(|package| (package.id.clone(), package))
        .collect();
    // The eBPF programs are linked on their own.
    let own = ["synguard", "synguard-ebpf"];
    let mut waiting: Vec<_> = packages
        .values()
        .filter(|package| own.contains(&package.name.as_str()))
        .map(|package| package.id.clone())
        .collect();
    ensure!(waiting.len() == own.len(), "cargo knows no {own:?}");
    let mut seen: BTreeSet<_> = waiting.iter().cloned().collect();
    while let Some(id) = waiting.pop() {
        let dependencies = nodes.get(&id).map(|node| &node.deps);
        for dependency in dependencies.into_iter().flatten() {
            let normal = |kind: &DependencyKind| *kind == DependencyKind::Normal;
            if dependency.dep_kinds.iter().any(|kind| normal(&kind.kind))
                && seen.insert(dependency.pkg.clone())
            {
                waiting.push(dependency.pkg.clone());
            }
        }
    }
    let mut linked: Vec<_> = seen
        .iter()
        .filter_map(|id| packages.remove(id))
        .filter(|package| package.source.is_some())
        .collect();
    linked.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(linked)
}

/// Texts of licences and notices in the crate's folder.
fn licences(package: &Package) -> anyhow::Result<BTreeSet<String>> {
    let folder = package
        .manifest_path
        .parent()
        .context("a manifest is nowhere")?;
    let mut texts = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {folder}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_ascii_uppercase();
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"]
            .iter()
            .any(|stem| name.starts_with(stem));
        if is_licence && path.is_file() {
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            // So that what differs in line ends alone is the same text.
            let lines = sh::text(&text);
            let lines: Vec<_> = lines.trim().lines().map(str::trim_end).collect();
            texts.insert(lines.join("\n"));
        }
    }
    Ok(texts)
}
