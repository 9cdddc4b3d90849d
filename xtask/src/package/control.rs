//! What dpkg is told: the folder `DEBIAN`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};

use super::{VERSION, clear, files, output, tree::deploy, write};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Writes `DEBIAN` into the tree that has all other files, and returns the architecture.
pub(super) fn describe(tree: &Path) -> anyhow::Result<String> {
    let read = |name: &str| {
        let path = deploy().join("debian").join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let newest = read("changelog")?;
    let newest = newest.lines().next().unwrap_or_default();
    ensure!(
        newest.starts_with(&format!("synguard ({VERSION}) ")),
        "deploy/debian/changelog begins with `{newest}`, but this is version {VERSION}: add an entry"
    );
    let contents = files(tree)?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();

    let debian = tree.join("DEBIAN");
    let control = read("control")?
        .replace("@VERSION@", VERSION)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@INSTALLED_SIZE@", &installed_size(tree)?.to_string())
        .replace("@SHLIBS@", &libraries(tree)?);
    write(&debian.join("control"), control.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        write(&debian.join(script), read(script)?.as_bytes(), 0o755)?;
    }
    let (mut conffiles, mut sums) = (String::new(), Command::new("md5sum"));
    sums.current_dir(tree);
    for file in &contents {
        let inside = file.strip_prefix(tree)?;
        if inside.starts_with("etc") {
            conffiles.push_str(&format!("/{}\n", inside.display()));
        } else {
            sums.arg(inside);
        }
    }
    write(&debian.join("conffiles"), conffiles.as_bytes(), 0o644)?;
    write(
        &debian.join("md5sums"),
        output(&mut sums)?.as_bytes(),
        0o644,
    )?;
    Ok(architecture.to_owned())
}

/// In KiB, as Debian's policy counts: files rounded up, and one for anything else.
fn installed_size(folder: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(folder);
    let mut size = 1;
    for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += if metadata.is_dir() {
            installed_size(&entry.path())?
        } else {
            metadata.len().div_ceil(1024)
        };
    }
    Ok(size)
}

/// The packages of the libraries that the binary is linked to, with the versions that it needs.
fn libraries(tree: &Path) -> anyhow::Result<String> {
    // dpkg-shlibdeps wants to be in a source package.
    let source = tree.join("source.tmp");
    let stub = "Source: synguard\n\nPackage: synguard\nArchitecture: any\n";
    write(&source.join("debian/control"), stub.as_bytes(), 0o644)?;
    let mut shlibdeps = Command::new("dpkg-shlibdeps");
    shlibdeps
        .arg("-O")
        .arg(tree.join("usr/bin/synguard"))
        .current_dir(&source);
    let said = output(&mut shlibdeps)?;
    clear(&source)?;
    match said.trim().strip_prefix("shlibs:Depends=") {
        Some(depends) if depends.contains("libc6") => Ok(depends.to_owned()),
        _ => bail!("dpkg-shlibdeps names no C library: {said}"),
    }
}
