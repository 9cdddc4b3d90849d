//! The package installed on a machine with its own systemd: the service runs as its unit says, is
//! upgraded and removed, and leaves nothing when purged.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, time::Duration};

use synguard::model::{ServiceStatus, Snapshot};
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    flood::{FloodSpec, Kind, Rate},
    guest::Guest,
};

use crate::{
    client::{ECHO, HTTP, Talk, both, connect, exchange, serve},
    guard::{admitted, another_build, eventually},
    package::package,
};

const CONFIG: &str = "/etc/synguard/synguard.toml";
/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF.
const CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

/// A guest with the package on it.
struct Installed<'a> {
    guest: Guest,
    edge: &'a Edge,
}

impl Installed<'_> {
    #[track_caller]
    fn told(&self, script: &str) -> String {
        match self.guest.told(script) {
            Ok(told) => told.trim().to_owned(),
            Err(error) => panic!("{error:#}\n{}", self.journal()),
        }
    }

    /// Runs a script that must fail.
    #[track_caller]
    fn refused(&self, script: &str) {
        let output = self.guest.run(script).unwrap();
        assert!(!output.status.success(), "{script} succeeded");
    }

    fn journal(&self) -> String {
        let journal = self.guest.run("journalctl --no-pager --lines=60");
        String::from_utf8_lossy(&journal.unwrap().stdout).into_owned()
    }

    fn status(&self) -> Snapshot {
        serde_json::from_str(&self.told("synguard status --json")).unwrap()
    }

    /// What systemd says of the service.
    fn property(&self, name: &str) -> String {
        self.told(&format!(
            "systemctl show --value --property={name} synguard"
        ))
    }

    fn main_pid(&self) -> u32 {
        let pid = self.property("MainPID").parse().unwrap();
        assert_ne!(pid, 0, "no daemon runs\n{}", self.journal());
        pid
    }

    /// A field of /proc/PID/status of the daemon.
    fn process(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.main_pid());
        let status = fs::read_to_string(self.guest.path(&path)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    fn configure(&self, rest: &str) {
        let device = &self.edge.server_end.name;
        let text =
            format!("[daemon]\ninterfaces = [\"{device}\"]\nxdp_mode = \"native\"\n{rest}\n");
        fs::write(self.guest.path(CONFIG), text).unwrap();
    }

    fn guarded(&self) -> bool {
        self.edge.server_end.has_xdp().unwrap()
    }

    /// Everything whose path says that it is synguard's, and whoever is called so.
    fn traces(&self) -> BTreeSet<String> {
        let found = self.told(
            "find /etc /usr /var /run /sys/fs/bpf /tmp -xdev -name '*synguard*' \
             -not -path '/var/lib/dpkg/*' -not -path '/var/cache/man/*' -not -path '/tmp/*.deb'; \
             find /run -mindepth 2 -name '*synguard*'; \
             grep -H synguard /etc/passwd /etc/group /etc/shadow /etc/gshadow || true; \
             dpkg-query --show synguard 2>/dev/null || true",
        );
        found.lines().map(str::to_owned).collect()
    }
}

