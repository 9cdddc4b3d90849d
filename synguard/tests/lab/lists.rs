//! Sources that are allowed and blocked while real clients connect, and a victim whose address is forged.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use serde_json::Value;
use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{CLIENT_V4, Edge, EdgeOptions, FLOOD_V4},
    flood::{FloodSpec, Kind, Rate, Source},
    frame::flags,
    skip_unless_root,
    topology::Shape,
};

use crate::{
    client::{ECHO, HTTP, both, connect, echo, exchange, serve},
    guard::{Guard, binary, challenged, eventually, packets},
    proxy_site::{Place, Site},
};

const CONFIG: &str = "[defaults]\nmode = \"always\"\n\n[[service]]\nname = \"web\"\n";
/// What the issue asks the daemon to stay within.
const RSS_LIMIT_KB: u64 = 64 * 1024;

fn is_cut(stream: &TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    echo(stream, b"anybody there?").is_err()
}

fn is_refused(edge: &Edge, target: SocketAddr) -> bool {
    let options = ConnectOptions {
        timeout: Duration::from_millis(300),
        ..ConnectOptions::default()
    };
    client::connect(&edge.client, target, &options).is_err()
}

fn listed(guard: &Guard, list: &str) -> Vec<Value> {
    serde_json::from_str(&guard.told(&[list, "list", "--json"])).unwrap()
}

