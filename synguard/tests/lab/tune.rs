//! `synguard tune` on the settings of a namespace: applied, taken back, and never those of the machine.

use std::{
    fs,
    os::unix::fs::{chown, symlink},
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use synguard_lab::{netns::Netns, skip_unless_root};
use tempfile::TempDir;

use crate::guard::binary;

/// Where the old values are kept.
const RECORD: &str = "var/lib/synguard-tune/applied.json";

/// Settings that every namespace has for itself, with values that are not as advised.
const OWN: [(&str, &str); 5] = [
    ("net.ipv4.tcp_syncookies", "0"),
    ("net.ipv4.tcp_synack_retries", "6"),
    ("net.ipv4.tcp_fin_timeout", "61"),
    ("net.ipv4.ip_local_port_range", "40000 50001"),
    ("net.core.somaxconn", "129"),
];

/// A namespace, and a root below which everything is but `/proc`, which is the namespace's own.
struct Site {
    ns: Netns,
    root: TempDir,
}

impl Site {
    fn new() -> Self {
        let ns = Netns::create("tune").unwrap();
        for (key, value) in OWN {
            ns.set_sysctl(key, value).unwrap();
        }
        let root = tempfile::tempdir().unwrap();
        symlink("/proc", root.path().join("proc")).unwrap();
        Self { ns, root }
    }

    fn tune(&self, arguments: &[&str]) -> Output {
        let run = || {
            let mut command = Command::new(binary());
            command.arg("tune").arg("--root").arg(self.root.path());
            Ok(command.args(arguments).output()?)
        };
        self.ns.run(run).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.tune(&[&["--json"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn values(&self) -> Vec<String> {
        let read = |(key, _): &(&str, &str)| self.ns.sysctl(key).unwrap().replace('\t', " ");
        OWN.iter().map(read).collect()
    }
}

/// What the machine itself has set.
fn of_the_machine() -> Vec<String> {
    let read = |(key, _): &(&str, &str)| {
        fs::read_to_string(Path::new("/proc/sys").join(key.replace('.', "/"))).unwrap()
    };
    OWN.iter().map(read).collect()
}

#[test]
fn settings_are_applied_and_taken_back() {
    if !skip_unless_root("settings_are_applied_and_taken_back") {
        return;
    }
    let machine = of_the_machine();
    let site = Site::new();
    let before = site.values();

    let advice = site.json(&[]);
    let settings = advice["settings"].as_array().unwrap();
    let of = |key: &str| settings.iter().find(|s| s["setting"] == key).unwrap();
    let retries = of("net.ipv4.tcp_synack_retries");
    assert_eq!(
        (&retries["current"], &retries["advised"]),
        (&"6".into(), &"3".into())
    );
    assert_eq!(retries["status"], "change");
    assert_eq!(of("net.ipv4.tcp_tw_recycle")["status"], "obsolete");
    assert_eq!(site.values(), before, "looking has changed something");

    let outcome = site.json(&["--apply"]);
    let changed = outcome["changed"].as_array().unwrap().len();
    assert!(changed >= OWN.len(), "{outcome}");
    let applied = site.values();
    assert_eq!(applied[..4], ["1", "3", "30", "16384 65535"]);
    assert!(applied[4].parse::<u32>().unwrap() >= 4096, "{applied:?}");
    let file = site.root.path().join("etc/sysctl.d/60-synguard.conf");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("\nnet.ipv4.tcp_synack_retries = 3\n"),
        "{text}"
    );
    // As sysctl(8) understands it, where it is installed.
    if let Ok(output) = site.ns.run(|| {
        let mut command = Command::new("sysctl");
        Ok(command.arg("--load").arg(&file).output()?)
    }) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
        assert_eq!(site.values(), applied);
    }

    // Again, after a hand has made one worse: the first old values are kept.
    site.ns.set_sysctl("net.ipv4.tcp_fin_timeout", 50).unwrap();
    let again = site.json(&["--apply"]);
    assert_eq!(again["changed"].as_array().unwrap().len(), 1, "{again}");
    assert_eq!(site.values(), applied);

    // What somebody else may have written is not gone back to.
    let record = site.root.path().join(RECORD);
    for path in [record.parent().unwrap(), &record] {
        let own = |user| chown(path, Some(user), None).unwrap();
        own(65_534);
        let output = site.tune(&["--revert"]);
        own(0);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("is not believed") && said.contains("owner 65534"),
            "{said}"
        );
    }
    assert_eq!(site.values(), applied);

    // A hand again, and then back.
    site.ns
        .set_sysctl("net.ipv4.tcp_synack_retries", 4)
        .unwrap();
    let outcome = site.json(&["--revert"]);
    let left = outcome["left"].as_array().unwrap();
    assert_eq!(left.len(), 1, "{outcome}");
    assert!(
        left[0].as_str().unwrap().contains("tcp_synack_retries"),
        "{outcome}"
    );
    let mut expected = before;
    expected[1] = "4".into();
    assert_eq!(site.values(), expected);
    assert!(!file.exists());
    assert!(!site.root.path().join(RECORD).exists());

    let nothing = site.tune(&["--revert"]);
    assert_eq!(nothing.status.code(), Some(1));
    let said = String::from_utf8(nothing.stderr).unwrap();
    assert!(said.starts_with("synguard: nothing to revert"), "{said}");
    assert_eq!(said.lines().count(), 1);
    assert_eq!(of_the_machine(), machine);
}

/// The drop-in cannot be written: nothing is set, and no file is left.
#[test]
fn settings_are_applied_all_or_none() {
    if !skip_unless_root("settings_are_applied_all_or_none") {
        return;
    }
    let site = Site::new();
    let before = site.values();
    // A file in the way of its directory.
    fs::write(site.root.path().join("etc"), "").unwrap();
    let output = site.tune(&["--apply"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("60-synguard.conf"), "{said}");
    assert_eq!(site.values(), before);
    assert!(!site.root.path().join(RECORD).exists());
}
