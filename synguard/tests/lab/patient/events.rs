//! The journal: what it says of an attack is what the counters say, followers see it at once, and
//! it outlives the daemon.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use synguard::journal::{Event, Kind};
use synguard_common::verdict::Reason;
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    flood::{FloodSpec, Kind as Flood, Rate},
    skip_unless_root,
};

use crate::{
    client::{HTTP, both, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted, binary, challenged, packets, within},
};

/// Longer than a service is held guarded after a flood, and calm after that.
const CALM: Duration = Duration::from_secs(60);

/// `synguard events --json` with further arguments.
#[track_caller]
fn events(guard: &Guard, arguments: &[&str]) -> Vec<Event> {
    let told = guard.told(&[&["events", "--json"], arguments].concat());
    let event = |line: &str| serde_json::from_str(line).unwrap();
    told.lines().map(event).collect()
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

fn is(event: &Event, kind: Kind) -> bool {
    event.kind == kind.label()
}

/// `synguard events --follow --json`, from the first event on.
struct Follower {
    child: Child,
    events: Receiver<Event>,
}

impl Follower {
    fn start(guard: &Guard) -> Self {
        let mut child = Command::new(binary())
            .args(["events", "--follow", "--json", "-n", "1000", "--socket"])
            .arg(guard.socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap();
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { child, events }
    }

    /// The next event of this kind.
    #[track_caller]
    fn wait_for(&self, kind: Kind, limit: Duration) -> Event {
        within(limit, kind.label(), || {
            self.events.try_iter().find(|event| is(event, kind))
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn an_attack_is_told_with_what_the_counters_say() {
    if !skip_unless_root("an_attack_is_told_with_what_the_counters_say") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let config = "[defaults]\nhigh = 64\nlow = 40\nhalf_open_timeout = 5\n";
    let guard = Guard::with_config(&edge, config, &[]);
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    let before = guard.service();
    let follower = Follower::start(&guard);
    let spec = FloodSpec {
        frames: 20_000,
        ..FloodSpec::new(Flood::Mixed, Rate::Pps(5000), both(HTTP)[0])
    };
    let flood = edge.flood(spec).unwrap();
    let began = follower.wait_for(Kind::AttackBegan, PATIENCE);
    assert_eq!(began.service.as_deref(), Some("default"));
    assert_eq!(began.details["high"], 64);
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    flood.wait().unwrap();

    let ended = follower.wait_for(Kind::AttackEnded, CALM);
    let after = guard.service();
    assert_eq!(after.state, "calm");
    let number = |name: &str| ended.details[name].as_u64().unwrap();
    assert_eq!(ended.details["reason"], "calm");
    assert_eq!(number("challenged"), challenged(&after));
    assert_eq!(number("admitted"), admitted(&after));
    assert_eq!(number("admitted"), 1);
    let dropped: u64 = after
        .packets
        .iter()
        .filter(|count| count.action == "drop")
        .map(|count| count.packets)
        .sum();
    assert!(dropped > 5000, "{after:?}");
    // The counters of the last tick before: it may have seen the first frames of the flood.
    let syns = after.syns - before.syns;
    let slack = 5000;
    for (name, counted) in [("syns", syns), ("dropped", dropped)] {
        let told = number(name);
        assert!(
            told <= counted && told + slack > counted,
            "{name}: {told} of {counted}"
        );
    }
    let peak = number("peak_half_open");
    assert!((64..=80).contains(&peak), "{ended:?}");
    assert!(number("peak_projected") > 500, "{ended:?}");
    let duration = ended.details["duration_seconds"].as_f64().unwrap();
    assert!((15.0..CALM.as_secs_f64()).contains(&duration), "{ended:?}");
    assert!(packets(&after, Reason::SynCrossed) == 1, "{after:?}");

    // The log has the same sentence, and so has the page.
    for event in [&began, &ended] {
        let log = guard.process.log();
        assert!(log.contains(&event.message), "{} in {log}", event.message);
    }
    let page = guard.told(&["events", "--kind", "attack_ended"]);
    assert!(page.contains("service default is calm"), "{page}");
    assert!(
        page.lines().all(|line| line.chars().count() <= 80),
        "{page}"
    );
}

#[test]
fn events_outlive_the_daemon_and_followers_wait_for_the_next() {
    if !skip_unless_root("events_outlive_the_daemon_and_followers_wait_for_the_next") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::start(&edge, &[]);
    let follower = Follower::start(&guard);
    guard.set_mode("always");
    follower.wait_for(Kind::ModeChanged, PATIENCE);
    let first = events(&guard, &[]);
    assert_eq!(
        kinds(&first),
        ["attached", "daemon_started", "mode_changed"]
    );

    // Keys are rotated all the time: only told if asked for.
    let keys = events(&guard, &["--kind", "key_rotated"]);
    assert_eq!(keys[0].details["written"], 4);
    let all = events(&guard, &["--all", "-n", "1000"]);
    assert!(all.len() >= first.len() + keys.len(), "{all:?}");

    // An end that nobody can prepare for. Keys that are in place are taken over.
    guard.kill();
    guard.again();
    let guard = guard.ready();
    follower.wait_for(Kind::ProgramAdopted, PATIENCE);
    let second = events(&guard, &[]);
    assert_eq!(second[..3], first);
    assert_eq!(kinds(&second[3..]), ["program_adopted", "daemon_started"]);
    let numbers: Vec<u64> = second.iter().map(|event| event.seq).collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "{numbers:?}"
    );

    // Told in its own namespace, by metrics and status alike.
    assert_eq!(guard.status().events["daemon_started"], 1);
    assert_eq!(guard.status().events["attack_began"], 0);
}

/// The next daemon goes on with the attack that the one before has told of.
#[test]
fn an_attack_outlives_the_daemon() {
    if !skip_unless_root("an_attack_outlives_the_daemon") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let config = "[defaults]\nhigh = 64\nlow = 40\nhalf_open_timeout = 5\n";
    let mut guard = Guard::with_config(&edge, config, &[]);
    let follower = Follower::start(&guard);
    let flood = || {
        let spec = FloodSpec {
            frames: 5000,
            ..FloodSpec::new(Flood::Syn, Rate::Pps(5000), both(HTTP)[0])
        };
        edge.flood(spec).unwrap().wait().unwrap();
    };
    flood();
    follower.wait_for(Kind::AttackBegan, PATIENCE);
    guard.kill();
    flood();
    guard.again();
    let guard = guard.ready();
    let ended = follower.wait_for(Kind::AttackEnded, CALM);
    let service = guard.service();
    assert!(challenged(&service) > 8000, "{service:?}");
    assert_eq!(ended.details["challenged"], challenged(&service));
    let all = events(&guard, &["--kind", "attack_began"]);
    assert_eq!(all.len(), 1, "{all:?}");
}

#[test]
fn what_changes_is_told() {
    if !skip_unless_root("what_changes_is_told") {
        return;
    }
    const WEB: &str =
        "[defaults]\nadmission = \"local\"\n[[service]]\nname = \"web\"\nports = [80]\n";
    const REST: &str = "[[service]]\nname = \"rest\"\n";
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let guard = Guard::with_config(&edge, &format!("{WEB}{REST}"), &["--mode", "always"]);
    let follower = Follower::start(&guard);
    let told = |kind| follower.wait_for(kind, 2 * PATIENCE);

    // A listener comes, and with it a threshold.
    let server = serve(&edge);
    let changed = told(Kind::ThresholdChanged);
    assert_eq!(changed.details["old_high"], 512);
    assert!(changed.message.contains("listen backlog"), "{changed:?}");

    edge.server
        .set_sysctl("net.ipv4.tcp_syncookies", 0)
        .unwrap();
    let lost = told(Kind::AdmissionLost);
    assert!(lost.message.contains("tcp_syncookies is 0"), "{lost:?}");
    edge.server
        .set_sysctl("net.ipv4.tcp_syncookies", 1)
        .unwrap();
    assert_eq!(told(Kind::AdmissionRegained).details["admission"], "local");

    guard.rewrite_config(&format!("{WEB}high = 99\n[[service]]\nname = \"mail\"\n"));
    guard.told(&["reload"]);
    let removed = told(Kind::ServiceRemoved);
    assert_eq!(removed.service.as_deref(), Some("rest"));
    assert_eq!(told(Kind::ServiceChanged).service.as_deref(), Some("web"));
    assert_eq!(told(Kind::ServiceAdded).service.as_deref(), Some("mail"));
    let reloaded = told(Kind::ConfigReloaded);
    assert_eq!(
        reloaded.details["changes"],
        "added mail; changed web; removed rest"
    );
    guard.rewrite_config("[defaults]\nmode = 1\n");
    guard.command(&["reload"]);
    assert!(
        told(Kind::ConfigRefused)
            .message
            .contains("synguard.toml:2:8")
    );

    let device = edge.server_end.name.clone();
    guard.told(&["detach", &device]);
    assert_eq!(told(Kind::Detached).interface.as_ref(), Some(&device));
    guard.told(&["attach", &device]);
    assert_eq!(told(Kind::Attached).details["xdp_mode"], "native");
    let deleted = edge.server.run(|| {
        let delete = ["link", "delete", &device];
        Ok(Command::new("ip").args(delete).status()?)
    });
    assert!(deleted.unwrap().success());
    let gone = told(Kind::InterfaceGone);
    assert_eq!(gone.interface.as_ref(), Some(&device));
    drop(server);
}
