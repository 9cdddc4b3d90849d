//! The files of the package, where they will lie.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{files, notices, output, write};

/// Files that are taken as they are: below `deploy`, and in the package.
const AS_THEY_ARE: [(&str, &str); 5] = [
    ("synguard.toml", "etc/synguard/synguard.toml"),
    (
        "systemd/synguard.service",
        "usr/lib/systemd/system/synguard.service",
    ),
    (
        "systemd/synguard-prepare.service",
        "usr/lib/systemd/system/synguard-prepare.service",
    ),
    ("systemd/sysusers.conf", "usr/lib/sysusers.d/synguard.conf"),
    ("systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/synguard.conf"),
];

/// Folders below `deploy` that are taken whole.
const FOLDERS: [&str; 2] = ["prometheus", "grafana"];

/// Where completions lie.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/synguard"),
    ("zsh", "usr/share/zsh/vendor-completions/_synguard"),
    ("fish", "usr/share/fish/vendor_completions.d/synguard.fish"),
];

const DOC: &str = "usr/share/doc/synguard";

/// Where the sources of the package's own files are.
pub(super) fn deploy() -> PathBuf {
    ebpf_build::workspace().join("deploy")
}

/// Fills `tree`.
pub(super) fn lay_out(tree: &Path, binary: &Path, epoch: u64) -> anyhow::Result<()> {
    let deploy = deploy();
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    for (from, to) in AS_THEY_ARE {
        write(&tree.join(to), &read(&deploy.join(from))?, 0o644)?;
    }
    for folder in FOLDERS {
        for file in files(&deploy.join(folder))? {
            let to = Path::new("usr/share/synguard").join(file.strip_prefix(&deploy)?);
            write(&tree.join(to), &read(&file)?, 0o644)?;
        }
    }
    for (shell, to) in COMPLETIONS {
        let script = output(Command::new(binary).args(["completions", shell]))?;
        write(&tree.join(to), script.as_bytes(), 0o644)?;
    }
    let mut compressed = manual(tree, binary, epoch)?;

    let (doc, workspace) = (tree.join(DOC), ebpf_build::workspace());
    write(&doc.join("copyright"), copyright()?.as_bytes(), 0o644)?;
    for (name, content) in [
        ("changelog", read(&deploy.join("debian/changelog"))?),
        ("NOTICES", notices::text()?.into_bytes()),
        ("README.md", read(&workspace.join("README.md"))?),
        (
            "operations.md",
            read(&workspace.join("docs/operations.md"))?,
        ),
    ] {
        write(&doc.join(name), &content, 0o644)?;
        compressed.push(doc.join(name));
    }
    // Without name and time, which would differ.
    output(
        Command::new("gzip")
            .args(["--best", "--no-name"])
            .args(compressed),
    )?;

    let installed = tree.join("usr/bin/synguard");
    write(&installed, &read(binary)?, 0o755)?;
    output(Command::new("strip").arg(&installed))?;
    folders_for_all(tree)
}

/// The manual pages, by section; they wait for compression.
fn manual(tree: &Path, binary: &Path, epoch: u64) -> anyhow::Result<Vec<PathBuf>> {
    let date = output(Command::new("date").args(["--utc", "+%F", "--date", &format!("@{epoch}")]))?;
    let work = tree.join("man.tmp");
    output(
        Command::new(binary)
            .args(["man", "--date", date.trim()])
            .arg(&work),
    )?;
    let mut pages = Vec::new();
    for page in files(&work)? {
        let name = page.file_name().unwrap_or_default();
        let section = page.extension().unwrap_or_default().to_string_lossy();
        let to = tree.join(format!("usr/share/man/man{section}")).join(name);
        let text = fs::read(&page).with_context(|| format!("cannot read {}", page.display()))?;
        write(&to, &text, 0o644)?;
        pages.push(to);
    }
    super::clear(&work)?;
    Ok(pages)
}

/// `copyright`, with the text of the MIT licence, which Debian does not keep in one place.
fn copyright() -> anyhow::Result<String> {
    let read = |path: PathBuf| {
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mit: String = read(ebpf_build::workspace().join("LICENSE-MIT"))?
        .lines()
        .map(|line| match line {
            "" => " .\n".to_owned(),
            line => format!(" {line}\n"),
        })
        .collect();
    Ok(read(deploy().join("debian/copyright"))?.replace("@MIT@\n", &mit))
}

/// Folders that everybody may enter, whatever the umask.
fn folders_for_all(folder: &Path) -> anyhow::Result<()> {
    let open = || {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()
    };
    for entry in open().with_context(|| format!("cannot open {}", folder.display()))? {
        if entry.path().is_dir() {
            folders_for_all(&entry.path())?;
        }
    }
    Ok(())
}
