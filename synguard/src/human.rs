//! Numbers and facts in words, the same in every command.

use std::time::{Duration, SystemTime};

use crate::model::ServerStatus;

/// A count in at most five characters.
pub fn count(n: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if n < 10_000 {
        return n.to_string();
    }
    let mut scaled = n as f64;
    let mut unit = "";
    for next in UNITS {
        // 999.5 and more would be rounded to four digits.
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        unit = next;
    }
    let decimals = if scaled < 99.95 { 1 } else { 0 };
    format!("{scaled:.decimals$}{unit}")
}

/// The present moment, in seconds since the epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The time from `then` to `now`, in its two largest units.
pub fn ago(now: u64, then: u64) -> String {
    let elapsed = now.saturating_sub(then);
    let unit = match elapsed {
        ..3_600 => 1,
        3_600..86_400 => 60,
        _ => 3_600,
    };
    humantime::format_duration(Duration::from_secs(elapsed / unit * unit)).to_string()
}

/// TCP options that an end uses.
pub fn options(
    timestamps: bool,
    sack: bool,
    ecn: bool,
    window_scale: Option<u8>,
    mss: Option<u16>,
) -> String {
    let mut options: Vec<String> = [(timestamps, "timestamps"), (sack, "SACK"), (ecn, "ECN")]
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| name.to_owned())
        .collect();
    options.extend(window_scale.map(|scale| format!("window scale {scale}")));
    options.extend(mss.map(|mss| format!("MSS {mss}")));
    match options.as_slice() {
        [] => "no options".to_owned(),
        options => options.join(", "),
    }
}

/// What clients are offered in the name of servers.
pub fn offered(server: &ServerStatus) -> String {
    let options = options(
        server.timestamps,
        server.sack,
        server.ecn,
        server.window_scale,
        server.mss,
    );
    let source = match server.source.as_str() {
        "learned" => "learned from its servers",
        "configured" => "configured",
        _ => "no server has answered yet",
    };
    let withheld = match server.withheld.as_slice() {
        [] => String::new(),
        names => format!("; withheld after a server fell short: {}", names.join(", ")),
    };
    format!("offers {options} ({source}){withheld}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn counts_are_short() {
        for (n, shown) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_960, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (1_234_567, "1.2M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(n), shown);
        }
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, shown) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_661, "1h 1m"),
            (90_061, "1day 1h"),
        ] {
            assert_eq!(ago(NOW, NOW - seconds), shown);
        }
        assert_eq!(ago(5, 9), "0s", "a clock that was set back");
    }
}
