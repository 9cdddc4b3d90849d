//! The whole of it on made-up machines.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;

use super::{advice::Standing, host::RECORD, *};

/// A machine below a directory, with these settings.
struct Machine {
    root: TempDir,
    host: Host,
}

const FILE: &str = "/etc/sysctl.d/60-synguard.conf";
const DEFAULTS: &[(&str, &str)] = &[
    ("net.ipv4.tcp_syncookies", "1"),
    ("net.ipv4.tcp_max_syn_backlog", "512"),
    ("net.core.somaxconn", "4096"),
    ("net.ipv4.tcp_synack_retries", "5"),
    ("net.ipv4.tcp_tw_reuse", "2"),
    ("net.ipv4.ip_local_port_range", "32768\t60999"),
];

impl Machine {
    fn new(gib: u64, settings: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys")).unwrap();
        let meminfo = format!("MemTotal: {} kB\nMemFree: 1 kB\n", gib << 20);
        fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
        let host = Host::new(root.path(), Path::new(FILE)).unwrap();
        let machine = Self { root, host };
        for (key, value) in settings {
            machine.set(key, value);
        }
        machine
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn sysctl(&self, key: &str) -> std::path::PathBuf {
        self.path("proc/sys").join(key.replace('.', "/"))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn set(&self, key: &str, value: &str) {
        self.write(
            &format!("proc/sys/{}", key.replace('.', "/")),
            &format!("{value}\n"),
        );
    }

    fn get(&self, key: &str) -> String {
        self.host.read(key).unwrap().value
    }

    fn all(&self) -> Vec<String> {
        DEFAULTS.iter().map(|(key, _)| self.get(key)).collect()
    }

    fn advice(&self, key: &str) -> Option<Advice> {
        let tuning = Tuning::of(&self.host);
        tuning.settings.into_iter().find(|a| a.setting == key)
    }

    fn apply(&self) -> anyhow::Result<Outcome> {
        apply(&self.host)
    }

    fn drop_in(&self) -> String {
        fs::read_to_string(self.path(FILE)).unwrap()
    }

    fn is_untouched(&self) -> bool {
        !self.path(FILE).exists() && !self.host.record().exists()
    }
}

#[test]
fn current_advised_and_why() {
    let machine = Machine::new(8, DEFAULTS);
    let backlog = machine.advice("net.ipv4.tcp_max_syn_backlog").unwrap();
    assert_eq!(backlog.current.as_deref(), Some("512"));
    assert_eq!(backlog.advised.as_deref(), Some("32768"));
    assert_eq!(backlog.status, Standing::Change);
    assert!(backlog.why.contains("4096 per GiB"), "{}", backlog.why);
    let cookies = machine.advice("net.ipv4.tcp_syncookies").unwrap();
    assert_eq!(cookies.status, Standing::Good);
    let ports = machine.advice("net.ipv4.ip_local_port_range").unwrap();
    assert_eq!(ports.current.as_deref(), Some("32768 60999"));
    assert_eq!(ports.advised.as_deref(), Some("16384 65535"));
    // What the kernel does not have is not advised.
    assert_eq!(machine.advice("net.netfilter.nf_conntrack_max"), None);
    machine.set("net.netfilter.nf_conntrack_max", "1000");
    let conntrack = machine.advice("net.netfilter.nf_conntrack_max").unwrap();
    assert_eq!(conntrack.advised.as_deref(), Some("1048576"));
}

#[test]
fn obsolete_settings_are_named_and_who_sets_them() {
    let machine = Machine::new(1, DEFAULTS);
    let recycle = machine.advice("net.ipv4.tcp_tw_recycle").unwrap();
    assert_eq!(
        (recycle.status, recycle.advised),
        (Standing::Obsolete, None)
    );
    assert!(recycle.why.contains("Linux 4.12") && recycle.why.contains("do not set it"));
    assert_eq!(machine.advice("net.ipv4.tcp_low_latency"), None);
    machine.write(
        "/etc/sysctl.d/99-guide.conf",
        "# faster!\nnet.ipv4.tcp_tw_recycle=1\nnet/ipv4/tcp_low_latency = 1\n",
    );
    for (key, line) in [
        ("net.ipv4.tcp_tw_recycle", 2),
        ("net.ipv4.tcp_low_latency", 3),
    ] {
        let why = machine.advice(key).unwrap().why;
        assert!(
            why.contains(&format!("/etc/sysctl.d/99-guide.conf:{line}")),
            "{why}"
        );
    }
}

#[test]
fn apply_and_revert() {
    let machine = Machine::new(2, DEFAULTS);
    let before = machine.all();
    let outcome = machine.apply().unwrap();
    assert_eq!(outcome.changed.len(), 5);
    assert_eq!(
        machine.all(),
        ["1", "8192", "8192", "3", "1", "16384 65535"]
    );
    let text = machine.drop_in();
    assert!(
        text.contains("\nnet.ipv4.tcp_synack_retries = 3\n"),
        "{text}"
    );
    assert!(text.contains("given up after 15 s"), "{text}");
    assert!(!text.contains("tcp_syncookies ="), "{text}");

    let outcome = revert(&machine.host).unwrap();
    assert_eq!((outcome.changed.len(), outcome.left.len()), (5, 0));
    assert_eq!(machine.all(), before);
    assert!(machine.is_untouched());
    let again = revert(&machine.host).unwrap_err().to_string();
    assert!(again.starts_with("nothing to revert"), "{again}");
}

#[test]
fn the_first_old_values_are_kept() {
    let machine = Machine::new(2, DEFAULTS);
    let before = machine.all();
    machine.apply().unwrap();
    let first = machine.drop_in();
    assert!(machine.apply().unwrap().changed.is_empty());
    assert_eq!(machine.drop_in(), first);

    // Worse again, by hand; and one better than advised.
    machine.set("net.ipv4.tcp_synack_retries", "6");
    machine.set("net.core.somaxconn", "20000");
    let outcome = machine.apply().unwrap();
    assert_eq!(outcome.changed.len(), 1);
    assert_eq!(machine.get("net.ipv4.tcp_synack_retries"), "3");
    assert!(machine.drop_in().contains("net.core.somaxconn = 20000\n"));
    revert(&machine.host).unwrap();
    assert_eq!(machine.all(), before);
}

#[test]
fn what_was_changed_by_hand_is_left_alone() {
    let machine = Machine::new(2, DEFAULTS);
    machine.apply().unwrap();
    machine.set("net.ipv4.tcp_synack_retries", "4");
    machine.set("net.core.somaxconn", "4096");
    fs::remove_file(machine.sysctl("net.ipv4.tcp_tw_reuse")).unwrap();
    let outcome = revert(&machine.host).unwrap();
    assert_eq!(machine.get("net.ipv4.tcp_synack_retries"), "4");
    let [retries, reuse] = outcome.left.as_slice() else {
        panic!("{:?}", outcome.left);
    };
    assert!(
        retries.contains("tcp_synack_retries") && retries.contains("3 was applied, 4 is set"),
        "{retries}"
    );
    assert!(reuse.contains("tcp_tw_reuse"), "{reuse}");
    // Only what was still as applied went back; what was back already needed nothing.
    let changed: Vec<&str> = outcome.changed.iter().map(|c| c.setting.as_str()).collect();
    assert_eq!(
        changed,
        [
            "net.ipv4.tcp_max_syn_backlog",
            "net.ipv4.ip_local_port_range"
        ]
    );
    assert!(machine.is_untouched());
}

/// A setting that the kernel refuses to change: a file that takes numbers from -1000 to 1000 only.
fn refuse(machine: &Machine, key: &str) {
    fs::remove_file(machine.sysctl(key)).unwrap();
    std::os::unix::fs::symlink("/proc/self/oom_score_adj", machine.sysctl(key)).unwrap();
}

#[test]
fn all_or_nothing() {
    // The last of them, so that all others are set by then.
    let machine = Machine::new(2, DEFAULTS);
    machine.set("net.core.netdev_budget_usecs", "2000");
    refuse(&machine, "net.core.netdev_budget_usecs");
    let before = machine.all();
    let error = machine.apply().unwrap_err().to_string();
    assert!(
        error.contains("net.core.netdev_budget_usecs to 8000")
            && error.ends_with("all else was put back"),
        "{error}"
    );
    assert_eq!(machine.all(), before);
    assert!(machine.is_untouched());

    // The second time what the first one left is left.
    fs::remove_file(machine.sysctl("net.core.netdev_budget_usecs")).unwrap();
    machine.apply().unwrap();
    let (after, text) = (machine.all(), machine.drop_in());
    let record = fs::read(machine.host.record()).unwrap();
    machine.set("net.ipv4.tcp_synack_retries", "6");
    machine.set("net.core.netdev_budget_usecs", "2000");
    refuse(&machine, "net.core.netdev_budget_usecs");
    machine.apply().unwrap_err();
    assert_eq!(machine.get("net.ipv4.tcp_synack_retries"), "6");
    machine.set("net.ipv4.tcp_synack_retries", "3");
    assert_eq!((machine.all(), machine.drop_in()), (after, text));
    assert_eq!(fs::read(machine.host.record()).unwrap(), record);
}

#[test]
fn a_revert_is_all_or_nothing_too() {
    let machine = Machine::new(2, DEFAULTS);
    machine.apply().unwrap();
    let (after, text) = (machine.all(), machine.drop_in());
    // Something that cannot be removed as a file is.
    fs::remove_file(machine.path(FILE)).unwrap();
    fs::create_dir_all(machine.path(FILE)).unwrap();
    let error = revert(&machine.host).unwrap_err().to_string();
    assert!(error.contains(FILE), "{error}");
    assert_eq!(machine.all(), after);
    fs::remove_dir(machine.path(FILE)).unwrap();
    machine.write(FILE, &text);
    revert(&machine.host).unwrap();
    assert!(machine.is_untouched());
}

#[test]
fn files_of_others_are_not_touched() {
    let machine = Machine::new(2, DEFAULTS);
    machine.write(FILE, "net.ipv4.tcp_syncookies = 2\n");
    let before = machine.all();
    let error = machine.apply().unwrap_err().to_string();
    assert!(error.contains("was not written by synguard"), "{error}");
    assert_eq!(machine.all(), before);

    fs::remove_file(machine.path(FILE)).unwrap();
    machine.apply().unwrap();
    let other = Host::new(machine.root.path(), Path::new("/etc/sysctl.d/70-x.conf")).unwrap();
    let error = apply(&other).unwrap_err().to_string();
    assert!(error.contains(FILE) && error.contains("--file"), "{error}");
    // A revert knows the file.
    revert(&other).unwrap();
    assert!(machine.is_untouched());
}

#[test]
fn what_undoes_it_at_boot_is_said() {
    let machine = Machine::new(2, DEFAULTS);
    machine.write("/etc/sysctl.d/10-early.conf", "net.core.somaxconn = 128\n");
    machine.write(
        "/usr/lib/sysctl.d/99-late.conf",
        "net.core.somaxconn = 128\n",
    );
    machine.write(
        "/etc/sysctl.conf",
        "# net.ipv4.tcp_tw_reuse = 0\n-net.ipv4.tcp_synack_retries = 5\nnet.ipv4.tcp_tw_reuse=1\n",
    );
    let outcome = machine.apply().unwrap();
    assert_eq!(
        outcome.undone_at_boot,
        [
            "/usr/lib/sysctl.d/99-late.conf:1 sets net.core.somaxconn to 128",
            "/etc/sysctl.conf:2 sets net.ipv4.tcp_synack_retries to 5",
        ]
    );
    // A file of the same name in /etc takes the place of the other.
    machine.write("/etc/sysctl.d/99-late.conf", "");
    assert_eq!(machine.apply().unwrap().undone_at_boot.len(), 1);
}

#[test]
fn an_image_gets_the_file_only() {
    let machine = Machine::new(2, &[]);
    fs::remove_dir_all(machine.path("proc/sys")).unwrap();
    let outcome = machine.apply().unwrap();
    assert!(outcome.changed.iter().all(|change| change.from.is_none()));
    assert_eq!(outcome.configuration.unwrap().advised, "16s");
    let text = machine.drop_in();
    assert!(text.contains("\nnet.core.somaxconn = 8192\n"), "{text}");
    assert!(!text.contains("nf_conntrack"), "{text}");
    assert!(!machine.path("proc/sys").exists());
    // Again: the same file.
    machine.apply().unwrap();
    assert_eq!(machine.drop_in(), text);
    revert(&machine.host).unwrap();
    assert!(machine.is_untouched());
}

#[test]
fn what_can_only_be_set_elsewhere_is_said() {
    let machine = Machine::new(2, &[("net.netfilter.nf_conntrack_max", "1000")]);
    let path = machine.sysctl("net.netfilter.nf_conntrack_max");
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    let advice = machine.advice("net.netfilter.nf_conntrack_max").unwrap();
    assert_eq!(advice.status, Standing::ReadOnly);
    let outcome = machine.apply().unwrap();
    assert_eq!((outcome.changed.len(), outcome.left.len()), (0, 1));
    assert!(machine.is_untouched());
}

#[test]
fn a_damaged_record_is_not_believed() {
    let machine = Machine::new(2, DEFAULTS);
    machine.write(RECORD, "{");
    for error in [
        machine.apply().unwrap_err(),
        revert(&machine.host).unwrap_err(),
    ] {
        assert!(error.to_string().contains("is damaged"), "{error:#}");
    }
}

/// Root would go back to whatever is written there.
#[test]
fn a_record_that_others_may_write_is_not_believed() {
    let machine = Machine::new(2, DEFAULTS);
    machine.apply().unwrap();
    let after = machine.all();
    let record = machine.host.record();
    for (path, mode) in [
        (record.clone(), 0o646),
        (record.clone(), 0o664),
        (record.parent().unwrap().to_owned(), 0o775),
    ] {
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set(mode);
        for error in [
            machine.apply().unwrap_err(),
            revert(&machine.host).unwrap_err(),
        ] {
            let error = error.to_string();
            let expected = format!("{} is not believed", path.display());
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.contains(&format!("mode {mode:o}")), "{error}");
        }
        assert_eq!(machine.all(), after);
        set(if path.is_dir() { 0o755 } else { 0o644 });
    }
    // Nor one that lies elsewhere.
    let (kept, elsewhere) = (record.parent().unwrap(), machine.path("elsewhere"));
    fs::rename(kept, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, kept).unwrap();
    let error = revert(&machine.host).unwrap_err().to_string();
    assert!(error.starts_with("cannot open"), "{error}");
    fs::remove_file(kept).unwrap();
    fs::rename(&elsewhere, kept).unwrap();
    revert(&machine.host).unwrap();
    assert!(machine.is_untouched());
}

#[test]
fn a_drop_in_that_nobody_would_read_is_refused() {
    for (file, said) in [
        ("60-x.conf", "absolute path"),
        ("/etc/sysctl.d/60-x", "ends in .conf"),
        ("/etc/60-x.conf", "would not be read at boot"),
        ("/etc/sysctl.d/../60-x.conf", "would not be read at boot"),
    ] {
        let error = Host::new(Path::new("/"), Path::new(file)).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    Host::new(Path::new("/"), Path::new("/usr/lib/sysctl.d/60-x.conf")).unwrap();
}

#[test]
fn the_half_open_timeout_that_fits_is_told() {
    let machine = Machine::new(2, DEFAULTS);
    let told = |fit: &Option<Fit>| {
        let fit = fit.as_ref()?;
        assert_eq!(fit.key, "half_open_timeout");
        let current: Vec<String> = fit
            .current
            .iter()
            .map(|(k, v)| format!("{k} {v}"))
            .collect();
        Some(format!("{}: {}", fit.advised, current.join(", ")))
    };
    // The built-in configuration fits the kernel's default, and not the advice.
    let tuning = Tuning::of(&machine.host);
    assert_eq!(told(&tuning.configuration).unwrap(), "16s: default 64s");
    let text = render_advice(&tuning).unwrap();
    assert!(text.contains("half_open_timeout = \"16s\""), "{text}");
    let outcome = machine.apply().unwrap();
    assert_eq!(told(&outcome.configuration).unwrap(), "16s: default 64s");

    // Each service for itself, but for those whose servers are elsewhere.
    const CONFIG: &str = "/etc/synguard/synguard.toml";
    machine.write(
        CONFIG,
        "[defaults]\nhalf_open_timeout = \"16s\"\n[[service]]\nname = \"a\"\nports = [1]\n\
         [[service]]\nname = \"b\"\nports = [2]\nhalf_open_timeout = 64\n\
         [[service]]\nname = \"c\"\nports = [3]\nhalf_open_timeout = 64\nadmission = \"proxy\"\n",
    );
    let told_now = || told(&Tuning::of(&machine.host).configuration);
    assert_eq!(told_now().unwrap(), "16s: b 64s");
    machine.write(CONFIG, "[defaults]\nhalf_open_timeout = \"16s\"\n");
    assert_eq!(told_now(), None);
    let reverted = revert(&machine.host).unwrap();
    assert_eq!(told(&reverted.configuration).unwrap(), "64s: default 16s");
    // Mistakes are for `config check`.
    machine.write(CONFIG, "[defaults\n");
    assert_eq!(told_now(), None);
}

#[test]
fn it_all_fits_80_columns() {
    let machine = Machine::new(2, DEFAULTS);
    machine.set(
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "432000",
    );
    machine.write("/etc/sysctl.conf", "net.ipv4.tcp_tw_recycle = 1\n");
    let advice = render_advice(&Tuning::of(&machine.host)).unwrap();
    let outcome = render_outcome(&machine.apply().unwrap(), false).unwrap();
    for text in [&advice, &outcome] {
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
    assert!(
        advice.contains("net.ipv4.tcp_synack_retries          5 -> 3\n"),
        "{advice}"
    );
    assert!(
        advice.contains("6 to change: `synguard tune --apply`"),
        "{advice}"
    );
    assert!(
        outcome.contains(&format!("6 changed, and at every boot by {FILE}\n")),
        "{outcome}"
    );
}
