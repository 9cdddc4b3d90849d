//! The daemon's life: it comes, changes and goes without anybody's connection noticing.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Command, Output},
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::signal::Signal;
use synguard::model::Mode;
use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, EdgeOptions, SERVER_V4},
    flood::{FloodSpec, Kind, Rate},
    link, skip_unless_root,
    tool::Promtool,
};

use crate::{
    client::{ECHO, HTTP, Talk, both, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted, challenged, count, eventually, packets, within},
};

/// What `ip` and `tc` say of the guarded interface, and which programs TCX runs there.
fn traces(edge: &Edge) -> Vec<String> {
    let device = &edge.server_end.name;
    edge.server
        .run(|| {
            let mut traces = Vec::new();
            for command in [
                ["ip", "-d", "link", "show", "dev"],
                ["tc", "-d", "qdisc", "show", "dev"],
            ] {
                let output = Command::new(command[0])
                    .args(&command[1..])
                    .arg(device)
                    .output()?;
                assert!(output.status.success(), "{command:?}");
                traces.push(String::from_utf8(output.stdout)?);
            }
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(device, direction)?;
                traces.push(
                    programs
                        .iter()
                        .map(|program| format!("{} ", program.id()))
                        .collect(),
                );
            }
            Ok(traces)
        })
        .unwrap()
}

#[test]
fn comes_and_goes_unnoticed() {
    if !skip_unless_root("comes_and_goes_unnoticed") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let untouched = traces(&edge);
    let mut streams: Vec<_> = (0..30).map(|n| connect(&edge, both(HTTP)[n % 2])).collect();
    let talks = both(ECHO).map(|target| Talk::start(&edge, target));
    let all_live = |streams: &[TcpStream], when: &str| {
        talks.iter().for_each(|talk| talk.lives(when));
        streams.iter().for_each(|stream| exchange(stream, 5000));
    };

    // SIGINT; and where nothing is pinned, SIGTERM and an end that nobody can prepare for.
    for (signal, pins) in [
        (Signal::SIGINT, None),
        (Signal::SIGTERM, Some("off")),
        (Signal::SIGKILL, Some("off")),
    ] {
        let pins = pins.map(|pins| ["--pins", pins]);
        let always = ["--mode", "always"];
        let arguments: Vec<&str> = always
            .into_iter()
            .chain(pins.into_iter().flatten())
            .collect();
        let mut guard = Guard::start(&edge, &arguments);
        assert_ne!(traces(&edge), untouched);
        all_live(&streams, "after the daemon came");
        streams.extend(both(HTTP).map(|target| connect(&edge, target)));
        assert_eq!(admitted(&guard.service()), 2);
        all_live(&streams, "with the daemon there");
        guard.process.signal(signal).unwrap();
        let status = guard.process.wait(PATIENCE).unwrap();
        assert_eq!(
            status.success(),
            signal != Signal::SIGKILL,
            "{}",
            guard.process.log()
        );
        eventually("the interface is as it was found", || {
            (traces(&edge) == untouched).then_some(())
        });
        all_live(&streams, "after the daemon went");
        streams.extend(both(HTTP).map(|target| connect(&edge, target)));
    }
    talks.into_iter().for_each(Talk::finish);
}

/// What else filters on the interface goes on doing so.
#[test]
fn other_filters_still_run() {
    let name = "other_filters_still_run";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let device = edge.server_end.name.as_str();
    let tc = |arguments: &str| -> Output {
        let arguments = arguments.replace("DEVICE", device);
        let run = || Ok(Command::new("tc").args(arguments.split(' ')).output()?);
        edge.server.run(run).unwrap()
    };
    assert!(tc("qdisc add dev DEVICE clsact").status.success());
    for direction in ["ingress", "egress"] {
        // Copies of all packets to where nobody takes them: an action that counts.
        let add = format!(
            "filter add dev DEVICE {direction} protocol all u32 match u32 0 0 \
             action mirred egress mirror dev lo"
        );
        let added = tc(&add);
        if !added.status.success() {
            let why = String::from_utf8_lossy(&added.stderr).into_owned();
            println!("SKIP {name}: tc {add}: {}", why.trim());
            return;
        }
    }
    let seen = |direction: &str| -> u64 {
        let shown = tc(&format!("-s -j filter show dev DEVICE {direction}")).stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        let filters = shown.as_array().unwrap().iter();
        let actions = filters.filter_map(|filter| filter.pointer("/options/actions/0"));
        actions
            .filter_map(|action| action.pointer("/stats/packets")?.as_u64())
            .sum()
    };
    let rates = || -> [u64; 2] {
        let before = [seen("ingress"), seen("egress")];
        exchange(&connect(&edge, both(HTTP)[0]), 1000);
        [seen("ingress") - before[0], seen("egress") - before[1]]
    };
    let free = rates();
    assert!(
        free.iter().all(|count| *count >= 5),
        "the filters do not count: {free:?}"
    );
    let guard = Guard::always(&edge);
    let guarded = rates();
    assert_eq!(admitted(&guard.service()), 1);
    // All but the SYN and the SYN-ACK, and now and then a bare ACK.
    assert!(
        guarded.iter().all(|count| *count >= 3),
        "{free:?}, but guarded: {guarded:?}"
    );
}