#[test]
fn package_lives_and_goes() {
    let name = "package_lives_and_goes";
    let Some(package) = package(name) else {
        return;
    };
    if let Some(reason) = Guest::impossible() {
        println!("SKIP {name}: {reason}");
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guest = Guest::boot(&edge.server).unwrap();
    let machine = Installed { guest, edge: &edge };
    let before = machine.traces();

    installs(&machine, &package);
    runs_as_its_unit_says(&machine);
    admits(&machine, both(HTTP)[0]);
    takes_an_encrypted_secret(&machine);
    reloads(&machine);
    watchdog_restarts(&machine);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    upgrades(&machine);
    talk.lives("through an upgrade");
    survives(&machine);
    stops_guarded(&machine);
    talk.lives("without a daemon");
    tunes(&machine);
    goes(&machine, &before);
    talk.finish();
}

/// Nobody is guarded before somebody says which interface.
fn installs(machine: &Installed<'_>, package: &Path) {
    fs::copy(package, machine.guest.path("/tmp/synguard.deb")).unwrap();
    let told = machine.told("dpkg --install /tmp/synguard.deb");
    assert!(told.contains("systemctl enable --now synguard"), "{told}");
    assert_eq!(machine.property("ActiveState"), "inactive");
    assert!(!machine.guarded());
    let told = machine.told("systemd-analyze verify synguard.service 2>&1");
    assert!(!told.contains("synguard"), "{told}");

    // Without an interface it says what to do, and systemd does not try again.
    machine.refused("systemctl start synguard");
    assert_eq!(machine.property("ActiveState"), "failed");
    let journal = machine.journal();
    assert!(
        journal.contains("there is no interface to guard"),
        "{journal}"
    );
}

fn runs_as_its_unit_says(machine: &Installed<'_>) {
    machine.configure("");
    let secret = "ab".repeat(32);
    machine.told(&format!(
        "mkdir -p /etc/credstore && umask 077 && echo {secret} >/etc/credstore/synguard-secret"
    ));
    // Type=notify: it succeeds once the daemon has said that it is ready.
    // Cleared away by somebody; and left by root, who ran the daemon by hand.
    machine.told("rmdir /sys/fs/bpf/synguard && touch /var/lib/synguard/history");
    machine.told("systemctl enable --now synguard");
    assert_eq!(machine.property("SubState"), "running");
    assert!(machine.guarded());

    let user = machine.told("id --user synguard");
    assert_ne!(user, "0");
    assert!(
        machine
            .process("Uid")
            .split_whitespace()
            .all(|id| id == user)
    );
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let have = u64::from_str_radix(&machine.process(set), 16).unwrap();
        assert_eq!(have, CAPABILITIES, "{set}: {have:#x}");
    }
    assert_eq!(machine.process("NoNewPrivs"), "1");
    assert_eq!(machine.process("Seccomp"), "2");
    // The credential was taken: none was made.
    machine.refused("test -e /var/lib/synguard/secret");
    assert_eq!(
        machine.told(
            "stat -c '%a %U' /var/lib/synguard /var/lib/synguard/history /run/synguard \
             /sys/fs/bpf/synguard"
        ),
        "700 synguard\n644 synguard\n750 synguard\n700 synguard"
    );
    // Whoever is in the group commands the daemon, nobody else.
    machine.told(
        "setpriv --reuid=65534 --regid=65534 --groups=$(id --group synguard) synguard status",
    );
    machine.refused("setpriv --reuid=65534 --regid=65534 --clear-groups synguard status");
}

fn admits(machine: &Installed<'_>, target: SocketAddr) {
    machine.told("synguard mode --all always");
    exchange(&connect(machine.edge, target), 1000);
    assert_eq!(admitted(&machine.status().services[0]), 1);
}

/// As docs/operations.md has it.
fn takes_an_encrypted_secret(machine: &Installed<'_>) {
    const FILE: &str = "/etc/synguard/secret.cred";
    const DROP_IN: &str = "/run/systemd/system/synguard.service.d";
    let secret = "cd".repeat(32);
    machine.told(&format!(
        "echo {secret} | systemd-creds encrypt --name=synguard-secret - {FILE} && \
         mkdir -p {DROP_IN} && \
         printf '[Service]\nLoadCredential=\nLoadCredentialEncrypted=synguard-secret:{FILE}\n' \
             >{DROP_IN}/secret.conf && \
         systemctl daemon-reload && systemctl restart synguard"
    ));
    let given = machine.told("cat /run/credentials/synguard.service/synguard-secret");
    assert_eq!(given, secret);
    machine.refused("test -e /var/lib/synguard/secret");
    machine.told(&format!(
        "rm -r {FILE} {DROP_IN} && systemctl daemon-reload && systemctl restart synguard"
    ));
}

