//! What outlives the daemon: the guard, its connections and its counters, however the daemon ends and
//! whatever comes next.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use synguard_common::{abi::map, verdict::Reason};
use synguard_lab::{
    flood::{Flood, FloodSpec, Kind, Rate},
    load::{LoadClient, LoadOptions, Pattern},
    topology::Shape,
};

use crate::{
    client::{ECHO, HTTP, Talk, exchange},
    guard::{Guard, PATIENCE, challenged, eventually, packets, within},
    proxy_site::{Place, Site},
};

/// Where connections are spliced, and where they are the box's own.
const PLACES: [(Place, &str); 2] = [
    (Place::Behind(Shape::Routed), "proxy"),
    (Place::OnEdge, "local"),
];

/// The objects whose programs are pinned.
fn objects(guard: &Guard) -> Vec<OsString> {
    let entries = fs::read_dir(guard.pins().join("current/programs")).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Starts a guard that knows its server and is in mode `always`, as its file says, too.
fn always(site: &Site, admission: &str) -> Guard {
    let guard = site.guard_by(admission, "", "", &[]);
    if admission == "proxy" {
        site.teach(&guard);
    }
    let [v4, v6] = site.both(0).map(|address| address.ip());
    guard.rewrite_config(&format!(
        "[[service]]\nname = \"web\"\naddresses = [\"{v4}\", \"{v6}\"]\nmode = \"always\"\n\
         admission = \"{admission}\"\n"
    ));
    guard.told(&["reload"]);
    guard
}

fn talks(site: &Site) -> Vec<Talk> {
    let connect = |target| Talk::over(site.connect(target));
    site.both(ECHO).map(connect).into()
}

fn flood(site: &Site, rate: Rate, seconds: u64) -> Flood {
    let spec = FloodSpec {
        duration: Duration::from_secs(seconds),
        ..FloodSpec::new(Kind::Syn, rate, site.dial(false, HTTP))
    };
    match site {
        Site::Behind(topology) => topology.flood(spec),
        Site::OnEdge(edge) => edge.flood(spec),
    }
    .unwrap()
}

fn clients(site: &Site, target: SocketAddr, seconds: u64) -> LoadClient {
    let load = LoadOptions {
        duration: Duration::from_secs(seconds),
        limit: PATIENCE,
        ..LoadOptions::new(target, Pattern::Open(100))
    };
    LoadClient::start(site.client(), load).unwrap()
}

/// Killed, it leaves the interface guarded; the next one takes over within a second, and nobody notices.
#[test]
fn a_killed_daemon_leaves_the_interface_guarded() {
    let what = "a_killed_daemon_leaves_the_interface_guarded";
    for (place, admission) in PLACES {
        if !place.is_possible(what) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        let mut guard = always(&site, admission);
        let talks = talks(&site);
        let live = |when: &str| talks.iter().for_each(|talk| talk.lives(when));
        let clients = clients(&site, site.dial(true, HTTP), 60);
        let before = guard.service();

        guard.kill();
        assert!(site.guarded().has_xdp().unwrap(), "{place:?}: not guarded");
        live("after the daemon was killed");
        for target in site.both(HTTP) {
            exchange(&site.connect(target), 5000);
        }
        std::thread::sleep(Duration::from_millis(500));
        live("while there is no daemon");

        let begin = Instant::now();
        guard.again();
        guard.wait_until_ready();
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(1), "{place:?}: {took:?}");
        let log = guard.process.log();
        assert!(log.contains("still guarding"), "{log}");
        let after = guard.service();
        assert_eq!(after.state, "guarded", "{after:?}");
        assert!(
            challenged(&after) >= challenged(&before) + 2,
            "{place:?}: the counters begin anew: {before:?} {after:?}"
        );
        assert_eq!(after.server, before.server, "{place:?}");
        live("after the next daemon came");
        for target in site.both(HTTP) {
            exchange(&site.connect(target), 5000);
        }

        let report = clients.stop().unwrap();
        assert!(report.attempted > 20, "{report:?}");
        assert_eq!(report.failed(), 0, "{place:?}: {report:?}");
        talks.into_iter().for_each(Talk::finish);
        guard.stop();
        assert!(!site.guarded().has_xdp().unwrap(), "{place:?}: left behind");
    }
}

