//! The keys and what their values may be.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    MetricsAddress, PinDirectory, StateDirectory,
    table::{Key, describe, integer, number},
};
use crate::{
    lists::{Prefix, PrefixError},
    model::{Admission, Mode, Watermark, XdpMode},
};

/// More would need more memory than the half-open table may have.
const HIGH_LIMIT: u32 = 4_000_000;
const CALM_SECONDS: RangeInclusive<u64> = 15..=86_400;
const HOUR: u64 = 3600;
pub(crate) const HALF_OPEN_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(HOUR);
const IDLE_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(30 * 24 * HOUR);
const VERIFIED_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * HOUR);
/// Of every table whose size may be chosen.
const ENTRIES_BOUNDS: RangeInclusive<u32> = 1024..=4_194_304;
const ENTRIES_RIGHT: &str = "a number from 1024 to 4194304";
const NAME_LENGTH: usize = 63;
/// `IFNAMSIZ` without the end.
const INTERFACE_LENGTH: usize = 15;

pub(super) const METRICS_RIGHT: &str = "IP:PORT such as 127.0.0.1:9911 or [::1]:9911, or `off`";
pub(super) const STATE_RIGHT: &str = "an absolute path, or `off`";
const WATERMARK_RIGHT: &str = "\"auto\" or a number from 1 to 4000000";

pub(super) const METRICS: Key<MetricsAddress> = Key {
    name: "metrics",
    right: METRICS_RIGHT,
    read: |v| v.as_str().and_then(|s| s.parse().ok()).ok_or(""),
};
pub(super) const PINS_RIGHT: &str = "an absolute path below /sys/fs/bpf, or `off`";

pub(super) const PINS: Key<PinDirectory> = Key {
    name: "pins",
    right: PINS_RIGHT,
    read: |v| v.as_str().and_then(|s| s.parse().ok()).ok_or(""),
};
pub(super) const SOCKET: Key<PathBuf> = Key {
    name: "socket",
    right: "an absolute path",
    read: absolute_path,
};
pub(super) const SECRET: Key<PathBuf> = Key {
    name: "secret",
    right: "an absolute path",
    read: absolute_path,
};
pub(super) const STATE: Key<StateDirectory> = Key {
    name: "state",
    right: STATE_RIGHT,
    read: |v| v.as_str().and_then(|s| s.parse().ok()).ok_or(""),
};
pub(super) const XDP_MODE: Key<XdpMode> = Key {
    name: "xdp_mode",
    right: "\"auto\", \"native\" or \"generic\"",
    read: |v| match v.as_str() {
        Some("auto") => Ok(XdpMode::Auto),
        Some("native") => Ok(XdpMode::Native),
        Some("generic") => Ok(XdpMode::Generic),
        _ => Err(""),
    },
};
pub(super) const HALF_OPEN_ENTRIES: Key<u32> = Key {
    name: "half_open_entries",
    right: ENTRIES_RIGHT,
    read: entries,
};
pub(super) const FLOW_ENTRIES: Key<u32> = Key {
    name: "flow_entries",
    right: ENTRIES_RIGHT,
    read: entries,
};
pub(super) const FLOW_IDLE_TIMEOUT: Key<Duration> = Key {
    name: "flow_idle_timeout",
    right: "a time from \"10s\" to \"30days\", or a number of seconds",
    read: |v| time(v, &IDLE_BOUNDS),
};
pub(super) const VERIFIED_ENTRIES: Key<u32> = Key {
    name: "verified_entries",
    right: ENTRIES_RIGHT,
    read: entries,
};
pub(super) const VERIFIED_TIMEOUT: Key<Duration> = Key {
    name: "verified_timeout",
    right: "a time from \"1s\" to \"24h\", or a number of seconds",
    read: |v| time(v, &VERIFIED_BOUNDS),
};
pub(super) const SYN_CACHE: Key<bool> = Key {
    name: "syn_cache",
    right: TRUE_OR_FALSE,
    read: boolean,
};
pub(super) const MODE: Key<Mode> = Key {
    name: "mode",
    right: "\"adaptive\", \"always\" or \"observe\"",
    read: |v| match v.as_str() {
        Some("adaptive") => Ok(Mode::Adaptive),
        Some("always") => Ok(Mode::Always),
        Some("observe") => Ok(Mode::Observe),
        _ => Err(""),
    },
};
pub(super) const ADMISSION: Key<Admission> = Key {
    name: "admission",
    right: "\"auto\", \"local\", \"proxy\" or \"reset\"",
    read: |v| match v.as_str() {
        Some("auto") => Ok(Admission::Auto),
        Some("local") => Ok(Admission::Local),
        Some("proxy") => Ok(Admission::Proxy),
        Some("reset") => Ok(Admission::Reset),
        _ => Err(""),
    },
};
pub(super) const HIGH: Key<Watermark> = Key {
    name: "high",
    right: WATERMARK_RIGHT,
    read: watermark,
};
pub(super) const LOW: Key<Watermark> = Key {
    name: "low",
    right: WATERMARK_RIGHT,
    read: watermark,
};
pub(super) const CALM_AFTER: Key<Duration> = Key {
    name: "calm_seconds",
    right: "a number from 15 to 86400",
    read: |v| match number(v) {
        Some(seconds) if CALM_SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(..15) => Err(", too short to tell a lull from the end"),
        _ => Err(""),
    },
};
pub(super) const HALF_OPEN_TIMEOUT: Key<Duration> = Key {
    name: "half_open_timeout",
    right: "a time from \"1s\" to \"1h\", or a number of seconds",
    read: |v| time(v, &HALF_OPEN_BOUNDS),
};
pub(super) const RELEASE: Key<bool> = Key {
    name: "release",
    right: TRUE_OR_FALSE,
    read: boolean,
};
pub(super) const NAME: Key<String> = Key {
    name: "name",
    right: "1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or digit",
    read: |v| {
        let name = v.as_str().ok_or("")?;
        let legal = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        if name.len() > NAME_LENGTH {
            return Err(", which is too long");
        }
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && name.bytes().all(legal) {
            Ok(name.to_owned())
        } else {
            Err("")
        }
    },
};