fn reloads(machine: &Installed<'_>) {
    let daemon = machine.main_pid();
    machine.configure("[[service]]\nname = \"renamed\"");
    machine.told("systemctl reload synguard");
    eventually("the reload is applied", || {
        (machine.status().services[0].name == "renamed").then_some(())
    });
    // A mistake is found before the daemon hears of it.
    machine.configure("[[service]]\nnaem = \"x\"");
    machine.refused("systemctl reload synguard");
    assert!(machine.journal().contains("did you mean `name`?"));
    assert_eq!(machine.status().services[0].name, "renamed");
    assert_eq!(machine.main_pid(), daemon);
    machine.configure("");
}

/// The daemon pings in time; one that hangs is replaced.
fn watchdog_restarts(machine: &Installed<'_>) {
    machine.told(
        "mkdir -p /run/systemd/system/synguard.service.d && \
         printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=0\n' \
             >/run/systemd/system/synguard.service.d/hasty.conf && \
         systemctl daemon-reload && systemctl restart synguard && sleep 5",
    );
    let daemon = machine.main_pid();
    assert_eq!(machine.property("NRestarts"), "0", "{}", machine.journal());
    machine.told(&format!("kill -STOP {daemon}"));
    eventually("systemd restarts a daemon that hangs", || {
        let running = machine.property("SubState") == "running";
        (running && machine.property("NRestarts") == "1").then_some(())
    });
    assert_ne!(machine.main_pid(), daemon);
    assert!(machine.guarded());
    machine.told("rm -r /run/systemd/system/synguard.service.d && systemctl daemon-reload");
}

/// The new daemon takes the old one's place, and the configuration stays.
fn upgrades(machine: &Installed<'_>) {
    machine.configure("[[service]]\nname = \"mine\"");
    let old = machine.main_pid();
    let told = machine.told("dpkg --install /tmp/synguard.deb");
    assert!(!told.contains("guards nothing yet"), "{told}");
    assert_eq!(machine.property("SubState"), "running");
    assert_ne!(machine.main_pid(), old);
    assert!(machine.guarded());
    assert_eq!(machine.status().services[0].name, "mine");
}

/// Under a flood: another build, an end that nobody can prepare for, a restart, and a leave that cuts
/// nobody off. Who is connected stays so, and no counter goes back.
fn survives(machine: &Installed<'_>) {
    let edge = machine.edge;
    machine.configure(&format!(
        "[defaults]\nmode = \"always\"\n\
         [[service]]\nname = \"spliced\"\nports = [{ECHO}]\nadmission = \"proxy\"\n\
         [[service]]\nname = \"own\"\nports = [{HTTP}]\nadmission = \"local\""
    ));
    machine.told("systemctl reload synguard");
    // The first ones pass, and tell what the server offers.
    for target in both(ECHO) {
        Talk::start(edge, target).finish();
    }
    let spliced = both(ECHO).map(|target| Talk::start(edge, target));
    let own = both(HTTP).map(|target| connect(edge, target));
    let flood = edge.flood(FloodSpec {
        duration: Duration::from_secs(120),
        ..FloodSpec::new(Kind::Syn, Rate::Pps(50_000), both(HTTP)[0])
    });
    let flood = flood.unwrap();
    let mut counted = Vec::new();
    let mut all_is_well = |when: &str| {
        spliced.iter().for_each(|talk| talk.lives(when));
        own.iter().for_each(|stream| exchange(stream, 5000));
        let now = counters(&machine.status());
        for (name, count) in &counted {
            let later = now.iter().find(|(later, _)| later == name);
            let (_, later) = later.unwrap_or_else(|| panic!("{name} is gone {when}"));
            assert!(later >= count, "{name}: {count}, {later} {when}");
        }
        counted = now;
    };
    all_is_well("under a flood");

    let new = "/usr/bin/synguard.new";
    another_build(
        &machine.guest.path("/usr/bin/synguard"),
        &machine.guest.path(new),
    );
    machine.told(&format!(
        "mv {new} /usr/bin/synguard && systemctl restart synguard"
    ));
    assert!(
        machine.journal().contains("programs swapped"),
        "{}",
        machine.journal()
    );
    all_is_well("after an upgrade");

    let killed = machine.main_pid();
    machine.told(&format!("kill -KILL {killed}"));
    assert!(machine.guarded());
    eventually("systemd starts the next", || {
        let daemon = machine.property("MainPID");
        let another = daemon != "0" && daemon != killed.to_string();
        (another && machine.property("SubState") == "running").then_some(())
    });
    all_is_well("after it was killed");

    machine.told("systemctl restart synguard");
    all_is_well("after a restart");

    std::thread::scope(|scope| {
        let drain = scope.spawn(|| machine.told("synguard detach --drain --timeout 1m"));
        eventually("it drains", || machine.status().draining.then_some(()));
        spliced.iter().for_each(|talk| talk.lives("while draining"));
        spliced.into_iter().for_each(Talk::finish);
        let told = drain.join().unwrap();
        assert!(told.contains("drained"), "{told}");
    });
    assert!(!machine.guarded());
    own.iter().for_each(|stream| exchange(stream, 5000));
    assert!(!flood.is_finished());
    flood.stop().unwrap();
    machine.told("systemctl restart synguard");
    assert!(machine.guarded());
}

