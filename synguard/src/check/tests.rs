//! What is made of facts that this machine need not have.

use super::{
    facts::{Host, Interface, Kernel, Missing, Peer, Programs},
    genl::{Channels, XdpFeatures},
    helpers::Helpers,
    *,
};
use crate::{
    config,
    daemon::links::{Details, Link},
    dataplane::{Device, error::NearNames},
    model::{Addresses, Admission, XdpMode},
};

/// A machine on which nothing is wrong, with a card that nothing is wrong with.
fn facts() -> Facts {
    Facts {
        kernel: Kernel {
            release: "6.12.1".into(),
            btf: true,
            missing_kfuncs: vec![],
            helpers: Ok(Helpers {
                called: 20,
                programs: 8,
                missing: vec![],
            }),
            tcx: Ok(true),
            programs: Ok(Programs {
                refused: None,
                jited: true,
                live_frames: true,
            }),
            jit_enabled: Some(1),
        },
        host: Host {
            missing_capabilities: vec![],
            is_root: true,
            bpffs: true,
            config_path: None,
            config: Ok(config::built_in()),
            tables: Some(100 << 20),
            available: Some(4 << 30),
            cpus: 4,
            addresses: vec!["192.0.2.1".parse().unwrap()],
            syncookies: Some(1),
            timestamps: Some(1),
            forwards_v4: Some(1),
            forwards_v6: Some(1),
        },
        interfaces: vec![Ok(card())],
    }
}

fn card() -> Interface {
    let device = Device {
        index: 2,
        name: "eth0".into(),
        mtu: 1500,
        driver: Some("ice".into()),
        xdp_program: None,
    };
    let details = Details {
        ethernet: true,
        enabled: true,
        rx_queues: 4,
        ..Details::default()
    };
    Interface {
        link: Link::made_up(device, details),
        xdp: Some(XdpFeatures {
            native: true,
            frags: true,
        }),
        offloads: Some(["rx-gro".to_owned()].into()),
        channels: Some(channels(4, 8)),
        vlans: vec![],
        lower: None,
        controller: None,
        ports: vec![],
        peer: None,
        program: None,
        rp_filter: Some(0),
    }
}

fn channels(rx: u32, rx_max: u32) -> Channels {
    Channels {
        rx,
        rx_max,
        tx: rx,
        combined: true,
    }
}

fn veth() -> Interface {
    let mut veth = card();
    veth.link.device.driver = Some("veth".into());
    veth.link.details.kind = Some("veth".into());
    veth.peer = Some(Ok(Peer {
        name: "peer0".into(),
        elsewhere: false,
        mtu: 1500,
        has_xdp: false,
        offloads: ["rx-gro".to_owned()].into(),
        channels: Some(channels(1, 1)),
    }));
    veth
}

#[track_caller]
fn one<'a>(report: &'a Report, name: &str) -> &'a Check {
    let mut found = report.checks.iter().filter(|check| check.name == name);
    match (found.next(), found.next()) {
        (Some(check), None) => check,
        other => panic!("{name}: {other:?}"),
    }
}

