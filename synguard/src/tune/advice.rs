//! Which settings matter when SYNs come in millions, what they should be, and why.
//!
//! A value is derived from the machine's memory where memory is what limits it, and is never worse
//! than what is set already: "at least" and "at most" are judged by the present value.

use std::fmt;

use serde::Serialize;

use super::{boot::Assignment, host::Host};

/// What values are given for.
const GIB: u64 = 1 << 30;

/// What a setting should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// This or more.
    AtLeast(u64),
    /// This or less.
    AtMost(u64),
    /// One of these; the first where it is none.
    OneOf(&'static [u64]),
    /// A range of ports that spans this one.
    Span(u64, u64),
}

/// A setting that matters.
struct Rule {
    key: &'static str,
    wish: Wish,
    why: &'static str,
}

/// How a setting stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// As advised, or better.
    Good,
    /// Another value is advised.
    Change,
    /// Another value is advised, but it cannot be set from this network namespace.
    ReadOnly,
    /// The kernel that will use it does not run here.
    Unknown,
    /// Does nothing any more, or did harm.
    Obsolete,
}

/// What is said of one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Its name, as `sysctl` has it.
    pub setting: String,
    /// Its value, where there is one.
    pub current: Option<String>,
    /// What it should be; `None` for obsolete ones.
    pub advised: Option<String>,
    /// How it stands.
    pub status: Standing,
    /// Why.
    pub why: String,
}

/// Settings that do not help, whatever old guides say. Two are no longer there at all.
const OBSOLETE: [(&str, &str); 3] = [
    (
        "net.ipv4.tcp_tw_recycle",
        "obsolete: it cut off clients behind NAT, and is gone since Linux 4.12",
    ),
    (
        "net.ipv4.tcp_low_latency",
        "obsolete: does nothing since Linux 4.14",
    ),
    (
        "net.ipv4.tcp_fack",
        "obsolete: does nothing since Linux 4.15",
    ),
];

/// What is advised for a host, in the order of importance.
pub fn advise(host: &Host, at_boot: &[Assignment]) -> Vec<Advice> {
    let mut advice: Vec<Advice> = rules(host.memory)
        .into_iter()
        .filter_map(|rule| judge(host, &rule))
        .collect();
    advice.extend(OBSOLETE.iter().filter_map(|(key, why)| {
        let set_by = at_boot.iter().rfind(|line| line.key == *key);
        let why = match set_by {
            Some(line) => format!("{why}; set by {}: remove it there", line.place()),
            None => format!("{why}; do not set it"),
        };
        let current = host.read(key).map(|reading| reading.value);
        // Of those that do nothing only those are worth a line that somebody sets.
        (set_by.is_some() || *key == OBSOLETE[0].0).then(|| Advice {
            setting: (*key).to_owned(),
            current,
            advised: None,
            status: Standing::Obsolete,
            why,
        })
    }));
    advice
}

fn judge(host: &Host, rule: &Rule) -> Option<Advice> {
    let Some(reading) = host.read(rule.key) else {
        // Of an image it is not known which modules will be loaded.
        return (!host.is_live() && !is_conntrack(rule.key)).then(|| Advice {
            setting: rule.key.to_owned(),
            current: None,
            advised: Some(rule.wish.unconditionally()),
            status: Standing::Unknown,
            why: rule.why.to_owned(),
        });
    };
    // A setting of an unknown form is not ours to judge.
    let advised = rule.wish.given(&reading.value)?;
    let status = if advised == reading.value {
        Standing::Good
    } else if reading.writable {
        Standing::Change
    } else {
        Standing::ReadOnly
    };
    Some(Advice {
        setting: rule.key.to_owned(),
        current: Some(reading.value),
        advised: Some(advised),
        status,
        why: rule.why.to_owned(),
    })
}

/// Whether a setting is there only while connections are tracked.
pub(super) fn is_conntrack(key: &str) -> bool {
    key.starts_with("net.netfilter.")
}

