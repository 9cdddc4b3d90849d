//! `synguard explain`, held against what the daemon's programs made of the same packets.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use synguard::model::{ServiceStatus, Snapshot};
use synguard_common::verdict::Reason;
use synguard_lab::{
    edge::{Edge, EdgeOptions, FLOOD_V4, FLOOD_V6},
    frame::{Frame, TcpOption, flags},
    netns::Netns,
    process::Process,
    skip_unless_root,
};
use tempfile::TempDir;

use crate::{
    client::{BANNER, ECHO, HTTP, both, connect, echo, exchange, serve},
    guard::{Guard, PATIENCE, binary, eventually, packets},
    programs::{command, has},
};

/// A port that nothing listens on.
const CLOSED: u16 = 9;
/// Source ports of what the tests send by themselves.
const FLOOD_PORT: u16 = 2000;
const FORGED_PORT: u16 = 3000;
const CLOSED_PORT: u16 = 4000;
/// What ends a capture.
const LAST: &[u8] = b"the last packet of this capture";
/// How many of each they send, in each family.
const FLOOD: u16 = 20;
const FORGED: u16 = 7;
const TO_CLOSED: u16 = 5;

/// tcpdump at work.
struct Dump<'a> {
    ns: &'a Netns,
    process: Process,
    file: PathBuf,
}

impl<'a> Dump<'a> {
    /// Captures on a device of the client's namespace.
    fn start(ns: &'a Netns, device: &str, files: &TempDir) -> Self {
        let file = files.path().join(format!("{device}.pcap"));
        let mut command = command("tcpdump");
        // Written at once, which takes a place of the size of the largest packet for each: room for a
        // thousand. As root to the end: the directory is nobody else's.
        command.args([
            "-i",
            device,
            "-U",
            "--immediate-mode",
            "-s",
            "66000",
            "-B",
            "65536",
        ]);
        command.args(["-Z", "root", "-w"]);
        command.arg(&file).args(["tcp", "or", "udp"]);
        let mut process = Process::spawn(ns, command).unwrap();
        process.wait_for_line("listening on", PATIENCE).unwrap();
        Self { ns, process, file }
    }

    /// Ends it, when what has passed is written: a signal makes tcpdump leave what it has not read
    /// yet, so that a datagram goes last and is waited for.
    fn stop(mut self) -> PathBuf {
        let mark = |socket: UdpSocket| socket.send_to(LAST, both(CLOSED)[0]);
        self.ns
            .run(|| Ok(mark(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)?))
            .unwrap();
        eventually("the last packet is in the capture", || {
            let captured = fs::read(&self.file).unwrap();
            captured
                .windows(LAST.len())
                .any(|part| part == LAST)
                .then_some(())
        });
        self.process.signal(Signal::SIGINT).unwrap();
        let status = self.process.wait(PATIENCE).unwrap();
        let log = self.process.log();
        assert!(status.success(), "{log}");
        assert!(log.contains("0 packets dropped by kernel"), "{log}");
        self.file
    }
}

/// Runs `synguard explain` in a namespace.
fn explain(ns: &Netns, arguments: &[&str]) -> Output {
    ns.run(|| {
        let mut command = Command::new(binary());
        Ok(command.arg("explain").args(arguments).output()?)
    })
    .unwrap()
}