const TRUE_OR_FALSE: &str = "true or false";

fn boolean(v: &DeValue<'_>) -> Result<bool, &'static str> {
    v.as_bool().ok_or("")
}

/// Names of the keys that hold lists, which have a position per element.
pub(super) const INTERFACES: &str = "interfaces";
pub(super) const ADDRESSES: &str = "addresses";
pub(super) const PORTS: &str = "ports";
/// Name of the key that holds a table of its own.
pub(super) const SERVER: &str = "server";

pub(super) const DAEMON_KEYS: &[&str] = &[
    INTERFACES,
    METRICS.name,
    SOCKET.name,
    SECRET.name,
    PINS.name,
    STATE.name,
    XDP_MODE.name,
    HALF_OPEN_ENTRIES.name,
    FLOW_ENTRIES.name,
    FLOW_IDLE_TIMEOUT.name,
    VERIFIED_ENTRIES.name,
    VERIFIED_TIMEOUT.name,
    SYN_CACHE.name,
];
pub(super) const DEFAULTS_KEYS: &[&str] = &[
    MODE.name,
    ADMISSION.name,
    SERVER,
    HIGH.name,
    LOW.name,
    CALM_AFTER.name,
    HALF_OPEN_TIMEOUT.name,
    RELEASE.name,
];
pub(super) const SERVICE_KEYS: &[&str] = &[
    NAME.name,
    ADDRESSES,
    PORTS,
    MODE.name,
    ADMISSION.name,
    SERVER,
    HIGH.name,
    LOW.name,
    CALM_AFTER.name,
    HALF_OPEN_TIMEOUT.name,
    RELEASE.name,
];

/// Reads an element of `interfaces` as the kernel's `dev_valid_name` does; the error is the whole
/// message.
pub(super) fn interface_item(value: &DeValue<'_>) -> Result<String, String> {
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    match value.as_str() {
        Some(name)
            if (1..=INTERFACE_LENGTH).contains(&name.len())
                && name.chars().all(legal)
                && name != "."
                && name != ".." =>
        {
            Ok(name.to_owned())
        }
        _ => Err(format!(
            "{} is no interface; give the name of one such as \"eth0\", as `ip link` shows it",
            describe(value)
        )),
    }
}

/// An element of `addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressItem {
    Interface,
    Prefix(IpNet),
}

