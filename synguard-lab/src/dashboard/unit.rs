//! Values as Grafana writes them: three digits, a prefix, a unit.

/// A value in a unit that the dashboard uses.
pub(super) fn show(value: f64, unit: &str, decimals: Option<usize>) -> String {
    let (value, suffix) = match unit {
        "percentunit" => (value * 100.0, "%".to_owned()),
        "bytes" => scaled(value, 1024.0, ["B", "KiB", "MiB", "GiB"], " "),
        "pps" => scaled(value, 1000.0, ["p/s", "kp/s", "Mp/s", "Gp/s"], " "),
        "cps" => scaled(value, 1000.0, ["c/s", "Kc/s", "Mc/s", "Bc/s"], " "),
        "s" if value != 0.0 && value.abs() < 1e-3 => (value * 1e6, " µs".to_owned()),
        "s" if value != 0.0 && value.abs() < 1.0 => (value * 1e3, " ms".to_owned()),
        "s" => (value, " s".to_owned()),
        _ => scaled(value, 1000.0, ["", "K", "Mil", "Bil"], " "),
    };
    let digits = decimals.unwrap_or(match value.abs() {
        0.0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    });
    let mut text = format!("{value:.digits$}");
    if decimals.is_none() && text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + &suffix
}

fn scaled(value: f64, base: f64, suffixes: [&str; 4], space: &str) -> (f64, String) {
    let mut value = value;
    let mut step = 0;
    while value.abs() >= base && step + 1 < suffixes.len() {
        value /= base;
        step += 1;
    }
    match suffixes[step] {
        "" => (value, String::new()),
        suffix => (value, format!("{space}{suffix}")),
    }
}

#[cfg(test)]
mod tests {
    use super::show;

    #[test]
    fn three_digits_a_prefix_a_unit() {
        for (value, unit, text) in [
            (0.0, "pps", "0 p/s"),
            (123_456.0, "pps", "123 kp/s"),
            (1_500_000.0, "short", "1.5 Mil"),
            (12.0, "none", "12"),
            (0.0123, "percentunit", "1.23%"),
            (0.000_25, "s", "250 µs"),
            (0.0021, "s", "2.1 ms"),
            (41.0, "s", "41 s"),
            (25.0 * 1024.0 * 1024.0, "bytes", "25 MiB"),
        ] {
            assert_eq!(show(value, unit, None), text);
        }
        assert_eq!(show(41.4, "s", Some(0)), "41 s");
    }
}
