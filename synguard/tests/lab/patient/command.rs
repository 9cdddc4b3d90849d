//! What `synguard run` refuses: one line that says why, exit status 1, and nothing left behind.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
};

use synguard_lab::{
    edge::{Edge, EdgeOptions},
    netns::Netns,
    process::Process,
    skip_unless_root,
};

use crate::{
    client::{HTTP, both, connect, exchange, serve},
    guard::{Guard, PATIENCE, admitted, run_command},
};

/// Waits for a process that must give up, and returns the one line it says.
#[track_caller]
fn refusal(process: &mut Process) -> String {
    let status = process.wait(PATIENCE).unwrap();
    // The last line may still be on its way to us.
    let line = process
        .wait_until(PATIENCE, |lines| {
            lines
                .iter()
                .find(|line| line.starts_with("synguard: "))
                .cloned()
        })
        .unwrap();
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let lines = log
        .lines()
        .filter(|line| line.starts_with("synguard: "))
        .count();
    assert_eq!((lines, log.contains("panicked")), (1, false), "{log}");
    line
}

/// Runs the daemon, which must refuse.
#[track_caller]
fn refused(ns: &Netns, config: &str, arguments: &[&str]) -> String {
    refusal(&mut Guard::spawn(ns, config, arguments).process)
}

#[track_caller]
fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
}

#[test]
fn interfaces_that_cannot_be_guarded() {
    if !skip_unless_root("interfaces_that_cannot_be_guarded") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let device = edge.server_end.name.as_str();
    let mut wrong = device.to_owned();
    wrong.push('x');
    let line = refused(&edge.server, "", &["-i", &wrong]);
    says(&line, &["no interface", &wrong, "did you mean", device]);

    // The lab's own program is on the client's end.
    let foreign = edge.client_end.name.as_str();
    let line = refused(&edge.client, "", &["-i", foreign]);
    says(
        &line,
        &[
            "another XDP program",
            foreign,
            "lab_peer",
            "detach it first",
        ],
    );

    let line = refused(&edge.server, "", &["-i", "lo", "--xdp-mode", "native"]);
    says(&line, &["lo", "native XDP", "--xdp-mode auto"]);
    assert!(!edge.server_end.has_xdp().unwrap());

    // All or nothing: the first interface is let go again.
    let line = refused(
        &edge.server,
        "",
        &["-i", device, "-i", "lo", "--xdp-mode", "native"],
    );
    says(&line, &["lo", "native XDP"]);
    assert!(!edge.server_end.has_xdp().unwrap());
}

#[test]
fn generic_xdp_is_a_fallback_said_aloud() {
    if !skip_unless_root("generic_xdp_is_a_fallback_said_aloud") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let guard = Guard::spawn(&edge.server, "", &["-i", "lo"]).ready();
    let log = guard.process.log();
    assert!(
        log.contains("WARN") && log.contains("using generic XDP"),
        "{log}"
    );
    let status = guard.status();
    assert_eq!(status.interfaces[0].xdp_mode, "generic");
    guard.stop();
}

#[test]
fn one_daemon_at_a_time() {
    if !skip_unless_root("one_daemon_at_a_time") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let device = edge.server_end.name.as_str();
    let guard = Guard::always(&edge);

    let socket = guard.socket();
    let socket = socket.to_str().unwrap();
    let files = tempfile::tempdir().unwrap();
    let secret = files.path().join("secret");
    let mut command = Command::new(crate::guard::binary());
    command.args([
        "run",
        "-i",
        device,
        "--metrics",
        "off",
        "--pins",
        "off",
        "--socket",
        socket,
        "--secret",
    ]);
    command.arg(secret);
    let mut second = Process::spawn(&edge.server, command).unwrap();
    says(
        &refusal(&mut second),
        &["another synguard", socket, "synguard attach"],
    );

    let line = refused(&edge.server, "", &["-i", device, "--metrics", "off"]);
    says(&line, &["guarded already", device]);

    // The port of the metrics belongs to the first one.
    let line = refused(&edge.server, "", &["-i", "lo"]);
    says(&line, &["127.0.0.1:9911", "--metrics"]);

    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    assert_eq!(admitted(&guard.service()), 1);
    guard.stop();
    let listener = edge
        .server
        .run(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 9911))?))
        .unwrap();
    let line = refused(&edge.server, "", &["-i", device]);
    says(&line, &["127.0.0.1:9911", "in use"]);
    assert!(!edge.server_end.has_xdp().unwrap());
    drop(listener);
    Guard::always(&edge).stop();
}

/// Starts the daemon with fewer rights.
fn confined(edge: &Edge, setpriv: &[&str]) -> Option<Process> {
    if !Path::new("/usr/bin/setpriv").exists() {
        println!("SKIP rights_that_are_missing: no /usr/bin/setpriv");
        return None;
    }
    let files = tempfile::tempdir().unwrap();
    // Somebody else may not read where the build lies.
    let program = files.path().join("synguard");
    std::fs::copy(crate::guard::binary(), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(files.path(), open).unwrap();
    let run = run_command(&crate::guard::binary(), &files);
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .args(setpriv)
        .arg("--")
        .arg(&program)
        .args(run.get_args());
    command.args(["-i", &edge.server_end.name]);
    let mut process = Process::spawn(&edge.server, command).unwrap();
    process.wait(PATIENCE).unwrap();
    Some(process)
}

#[test]
fn rights_that_are_missing() {
    if !skip_unless_root("rights_that_are_missing") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    if let Some(mut process) = confined(&edge, &nobody) {
        let line = refusal(&mut process);
        says(
            &line,
            &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "run as root"],
        );
    }
    let without = ["--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    if let Some(mut process) = confined(&edge, &without) {
        let line = refusal(&mut process);
        says(&line, &["CAP_NET_ADMIN missing"]);
        assert!(!line.contains("CAP_BPF"), "{line}");
    }
    assert!(!edge.server_end.has_xdp().unwrap());
}

#[test]
fn mistakes_in_the_configuration() {
    if !skip_unless_root("mistakes_in_the_configuration") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let device = edge.server_end.name.as_str();
    for (config, parts) in [
        (
            "[defaults]\nmode = \"allways\"\n",
            &["synguard.toml:2", "always"][..],
        ),
        (
            "[daemon]\nmetrics = \"9911\"\n",
            &["synguard.toml:2", "metrics"],
        ),
        (
            "[defaults]\nhigh = 10\nlow = 20\n",
            &["synguard.toml:", "low", "high"],
        ),
        (
            "[defaults]\nhihg = 10\n",
            &["synguard.toml:2", "hihg", "high"],
        ),
        ("[[service]]\nname = \"web\n", &["synguard.toml:2"]),
    ] {
        let line = refused(&edge.server, config, &["-i", device]);
        says(&line, parts);
    }
    assert!(!edge.server_end.has_xdp().unwrap());
}
