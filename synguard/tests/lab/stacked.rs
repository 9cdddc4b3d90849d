//! Guarded interfaces that are no cards but stand on others: `check` says that they have no native XDP
//! and which device to guard instead, `native` refuses them in one line, and `auto` guards them in
//! generic mode.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use synguard_lab::{
    link::{self, End},
    netns::Netns,
    skip_unless_root,
};

use crate::{
    check::{check_with, end, ip},
    guard::{Guard, PATIENCE, admitted, eventually},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
/// The interface on top.
const TOP: &str = "top";

/// A client, and a server whose address is that of an interface on top of its card.
struct Site {
    client: Netns,
    server: Netns,
    top: End,
    card: String,
}

impl Site {
    /// Makes it by `commands` of `ip`, in which `CARD` is the card; prints why not where the kernel
    /// has no such devices.
    fn new(test: &str, commands: &[&str]) -> Option<Self> {
        if !skip_unless_root(test) {
            return None;
        }
        let [client, server] = ["below", "above"].map(|name| Netns::create(name).unwrap());
        let [near, card] = link::veth(&client, &server, 1500).unwrap();
        // The card itself does not answer for the address on top of it.
        let setting = "net.ipv4.conf.all.arp_ignore";
        server.set_sysctl(setting, 1).unwrap();
        for (n, command) in commands.iter().enumerate() {
            match ip(&server, &command.replace("CARD", &card.name)) {
                Err(why) if n == 0 => {
                    println!("SKIP {test}: this kernel has none: {why}");
                    return None;
                }
                made => made.unwrap(),
            }
        }
        let top = end(&server, TOP);
        for (end, address) in [(&near, CLIENT), (&top, SERVER)] {
            let add =
                async |handle| link::add_address(&handle, end.index, IpAddr::V4(address), 24).await;
            end.ns.netlink(add).unwrap();
        }
        Some(Self {
            client,
            server,
            top,
            card: card.name,
        })
    }

    fn connects(&self) -> bool {
        let connect = |limit: Duration| {
            let target = SocketAddr::from((SERVER, 80));
            Ok(TcpStream::connect_timeout(&target, limit).is_ok())
        };
        self.client.run(|| connect(PATIENCE)).unwrap()
    }

    /// What is said, refused and done where native XDP is impossible.
    fn is_generic(&self, reason: &str, fix: &str) {
        let config = |mode: &str| format!("[daemon]\nxdp_mode = \"{mode}\"\n");
        let fix = fix.replace("CARD", &self.card);

        let said = check_with(&self.server, &config("native"), TOP);
        said.expect("native-xdp", "fail", reason, &fix);
        let arguments = ["-i", TOP, "--metrics", "off"];
        let mut guard = Guard::spawn(&self.server, &config("native"), &arguments);
        let line = guard.process.wait_for_line("synguard: ", PATIENCE).unwrap();
        assert!(
            line.contains("of top refuses native XDP") && line.contains("--xdp-mode auto"),
            "{line}"
        );
        assert!(!self.top.has_xdp().unwrap());

        let said = check_with(&self.server, &config("auto"), TOP);
        assert_eq!(said.code, Some(0));
        said.expect("native-xdp", "warn", reason, &fix);
        let listen = || Ok(TcpListener::bind((SERVER, 80))?);
        let _listener = self.server.run(listen).unwrap();
        let arguments = ["--mode", "always", "--metrics", "off"];
        let guard = Guard::at(&self.top, &config("auto"), &arguments);
        assert_eq!(guard.status().interfaces[0].xdp_mode, "generic");
        let events = guard.told(&["events", "--kind", "fell_back_to_generic"]);
        assert!(events.contains(TOP), "{events}");
        assert!(self.connects(), "{}", guard.process.log());
        eventually("it is admitted", || {
            (admitted(&guard.service()) == 1).then_some(())
        });
        guard.stop();
    }
}

#[test]
fn a_bridge_is_guarded_in_generic_mode() {
    let commands = [
        "link add name top type bridge",
        "link set dev CARD master top",
        "link set dev top up",
    ];
    if let Some(site) = Site::new("a_bridge_is_guarded_in_generic_mode", &commands) {
        site.is_generic("a bridge has no native XDP", "guard CARD instead");
    }
}

#[test]
fn a_macvlan_is_guarded_in_generic_mode() {
    let commands = [
        "link add link CARD name top type macvlan mode bridge",
        "link set dev top up",
    ];
    if let Some(site) = Site::new("a_macvlan_is_guarded_in_generic_mode", &commands) {
        site.is_generic("a macvlan device has no native XDP", "guard CARD instead");
    }
}

/// In a mode in which each port sends as itself.
#[test]
fn a_bond_that_cannot_is_guarded_in_generic_mode() {
    let test = "a_bond_that_cannot_is_guarded_in_generic_mode";
    if let Some(site) = Site::new(test, &bond("balance-alb").each_ref().map(String::as_str)) {
        site.is_generic(
            "a bond in mode balance-alb",
            "one of the modes active-backup",
        );
    }
}

/// Whether a bond runs it depends on its ports too: what `check` says of it comes to pass.
#[test]
fn a_bond_that_may_is_foreseen() {
    let test = "a_bond_that_may_is_foreseen";
    let Some(site) = Site::new(test, &bond("active-backup").each_ref().map(String::as_str)) else {
        return;
    };
    let config = "[daemon]\nxdp_mode = \"auto\"\n";
    let said = check_with(&site.server, config, TOP);
    let (status, found, _) = said.of("native-xdp");
    let guard = Guard::at(&site.top, config, &["--metrics", "off"]);
    let mode = guard.status().interfaces[0].xdp_mode.clone();
    assert_eq!(mode == "native", status == "ok", "{found}");
    guard.stop();
}

fn bond(mode: &str) -> [String; 5] {
    [
        format!("link add name top type bond mode {mode}"),
        "link set dev CARD down".to_owned(),
        "link set dev CARD master top".to_owned(),
        "link set dev CARD up".to_owned(),
        "link set dev top up".to_owned(),
    ]
}