/// What is counted of each service, by name.
fn counters(status: &Snapshot) -> Vec<(String, u64)> {
    let of = |service: &ServiceStatus| {
        let name = service.name.clone();
        let packets = service.packets.iter();
        packets
            .map(|count| (format!("{name} {}", count.reason), count.packets))
            .chain([
                (format!("{name} syns"), service.syns),
                (format!("{name} expired"), service.expired_total),
                (format!("{name} guarded"), service.guarded_total),
            ])
            .collect::<Vec<_>>()
    };
    status.services.iter().flat_map(of).collect()
}

/// What is pinned outlives the service, and is the next one's.
fn stops_guarded(machine: &Installed<'_>) {
    machine.told("systemctl stop synguard");
    assert!(machine.guarded());
    machine.told("systemctl start synguard");
    let journal = machine.journal();
    assert!(
        !journal.contains("nothing outlives this daemon"),
        "{journal}"
    );
    machine.told("systemctl stop synguard");
}

/// The old settings are kept where the daemon's user cannot write; else they are not gone back to.
fn tunes(machine: &Installed<'_>) {
    const RECORD: &str = "/var/lib/synguard-tune/applied.json";
    machine.told("synguard tune --apply");
    assert_eq!(
        machine.told(&format!("stat -c '%a %U %G' $(dirname {RECORD}) {RECORD}")),
        "755 root root\n644 root root"
    );
    // Neither its upgrade nor its start changes that.
    machine.told("systemd-tmpfiles --create synguard.conf");
    machine.refused(&format!(
        "setpriv --reuid=synguard --regid=synguard --clear-groups sh -c 'echo >>{RECORD}'"
    ));
    machine.told(&format!("chown synguard {RECORD}"));
    machine.refused("synguard tune --revert");
    machine.told(&format!("chown root {RECORD} && synguard tune --revert"));
    // Applied it stays when the package goes, until that is purged.
    machine.told("synguard tune --apply");
}

fn goes(machine: &Installed<'_>, before: &BTreeSet<String>) {
    machine.told("dpkg --remove synguard");
    assert!(!machine.guarded());
    machine.refused("test -e /usr/bin/synguard");
    machine.told(&format!(
        "test -e {CONFIG} && test -e /etc/sysctl.d/60-synguard.conf"
    ));
    machine.told("dpkg --purge synguard && rm /tmp/synguard.deb /etc/credstore/synguard-secret");
    let left: Vec<_> = machine.traces().difference(before).cloned().collect();
    assert!(left.is_empty(), "left after purge: {left:#?}");
}
