//! Judges the machine around the kernel, and the configuration against it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Check,
    facts::{Host, Interface, Missing},
};
use crate::{
    config::DEFAULT_PATH,
    model::{Addresses, Admission, Service},
};

pub(super) fn judge(host: &Host, interfaces: &[Result<Interface, Missing>]) -> Vec<Check> {
    let mut checks = vec![
        capabilities(host),
        bpffs(host),
        configuration(host),
        memory(host),
        syncookies(host),
        timestamps(host),
    ];
    checks.extend(forwarding(host, interfaces));
    checks
}

fn capabilities(host: &Host) -> Check {
    const NAME: &str = "capabilities";
    const ALL: usize = 4;
    let missing = &host.missing_capabilities;
    if missing.is_empty() {
        return Check::ok(NAME, "all that the daemon needs");
    }
    // Whoever has none is a person who looks; who has some is meant to run the daemon.
    if missing.len() == ALL && !host.is_root {
        return Check::unsure(NAME, "needs root, or what the systemd unit grants");
    }
    let found = format!("missing: {}", missing.join(", "));
    Check::fail(NAME, found, "run as root, or grant them")
}

fn bpffs(host: &Host) -> Check {
    if host.bpffs {
        Check::ok("bpffs", "mounted at /sys/fs/bpf")
    } else {
        Check::warn(
            "bpffs",
            "not mounted at /sys/fs/bpf: the guard cannot outlive the daemon",
            "mount -t bpf bpf /sys/fs/bpf",
        )
    }
}

fn configuration(host: &Host) -> Check {
    const NAME: &str = "configuration";
    let path = host.config_path.as_ref();
    match (&host.config, path) {
        (Ok(config), Some(path)) => {
            let n = config.services.len();
            let s = if n == 1 { "" } else { "s" };
            Check::ok(NAME, format!("{}: {n} service{s}", path.display()))
        }
        (Ok(_), None) => Check::ok(NAME, format!("built in: there is no {DEFAULT_PATH}")),
        (Err(mistake), path) => {
            let path = path.map_or_else(|| DEFAULT_PATH.into(), |path| path.display().to_string());
            Check::fail(
                NAME,
                mistake.as_str(),
                format!("synguard config check {path}"),
            )
        }
    }
}

fn memory(host: &Host) -> Check {
    const NAME: &str = "memory";
    const MIB: u64 = 1 << 20;
    let (Some(tables), Some(available)) = (host.tables, host.available) else {
        return Check::unsure(NAME, "cannot be told without a valid configuration");
    };
    let found = format!(
        "{} MiB for the tables, {} MiB available",
        tables.div_ceil(MIB),
        available / MIB
    );
    let fix = "lower half_open_entries, flow_entries or verified_entries";
    if tables > available {
        Check::fail(NAME, found, fix)
    } else if tables > available / 2 {
        Check::warn(NAME, found, fix)
    } else {
        Check::ok(NAME, found)
    }
}

fn syncookies(host: &Host) -> Check {
    const NAME: &str = "tcp_syncookies";
    match host.syncookies {
        Some(0) => Check::fail(
            NAME,
            "0: the kernel refuses to make sockets from cookies",
            "sysctl -w net.ipv4.tcp_syncookies=1 (or: synguard tune --apply)",
        ),
        value => Check::told(NAME, value),
    }
}

fn timestamps(host: &Host) -> Check {
    const NAME: &str = "tcp_timestamps";
    match host.timestamps {
        Some(0) => Check::warn(
            NAME,
            "0: no ECN for guarded clients, and a coarser window scale",
            "sysctl -w net.ipv4.tcp_timestamps=1",
        ),
        value => Check::told(NAME, value),
    }
}

/// Whether packets get to the servers that are not on the box.
fn forwarding(host: &Host, interfaces: &[Result<Interface, Missing>]) -> Option<Check> {
    const NAME: &str = "ip_forward";
    let bridged = interfaces
        .iter()
        .flatten()
        .any(|interface| matches!(&interface.controller, Some((_, kind)) if kind == "bridge"));
    let away = |v6: bool| -> Vec<&str> {
        let services = host.config.iter().flat_map(|config| &config.services);
        services
            .filter(|service| prefixes_elsewhere(service, host).any(|p| is_v6(p) == v6))
            .map(|service| service.name.as_str())
            .collect()
    };
    let (v4, v6) = (away(false), away(true));
    if v4.is_empty() && v6.is_empty() {
        return None;
    }
    for (names, value, setting) in [
        (v4, host.forwards_v4, "net.ipv4.ip_forward"),
        (v6, host.forwards_v6, "net.ipv6.conf.all.forwarding"),
    ] {
        if !names.is_empty() && value == Some(0) && !bridged {
            let found = format!(
                "{setting} is 0: the servers of {} are behind",
                names.join(", ")
            );
            return Some(Check::fail(NAME, found, format!("sysctl -w {setting}=1")));
        }
    }
    Some(Check::ok(
        NAME,
        if bridged {
            "not needed by a port of a bridge"
        } else {
            "on"
        },
    ))
}

fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

/// What a service covers that is not an address of the box.
fn prefixes_elsewhere<'a>(service: &'a Service, host: &'a Host) -> impl Iterator<Item = &'a IpNet> {
    let prefixes = match &service.addresses {
        Addresses::Prefixes(prefixes) if service.admission != Admission::Local => {
            prefixes.as_slice()
        }
        _ => &[],
    };
    prefixes.iter().filter(|prefix| {
        let is_whole = prefix.prefix_len() == prefix.max_prefix_len();
        let here = |address: &IpAddr| *address == prefix.addr();
        !(is_whole && host.addresses.iter().any(here))
    })
}

/// Whether any service is, or may turn out to be, one for a server elsewhere.
pub(super) fn proxies(host: &Host) -> bool {
    let mut services = host.config.iter().flat_map(|config| &config.services);
    services.any(|service| match service.admission {
        Admission::Proxy => true,
        Admission::Auto => prefixes_elsewhere(service, host).next().is_some(),
        Admission::Local | Admission::Reset => false,
    })
}