/// A new build takes over, and its programs take the place of the old ones.
#[test]
fn another_build_swaps_the_programs() {
    let what = "another_build_swaps_the_programs";
    for (place, admission) in PLACES {
        if !place.is_possible(what) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        let mut guard = always(&site, admission);
        let talks = talks(&site);
        let clients = clients(&site, site.dial(true, HTTP), 60);
        let before = objects(&guard);
        let another = guard.another_build();
        guard.binary = another;
        guard.end(Signal::SIGTERM);
        guard.again();
        guard.wait_until_ready();
        let log = guard.process.log();
        assert!(log.contains("programs swapped"), "{log}");
        let after = objects(&guard);
        assert_eq!((before.len(), after.len()), (1, 1), "{before:?} {after:?}");
        assert_ne!(before, after);
        for target in site.both(HTTP) {
            exchange(&site.connect(target), 5000);
        }
        talks.iter().for_each(|talk| talk.lives("after the swap"));
        let report = clients.stop().unwrap();
        assert_eq!(report.failed(), 0, "{place:?}: {report:?}");
        talks.into_iter().for_each(Talk::finish);
        guard.stop();
    }
}

/// Stopped as a service manager stops it, too; and taken off by command when nobody runs.
#[test]
fn what_is_left_behind_is_taken_off_by_command() {
    let place = Place::Behind(Shape::Routed);
    if !place.is_possible("what_is_left_behind_is_taken_off_by_command") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    let mut guard = always(&site, "proxy");
    let talk = Talk::over(site.connect(site.dial(false, ECHO)));
    guard.end(Signal::SIGTERM);
    talk.lives("after the daemon was stopped");
    let pins = guard.pins();
    let detach = |arguments: &[&str]| {
        let pins = ["detach", "--pins", pins.to_str().unwrap()];
        guard.command(&[&pins, arguments].concat())
    };
    let refused = detach(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(
        said.contains("1 spliced connections would be cut"),
        "{said}"
    );
    assert!(said.contains("--drain"), "{said}");
    talk.lives("though somebody tried to take the guard off");
    // It does not end by itself: waited for, then cut.
    let drained = detach(&["--drain", "--timeout", "4s"]);
    let said = String::from_utf8(drained.stderr).unwrap();
    assert!(
        drained.status.success() && said.contains("1 spliced"),
        "{said}"
    );
    assert!(!site.guarded().has_xdp().unwrap(), "left behind");
    let nothing = detach(&["--now"]);
    let said = String::from_utf8(nothing.stdout).unwrap();
    assert!(said.contains("none has left anything behind"), "{said}");
    // Nobody guards: connections pass.
    exchange(&site.connect(site.dial(false, HTTP)), 100);
    drop(talk);
}

/// Nobody is challenged any more, who is there stays, and when the last has gone, so does the guard.
#[test]
fn draining_cuts_nobody() {
    let place = Place::Behind(Shape::Routed);
    if !place.is_possible("draining_cuts_nobody") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    let guard = always(&site, "proxy");
    let talks = talks(&site);
    eventually("the sweep has seen them", || {
        (guard.status().flows.left == 2).then_some(())
    });
    let device = site.guarded().name.clone();
    let refused = guard.command(&["detach", &device]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && said.contains("2 spliced"),
        "{said}"
    );
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| guard.told(&["detach", "--drain"]));
        eventually("it drains", || guard.status().draining.then_some(()));
        let before = guard.service();
        let stream = site.connect(site.dial(false, HTTP));
        exchange(&stream, 5000);
        let after = guard.service();
        assert_eq!(challenged(&after), challenged(&before), "still challenging");
        std::thread::sleep(Duration::from_secs(4));
        assert!(!drain.is_finished());
        talks.iter().for_each(|talk| talk.lives("while draining"));
        talks.into_iter().for_each(Talk::finish);
        let said = drain.join().unwrap();
        assert!(said.contains("drained"), "{said}");
        exchange(&stream, 5000);
    });
    assert!(!site.guarded().has_xdp().unwrap(), "left behind");
    let status = guard.status();
    assert!(status.interfaces.is_empty() && !status.draining);
    // The daemon is there all the same, and may be asked to guard again.
    guard.told(&["attach", &device]);
    assert!(site.guarded().has_xdp().unwrap());
    guard.stop();
}

