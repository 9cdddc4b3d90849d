//! What the kernel's own TCP would offer, so that a challenged client is offered the same.
//!
//! `/proc/sys/net` shows the network namespace of whoever reads it.

use std::{fs, path::Path, str::FromStr};

use synguard_common::abi::{OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE};

/// Where the settings are.
pub const ROOT: &str = "/proc/sys/net";

/// Largest window without scaling, and with `tcp_workaround_signed_windows`.
const MAX_WINDOW: u32 = 65_535;
const MAX_SIGNED_WINDOW: u32 = 32_767;
/// Largest window scale (RFC 7323 section 2.3).
const MAX_WINDOW_SCALE: u8 = 14;
/// MSS of Ethernet.
const USUAL_MSS: u32 = 1460;

/// What SYN-ACKs say, but for the MSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `OFFER_*` bits.
    pub offers: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Window scale.
    pub rcv_wscale: u8,
    /// Time to live.
    pub ttl: u8,
}

/// The settings that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    timestamps: bool,
    sack: bool,
    window_scaling: bool,
    ecn: bool,
    signed_windows: bool,
    /// `net.ipv4.tcp_syncookies`.
    pub syncookies: u8,
    rmem_default: u32,
    rmem_max: u32,
    ttl: u8,
}

impl Tcp {
    /// Reads them; what cannot be read has the kernel's default.
    pub fn read(root: &Path) -> Self {
        let rmem = text(root, "ipv4/tcp_rmem").unwrap_or_default();
        let mut rmem = rmem
            .split_whitespace()
            .skip(1)
            .map(|word| word.parse().ok());
        let (rmem_default, tcp_rmem_max) = (
            rmem.next().flatten().unwrap_or(131_072),
            rmem.next().flatten().unwrap_or(6_291_456),
        );
        // Not shown in every namespace; it counts only where it exceeds tcp_rmem.
        let core_rmem_max = number(root, "core/rmem_max").unwrap_or(0);
        Self {
            timestamps: number(root, "ipv4/tcp_timestamps").unwrap_or(1u8) != 0,
            sack: number(root, "ipv4/tcp_sack").unwrap_or(1u8) != 0,
            window_scaling: number(root, "ipv4/tcp_window_scaling").unwrap_or(1u8) != 0,
            // 0 never, 1 ask and accept, 2 accept, and more of the kind with accurate ECN.
            ecn: number(root, "ipv4/tcp_ecn").unwrap_or(2u8) != 0,
            signed_windows: number(root, "ipv4/tcp_workaround_signed_windows").unwrap_or(0u8) != 0,
            syncookies: number(root, "ipv4/tcp_syncookies").unwrap_or(1),
            rmem_default,
            rmem_max: core_rmem_max.max(tcp_rmem_max),
            ttl: number(root, "ipv4/ip_default_ttl").unwrap_or(64),
        }
    }

    /// What a default listener would offer on interfaces of up to this MTU.
    pub fn profile(&self, mtu: u32) -> Profile {
        let mut offers = 0;
        for (on, bit) in [
            (self.timestamps, OFFER_TIMESTAMPS),
            (self.sack, OFFER_SACK),
            (self.window_scaling, OFFER_WINDOW_SCALE),
            (self.ecn, OFFER_ECN),
        ] {
            if on {
                offers |= bit;
            }
        }
        Profile {
            offers,
            window: self.window(mtu),
            rcv_wscale: self.window_scale(),
            ttl: self.ttl,
        }
    }

    /// The kernel's `tcp_select_initial_window`: half of the receive buffer in whole segments.
    /// The admitted socket computes its own for the client's MSS, and must not end up with less
    /// than was promised; the lesser of two common sizes is safe.
    fn window(&self, mtu: u32) -> u16 {
        let space = self.rmem_default / 2;
        let whole = |mss: u32| {
            if space > mss {
                space - space % mss
            } else {
                space
            }
        };
        let window = whole(USUAL_MSS).min(whole(mtu.saturating_sub(40).max(1)));
        let limit = if self.signed_windows {
            MAX_SIGNED_WINDOW
        } else {
            MAX_WINDOW
        };
        window.min(limit) as u16
    }

    /// The same function's scale: that of the largest window the socket may ever have.
    fn window_scale(&self) -> u8 {
        if !self.window_scaling {
            return 0;
        }
        let space = self.rmem_max.max(self.rmem_default / 2).max(1);
        (space.ilog2() as u8)
            .saturating_sub(15)
            .min(MAX_WINDOW_SCALE)
    }
}

fn text(root: &Path, name: &str) -> Option<String> {
    fs::read_to_string(root.join(name)).ok()
}

fn number<T: FromStr>(root: &Path, name: &str) -> Option<T> {
    text(root, name)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(files: &[(&str, &str)]) -> Tcp {
        let root = tempfile::tempdir().unwrap();
        for directory in ["ipv4", "core"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        for (name, value) in files {
            fs::write(root.path().join(name), format!("{value}\n")).unwrap();
        }
        Tcp::read(root.path())
    }

    #[test]
    fn the_defaults_of_linux_give_the_window_of_linux() {
        let tcp = settings(&[
            ("ipv4/tcp_rmem", "4096\t131072\t6291456"),
            ("core/rmem_max", "212992"),
            ("ipv4/tcp_ecn", "2"),
        ]);
        let all = OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE | OFFER_ECN;
        // 64240 and 7: what Linux answers a client with MSS 1460 and no timestamps.
        let profile = Profile {
            offers: all,
            window: 64_240,
            rcv_wscale: 7,
            ttl: 64,
        };
        assert_eq!(tcp.profile(1500), profile);
        // Jumbo frames: seven segments.
        assert_eq!(tcp.profile(9000).window, 62_720);
        assert_eq!(tcp, settings(&[]));
    }

    #[test]
    fn what_the_operator_turned_off_is_not_offered() {
        let tcp = settings(&[
            ("ipv4/tcp_timestamps", "0"),
            ("ipv4/tcp_sack", "0"),
            ("ipv4/tcp_window_scaling", "0"),
            ("ipv4/tcp_ecn", "0"),
            ("ipv4/tcp_syncookies", "0"),
            ("ipv4/ip_default_ttl", "128"),
        ]);
        let profile = tcp.profile(1500);
        assert_eq!(
            (profile.offers, profile.rcv_wscale, profile.ttl),
            (0, 0, 128)
        );
        assert_eq!(tcp.syncookies, 0);
    }

    #[test]
    fn window_and_scale_stay_in_bounds() {
        let huge = settings(&[("ipv4/tcp_rmem", "4096 2000000 4294967295")]).profile(1500);
        assert_eq!((huge.window, huge.rcv_wscale), (65_535, 14));
        let tiny = settings(&[("ipv4/tcp_rmem", "4096 2304 4096")]).profile(1500);
        assert_eq!((tiny.window, tiny.rcv_wscale), (1152, 0));
        let signed = settings(&[("ipv4/tcp_workaround_signed_windows", "1")]).profile(1500);
        assert_eq!(signed.window, 32_767);
        let wide = settings(&[("core/rmem_max", "16777216")]).profile(1500);
        assert_eq!(wide.rcv_wscale, 9);
    }
}
