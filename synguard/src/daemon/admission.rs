//! What a valid ACK becomes, service by service: what the operator asked for, or what the
//! service's addresses and the kernel allow. Pure; asked again whenever either changes.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use synguard_common::abi::{ADMISSION_LOCAL, ADMISSION_NONE, ADMISSION_PROXY, ADMISSION_RESET};

use crate::{
    config::cover,
    model::{Addresses, Admission},
};

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Impossible: the service is watched and never guarded.
    None,
    /// A socket of this box.
    Local,
    /// A connection spliced to the server's.
    Proxy,
    /// Nothing; the source is verified and comes again.
    Reset,
}

impl Kind {
    /// As the programs know it.
    pub const fn number(self) -> u8 {
        match self {
            Self::None => ADMISSION_NONE,
            Self::Local => ADMISSION_LOCAL,
            Self::Proxy => ADMISSION_PROXY,
            Self::Reset => ADMISSION_RESET,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Proxy => "proxy",
            Self::Reset => "reset",
        })
    }
}

/// What it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What it is.
    pub kind: Kind,
    /// Why, for people.
    pub reason: String,
    /// Whether every address of the service is this machine's.
    pub here: bool,
}

impl Decision {
    /// Whether the service's listeners are to be found on this machine.
    pub fn listens_here(&self) -> bool {
        self.here || matches!(self.kind, Kind::Local | Kind::None)
    }
}

/// Decides for a service that covers `addresses`. `own` are the addresses of this machine, and
/// `local_error` says why it cannot make sockets from cookies, if it cannot.
pub fn decide(
    asked: Admission,
    addresses: &Addresses,
    own: &BTreeSet<IpAddr>,
    local_error: Option<&str>,
) -> Decision {
    let elsewhere = elsewhere(addresses, own);
    let configured = || "configured".to_owned();
    let (kind, reason) = match asked {
        Admission::Proxy => (Kind::Proxy, configured()),
        Admission::Reset => (Kind::Reset, configured()),
        Admission::Local => match local_error {
            None => (Kind::Local, configured()),
            Some(error) => (Kind::None, error.to_owned()),
        },
        Admission::Auto => match (&elsewhere, local_error) {
            (Some(prefix), _) => (Kind::Proxy, not_ours(prefix)),
            (None, Some(error)) => (Kind::Proxy, error.to_owned()),
            (None, None) => (
                Kind::Local,
                "its addresses are this machine's, and the kernel makes sockets from our cookies"
                    .to_owned(),
            ),
        },
    };
    Decision {
        kind,
        reason,
        here: elsewhere.is_none(),
    }
}

/// The first prefix that is not this machine's alone.
fn elsewhere(addresses: &Addresses, own: &BTreeSet<IpAddr>) -> Option<IpNet> {
    let Addresses::Prefixes(prefixes) = addresses else {
        return None;
    };
    prefixes
        .iter()
        .copied()
        .find(|prefix| !is_ours(prefix, own))
}

/// Whether this machine has every address of `prefix`.
fn is_ours(prefix: &IpNet, own: &BTreeSet<IpAddr>) -> bool {
    let host_bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
    let ours = own.iter().filter(|address| prefix.contains(*address));
    1usize
        .checked_shl(host_bits)
        .is_some_and(|all| ours.count() == all)
}

fn not_ours(prefix: &IpNet) -> String {
    let shown = cover::show(prefix);
    if prefix.prefix_len() == prefix.max_prefix_len() {
        format!("{shown} is not this machine's address")
    } else {
        format!("not every address of {shown} is this machine's")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "kernel 6.1.0 has no bpf_sk_assign_tcp_reqsk";

    fn own() -> BTreeSet<IpAddr> {
        ["10.0.0.2", "10.0.0.3", "2001:db8::2", "127.0.0.1"]
            .map(|address| address.parse().unwrap())
            .into()
    }

    fn prefixes(prefixes: &[&str]) -> Addresses {
        let parse = |text: &&str| match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => IpNet::from(text.parse::<IpAddr>().unwrap()),
        };
        Addresses::Prefixes(prefixes.iter().map(parse).collect())
    }

    #[track_caller]
    fn decides(
        asked: Admission,
        addresses: &Addresses,
        error: Option<&str>,
        kind: Kind,
        reason: &str,
    ) {
        let decision = decide(asked, addresses, &own(), error);
        assert_eq!((decision.kind, decision.reason.as_str()), (kind, reason));
    }

    #[test]
    fn auto_is_local_where_every_address_is_ours_and_the_kernel_can() {
        let can = "its addresses are this machine's, and the kernel makes sockets from our cookies";
        for ours in [
            Addresses::Interface,
            prefixes(&["10.0.0.2"]),
            prefixes(&["10.0.0.2/31", "2001:db8::2", "127.0.0.1/32"]),
        ] {
            decides(Admission::Auto, &ours, None, Kind::Local, can);
            decides(Admission::Auto, &ours, Some(OLD), Kind::Proxy, OLD);
        }
        for (theirs, why) in [
            (
                &["10.0.0.2", "10.0.0.5"][..],
                "10.0.0.5 is not this machine's address",
            ),
            (
                &["10.0.0.0/30"],
                "not every address of 10.0.0.0/30 is this machine's",
            ),
            (
                &["0.0.0.0/0"],
                "not every address of 0.0.0.0/0 is this machine's",
            ),
            (&["::/0"], "not every address of ::/0 is this machine's"),
            (
                &["2001:db8::2/64"],
                "not every address of 2001:db8::2/64 is this machine's",
            ),
        ] {
            for error in [None, Some(OLD)] {
                decides(Admission::Auto, &prefixes(theirs), error, Kind::Proxy, why);
            }
        }
    }

    #[test]
    fn what_was_asked_for_is_done_where_it_can_be() {
        for addresses in [Addresses::Interface, prefixes(&["10.0.0.5"])] {
            for (asked, kind) in [
                (Admission::Local, Kind::Local),
                (Admission::Proxy, Kind::Proxy),
                (Admission::Reset, Kind::Reset),
            ] {
                decides(asked, &addresses, None, kind, "configured");
            }
            decides(Admission::Local, &addresses, Some(OLD), Kind::None, OLD);
            decides(
                Admission::Proxy,
                &addresses,
                Some(OLD),
                Kind::Proxy,
                "configured",
            );
        }
    }

    #[test]
    fn listeners_are_where_the_addresses_are() {
        let here =
            |asked, addresses: &Addresses| decide(asked, addresses, &own(), None).listens_here();
        let (ours, theirs) = (prefixes(&["10.0.0.3"]), prefixes(&["10.0.0.3", "10.0.0.4"]));
        for asked in [Admission::Auto, Admission::Proxy, Admission::Reset] {
            assert!(here(asked, &Addresses::Interface));
            assert!(here(asked, &ours));
            assert!(!here(asked, &theirs));
        }
        assert!(
            here(Admission::Local, &theirs),
            "a prefix that is local by route"
        );
    }
}