/// Tables of another version are no use to us, but who is connected through them stays so.
#[test]
fn another_version_is_drained() {
    let place = Place::Behind(Shape::Routed);
    if !place.is_possible("another_version_is_drained") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    let mut guard = always(&site, "proxy");
    let talk = Talk::over(site.connect(site.dial(false, ECHO)));
    guard.kill();
    let path = guard.pins().join("current/maps").join(map::RUNTIME);
    set_version(&path, 999);
    guard.again();
    guard.process.wait_for_line("ABI 999", PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    talk.lives("while it is drained");
    assert!(
        !guard.process.log().contains("ready"),
        "{}",
        guard.process.log()
    );
    talk.finish();
    guard.wait_until_ready();
    let log = guard.process.log();
    assert!(!log.contains("are cut"), "{log}");
    let told = guard.told(&["events", "--json", "--kind", "version_drain_began"]);
    assert!(told.contains("\"abi\":999"), "{told}");
    let told = guard.told(&["events", "--json", "--kind", "version_drain_ended"]);
    assert!(told.contains("\"cut\":0"), "{told}");
    // The first one passes: the new tables know nothing of the server yet.
    for _ in 0..2 {
        exchange(&site.connect(site.dial(false, HTTP)), 100);
    }
    assert!(challenged(&guard.service()) > 0);
    guard.stop();
}

/// Writes another number where programs of every version have theirs.
fn set_version(path: &std::path::Path, version: u32) {
    use aya::maps::{Array, Map, MapData};
    use synguard::dataplane::wire::Wire;
    use synguard_common::abi::Runtime;
    let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    let mut runtime: Array<MapData, Wire<Runtime>> = map.try_into().unwrap();
    let Wire(mut value) = runtime.get(&0, 0).unwrap();
    value.abi_version = version;
    runtime.set(0, Wire(value), 0).unwrap();
}

/// A flood as fast as this machine can make one leaves the daemon small and idle.
#[test]
fn a_flood_costs_the_daemon_nothing() {
    const SECONDS: u64 = 10;
    const MEMORY: u64 = 64 << 20;
    let what = "a_flood_costs_the_daemon_nothing";
    for (place, admission) in PLACES {
        if !place.is_possible(what) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        let guard = always(&site, admission);
        let pid = guard.process.pid();
        let flood = flood(&site, Rate::FlatOut, 60);
        let (before, used) = (challenged(&guard.service()), cpu_ticks(pid));
        std::thread::sleep(Duration::from_secs(SECONDS));
        let used = cpu_ticks(pid) - used;
        let answered = challenged(&guard.service()) - before;
        let memory = resident(pid);
        flood.stop().unwrap();
        println!(
            "{place:?}: {} SYN/s answered, {used} ticks of CPU in {SECONDS} s, {} KiB resident",
            answered / SECONDS,
            memory >> 10
        );
        assert!(answered > 0);
        // A hundredth of a second each; one tick more for the two that were begun.
        assert!(used <= SECONDS + 1, "{place:?}: {used} ticks of CPU");
        assert!(memory < MEMORY, "{place:?}: {memory} bytes resident");
        guard.stop();
    }
}

/// CPU time of a process in ticks of 1/100 s (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let field = |n: usize| -> u64 {
        fields
            .split_whitespace()
            .nth(n - 3)
            .unwrap()
            .parse()
            .unwrap()
    };
    field(14) + field(15)
}