impl Wish {
    /// The value to set where `current` is set; the same where that is good enough. `None` where it
    /// is nothing we understand.
    fn given(self, current: &str) -> Option<String> {
        let numbers: Option<Vec<u64>> = current
            .split_whitespace()
            .map(|word| word.parse().ok())
            .collect();
        let wanted = match (self, numbers?.as_slice()) {
            (Self::AtLeast(n), [now]) => n.max(*now),
            (Self::AtMost(n), [now]) => n.min(*now),
            (Self::OneOf(values), [now]) if values.contains(now) => *now,
            (Self::OneOf(values), [_]) => *values.first()?,
            (Self::Span(low, high), [from, to]) => {
                return Some(format!("{} {}", low.min(*from), high.max(*to)));
            }
            _ => return None,
        };
        Some(wanted.to_string())
    }

    fn unconditionally(self) -> String {
        match self {
            Self::AtLeast(n) | Self::AtMost(n) => n.to_string(),
            Self::OneOf(values) => values.first().copied().unwrap_or_default().to_string(),
            Self::Span(low, high) => format!("{low} {high}"),
        }
    }
}

/// `n` for each GiB of memory, in whole thousands (of 1024), within bounds.
fn per_gib(memory: u64, n: u64, least: u64, most: u64) -> u64 {
    let scaled = u128::from(memory) * u128::from(n) / u128::from(GIB);
    let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
    (scaled / 1024 * 1024).clamp(least, most)
}