/// The same with `--json`, which must succeed.
#[track_caller]
fn explained(ns: &Netns, file: &Path, arguments: &[&str]) -> Value {
    let file = file.to_str().unwrap();
    let output = explain(ns, &[&[file, "--json"], arguments].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line it fails with.
#[track_caller]
fn refused(output: &Output) -> String {
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    told
}

/// How many packets of a document left with each reason, of those from a port (0: any).
fn reasons(document: &Value, port: u16) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for packet in document["packets"].as_array().unwrap() {
        let source = packet["source"].as_str().unwrap_or_default();
        let from = source.rsplit(':').next().unwrap_or_default();
        if port != 0 && from != port.to_string() {
            continue;
        }
        let reason = packet["reason"].as_str().unwrap_or("-");
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }
    reasons
}

fn only(reason: Reason, packets: u16) -> BTreeMap<String, u64> {
    BTreeMap::from([(reason.label().to_owned(), packets.into())])
}

/// Addresses that a flood comes from, one of each family, with a number.
fn sources(n: u16, port: u16) -> [SocketAddr; 2] {
    let v4 = Ipv4Addr::from(u32::from(FLOOD_V4.0) + 1 + u32::from(n));
    let v6 = Ipv6Addr::from(u128::from(FLOOD_V6.0) + 1 + u128::from(n));
    [(v4, port).into(), (v6, port).into()]
}

/// A flood, forged ACKs, attempts at a closed port, and connections that end.
fn traffic(edge: &Edge) {
    let wire = edge.client_wire().unwrap();
    let (from, to) = (edge.client_end.mac, edge.server_end.mac);
    let send = |source, port, build: &dyn Fn(Frame) -> Frame| {
        let target = both(port).into_iter().zip(source);
        for (target, source) in target {
            let frame = build(Frame::tcp(source, target).macs(from, to));
            wire.send(&frame.build()).unwrap();
        }
    };
    for n in 0..FLOOD {
        send(sources(n, FLOOD_PORT), HTTP, &|frame| {
            frame.options(TcpOption::linux_syn(1460, 1))
        });
    }
    for n in 0..FORGED {
        send(sources(n, FORGED_PORT), HTTP, &|frame| {
            frame.flags(flags::ACK).seq(n.into()).ack(12_345)
        });
    }
    for n in 0..TO_CLOSED {
        send(sources(n, CLOSED_PORT), CLOSED, &|frame| frame);
    }
    for target in both(HTTP) {
        let stream = connect(edge, target);
        exchange(&stream, 3000);
        stream.shutdown(Shutdown::Both).unwrap();
    }
}

/// What of a daemon's status no packet of others changes.
fn essence(status: &Snapshot) -> Value {
    let service = |service: &ServiceStatus| {
        serde_json::json!([
            service.packets,
            service.observed,
            service.syns,
            service.half_open,
            service.guarded_total,
            service.rtt,
        ])
    };
    let services: Vec<_> = status.services.iter().map(service).collect();
    let flows = serde_json::to_value(&status.flows).unwrap();
    serde_json::json!([services, flows])
}

/// The status once nothing is on its way any more: an acknowledgement may be delayed.
fn at_rest(guard: &Guard) -> Snapshot {
    eventually("nothing is on its way", || {
        let before = guard.status();
        thread::sleep(Duration::from_millis(300));
        (essence(&guard.status()) == essence(&before)).then_some(before)
    })
}

/// No connection is left in the server's namespace.
fn all_closed(edge: &Edge) {
    eventually("every connection is over", || {
        let run = || {
            let mut command = Command::new("ss");
            Ok(command.args(["-Htan", "state", "connected"]).output()?)
        };
        edge.server
            .run(run)
            .unwrap()
            .stdout
            .is_empty()
            .then_some(())
    });
}

#[test]
fn explain_agrees_with_what_was_done() {
    if !has("explain_agrees_with_what_was_done", &["tcpdump"]) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let files = tempfile::tempdir().unwrap();
    // XDP answers before a capture on its own device sees anything.
    let ethernet = Dump::start(&edge.client, &edge.client_end.name, &files);
    let any = Dump::start(&edge.client, "any", &files);
    traffic(&edge);
    all_closed(&edge);
    let (ethernet, any) = (ethernet.stop(), any.stop());
    let before = at_rest(&guard);
    let counted = |reason| packets(&before.services[0], reason);
    assert_eq!(counted(Reason::Challenged), u64::from(2 * FLOOD) + 2);

    let socket = guard.socket();
    let socket = ["--socket", socket.to_str().unwrap()];
    for file in [&ethernet, &any] {
        let document = explained(&edge.server, file, &socket);
        assert_eq!(document["whole"], true);
        assert_eq!(document["interface"], edge.server_end.name.as_str());
        let all = reasons(&document, 0);
        let of = |reason: Reason| all.get(reason.label()).copied().unwrap_or(0);
        assert_eq!(
            of(Reason::Challenged),
            counted(Reason::Challenged),
            "{all:?}"
        );
        assert_eq!(
            of(Reason::NoListener),
            counted(Reason::NoListener),
            "{all:?}"
        );
        // The handshakes' own ACKs; what came later has no cookie, and no connection any more.
        assert!(of(Reason::CookieValid) >= 2, "{all:?}");
        assert_eq!(
            reasons(&document, FLOOD_PORT),
            only(Reason::Challenged, 2 * FLOOD)
        );
        assert_eq!(
            reasons(&document, FORGED_PORT),
            only(Reason::AckInvalid, 2 * FORGED)
        );
        assert_eq!(counted(Reason::AckInvalid), u64::from(2 * FORGED));
        assert_eq!(
            reasons(&document, CLOSED_PORT),
            only(Reason::NoListener, 2 * TO_CLOSED)
        );
        for packet in document["packets"].as_array().unwrap() {
            let from_server = packet["source"].as_str().unwrap().ends_with(":80");
            let direction = if from_server { "out" } else { "in" };
            assert_eq!(packet["direction"], direction, "{packet}");
            assert!(packet["verdict"].is_string(), "{packet}");
            if packet["reason"] == Reason::Challenged.label() {
                assert_eq!(
                    (&packet["verdict"], &packet["service"]),
                    (&"answer".into(), &"default".into())
                );
            }
        }
    }
    // It left no trace.
    assert_eq!(essence(&guard.status()), essence(&before));
    exchange(&connect(&edge, both(HTTP)[0]), 1000);

    let [text, missing] = [&ethernet, &files.path().join("missing")].map(|file| {
        let file = file.to_str().unwrap();
        explain(
            &edge.server,
            &[file, "--summary", "--long", socket[0], socket[1]],
        )
    });
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["challenged", "default", "A SYN answered with a SYN cookie"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(refused(&missing).contains("missing: No such file"));

    recorded_cookies(&edge, &guard, &ethernet, &files);
    guard.stop();
    let output = explain(&edge.server, &[ethernet.to_str().unwrap()]);
    let line = refused(&output);
    assert!(
        line.contains("--config") && output.stdout.is_empty(),
        "{line}"
    );
}

/// Cookies of a capture hold at the time of capture, with the secret they were made with, and at no
/// other time.
fn recorded_cookies(edge: &Edge, guard: &Guard, capture: &Path, files: &TempDir) {
    let secret = guard.socket().with_file_name("secret");
    let bytes = fs::read(capture).unwrap();
    let arguments = ["--at", "capture", "--secret", secret.to_str().unwrap()];
    let valid = |file: &Path| {
        let document = explained(&edge.server, file, &arguments);
        let reasons = reasons(&document, 0);
        [Reason::CookieValid, Reason::Challenged]
            .map(|reason| reasons.get(reason.label()).copied().unwrap_or(0))
    };
    let [cookies, challenged] = valid(capture);
    assert!(cookies >= 2, "{cookies}");
    // The same an hour earlier.
    let mut shifted = bytes[..24].to_vec();
    let mut at = 24;
    while at < bytes.len() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let next = at + 16 + word(at + 8) as usize;
        shifted.extend((word(at) - 3600).to_le_bytes());
        shifted.extend(&bytes[at + 4..next]);
        at = next;
    }
    let earlier = files.path().join("earlier.pcap");
    fs::write(&earlier, shifted).unwrap();
    assert_eq!(valid(&earlier), [0, challenged]);

    // Cut in the middle, it is told as far as it goes.
    let cut = files.path().join("cut.pcap");
    fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let output = explain(&edge.server, &[cut.to_str().unwrap(), "--json"]);
    assert!(refused(&output).contains("ends in the middle of packet"));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["whole"], false);
    assert!(document["total"].as_u64().unwrap() > 50);
}