/// Resident memory of a process, bytes.
fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap();
    kib << 10
}

/// An interface that goes away and comes back is guarded again, without anybody being asked.
#[test]
fn an_interface_that_returns_is_guarded_again() {
    let place = Place::OnEdge;
    if !place.is_possible("an_interface_that_returns_is_guarded_again") {
        return;
    }
    let site = Site::plain(place);
    let guard = site.guard_by("local", "", "", &[]);
    let device = site.guarded().name.clone();
    let ip = |arguments: &str| {
        let run = || {
            Ok(std::process::Command::new("ip")
                .args(arguments.split(' '))
                .output()?)
        };
        let output = site.guarded().ns.run(run).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {arguments}: {said}");
    };
    // Down and up again: nothing is lost.
    ip(&format!("link set {device} down"));
    ip(&format!("link set {device} up"));
    assert!(site.guarded().has_xdp().unwrap());
    ip(&format!("link del {device}"));
    eventually("it is missed", || {
        guard.process.log().contains("is gone").then_some(())
    });
    assert!(guard.status().interfaces.is_empty());
    ip(&format!("link add {device} type veth peer name other"));
    ip(&format!("link set {device} up"));
    eventually("it is guarded again", || {
        (guard.status().interfaces.len() == 1).then_some(())
    });
    guard.stop();
}

/// Killed at random moments, of its start above all, under a flood: who is connected stays so, and
/// whoever connects is let in.
#[test]
fn killed_two_hundred_times() {
    const KILLS: u32 = 200;
    let what = "killed_two_hundred_times";
    let mut random = fastrand::Rng::with_seed(0x51_6e_9a_4d);
    for (place, admission) in PLACES {
        if !place.is_possible(what) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        let mut guard = always(&site, admission);
        let talks = talks(&site);
        let flood = flood(&site, Rate::Pps(50_000), 300);
        let clients = clients(&site, site.dial(false, HTTP), 300);
        let begin = Instant::now();
        let mut counted = challenged(&guard.service());
        let mut builds = [guard.binary.clone(), guard.another_build()];
        for kill in 0..KILLS / 2 {
            guard.kill();
            let swaps = kill % 10 == 0;
            if swaps {
                // Another build loads its programs, which takes a second, and swaps them.
                builds.swap(0, 1);
                guard.binary.clone_from(&builds[0]);
            }
            guard.again();
            let reach = if swaps { 1_500 } else { 150 };
            if kill % 5 == 4 {
                guard.wait_until_ready();
                let now = challenged(&guard.service());
                assert!(now > counted, "{place:?}, {kill}: {counted} to {now}");
                counted = now;
            }
            std::thread::sleep(Duration::from_millis(random.u64(0..reach)));
            talks
                .iter()
                .for_each(|talk| talk.lives(&format!("{place:?}, kill {kill}")));
        }
        guard.kill();
        guard.again();
        within(Duration::from_secs(30), "it is ready", || {
            guard.process.log().contains("ready").then_some(())
        });
        println!("{place:?}: {} kills in {:?}", KILLS / 2, begin.elapsed());
        assert!(!flood.is_finished());
        flood.stop().unwrap();
        let report = clients.stop().unwrap();
        println!("{report:?}");
        assert!(report.attempted > 500, "{report:?}");
        assert_eq!(report.failed(), 0, "{place:?}: {report:?}");
        talks.into_iter().for_each(Talk::finish);
        let service = guard.service();
        assert_eq!(packets(&service, Reason::NoKey), 0, "{service:?}");
        guard.stop();
        assert!(!site.guarded().has_xdp().unwrap(), "{place:?}: left behind");
    }
}