/// Judges after a change, and expects one check to say so.
#[track_caller]
fn expect(change: impl FnOnce(&mut Facts), name: &str, status: Status, found: &str, fix: &str) {
    let mut facts = facts();
    change(&mut facts);
    let report = Report::of(&facts);
    let check = one(&report, name);
    assert_eq!(check.status, status, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    assert!(
        check.fix.as_deref().unwrap_or_default().contains(fix),
        "{check:?}"
    );
    assert_eq!(check.fix.is_none(), fix.is_empty(), "{check:?}");
    assert_eq!(
        report.ok,
        report.checks.iter().all(|c| c.status != Status::Fail)
    );
    let text = render(&report, false).unwrap();
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
}

#[track_caller]
fn expect_of(interface: Interface, name: &str, status: Status, found: &str, fix: &str) {
    let put = |facts: &mut Facts| facts.interfaces = vec![Ok(interface)];
    expect(put, name, status, found, fix);
}

#[test]
fn nothing_is_wrong_in_one_screen() {
    let report = Report::of(&facts());
    let wrong: Vec<_> = report
        .checks
        .iter()
        .filter(|c| c.status != Status::Ok)
        .collect();
    assert!(wrong.is_empty() && report.ok, "{wrong:?}");
    assert!(report.failures().is_empty());
    let text = render(&report, false).unwrap();
    assert!(text.lines().count() <= 24, "{text}");
    assert!(
        text.contains("ok    kernel          Linux 6.12.1, with BTF\n"),
        "{text}"
    );
    assert!(
        text.contains("\neth0\nok    link            up, driver ice\n"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
    let colours = render(&report, true).unwrap();
    assert!(
        colours.contains("\u{1b}[32mok\u{1b}[0m    kernel"),
        "{colours:?}"
    );
}

#[test]
fn the_kernel() {
    use Status::{Fail, Warn};
    expect(
        |f| f.kernel.btf = false,
        "kernel",
        Fail,
        "without BTF",
        "CONFIG_DEBUG_INFO_BTF",
    );
    let no_kfunc = |f: &mut Facts| f.kernel.missing_kfuncs = vec!["bpf_sk_assign_tcp_reqsk"];
    expect(no_kfunc, "kfunc", Warn, "never `local`", "Linux 6.9");
    let needed = |f: &mut Facts| {
        no_kfunc(f);
        f.host.config.as_mut().unwrap().services[0].admission = Admission::Local;
    };
    expect(
        needed,
        "kfunc",
        Fail,
        "only watched: default",
        "admission = \"proxy\"",
    );
    let missing = |f: &mut Facts| {
        f.kernel.helpers.as_mut().unwrap().missing = vec![("synguard_in".into(), "loop", "5.17")];
    };
    expect(
        missing,
        "helpers",
        Fail,
        "synguard_in: loop (Linux 5.17)",
        "Linux 5.18 or newer, 6.9",
    );
    let without = |f: &mut Facts| f.kernel.tcx = Ok(false);
    expect(without, "tcx", Warn, "ends with the daemon", "6.6");
    let refused = |f: &mut Facts| {
        f.kernel.programs.as_mut().unwrap().refused = Some("verifier rejects it".into());
    };
    expect(
        refused,
        "programs",
        Fail,
        "verifier rejects it",
        "another kernel",
    );
    expect(refused, "live-frames", Warn, "cannot be told", "");
    let interpreted = |f: &mut Facts| f.kernel.programs.as_mut().unwrap().jited = false;
    expect(interpreted, "jit", Fail, "interpreted", "bpf_jit_enable=1");
    let old = |f: &mut Facts| f.kernel.programs.as_mut().unwrap().live_frames = false;
    expect(old, "live-frames", Warn, "not sent again", "5.18");
}

#[test]
fn what_cannot_be_seen_is_a_warning() {
    let mut facts = facts();
    facts.kernel.helpers = Err(Unseen::NeedsRoot);
    facts.kernel.programs = Err(Unseen::NeedsRoot);
    facts.kernel.tcx = Err(Unseen::NeedsRoot);
    facts.kernel.jit_enabled = None;
    facts.host.is_root = false;
    facts.host.missing_capabilities = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]
        .map(String::from)
        .to_vec();
    let mut unseen = veth();
    unseen.peer = Some(Err(Unseen::NeedsRoot));
    facts.interfaces = vec![Ok(unseen)];
    facts.host.config.as_mut().unwrap().xdp_mode = XdpMode::Native;
    let report = Report::of(&facts);
    for name in [
        "helpers",
        "programs",
        "tcx",
        "jit",
        "live-frames",
        "capabilities",
        "peer-checksum",
        "peer-receive",
    ] {
        let check = one(&report, name);
        assert_eq!(check.status, Status::Warn, "{check:?}");
        assert!(check.found.starts_with("needs root"), "{check:?}");
    }
    assert!(report.ok);
    facts.kernel.helpers = Err(Unseen::Other("it is dark".into()));
    let report = Report::of(&facts);
    assert_eq!(one(&report, "helpers").found, "cannot be seen: it is dark");
}

#[test]
fn the_host() {
    use Status::{Fail, Ok as Good, Warn};
    let some = |f: &mut Facts| f.host.missing_capabilities = vec!["CAP_NET_RAW".into()];
    expect(some, "capabilities", Fail, "CAP_NET_RAW", "run as root");
    expect(
        |f| f.host.bpffs = false,
        "bpffs",
        Warn,
        "not mounted",
        "mount -t bpf",
    );
    expect(
        |f| f.host.config = Err("/x.toml:2:1: no such key".into()),
        "configuration",
        Fail,
        "/x.toml:2:1",
        "synguard config check",
    );
    expect(
        |f| f.host.tables = Some(3 << 30),
        "memory",
        Warn,
        "3072 MiB",
        "flow_entries",
    );
    expect(
        |f| f.host.tables = Some(5 << 30),
        "memory",
        Fail,
        "5120 MiB",
        "flow_entries",
    );
    expect(
        |f| f.host.syncookies = Some(0),
        "tcp_syncookies",
        Fail,
        "refuses to make sockets",
        "net.ipv4.tcp_syncookies=1",
    );
    expect(
        |f| f.host.timestamps = Some(0),
        "tcp_timestamps",
        Warn,
        "ECN",
        "tcp_timestamps=1",
    );

    let behind = |prefix: &'static str, admission| {
        move |f: &mut Facts| {
            f.host.forwards_v4 = Some(0);
            let service = &mut f.host.config.as_mut().unwrap().services[0];
            service.addresses = Addresses::Prefixes(vec![prefix.parse().unwrap()]);
            service.admission = admission;
        }
    };
    for admission in [Admission::Auto, Admission::Proxy, Admission::Reset] {
        let behind = behind("198.51.100.0/24", admission);
        expect(
            behind,
            "ip_forward",
            Fail,
            "default",
            "net.ipv4.ip_forward=1",
        );
    }
    expect(
        behind("2001:db8::/64", Admission::Auto),
        "ip_forward",
        Good,
        "on",
        "",
    );
    // An address of the box is not forwarded to.
    let mut own = facts();
    behind("192.0.2.1/32", Admission::Auto)(&mut own);
    assert!(
        Report::of(&own)
            .checks
            .iter()
            .all(|c| c.name != "ip_forward")
    );
    let bridged = |f: &mut Facts| {
        behind("198.51.100.0/24", Admission::Proxy)(f);
        f.interfaces[0].as_mut().unwrap().controller = Some(("br0".into(), "bridge".into()));
    };
    expect(bridged, "ip_forward", Good, "bridge", "");
    let strict = |f: &mut Facts| {
        behind("198.51.100.0/24", Admission::Proxy)(f);
        f.interfaces[0].as_mut().unwrap().rp_filter = Some(1);
    };
    expect(
        strict,
        "rp_filter",
        Warn,
        "strict",
        "net.ipv4.conf.eth0.rp_filter=2",
    );
}

/// With `xdp_mode = "native"`.
fn only_native(f: &mut Facts) {
    f.host.config.as_mut().unwrap().xdp_mode = XdpMode::Native;
}

#[test]
fn where_xdp_runs() {
    use Status::{Fail, Ok as Good, Warn};
    const NAME: &str = "native-xdp";
    expect(|_| {}, NAME, Good, "yes, in driver ice", "");
    let none = Some(XdpFeatures {
        native: false,
        frags: false,
    });
    let mut slow = card();
    slow.xdp = none;
    expect_of(
        slow.clone(),
        NAME,
        Warn,
        "generic XDP, several times slower",
        "a card",
    );
    let wants_native = |f: &mut Facts| {
        only_native(f);
        f.interfaces = vec![Ok(slow)];
    };
    expect(wants_native, NAME, Fail, "xdp_mode is native", "a card");
    let generic = |f: &mut Facts| {
        f.host.config.as_mut().unwrap().xdp_mode = XdpMode::Generic;
    };
    expect(
        generic,
        NAME,
        Warn,
        "generic XDP is configured",
        "xdp_mode = \"auto\"",
    );

    // Before Linux 6.3 it is a guess.
    let mut guess = card();
    guess.xdp = None;
    expect_of(guess.clone(), NAME, Good, "(a guess)", "");
    guess.link.device.driver = Some("e1000e".into());
    expect_of(guess, NAME, Warn, "not known to run it (a guess)", "a card");

    for (kind, lower, fix) in [
        (
            "vlan",
            Some("eth0"),
            "guard eth0 instead, which sees the tags",
        ),
        ("macvlan", Some("eth0"), "guard eth0 instead"),
        ("ipvlan", None, "guard the device below it instead"),
        ("bridge", None, "guard eth1 and eth2 instead"),
    ] {
        let mut upper = card();
        upper.link.device.driver = Some(kind.into());
        upper.link.details.kind = Some(kind.into());
        upper.lower = lower.map(String::from);
        upper.ports = vec!["eth1".into(), "eth2".into()];
        upper.xdp = none;
        expect_of(upper, NAME, Warn, "has no native XDP", fix);
    }
    let mut bond = card();
    bond.link.details.kind = Some("bond".into());
    bond.ports = vec!["eth1".into(), "eth2".into()];
    expect_of(bond.clone(), NAME, Good, "yes", "");
    bond.xdp = none;
    expect_of(bond.clone(), NAME, Warn, "one of eth1, eth2", "cards whose");
    for mode in ["balance-alb", "balance-tlb", "broadcast"] {
        bond.link.details.bond_mode = Some(mode.into());
        let found = format!("a bond in mode {mode}");
        expect_of(bond.clone(), NAME, Warn, &found, "active-backup, 802.3ad");
    }
    bond.link.details.bond_mode = Some("active-backup".into());
    bond.ports.clear();
    expect_of(bond, NAME, Warn, "without ports", "master eth0");
    let mut port = card();
    port.controller = Some(("bond0".into(), "bond".into()));
    expect_of(
        port,
        "port",
        Fail,
        "a port of bond bond0",
        "guard bond0 instead",
    );

    let mut ena = card();
    ena.link.device.driver = Some("ena".into());
    ena.channels = Some(channels(8, 8));
    expect_of(
        ena,
        NAME,
        Warn,
        "8 of its 8 queues",
        "ethtool -L eth0 combined 4",
    );
}

#[test]
fn what_comes_in() {
    use Status::{Fail, Ok as Good, Warn};
    let mut jumbo = card();
    jumbo.link.device.mtu = 9000;
    expect_of(jumbo.clone(), "mtu", Good, "several buffers", "");
    jumbo.xdp = Some(XdpFeatures {
        native: true,
        frags: false,
    });
    expect_of(
        jumbo.clone(),
        "native-xdp",
        Warn,
        "MTU 9000 is too large",
        "mtu 3498",
    );
    expect_of(jumbo.clone(), "mtu", Warn, "generic XDP copies", "mtu 3498");
    let wants_native = |f: &mut Facts| {
        only_native(f);
        f.interfaces = vec![Ok(jumbo)];
    };
    expect(wants_native, "native-xdp", Fail, "MTU 9000", "mtu 3498");

    let mut merging = card();
    merging.offloads = Some(["rx-lro", "rx-gro-hw"].map(String::from).into());
    expect_of(
        merging.clone(),
        "lro",
        Warn,
        "LRO and GRO-HW on",
        "ethtool -K eth0 rx-lro off rx-gro-hw off",
    );
    let wants_native = |f: &mut Facts| {
        only_native(f);
        f.interfaces = vec![Ok(merging)];
    };
    expect(wants_native, "lro", Fail, "refuse native XDP", "rx-lro off");

    let mut tags = card();
    tags.offloads = Some(["rx-vlan-hw-parse".to_owned()].into());
    expect_of(tags.clone(), "vlan-offload", Good, "no VLAN device", "");
    tags.vlans = vec!["eth0.7".into()];
    expect_of(
        tags,
        "vlan-offload",
        Fail,
        "the tags of eth0.7",
        "ethtool -K eth0 rxvlan off",
    );

    let mut few = card();
    few.channels = Some(channels(1, 8));
    expect_of(
        few.clone(),
        "queues",
        Warn,
        "1 receive queue, 4 CPUs",
        "ethtool -L eth0 combined 4",
    );
    few.channels = Some(channels(1, 1));
    expect_of(
        few.clone(),
        "queues",
        Warn,
        "1 receive queue",
        "the device has no more",
    );
    few.link.device.driver = Some("virtio_net".into());
    expect_of(few, "queues", Warn, "1 receive queue", "virtual machine");
}

#[test]
fn links() {
    use Status::{Fail, Ok as Good, Warn};
    let mut down = card();
    down.link.details.enabled = false;
    expect_of(down, "link", Warn, "down", "ip link set dev eth0 up");
    let mut loose = card();
    loose.link.up = false;
    expect_of(loose, "link", Warn, "no carrier", "cable");
    let mut tunnel = card();
    tunnel.link.details.ethernet = false;
    tunnel.link.device.driver = Some("wireguard".into());
    expect_of(
        tunnel,
        "link",
        Fail,
        "no Ethernet header",
        "guard the interface",
    );
    let missing = |f: &mut Facts| {
        f.interfaces = vec![Err(Missing {
            name: "eht0".into(),
            hint: NearNames::new("eht0", vec!["eth0".into()]),
        })];
    };
    expect(
        missing,
        "link",
        Fail,
        "no interface eht0: did you mean eth0?",
        "ip -br link",
    );

    let mut taken = card();
    taken.link.device.xdp_program = Some(7);
    taken.program = Some("xdp_dispatcher".into());
    expect_of(
        taken.clone(),
        "xdp-program",
        Fail,
        "xdp_dispatcher (id 7",
        "dev eth0 xdp off",
    );
    taken.program = None;
    let mut unknown = facts();
    unknown.interfaces = vec![Ok(taken.clone())];
    let report = Report::of(&unknown);
    let check = one(&report, "xdp-program");
    assert_eq!(check.status, Status::Warn);
    assert!(check.found.contains("needs root"), "{check:?}");
    taken.program = Some("synguard_in".into());
    expect_of(taken, "xdp-program", Good, "guarded already", "");
}

#[test]
fn the_other_end_of_a_veth() {
    use Status::{Fail, Ok as Good, Warn};
    let with = |change: &dyn Fn(&mut Peer)| {
        let mut veth = veth();
        change(veth.peer.as_mut().unwrap().as_mut().unwrap());
        veth
    };
    let native = |interface: Interface, name, status, found, fix| {
        let put = |facts: &mut Facts| {
            facts.host.config.as_mut().unwrap().xdp_mode = XdpMode::Native;
            facts.interfaces = vec![Ok(interface)];
        };
        expect(put, name, status, found, fix);
    };
    native(
        with(&|_| {}),
        "peer-receive",
        Fail,
        "loses every answer",
        "xdp_mode = \"generic\"",
    );
    native(with(&|_| {}), "peer-checksum", Good, "finishes", "");
    let program = |peer: &mut Peer| peer.has_xdp = true;
    native(
        with(&program),
        "peer-receive",
        Good,
        "runs an XDP program",
        "",
    );
    let lazy = |peer: &mut Peer| {
        peer.elsewhere = true;
        peer.offloads.insert("tx-checksum-ip-generic".into());
    };
    let fix = "in its namespace: ethtool -K peer0 tx off";
    native(with(&lazy), "peer-checksum", Warn, "unfinished", fix);
    let proxied = |f: &mut Facts| {
        f.host.config.as_mut().unwrap().services[0].admission = Admission::Proxy;
        f.interfaces = vec![Ok(with(&lazy))];
    };
    expect(proxied, "peer-checksum", Fail, "`proxy` drops", fix);
    let many = |peer: &mut Peer| peer.channels = Some(channels(6, 6));
    let fix = "ethtool -L eth0 rx 6";
    native(
        with(&many),
        "native-xdp",
        Fail,
        "sends by 6 queues, and 4 receive",
        fix,
    );
    // What is left to choose does not choose it.
    let not = "unless it runs XDP too";
    expect_of(
        with(&|_| {}),
        "native-xdp",
        Warn,
        not,
        "any XDP program on peer0",
    );
    expect_of(with(&program), "native-xdp", Warn, not, "as peer0 does");
    // What does not run natively loses nothing.
    let generic = |f: &mut Facts| {
        f.host.config.as_mut().unwrap().xdp_mode = XdpMode::Generic;
        f.interfaces = vec![Ok(with(&|_| {}))];
    };
    let mut facts = facts();
    generic(&mut facts);
    let report = Report::of(&facts);
    assert!(
        report
            .checks
            .iter()
            .all(|check| check.name != "peer-receive")
    );
    let large = |peer: &mut Peer| peer.mtu = 9000;
    let mut old = with(&large);
    old.xdp = None;
    native(old, "native-xdp", Fail, "MTU 9000", "dev peer0 mtu 3498");
}

#[test]
fn json_has_what_scripts_need() {
    let mut facts = facts();
    facts.host.syncookies = Some(0);
    let report = Report::of(&facts);
    assert_eq!(report.failures(), ["tcp_syncookies"]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["ok"], false);
    let checks = json["checks"].as_array().unwrap();
    let cookies = checks
        .iter()
        .find(|check| check["name"] == "tcp_syncookies")
        .unwrap();
    assert_eq!(cookies["status"], "fail");
    assert!(cookies["fix"].as_str().unwrap().starts_with("sysctl -w"));
    assert!(cookies.get("interface").is_none());
    let link = checks.iter().find(|check| check["name"] == "link").unwrap();
    assert_eq!(
        (&link["interface"], link.get("fix")),
        (&"eth0".into(), None)
    );
}