/// A capture of these frames, as tcpdump would write it.
fn pcap(files: &TempDir, frames: &[Vec<u8>]) -> PathBuf {
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let mut bytes = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1]);
    for frame in frames {
        let length = frame.len() as u32;
        bytes.extend(words(&[1_700_000_000, 0, length, length]));
        bytes.extend(frame);
    }
    let file = files.path().join("made.pcap");
    fs::write(&file, bytes).unwrap();
    file
}

/// Without a daemon: a configuration, from a calm start on.
#[test]
fn explain_plays_a_configuration() {
    if !skip_unless_root("explain_plays_a_configuration") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("synguard.toml");
    fs::write(
        &config,
        "[[service]]\nname = \"web\"\nports = [80]\nhigh = 4\nlow = 2\n\
         [[service]]\nname = \"mail\"\nports = [2525]\nmode = \"observe\"\n",
    )
    .unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let syn = |n, port| Frame::tcp(sources(n, FLOOD_PORT)[0], both(port)[0]);
    let mut frames: Vec<_> = (0..6).map(|n| syn(n, HTTP).build()).collect();
    frames.push(syn(9, BANNER).build());
    frames.push(syn(9, ECHO).build());
    // Several segments in one, as a capture on a machine that lets its device divide and join them
    // has it.
    let long = syn(10, BANNER)
        .flags(flags::ACK)
        .ack(1)
        .payload(&[7; 20_000]);
    frames.push(long.build());
    let answer = Frame::tcp(both(HTTP)[0], sources(1, FLOOD_PORT)[0]);
    frames.push(
        answer
            .flags(flags::ACK)
            .ack(1)
            .payload(&[7; 20_000])
            .build(),
    );
    let file = pcap(&files, &frames);

    let told = |arguments: &[&str]| -> Vec<[String; 4]> {
        let document = explained(&edge.server, &file, &[&config, arguments].concat());
        let packets = document["packets"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        packets
            .map(|packet| {
                ["verdict", "reason", "service", "direction"].map(|field| text(&packet[field]))
            })
            .collect()
    };
    let calm = told(&[]);
    let crossing = [
        "syn_tracked",
        "syn_tracked",
        "syn_tracked",
        "syn_crossed",
        "challenged",
        "challenged",
    ];
    for (packet, reason) in calm.iter().zip(crossing) {
        let verdict = if reason == "challenged" {
            "answer"
        } else {
            "pass"
        };
        assert_eq!(*packet, [verdict, reason, "web", "in"], "{calm:?}");
    }
    assert_eq!(calm[6], ["pass", "syn_tracked", "mail", "in"]);
    assert_eq!(calm[7], ["pass", "unprotected", "-", "in"]);
    assert_eq!(calm[8], ["pass", "calm", "mail", "in"]);
    assert_eq!(calm[9][3], "out");
    assert!(["-", "too_large"].contains(&&*calm[9][1]), "{:?}", calm[9]);

    let guarded = told(&["--state", "guarded"]);
    for packet in &guarded[..6] {
        assert_eq!(*packet, ["answer", "challenged", "web", "in"]);
    }
    // Mode observe: what would have been.
    assert_eq!(guarded[6], ["pass", "challenged", "mail", "in"]);
    assert_eq!(guarded[8], ["pass", "ack_invalid", "mail", "in"]);

    let output = explain(&edge.server, &[file.to_str().unwrap()]);
    let line = refused(&output);
    assert!(
        line.contains("no interface is guarded by synguard here"),
        "{line}"
    );
    let wrong = explain(&edge.server, &[file.to_str().unwrap(), "-i", "nonesuch"]);
    assert!(refused(&wrong).contains("no interface nonesuch"));
}

/// A spliced connection, which is known by the copy of the flow table alone.
#[test]
fn explain_knows_the_flows_of_the_daemon() {
    if !has("explain_knows_the_flows_of_the_daemon", &["tcpdump"]) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let config = "[[service]]\nname = \"web\"\nadmission = \"proxy\"\n\
                  server = { timestamps = true, sack = true, window_scale = 7 }\n";
    let guard = Guard::with_config(&edge, config, &["--mode", "always"]);
    let stream = connect(&edge, both(ECHO)[0]);
    echo(&stream, b"spliced").unwrap();
    let files = tempfile::tempdir().unwrap();
    let dump = Dump::start(&edge.client, &edge.client_end.name, &files);
    for _ in 0..5 {
        echo(&stream, b"one more round").unwrap();
    }
    let file = dump.stop();
    eventually("the sweep has seen the flow", || {
        (guard.status().flows.spliced == 1).then_some(())
    });
    let before = at_rest(&guard);
    let document = explained(&edge.server, &file, &[]);
    let packets = document["packets"].as_array().unwrap();
    let arriving: Vec<_> = packets
        .iter()
        .filter(|packet| packet["protocol"] == "tcp" && packet["direction"] == "in")
        .collect();
    assert!(arriving.len() >= 5, "{packets:?}");
    for packet in arriving {
        assert_eq!(packet["reason"], Reason::Translated.label(), "{packet}");
        // Nobody was asked for the name.
        assert_eq!(packet["service"], "#1", "{packet}");
    }
    assert_eq!(essence(&guard.status()), essence(&before));
    echo(&stream, b"and it lives").unwrap();
    guard.stop();
}