#[test]
fn detach_and_attach() {
    if !skip_unless_root("detach_and_attach") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let untouched = traces(&edge);
    let guard = Guard::always(&edge);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let stream = connect(&edge, both(HTTP)[0]);
    let device = edge.server_end.name.as_str();

    guard.told(&["detach", device]);
    assert_eq!(traces(&edge), untouched);
    assert!(guard.status().interfaces.is_empty());
    let unguarded = connect(&edge, both(HTTP)[1]);
    assert_eq!(admitted(&guard.service()), 2);
    let again = guard.command(&["detach", device]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&again.stderr).lines().count(), 1);

    let told = guard.told(&["attach", device]);
    assert!(told.contains("native"), "{told}");
    let guarded = connect(&edge, both(HTTP)[1]);
    assert_eq!(admitted(&guard.service()), 3);
    for stream in [&stream, &unguarded, &guarded] {
        exchange(stream, 10_000);
    }
    talk.lives("through detach and attach");
    talk.finish();
}

#[test]
fn reload_is_whole_or_not_at_all() {
    if !skip_unless_root("reload_is_whole_or_not_at_all") {
        return;
    }
    const WEB: &str = "[[service]]\nname = \"web\"\naddresses = [\"interface\"]\nports = [80]\n";
    const REST: &str = "[[service]]\nname = \"rest\"\naddresses = [\"interface\"]\nhigh = 77\n";
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::with_config(&edge, &format!("{WEB}{REST}"), &[]);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let stream = connect(&edge, both(HTTP)[0]);
    let brief = |guard: &Guard| -> Vec<_> {
        let services = guard.status().services.into_iter();
        services.map(|s| (s.name, s.mode, s.high, s.syns)).collect()
    };
    let [(_, _, high, syns), (_, _, 77, 1)] = *brief(&guard) else {
        panic!("{:?}", brief(&guard))
    };
    assert_eq!(syns, 1);

    // Counters of a service that keeps its name go on.
    guard.rewrite_config(&format!("{REST}{WEB}mode = \"always\"\n"));
    guard.process.signal(Signal::SIGHUP).unwrap();
    guard
        .process
        .wait_for_line("configuration reloaded", PATIENCE)
        .unwrap();
    let rest = ("rest".to_owned(), Mode::Adaptive, 77, 1);
    assert_eq!(
        brief(&guard),
        [rest.clone(), ("web".to_owned(), Mode::Always, high, 1)]
    );
    let challenged_one = connect(&edge, both(HTTP)[0]);
    let web = guard.status().services.remove(1);
    assert_eq!((challenged(&web), admitted(&web)), (1, 1));

    // A mistake, by signal and by command: everything stays, and is told in one line.
    let before = brief(&guard);
    guard.rewrite_config(&format!("{REST}high = 0\n{WEB}mode = \"sometimes\"\n"));
    guard.process.signal(Signal::SIGHUP).unwrap();
    guard
        .process
        .wait_for_line("configuration not reloaded", PATIENCE)
        .unwrap();
    assert_eq!(brief(&guard), before);
    let output = guard.command(&["reload"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("synguard.toml:"), "{told}");
    assert_eq!(brief(&guard), before);

    // And without the service that had been there.
    guard.rewrite_config(REST);
    assert!(guard.told(&["reload"]).contains("removed web"));
    assert_eq!(brief(&guard).len(), 1);
    for stream in [&stream, &challenged_one] {
        exchange(stream, 10_000);
    }
    exchange(&connect(&edge, both(HTTP)[0]), 10_000);
    talk.lives("through all reloads");
    talk.finish();
}

#[test]
fn addresses_are_followed() {
    if !skip_unless_root("addresses_are_followed") {
        return;
    }
    const LATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let index = edge.server_top.index;
    edge.server
        .netlink(async |handle| link::add_address(&handle, index, LATE.into(), 24).await)
        .unwrap();
    let target = SocketAddr::from((LATE, HTTP));
    eventually("the new address is guarded", || {
        let before = admitted(&guard.service());
        exchange(&connect(&edge, target), 1000);
        (admitted(&guard.service()) == before + 1).then_some(())
    });
}

#[test]
fn without_admission_nothing_is_guarded() {
    if !skip_unless_root("without_admission_nothing_is_guarded") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    edge.server
        .set_sysctl("net.ipv4.tcp_syncookies", 0)
        .unwrap();
    let _server = serve(&edge);
    let config = "[defaults]\nmode = \"always\"\nadmission = \"local\"\n";
    let guard = Guard::with_config(&edge, config, &[]);
    let service = guard.service();
    assert_eq!(
        (service.admission.as_str(), service.state.as_str()),
        ("none", "calm")
    );
    assert!(
        service.admission_reason.contains("tcp_syncookies"),
        "{service:?}"
    );
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    assert_eq!(challenged(&guard.service()), 0);

    edge.server
        .set_sysctl("net.ipv4.tcp_syncookies", 2)
        .unwrap();
    within(
        2 * PATIENCE,
        "the daemon sees that it can admit now",
        || (guard.service().admission == "local").then_some(()),
    );
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    assert_eq!(admitted(&guard.service()), 1);
}

#[test]
fn observing_changes_nothing() {
    if !skip_unless_root("observing_changes_nothing") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let free = connect(&edge, both(HTTP)[0]);
    let (at_client, at_server) = (
        client::tcp_info(&free).unwrap(),
        client::server_info(&free).unwrap(),
    );
    let config = "[defaults]\nmode = \"observe\"\nhigh = 50\nlow = 20\n";
    let guard = Guard::with_config(&edge, config, &[]);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let before = edge.counters().unwrap();
    let spec = FloodSpec {
        frames: 3000,
        ..FloodSpec::new(Kind::Syn, Rate::Pps(2000), both(HTTP)[0])
    };
    let flood = edge.flood(spec).unwrap();
    let watched = connect(&edge, both(HTTP)[0]);
    flood.wait().unwrap();
    // Nothing is answered but by the kernel, and it answers everything.
    let service = eventually("every SYN is counted", || {
        let service = guard.service();
        (service.syns == 3002).then_some(service)
    });
    let after = edge.counters().unwrap();
    assert!(after.syn_ack - before.syn_ack >= 3000, "{after:?}");
    assert_eq!(service.state, "calm", "{service:?}");
    for reason in [Reason::Challenged, Reason::Admitted, Reason::CookieValid] {
        assert_eq!(packets(&service, reason), 0, "{service:?}");
    }
    assert!(
        count(&service.observed, Reason::Challenged) > 100,
        "{service:?}"
    );

    let info = client::tcp_info(&watched).unwrap();
    assert_eq!(
        (info.send_scale, info.send_mss),
        (at_client.send_scale, at_client.send_mss)
    );
    let info = client::server_info(&watched).unwrap();
    assert_eq!(
        (info.send_scale, info.send_mss),
        (at_server.send_scale, at_server.send_mss)
    );
    exchange(&watched, 100_000);
    exchange(&free, 100_000);
    talk.lives("while observed");
    talk.finish();
}

#[test]
fn modes_change_under_open_connections() {
    if !skip_unless_root("modes_change_under_open_connections") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::start(&edge, &[]);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let mut streams = Vec::new();
    for mode in [
        "always", "observe", "adaptive", "always", "adaptive", "observe", "always",
    ] {
        guard.set_mode(mode);
        assert_eq!(guard.service().mode.to_string(), mode);
        let options = ConnectOptions {
            timeout: PATIENCE,
            ..ConnectOptions::default()
        };
        for target in both(HTTP) {
            streams.push(client::connect(&edge.client, target, &options).unwrap());
        }
        streams.iter().for_each(|stream| exchange(stream, 2000));
        talk.lives(mode);
    }
    talk.finish();
    // Four modes in which SYNs are answered with cookies: `adaptive` after `always` still does.
    assert_eq!(admitted(&guard.service()), 2 * 4);
    let unknown = guard.command(&["mode", "defualt", "always"]);
    let told = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(
        told,
        "synguard: no service defualt: did you mean default?\n"
    );
}

/// Fetches the metrics as Prometheus would.
pub fn scrape(edge: &Edge) -> String {
    let answer = edge.server.run(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9911))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    body.to_owned()
}