fn rules(memory: u64) -> Vec<Rule> {
    let backlog = per_gib(memory, 4096, 4096, 65_535);
    let rule = |key, wish, why| Rule { key, wish, why };
    vec![
        rule(
            "net.ipv4.tcp_syncookies",
            Wish::OneOf(&[1, 2]),
            "cookies once a listener's queue is full; 0 also forbids admission `local`",
        ),
        rule(
            "net.ipv4.tcp_max_syn_backlog",
            Wish::AtLeast(backlog),
            "half-open connections a listener may have, 300 bytes each: 4096 per GiB",
        ),
        rule(
            "net.core.somaxconn",
            Wish::AtLeast(backlog),
            "caps every listen(); the lesser of this and the one above counts: the same",
        ),
        rule(
            "net.ipv4.tcp_synack_retries",
            Wish::AtMost(3),
            "half-open connections are given up after 15 s; with 5 retries after 63 s",
        ),
        rule(
            "net.ipv4.tcp_abort_on_overflow",
            Wish::OneOf(&[0]),
            "a trap: resets clients that a full accept queue would serve a moment later",
        ),
        rule(
            "net.ipv4.tcp_timestamps",
            Wish::OneOf(&[1, 2]),
            "cookies carry window scale and ECN in them; tcp_tw_reuse relies on them",
        ),
        rule(
            "net.ipv4.tcp_keepalive_time",
            Wish::AtMost(600),
            "a silent peer is probed after 10 min (where the server asks for keepalive)",
        ),
        rule(
            "net.ipv4.tcp_keepalive_intvl",
            Wish::AtMost(30),
            "time between the probes",
        ),
        rule(
            "net.ipv4.tcp_keepalive_probes",
            Wish::AtMost(5),
            "probes before a peer is dead: 2.5 min at 30 s each",
        ),
        rule(
            "net.ipv4.tcp_fin_timeout",
            Wish::AtMost(30),
            "connections that the server has left wait for the client's FIN so long",
        ),
        rule(
            "net.ipv4.tcp_tw_reuse",
            Wish::OneOf(&[1]),
            "outgoing connections may reuse ports in TIME_WAIT; timestamps make it safe",
        ),
        rule(
            "net.ipv4.tcp_max_tw_buckets",
            Wish::AtLeast(per_gib(memory, 65_536, 16_384, 1 << 20)),
            "beyond it TIME_WAIT is cut short; 250 bytes each: 65536 per GiB",
        ),
        rule(
            "net.ipv4.tcp_rfc1337",
            Wish::OneOf(&[1]),
            "a stray RST does not end TIME_WAIT (RFC 1337)",
        ),
        rule(
            "net.ipv4.ip_local_port_range",
            Wish::Span(16_384, 65_535),
            "ports of outgoing connections; listeners among them: ip_local_reserved_ports",
        ),
        rule(
            "net.core.netdev_max_backlog",
            Wish::AtLeast(per_gib(memory, 4096, 2048, 16_384)),
            "packets that may wait for a CPU (RPS, veth, generic XDP): 4096 per GiB",
        ),
        rule(
            "net.core.netdev_budget",
            Wish::AtLeast(600),
            "packets a CPU receives in one go, before it does anything else",
        ),
        rule(
            "net.core.netdev_budget_usecs",
            Wish::AtLeast(8000),
            "the time it may take for them, in microseconds",
        ),
        rule(
            "net.netfilter.nf_conntrack_max",
            Wish::AtLeast(per_gib(memory, 131_072, 65_536, 1 << 22)),
            "a full table drops new connections; 320 bytes each: 131072 per GiB",
        ),
        rule(
            "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
            Wish::AtMost(20),
            "half-open connections in the table: what tcp_synack_retries allows, and 5 s",
        ),
        rule(
            "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
            Wish::AtMost(60),
            "as long as Linux itself keeps TIME_WAIT",
        ),
        rule(
            "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
            Wish::AtMost(60),
            "connections that one side has ended",
        ),
        rule(
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            Wish::AtMost(86_400),
            "idle connections: a day instead of five (RFC 5382: at least 2 h 4 min)",
        ),
    ]
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Change => "change",
            Self::ReadOnly => "read-only",
            Self::Unknown => "unknown",
            Self::Obsolete => "obsolete",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_better_value_is_never_made_worse() {
        for (wish, now, then) in [
            (Wish::AtLeast(100), "50", Some("100")),
            (Wish::AtLeast(100), "5000", Some("5000")),
            (Wish::AtMost(3), "5", Some("3")),
            (Wish::AtMost(3), "1", Some("1")),
            (Wish::OneOf(&[1, 2]), "0", Some("1")),
            (Wish::OneOf(&[1, 2]), "2", Some("2")),
            (Wish::Span(10, 20), "15 18", Some("10 20")),
            (Wish::Span(10, 20), "5 30", Some("5 30")),
            (Wish::Span(10, 20), "5 15", Some("5 20")),
            (Wish::AtLeast(1), "many", None),
            (Wish::AtLeast(1), "1 2", None),
            (Wish::Span(1, 2), "1", None),
        ] {
            assert_eq!(wish.given(now).as_deref(), then, "{wish:?} {now}");
        }
    }

    #[test]
    fn values_follow_the_memory_within_bounds() {
        let value = |memory, key| {
            let rule = rules(memory).into_iter().find(|rule| rule.key == key);
            rule.unwrap().wish.unconditionally()
        };
        let gib = |n: u64| n * GIB;
        for (memory, backlog, buckets) in [
            (GIB / 4, "4096", "16384"),
            (gib(2), "8192", "131072"),
            // 16 GiB, of which the firmware has taken some.
            (gib(16) - GIB / 3, "63488", "1026048"),
            (gib(512), "65535", "1048576"),
            (u64::MAX, "65535", "1048576"),
        ] {
            assert_eq!(value(memory, "net.core.somaxconn"), backlog);
            assert_eq!(value(memory, "net.ipv4.tcp_max_syn_backlog"), backlog);
            assert_eq!(value(memory, "net.ipv4.tcp_max_tw_buckets"), buckets);
        }
    }

    #[test]
    fn reasons_are_one_line_and_settings_are_told_once() {
        let rules = rules(GIB);
        for rule in &rules {
            assert!(rule.why.len() <= 76, "{}: {}", rule.key, rule.why);
            let same = rules.iter().filter(|other| other.key == rule.key);
            assert_eq!(same.count(), 1, "{}", rule.key);
        }
    }
}