/// The one line that a command which must fail says.
#[track_caller]
fn refused(guard: &Guard, arguments: &[&str]) -> String {
    let output = guard.command(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// A capture of one Ethernet frame.
fn pcap(frame: &[u8]) -> Vec<u8> {
    let length = frame.len() as u32;
    let header = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 65_535, 1];
    let packet = [1_800_000_000, 0, length, length];
    let words = header.into_iter().chain(packet).flat_map(u32::to_ne_bytes);
    words.chain(frame.iter().copied()).collect()
}

#[test]
fn sources_are_blocked_and_allowed_by_command() {
    if !skip_unless_root("sources_are_blocked_and_allowed_by_command") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::with_config(&edge, CONFIG, &[]);
    let target = both(HTTP)[0];
    let client = CLIENT_V4.to_string();
    let stream = connect(&edge, both(ECHO)[0]);
    echo(&stream, b"before").unwrap();

    let told = guard.told(&["block", "add", &client, "--comment", "a test"]);
    assert_eq!(told, format!("{client} is blocked\n"));
    assert!(is_cut(&stream), "established segments pass");
    assert!(is_refused(&edge, target), "a blocked client connects");
    exchange(&connect(&edge, both(HTTP)[1]), 100);
    let list = listed(&guard, "block");
    assert_eq!(list[0]["comment"], "a test");
    assert_eq!(list[0]["origin"], "command");
    assert!(packets(&guard.service(), Reason::SourceBlocked) >= 2);
    assert_eq!(guard.status().sources.listed.blocked, 1);

    // What it sent meanwhile comes again.
    guard.told(&["block", "remove", &client]);
    eventually("its segments pass again", || {
        (&stream).read(&mut [0; 64]).ok().filter(|read| *read > 0)
    });
    guard.told(&["block", "add", &client]);

    // What a command said holds over a restart, and while there is no daemon.
    guard.told(&["block", "add", "203.0.113.9", "--temporary"]);
    guard.end(Signal::SIGTERM);
    assert!(is_refused(&edge, target), "no daemon, no list");
    guard.again();
    guard.wait_until_ready();
    assert!(is_refused(&edge, target), "forgotten over a restart");
    assert_eq!(listed(&guard, "block").len(), 1);
    let said = refused(&guard, &["allow", "add", "192.0.2.0/24", &client]);
    let expected = format!("`synguard block remove {client}` ends that");
    assert!(said.contains(&expected), "{said}");
    assert_eq!(listed(&guard, "allow").len(), 0, "half-applied");

    guard.told(&["block", "remove", &client]);
    exchange(&connect(&edge, target), 1000);

    // An allowed one is not asked, though the service is guarded.
    guard.told(&["allow", "add", &client]);
    let before = guard.service();
    exchange(&connect(&edge, target), 10_000);
    let after = guard.service();
    assert_eq!(challenged(&after), challenged(&before));
    let allowed = |service| packets(service, Reason::SynAllowed);
    assert_eq!(allowed(&after), allowed(&before) + 1);
    // The longest prefix decides, until its time is over.
    let net = Ipv4Net::new(CLIENT_V4, 24).unwrap().trunc().to_string();
    guard.told(&["block", "add", &net]);
    exchange(&connect(&edge, target), 100);
    guard.told(&["allow", "remove", &client]);
    assert!(is_refused(&edge, target), "the net is blocked");
    guard.told(&["block", "remove", &net]);

    let began = Instant::now();
    guard.told(&["block", "add", &client, "--for", "1s"]);
    assert!(is_refused(&edge, target));
    eventually("it expires", || {
        (guard.status().sources.listed.blocked == 0).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_secs(1));
    exchange(&connect(&edge, target), 100);
    let events = guard.told(&["events", "--kind", "sources_expired", "--json"]);
    assert_eq!(events.lines().count(), 1, "{events}");
    guard.stop();
}

#[test]
fn the_configuration_lists_sources_too() {
    if !skip_unless_root("the_configuration_lists_sources_too") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let feed = tempfile::NamedTempFile::new().unwrap();
    fs::write(feed.path(), format!("# a feed\n{CLIENT_V4}\n")).unwrap();
    let config = format!("[sources]\nblock_files = [{:?}]\n{CONFIG}", feed.path());
    let guard = Guard::with_config(&edge, &config, &[]);
    let target = both(HTTP)[0];
    let client = CLIENT_V4.to_string();
    assert!(is_refused(&edge, target));
    let place = format!("{}, line 2", feed.path().display());
    for arguments in [["block", "remove"], ["allow", "add"]] {
        let said = refused(&guard, &[&arguments[..], &[&client]].concat());
        let expected = format!("{client} is blocked in {place}: take it out there");
        assert!(said.contains(&expected), "{said}");
    }
    let origin = &listed(&guard, "block")[0]["origin"];
    assert_eq!(origin, &Value::from(place));

    // What is asked of it beforehand says the same.
    let capture = tempfile::NamedTempFile::new().unwrap();
    let syn = edge.frame((CLIENT_V4, 4711).into(), target);
    fs::write(capture.path(), pcap(&syn.flags(flags::SYN).build())).unwrap();
    let file = guard.state().with_file_name("synguard.toml");
    let planned = ["--config", file.to_str().unwrap()];
    for more in [&[][..], &planned] {
        let explain = || {
            let mut command = Command::new(binary());
            command.arg("explain").arg(capture.path()).arg("--json");
            Ok(command.args(more).output()?)
        };
        let output = edge.server.run(explain).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("\"source_blocked\""), "{more:?}: {said}");
    }

    // A mistake changes nothing; the file is read again with the configuration.
    fs::write(feed.path(), "10.0.0.1/8\n").unwrap();
    let said = refused(&guard, &["reload"]);
    assert!(
        said.contains(":1:1: 10.0.0.1/8 has host bits set"),
        "{said}"
    );
    assert!(is_refused(&edge, target));
    fs::write(feed.path(), "172.16.0.0/12\n").unwrap();
    let told = guard.told(&["reload"]);
    assert_eq!(told, "sources: 1 prefixes added, 1 removed, 0 changed\n");
    exchange(&connect(&edge, target), 100);
    guard.stop();
}

#[test]
fn a_hundred_thousand_prefixes_come_and_go_at_once() {
    const COUNT: u32 = 100_000;
    if !skip_unless_root("a_hundred_thousand_prefixes_come_and_go_at_once") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::with_config(&edge, CONFIG, &[]);
    let feed = tempfile::NamedTempFile::new().unwrap();
    // An odd factor makes each number another, and scatters them.
    let address =
        |n: u32| Ipv4Addr::from_bits(0x1400_0000 | (n.wrapping_mul(0x9e_3779) & 0xff_ffff));
    let lines: String = (0..COUNT).map(|n| format!("{}\n", address(n))).collect();
    fs::write(feed.path(), lines).unwrap();
    let path = feed.path().to_str().unwrap().to_owned();
    let rss = |guard: &Guard| {
        let pid = guard.process.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |key| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        (value("VmRSS:"), value("VmHWM:"))
    };
    let timed = |what: &str, guard: &Guard, arguments: &[&str]| {
        let began = Instant::now();
        guard.told(arguments);
        let took = began.elapsed();
        println!("{what}: {took:?}, RSS and its peak {:?} kB", rss(guard));
        assert!(rss(guard).0 < RSS_LIMIT_KB, "{what}: {:?} kB", rss(guard));
        // Reasonable, on a busy machine too.
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
    };
    println!("at the start: {:?} kB", rss(&guard));
    timed(
        "add",
        &guard,
        &["block", "add", "--file", &path, "--for", "1h"],
    );
    let blocked = guard.status().sources.listed.blocked;
    assert_eq!(blocked, u64::from(COUNT));
    timed("one more", &guard, &["block", "add", "203.0.113.9"]);
    timed("list", &guard, &["block", "list"]);
    exchange(&connect(&edge, both(HTTP)[0]), 100);
    guard.end(Signal::SIGTERM);
    let began = Instant::now();
    guard.again();
    guard.wait_until_ready();
    println!("restart: {:?}", began.elapsed());
    assert_eq!(guard.status().sources.listed.blocked, blocked + 1);
    timed("remove", &guard, &["block", "remove", "--file", &path]);
    assert_eq!(guard.status().sources.listed.blocked, 1);
    guard.stop();
}

#[test]
fn an_allowed_source_reaches_a_server_behind_the_box() {
    let place = Place::Behind(Shape::Routed);
    if !place.is_possible("an_allowed_source_reaches_a_server_behind_the_box") {
        return;
    }
    let site = Site::plain(place);
    let _server = site.serve();
    let guard = site.guard_by("proxy", "", "mode = \"always\"", &[]);
    guard.told(&["allow", "add", "0.0.0.0/0", "::/0"]);
    for target in site.both(HTTP) {
        exchange(&site.connect(target), 10_000);
    }
    let service = guard.service();
    assert!(packets(&service, Reason::SynAllowed) >= 2, "{service:?}");
    assert_eq!(challenged(&service), 0, "{service:?}");
    guard.stop();
}

/// Whoever forges a victim's address has us send the victim no more than the budget, and keeps nobody
/// else from connecting.
#[test]
fn a_forged_victim_is_not_shouted_at() {
    const BUDGET: u64 = 500;
    if !skip_unless_root("a_forged_victim_is_not_shouted_at") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let config = format!("[sources]\nanswer_budget = {BUDGET}\n{CONFIG}");
    let guard = Guard::with_config(&edge, &config, &[]);
    let target = both(HTTP)[0];
    let victim = SocketAddr::new(FLOOD_V4.0.into(), 4711);
    let spec = FloodSpec {
        source: Source::Exact(victim),
        ..FloodSpec::new(Kind::Syn, Rate::FlatOut, target)
    };
    let (before, began) = (edge.counters().unwrap(), Instant::now());
    let flood = edge.flood(spec).unwrap();
    eventually("the flood is under way", || {
        (packets(&guard.service(), Reason::SourceOverBudget) > 0).then_some(())
    });
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        exchange(&connect(&edge, target), 100);
    }
    let (after, took) = (edge.counters().unwrap(), began.elapsed());
    flood.stop().unwrap();
    let sent = after.sent - before.sent;
    let received = after.syn_ack - before.syn_ack;
    println!("{sent} SYNs in {took:?} had {received} SYN-ACKs sent to the victim");
    // Of the first and the last second only parts are in the count.
    let seconds = took.as_secs() + 2;
    assert!(received <= BUDGET * seconds, "{received} in {took:?}");
    assert!(
        received >= BUDGET,
        "{received}: the victim's own connections fail"
    );
    assert!(sent > 10 * received, "{sent} is no flood");
    guard.stop();
}