/// Reads an element of `addresses`; the error is the whole message.
pub(super) fn address_item(value: &DeValue<'_>) -> Result<AddressItem, String> {
    let unreadable = || {
        format!(
            "{} is neither an address nor a prefix; give one such as \"192.0.2.1\", \
             \"192.0.2.0/24\" or \"2001:db8::/32\", or \"interface\"",
            describe(value)
        )
    };
    let text = value.as_str().ok_or_else(unreadable)?;
    if text == "interface" {
        return Ok(AddressItem::Interface);
    }
    let prefix = match text.parse::<Prefix>() {
        Ok(prefix) => prefix.net(),
        Err(PrefixError::Unreadable(_)) => return Err(unreadable()),
        Err(PrefixError::Wrong(line)) => return Err(line),
    };
    let address = prefix.addr();
    if address.is_multicast() {
        return Err(format!(
            "{text} is multicast, where there is no TCP; give the address of the service"
        ));
    }
    if address.is_unspecified() && prefix.prefix_len() == prefix.max_prefix_len() {
        let every = if address.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        return Err(format!(
            "{text} is no service's address; give \"interface\" for the interface's own addresses, \
             or \"{every}\" for every one"
        ));
    }
    Ok(AddressItem::Prefix(prefix))
}

/// Reads an element of `ports`; the error is the whole message.
pub(super) fn port_item(value: &DeValue<'_>) -> Result<RangeInclusive<u16>, String> {
    let wrong = |what: &str| {
        Err(format!(
            "{}{what}; give a port from 1 to 65535 such as 443, or a range such as \"8000-8080\"",
            describe(value)
        ))
    };
    let port = |n: i128| u16::try_from(n).ok().filter(|n| *n != 0);
    match value {
        DeValue::Integer(_) => match integer(value).and_then(port) {
            Some(port) => Ok(port..=port),
            None => wrong(" is not a TCP port"),
        },
        DeValue::String(text) => {
            let bound = |s: &str| s.trim().parse::<u32>().ok();
            let Some((first, last)) = text.split_once('-') else {
                return match bound(text) {
                    Some(n) if port(n.into()).is_some() => {
                        Err(format!("{} is in quotes; give {n}", describe(value)))
                    }
                    _ => wrong(" is not a range of ports"),
                };
            };
            let (Some(first), Some(last)) = (bound(first), bound(last)) else {
                return wrong(" is not a range of ports");
            };
            match (port(first.into()), port(last.into())) {
                (Some(low), Some(high)) if low <= high => Ok(low..=high),
                (Some(high), Some(low)) => Err(format!(
                    "{} is reversed; give \"{low}-{high}\"",
                    describe(value)
                )),
                _ => wrong(" reaches beyond the TCP ports"),
            }
        }
        _ => wrong(" is not a TCP port"),
    }
}

fn entries(value: &DeValue<'_>) -> Result<u32, &'static str> {
    number(value)
        .filter(|n| ENTRIES_BOUNDS.contains(n))
        .ok_or("")
}

fn time(value: &DeValue<'_>, bounds: &RangeInclusive<Duration>) -> Result<Duration, &'static str> {
    let duration = match value {
        DeValue::String(s) => humantime::parse_duration(s).ok(),
        _ => number(value).map(Duration::from_secs),
    };
    duration.filter(|d| bounds.contains(d)).ok_or("")
}

fn watermark(value: &DeValue<'_>) -> Result<Watermark, &'static str> {
    if value.as_str() == Some("auto") {
        return Ok(Watermark::Auto);
    }
    match number(value) {
        Some(n @ 1..=HIGH_LIMIT) => Ok(Watermark::Fixed(n)),
        _ => Err(""),
    }
}

fn absolute_path(value: &DeValue<'_>) -> Result<PathBuf, &'static str> {
    let path = value
        .as_str()
        .map(Path::new)
        .filter(|path| path.is_absolute());
    path.map(Path::to_owned).ok_or("")
}
