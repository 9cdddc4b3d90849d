//! `synguard check` against what is really so: on interfaces of the lab, good and bad ones, and where
//! it foresees something, that it comes to pass.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use synguard::dataplane::{Options, load};
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    ethtool,
    link::{self, End},
    netns::Netns,
    skip_unless_root,
};

use crate::guard::{Guard, PATIENCE, admitted, binary, challenged, eventually};

/// What a run said.
pub struct Said {
    pub code: Option<i32>,
    checks: Vec<Value>,
    stderr: String,
}

impl Said {
    /// Status, what was found, and the fix of one check.
    #[track_caller]
    pub fn of(&self, name: &str) -> (&str, &str, &str) {
        let check = self.checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name} in {:?}", self.checks));
        let text = |key: &str| check[key].as_str().unwrap_or_default();
        (text("status"), text("found"), text("fix"))
    }

    #[track_caller]
    pub fn expect(&self, name: &str, status: &str, found: &str, fix: &str) {
        let of = self.of(name);
        assert!(
            of.0 == status && of.1.contains(found) && of.2.contains(fix),
            "{name}: {of:?}"
        );
    }
}

/// Runs `ip` with these arguments; where it fails, what it said.
pub fn ip(ns: &Netns, arguments: &str) -> Result<(), String> {
    let run = || {
        let mut command = Command::new("ip");
        Ok(command.args(arguments.split_whitespace()).output()?)
    };
    let output = ns.run(run).unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A device that is there.
pub fn end(ns: &Netns, name: &str) -> End {
    End {
        ns: ns.clone(),
        name: name.to_owned(),
        index: ns.run(|| link::index_of(name)).unwrap(),
        mac: [0; 6],
    }
}

/// Runs the command in a namespace, with the configuration of this text.
fn run(ns: &Netns, config: &str, arguments: &[&str]) -> Output {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("synguard.toml");
    fs::write(&path, config).unwrap();
    ns.run(|| {
        let mut command = Command::new(binary());
        command.env_remove("RUST_LOG").arg("check").args(arguments);
        Ok(command.arg("--config").arg(&path).output()?)
    })
    .unwrap()
}

/// A configuration for servers on the box.
const LOCAL: &str = "[[service]]\nname = \"all\"\naddresses = [\"interface\"]\n";

#[track_caller]
pub fn check_with(ns: &Netns, config: &str, interface: &str) -> Said {
    let output = run(ns, config, &["--json", interface]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let checks = json["checks"].as_array().unwrap().clone();
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(json["ok"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{stderr}");
    assert_eq!(stderr.lines().count(), usize::from(failed), "{stderr}");
    Said {
        code: output.status.code(),
        checks,
        stderr,
    }
}

/// On a service for everything that listens here.
#[track_caller]
fn check(ns: &Netns, interface: &str) -> Said {
    check_with(ns, LOCAL, interface)
}

/// The same where the daemon must use native XDP.
#[track_caller]
fn check_native(ns: &Netns, interface: &str) -> Said {
    let config = format!("[daemon]\nxdp_mode = \"native\"\n{LOCAL}");
    check_with(ns, &config, interface)
}

/// The same on one for servers behind the box.
#[track_caller]
fn check_proxy(ns: &Netns, interface: &str) -> Said {
    const PROXY: &str =
        "[[service]]\nname = \"web\"\naddresses = [\"198.51.100.0/24\"]\nadmission = \"proxy\"\n";
    check_with(ns, PROXY, interface)
}

#[test]
fn a_machine_that_is_fit() {
    if !skip_unless_root("a_machine_that_is_fit") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let device = edge.server_end.name.as_str();
    let said = check_native(&edge.server, device);
    assert_eq!(said.code, Some(0), "{:?}", said.checks);
    said.expect("kernel", "ok", "with BTF", "");
    said.expect("helpers", "ok", "all ", "");
    said.expect("programs", "ok", "verifier", "");
    said.expect("jit", "ok", "machine code", "");
    said.expect("live-frames", "ok", "", "");
    said.expect("capabilities", "ok", "", "");
    said.expect("configuration", "ok", "1 service", "");
    said.expect("memory", "ok", "MiB for the tables", "");
    said.expect("link", "ok", "driver veth", "");
    said.expect("native-xdp", "ok", "in driver veth", "");
    said.expect("peer-checksum", "ok", &edge.client_end.name, "");
    said.expect("peer-receive", "ok", "XDP program", "");
    said.expect("xdp-program", "ok", "none yet", "");
    // One receive queue, as the lab wants it.
    if aya::util::online_cpus().unwrap().len() > 1 {
        said.expect("queues", "warn", "1 receive queue", "no more");
    }
    assert!(
        !edge.server_end.has_xdp().unwrap(),
        "it has attached something"
    );

    let guard = Guard::start(&edge, &["--xdp-mode", "native"]);
    let said = check(&edge.server, device);
    said.expect("xdp-program", "ok", "guarded already: synguard_in", "");
    guard.stop();

    let text = String::from_utf8(run(&edge.server, "", &[device]).stdout).unwrap();
    assert!(
        text.contains(&format!("\n{device}\n")) && text.starts_with("ok    kernel"),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert!(
        text.lines().count() <= 40 && !text.contains('\u{1b}'),
        "{text}"
    );
}

#[test]
fn settings_and_configurations_that_are_wrong() {
    if !skip_unless_root("settings_and_configurations_that_are_wrong") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let (ns, device) = (&edge.server, edge.server_end.name.as_str());
    for (setting, value) in [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.tcp_timestamps", 0),
        ("net.ipv4.ip_forward", 0),
        ("net.ipv4.conf.all.rp_filter", 1),
    ] {
        ns.set_sysctl(setting, value).unwrap();
    }
    let said = check_proxy(ns, device);
    said.expect("tcp_syncookies", "fail", "0:", "net.ipv4.tcp_syncookies=1");
    said.expect("tcp_timestamps", "warn", "0:", "net.ipv4.tcp_timestamps=1");
    said.expect("ip_forward", "fail", "web", "net.ipv4.ip_forward=1");
    said.expect(
        "rp_filter",
        "warn",
        "strict",
        &format!("conf.{device}.rp_filter=2"),
    );
    assert_eq!(
        said.stderr,
        "synguard: failed: tcp_syncookies, ip_forward\n"
    );
    ns.set_sysctl("net.ipv4.tcp_syncookies", 1).unwrap();
    ns.set_sysctl("net.ipv4.ip_forward", 1).unwrap();
    assert_eq!(check_proxy(ns, device).code, Some(0));

    let said = check_with(ns, "[defaults]\nmode = \"allways\"\n", device);
    said.expect(
        "configuration",
        "fail",
        "synguard.toml:2",
        "synguard config check",
    );
    let huge = "[daemon]\nflow_entries = 4294967295\n";
    let said = check_with(ns, huge, device);
    let status = said
        .checks
        .iter()
        .filter(|check| check["status"] == "fail")
        .count();
    assert!(status >= 1, "{:?}", said.checks);
}

#[test]
fn interfaces_that_are_wrong() {
    let test = "interfaces_that_are_wrong";
    if !skip_unless_root(test) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let (ns, device) = (&edge.server, edge.server_end.name.as_str());
    let wrong = format!("{device}x");
    check(ns, &wrong).expect(
        "link",
        "fail",
        &format!("did you mean {device}?"),
        "ip -br link",
    );
    // The lab's own program is on the client's end.
    let said = check(&edge.client, &edge.client_end.name);
    said.expect("xdp-program", "fail", "another: lab_peer", "xdp off");
    let said = check(ns, "lo");
    said.expect(
        "native-xdp",
        "warn",
        "generic XDP, several times slower",
        "",
    );
    said.expect("mtu", "warn", "65536", "mtu 3498");

    let checksums = [("tx-checksum-ip-generic", true)];
    let peer = edge.client_end.name.as_str();
    edge.client
        .run(|| ethtool::set_features(peer, &checksums))
        .unwrap();
    let fix = format!("in its namespace: ethtool -K {peer} tx off");
    check(ns, device).expect("peer-checksum", "warn", "unfinished", &fix);
    check_proxy(ns, device).expect("peer-checksum", "fail", "`proxy` drops", &fix);

    let ip = |arguments: String| ip(ns, &arguments);
    ip(format!("link add link {device} name above type macvlan")).unwrap();
    let fix = format!("guard {device} instead");
    check(ns, "above").expect("native-xdp", "warn", "macvlan", &fix);
    check(ns, "above").expect("link", "warn", "down", "ip link set dev above up");

    ip("link del above".to_owned()).unwrap();

    let vlan = |feature| ns.run(|| ethtool::set_features(device, &[("rx-vlan-hw-parse", feature)]));
    match ip(format!("link add link {device} name tagged type vlan id 7")) {
        Ok(()) => {
            vlan(true).unwrap();
            let fix = format!("ethtool -K {device} rxvlan off");
            check(ns, device).expect("vlan-offload", "fail", "the tags of tagged", &fix);
            check(ns, "tagged").expect("native-xdp", "warn", "VLAN device", "sees the tags");
            vlan(false).unwrap();
        }
        Err(why) => println!("SKIP {test}: no VLAN device: {why}"),
    }
    check(ns, device).expect("vlan-offload", "ok", "off", "");

    ip("link add name br0 type bridge".to_owned()).unwrap();
    ip(format!("link set dev {device} master br0")).unwrap();
    check(ns, device).expect("port", "ok", "a port of bridge br0", "");
    let fix = format!("guard {device} instead");
    check(ns, "br0").expect("native-xdp", "warn", "a bridge", &fix);
}

/// A daemon that may use native XDP only: whether it starts.
fn runs_natively(end: &End) -> bool {
    let arguments = ["-i", &end.name, "--xdp-mode", "native", "--metrics", "off"];
    let mut guard = Guard::spawn(&end.ns, "", &arguments);
    let ready = guard.process.wait_for_line("ready", PATIENCE).is_ok();
    if ready {
        guard.stop();
    }
    ready
}

#[test]
fn a_veth_that_refuses_is_foreseen() {
    if !skip_unless_root("a_veth_that_refuses_is_foreseen") {
        return;
    }
    let ns = Netns::create("queues").unwrap();
    // In this order, or `ip` gives the peer one queue to send by.
    let add = "link add q0 numrxqueues 1 numtxqueues 1 type veth peer name q1 numtxqueues 2 \
               numrxqueues 2";
    ip(&ns, add).unwrap();
    let said = check_native(&ns, "q0");
    said.expect(
        "native-xdp",
        "fail",
        "sends by 2 queues, and 1 receive",
        "ethtool -L q1 tx 1",
    );
    let said = check_native(&ns, "q1");
    said.expect("native-xdp", "ok", "in driver veth", "");
    let end = |name: &str| end(&ns, name);
    assert!(!runs_natively(&end("q0")));
    assert!(runs_natively(&end("q1")));

    // Large packets are no reason to refuse: the programs take them in pieces.
    for name in ["q0", "q1"] {
        ip(&ns, &format!("link set dev {name} mtu 9000")).unwrap();
    }
    let said = check_native(&ns, "q1");
    let (status, found, _) = said.of("native-xdp");
    assert_eq!(runs_natively(&end("q1")), status == "ok", "{found}");
}

/// Where `check` says that the other end loses every answer, it does; the fix helps.
#[test]
fn a_deaf_peer_is_foreseen() {
    if !skip_unless_root("a_deaf_peer_is_foreseen") {
        return;
    }
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
    let [client, server] = ["deaf", "box"].map(|name| Netns::create(name).unwrap());
    let [near, far] = link::veth(&client, &server, 1500).unwrap();
    // With GRO, answers wait for whatever else comes by: some arrive.
    let deaf = [("rx-gro", false)];
    let set = || ethtool::set_features(&near.name, &deaf);
    client.run(set).unwrap();
    for (end, address) in [(&near, Ipv4Addr::new(10, 99, 0, 1)), (&far, SERVER)] {
        let add =
            async |handle| link::add_address(&handle, end.index, IpAddr::V4(address), 24).await;
        end.ns.netlink(add).unwrap();
    }
    let _listener = server.run(|| Ok(TcpListener::bind((SERVER, 80))?)).unwrap();
    let connects = |patience: Duration| {
        let target = SocketAddr::from((SERVER, 80));
        let connect = || Ok(TcpStream::connect_timeout(&target, patience).is_ok());
        client.run(connect).unwrap()
    };
    let config = |mode: &str| format!("[daemon]\nxdp_mode = \"{mode}\"\n");

    let said = check_with(&server, &config("native"), &far.name);
    let fix = "xdp_mode = \"generic\"";
    said.expect("peer-receive", "fail", "loses every answer", fix);
    let arguments = ["--mode", "always", "--metrics", "off"];
    let guard = Guard::at(&far, &config("native"), &arguments);
    assert!(!connects(Duration::from_secs(2)), "answers arrive");
    assert!(challenged(&guard.service()) > 0);
    guard.stop();

    for (mode, found) in [
        ("generic", "generic XDP is configured"),
        ("auto", "unless it runs XDP too"),
    ] {
        let said = check_with(&server, &config(mode), &far.name);
        assert_eq!(said.code, Some(0), "{:?}", said.checks);
        said.expect("native-xdp", "warn", found, "");
        let guard = Guard::at(&far, &config(mode), &arguments);
        assert!(connects(PATIENCE), "{}", guard.process.log());
        // The client is connected before its ACK is here.
        eventually("it is admitted", || {
            (admitted(&guard.service()) == 1).then_some(())
        });
        assert_eq!(guard.status().interfaces[0].xdp_mode, "generic");
        guard.stop();
    }
}

#[test]
fn whoever_may_look_at_little() {
    let test = "whoever_may_look_at_little";
    if !skip_unless_root(test) {
        return;
    }
    if !Path::new("/usr/bin/setpriv").exists() {
        println!("SKIP {test}: no /usr/bin/setpriv");
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let files = tempfile::tempdir().unwrap();
    // Somebody else may not read where the build lies.
    let program = files.path().join("synguard");
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = files.path().join("synguard.toml");
    fs::write(&config, "").unwrap();
    let output = edge.server.run(|| {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(&program).args(["check", "--json", "--config"]);
        Ok(command.arg(&config).arg(&edge.server_end.name).output()?)
    });
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let said = Said {
        code: output.status.code(),
        checks: json["checks"].as_array().unwrap().clone(),
        stderr,
    };
    assert_eq!(said.code, Some(0), "{:?} {}", said.checks, said.stderr);
    for name in ["helpers", "programs", "capabilities", "peer-checksum"] {
        said.expect(name, "warn", "needs root", "");
    }
    said.expect("kernel", "ok", "with BTF", "");
    said.expect("native-xdp", "warn", "other end of a veth", "");
    said.expect("tcp_syncookies", "ok", "", "");
}

/// The kernel's own account of the tables of this process: bytes by map.
fn tables() -> BTreeMap<u32, u64> {
    let files = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    files
        .filter_map(|file| {
            // One may be closed by now: the directory's own.
            let text = fs::read_to_string(file.path()).ok()?;
            let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
            let number = |name| field(name)?.trim().parse::<u64>().ok();
            Some((number("map_id:")? as u32, number("memlock:")?))
        })
        .collect()
}

#[test]
fn the_memory_of_the_tables_is_foreseen() {
    if !skip_unless_root("the_memory_of_the_tables_is_foreseen") {
        return;
    }
    let mut config = synguard::config::built_in();
    let cpus = aya::util::nr_cpus().unwrap() as u64;
    for (half_open, flows, verified) in [(1024, 1024, 1024), (100_000, 300_000, 50_000)] {
        config.half_open_entries = half_open;
        config.flow_entries = flows;
        config.verified_entries = verified;
        let foreseen = synguard::check::memory::of_tables(&config, cpus).unwrap();
        let options = Options {
            half_open_entries: half_open,
            flow_entries: flows,
            verified_entries: verified,
        };
        let before = tables();
        let loaded = load(&options).unwrap();
        let new = tables()
            .into_iter()
            .filter(|(id, _)| !before.contains_key(id));
        let real: u64 = new.map(|(_, bytes)| bytes).sum();
        drop(loaded);
        // The kernel counts tries as they fill.
        let ratio = foreseen as f64 / real as f64;
        assert!(
            (0.9..1.3).contains(&ratio),
            "{foreseen} foreseen, {real} taken"
        );
    }
}
