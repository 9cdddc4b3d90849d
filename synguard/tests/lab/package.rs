//! The Debian package: what is in it, and what the tools of those who will use its files say to
//! them. [`crate::installed`] installs it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use synguard_lab::skip_unless_root;
use tempfile::TempDir;

/// Variable by which `cargo xtask test` names the package.
const VARIABLE: &str = "SYNGUARD_DEB";

/// The package, or a line that says why the test `name` cannot run.
pub fn package(name: &str) -> Option<PathBuf> {
    if !skip_unless_root(name) {
        return None;
    }
    let path = std::env::var_os(VARIABLE).map(PathBuf::from);
    if path.is_none() {
        println!("SKIP {name}: {VARIABLE} names no package; `cargo xtask test` makes one");
    }
    path
}

/// The package's files, unpacked.
fn unpacked(package: &Path) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut dpkg = Command::new("dpkg-deb");
    said(dpkg.arg("--raw-extract").arg(package).arg(root.path()));
    root
}

/// What a command prints, which must succeed.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = both(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn both(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Whether a program is there that a check needs; says so where it is not.
fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIP {program}: not installed");
    }
    found
}

/// Every file below a folder, with its mode.
fn files(root: &Path) -> Vec<(String, u32)> {
    let mut files = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
            if path.is_dir() {
                assert_eq!(mode & 0o7777, 0o755, "{}", path.display());
                waiting.push(path);
            } else {
                let inside = path.strip_prefix(root).unwrap();
                files.push((inside.to_str().unwrap().to_owned(), mode & 0o7777));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn package_has_what_it_should() {
    let Some(package) = package("package_has_what_it_should") else {
        return;
    };
    let root = unpacked(&package);
    let files = files(root.path());
    for (path, mode) in &files {
        let expected = match path.as_str() {
            "usr/bin/synguard" | "DEBIAN/postinst" | "DEBIAN/prerm" | "DEBIAN/postrm" => 0o755,
            _ => 0o644,
        };
        assert_eq!(*mode, expected, "{path}");
        // Purging is checked by name.
        assert!(
            path.contains("synguard") || path.starts_with("DEBIAN/"),
            "{path}"
        );
    }
    let has = |path: &str| files.iter().any(|(p, _)| p == path);
    for path in [
        "etc/synguard/synguard.toml",
        "usr/bin/synguard",
        "usr/lib/systemd/system/synguard-prepare.service",
        "usr/lib/systemd/system/synguard.service",
        "usr/lib/sysusers.d/synguard.conf",
        "usr/lib/tmpfiles.d/synguard.conf",
        "usr/share/bash-completion/completions/synguard",
        "usr/share/doc/synguard/NOTICES.gz",
        "usr/share/doc/synguard/changelog.gz",
        "usr/share/doc/synguard/copyright",
        "usr/share/doc/synguard/operations.md.gz",
        "usr/share/fish/vendor_completions.d/synguard.fish",
        "usr/share/man/man1/synguard-config-check.1.gz",
        "usr/share/man/man1/synguard.1.gz",
        "usr/share/man/man5/synguard.toml.5.gz",
        "usr/share/zsh/vendor-completions/_synguard",
    ] {
        assert!(has(path), "no {path} in {files:#?}");
    }

    // What is in the sources for other programs is in the package too.
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for folder in ["prometheus", "grafana"] {
        let Ok(entries) = fs::read_dir(deploy.join(folder)) else {
            continue;
        };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let inside = format!("usr/share/synguard/{folder}/{name}");
            assert!(root.path().join(&inside).exists(), "no {inside}");
        }
    }

    let field = |name: &str| {
        said(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(&package)
                .arg(name),
        )
    };
    assert_eq!(field("Version").trim(), env!("CARGO_PKG_VERSION"));
    let depends = field("Depends");
    assert!(depends.contains("libc6 (>= 2."), "{depends}");
    let conffiles = fs::read_to_string(root.path().join("DEBIAN/conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/synguard/synguard.toml\n");
    said(
        Command::new("md5sum")
            .args(["--check", "--strict", "--quiet", "DEBIAN/md5sums"])
            .current_dir(root.path()),
    );
    for script in ["postinst", "prerm", "postrm"] {
        said(
            Command::new("sh")
                .arg("-n")
                .arg(root.path().join("DEBIAN").join(script)),
        );
    }

    // The shipped configuration is valid, and guards nothing yet.
    let binary = root.path().join("usr/bin/synguard");
    let config = root.path().join("etc/synguard/synguard.toml");
    said(Command::new(&binary).args(["config", "check"]).arg(&config));
    let run = Command::new(&binary)
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(2));
    let told = both(&run);
    assert!(told.contains("interfaces = [\"eth0\"]"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn manual_pages_and_completions_are_sound() {
    let Some(package) = package("manual_pages_and_completions_are_sound") else {
        return;
    };
    let root = unpacked(&package);
    let mut pages = 0;
    for (path, _) in files(root.path()) {
        if path.starts_with("usr/share/man/") {
            // It reads compressed pages too. What it calls style is about the source.
            let mut mandoc = Command::new("mandoc");
            mandoc
                .args(["-T", "lint", "-W", "warning"])
                .arg(root.path().join(&path));
            let told = both(&mandoc.output().unwrap());
            // Which clap_mangen writes around lists of values, and which nobody sees.
            let told: Vec<_> = told
                .lines()
                .filter(|line| !line.contains("skipping paragraph macro: br "))
                .collect();
            assert!(told.is_empty(), "{path}: {told:#?}");
            pages += 1;
        }
    }
    assert!(pages > 8, "{pages} pages");
    for (shell, argument, script) in [
        (
            "bash",
            "-n",
            "usr/share/bash-completion/completions/synguard",
        ),
        ("zsh", "-n", "usr/share/zsh/vendor-completions/_synguard"),
        (
            "fish",
            "--no-execute",
            "usr/share/fish/vendor_completions.d/synguard.fish",
        ),
    ] {
        let script = root.path().join(script);
        let text = fs::read_to_string(&script).unwrap();
        assert!(
            text.contains("xdp-mode") && text.contains("reload"),
            "{shell}"
        );
        if have(shell) {
            said(Command::new(shell).arg(argument).arg(&script));
        }
    }
}

#[test]
fn unit_is_valid_and_confined() {
    let Some(package) = package("unit_is_valid_and_confined") else {
        return;
    };
    if !have("systemd-analyze") {
        return;
    }
    let root = unpacked(&package);
    let unit = root.path().join("usr/lib/systemd/system/synguard.service");
    // Whether what it names is there is seen where it is installed.
    let mut analyze = Command::new("systemd-analyze");
    analyze
        .args(["security", "--offline=true", "--threshold=30", "--no-pager"])
        .arg(&unit);
    let told = said(&mut analyze);
    println!("{}", told.trim().lines().last().unwrap());
}
