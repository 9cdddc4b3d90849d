//! Services that come and go by command, under the connections of others.

use std::{fs, time::Duration};

use synguard::model::{Mode, ServiceStatus};
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    load::{LoadClient, LoadOptions, Pattern},
    skip_unless_root,
};

use crate::{
    client::{ECHO, HTTP, Talk, both, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted},
};

const REST: &str = "[defaults]\nmode = \"adaptive\"\n\n[[service]]\nname = \"rest\"\n";

fn names(guard: &Guard) -> Vec<String> {
    let services = guard.status().services.into_iter();
    services.map(|service| service.name).collect()
}

#[track_caller]
fn service(guard: &Guard, name: &str) -> ServiceStatus {
    let told = guard.told(&["service", "show", name, "--json"]);
    serde_json::from_str(&told).unwrap()
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

#[test]
fn services_come_and_go_under_the_connections_of_others() {
    if !skip_unless_root("services_come_and_go_under_the_connections_of_others") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::with_config(&edge, REST, &[]);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let stream = connect(&edge, both(HTTP)[0]);
    let load = LoadOptions {
        sources: edge.client_sources(false),
        limit: Duration::from_secs(60),
        ..LoadOptions::new(both(HTTP)[0], Pattern::Open(100))
    };
    let clients = LoadClient::start(&edge.client, load).unwrap();
    // A mode that was changed by command is nothing that a new service may undo.
    guard.told(&["mode", "rest", "observe"]);

    let told = guard.told(&["service", "add", "web", "--port", "80", "--mode", "always"]);
    assert_eq!(told, "service web is added, mode always: interface:80\n");
    let web = connect(&edge, both(HTTP)[1]);
    exchange(&web, 1000);
    assert!(admitted(&service(&guard, "web")) >= 1);
    assert_eq!(service(&guard, "rest").mode, Mode::Observe);
    let rate = guard.command(&["service", "list"]).stdout;
    let rate = String::from_utf8(rate).unwrap();
    assert!(rate.lines().any(|line| line.starts_with("web ")), "{rate}");
    assert!(
        rate.lines().all(|line| line.chars().count() <= 80),
        "{rate}"
    );
    talk.lives("with another service there");

    // It stays over a reload and over a restart, a temporary one only over the first.
    let json = guard.told(&[
        "service",
        "add",
        "brief",
        "--port",
        "9",
        "--temporary",
        "--json",
    ]);
    assert!(
        json.contains("\"message\": \"service brief is added"),
        "{json}"
    );
    guard.told(&["reload"]);
    assert_eq!(names(&guard), ["rest", "web", "brief"]);
    assert_eq!(service(&guard, "rest").mode, Mode::Adaptive);
    assert!(
        service(&guard, "web")
            .origin
            .ends_with("services.d/web.toml, added by command")
    );
    let kept = service(&guard, "web");
    assert!(kept.syns > 0, "counters go on");

    let report = clients.stop().unwrap();
    assert!(report.ok > 0 && report.failed() == 0, "{report:?}");
    guard
        .process
        .signal(nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    guard.process.wait(PATIENCE).unwrap();
    guard.again();
    let guard = guard.ready();
    assert_eq!(names(&guard), ["rest", "web"]);
    assert_eq!(service(&guard, "web").mode, Mode::Always);

    assert_eq!(
        guard.told(&["service", "remove", "web"]),
        "service web is removed\n"
    );
    assert_eq!(names(&guard), ["rest"]);
    assert_eq!(
        fs::read_dir(guard.state().join("services.d"))
            .unwrap()
            .count(),
        0
    );
    guard.told(&["reload"]);
    assert_eq!(names(&guard), ["rest"]);
    for stream in [&stream, &web] {
        exchange(stream, 10_000);
    }
    talk.lives("through all of it");
    talk.finish();
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
}

#[test]
fn what_is_refused_changes_nothing() {
    if !skip_unless_root("what_is_refused_changes_nothing") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let guard = Guard::with_config(&edge, REST, &[]);
    guard.told(&["service", "add", "web", "--port", "80,443"]);
    let before = serde_json::to_value(names(&guard)).unwrap();
    for (arguments, parts) in [
        (
            &["add", "web", "--port", "8080"][..],
            &["a service web already", "synguard service show web"][..],
        ),
        (
            &["add", "tls", "--port", "443"],
            &["`web` and `tls` both cover", "port 443", "give one of them"],
        ),
        (
            &["add", "a/b", "--port", "1"],
            &["synguard: `name` is \"a/b\"; give 1 to 63 letters"],
        ),
        (
            &["add", "x", "--port", "1", "--high", "0"],
            &["synguard: `high` is 0; give \"auto\" or a number"],
        ),
        (
            &[
                "add",
                "x",
                "--port",
                "1",
                "--server",
                "sack",
                "--admission",
                "local",
            ],
            &["`server` means nothing beside `admission` = \"local\""],
        ),
        (
            &["add", "x", "--address", "10.0.0.1/8"],
            &["host bits set; give 10.0.0.0/8"],
        ),
        (
            &["remove", "rest"],
            &[
                "service rest stands in",
                "synguard.toml, line 5",
                "synguard reload",
            ],
        ),
        (&["remove", "wbe"], &["no service wbe: did you mean web?"]),
        (&["show", "wbe"], &["no service wbe: did you mean web?"]),
    ] {
        let line = refused(&guard, &[&["service"], arguments].concat());
        for part in parts {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
        assert_eq!(serde_json::to_value(names(&guard)).unwrap(), before);
        let files = fs::read_dir(guard.state().join("services.d")).unwrap();
        assert_eq!(files.count(), 1, "{arguments:?}");
    }
}