/// The value of a series, given as `name{labels}`; labels in any order.
fn value(metrics: &str, series: &str) -> f64 {
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap();
    let line = metrics
        .lines()
        .find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{'))
                && labels.split(',').all(|label| line.contains(label))
        })
        .unwrap_or_else(|| panic!("no series {series} in\n{metrics}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn metrics_say_what_happened() {
    let name = "metrics_say_what_happened";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    for _ in 0..5 {
        exchange(&connect(&edge, both(HTTP)[0]), 1000);
    }
    let spec = FloodSpec {
        frames: 1000,
        duration: Duration::from_secs(5),
        ..FloodSpec::new(Kind::Ack, Rate::Pps(20_000), (SERVER_V4, HTTP).into())
    };
    edge.flood(spec).unwrap().wait().unwrap();
    eventually("every ACK is counted", || {
        (packets(&guard.service(), Reason::AckInvalid) == 1000).then_some(())
    });
    let metrics = scrape(&edge);
    let service = guard.service();
    for reason in [Reason::AckInvalid, Reason::Challenged, Reason::Admitted] {
        let series = format!(
            "synguard_packets_total{{service=\"default\",reason=\"{}\"}}",
            reason.label()
        );
        assert_eq!(
            value(&metrics, &series),
            packets(&service, reason) as f64,
            "{series}"
        );
    }

    if let Some(promtool) = Promtool::or_skip(name) {
        promtool.check_metrics(&metrics).unwrap();
    }
}
