use serde_json::Value;
use synguard_common::{tables::Verdict, verdict::Reason};

use super::*;
use crate::{explain::headers::Endpoint, fold::WIDTH};

fn said(service: u16, reason: Reason, observe: bool) -> Told {
    let action = if observe {
        Action::Pass
    } else {
        reason.action()
    };
    Ok(Said::Ran(
        action,
        Some(Verdict {
            service,
            reason,
            observe,
            syn: false,
        }),
    ))
}

fn captured(number: u64, time: u64) -> Captured {
    Captured {
        number,
        time: Some(time),
        length: 60,
        link: 1,
        bytes: vec![0; 60],
    }
}

fn headers(source: &str, destination: &str) -> Headers {
    let end = |text: &str, port| Endpoint {
        address: text.parse().unwrap(),
        port: Some(port),
    };
    Headers {
        ends: Some((end(source, 40_000), end(destination, 443))),
        protocol: "tcp".into(),
        flags: Some("S".into()),
    }
}

fn against() -> Against {
    Against {
        file: "flood.pcap".into(),
        interface: Some("eth0".into()),
        config: None,
        clock: "now",
    }
}

/// A report of packets of every kind.
fn report(form: Form, whole: bool) -> String {
    let mut out = Vec::new();
    let names = BTreeMap::from([(1, Some("web".to_owned())), (2, None)]);
    let mut report = Report::begin(&mut out, form, &against(), names).unwrap();
    let (v4, v6) = (
        headers("198.51.100.7", "192.0.2.1"),
        headers("2001:db8:85a3:8d3:1319:8a2e:370:7348", "2001:db8::1"),
    );
    let second = 1_000_000_000;
    let start = 1_700_000_000 * second;
    for (n, (headers, told)) in [
        (&v4, said(1, Reason::Challenged, false)),
        (&v6, said(1, Reason::Challenged, false)),
        (&v4, said(2, Reason::IcmpTranslatedOut, false)),
        (&v4, said(1, Reason::AckInvalid, true)),
        (&v4, said(0, Reason::Unprotected, false)),
        (&v4, Ok(Said::Ran(Action::Pass, None))),
        (&v4, Ok(Said::TooLarge)),
        (&v6, Err(NotRun::Cut)),
        (&Headers::read(&[]), Err(NotRun::Link)),
    ]
    .into_iter()
    .enumerate()
    {
        let n = n as u64;
        let packet = captured(n + 1, start + n * second / 4);
        report
            .add(&packet, headers, Some(Direction::In), told)
            .unwrap();
    }
    report.end(whole).unwrap();
    String::from_utf8(out).unwrap()
}

fn text(packets: bool, long: bool) -> String {
    let form = Form {
        json: false,
        packets,
        long,
        columns: Some(80),
    };
    report(form, true)
}

#[test]
fn lines_fit_the_terminal_and_columns_stay_in_place() {
    for long in [false, true] {
        let told = text(true, long);
        for line in told.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert_eq!(line, line.trim_end());
        }
        let title = told.lines().find(|line| line.contains("VERDICT")).unwrap();
        let column = title.find("VERDICT").unwrap();
        let verdicts: Vec<&str> = told
            .lines()
            .filter_map(|line| line.get(column - 1..column + 7))
            .filter(|cell| cell.starts_with(' '))
            .map(str::trim)
            .filter(|cell| ["answer", "pass", "drop"].contains(cell))
            .collect();
        // The sum's lines have a column of their own.
        assert!(verdicts.len() >= 6, "{verdicts:?}\n{told}");
    }
}

#[test]
fn every_packet_is_told_with_its_reason() {
    let told = text(true, false);
    let line = |number: usize| {
        told.lines()
            .find(|line| line.trim_start().starts_with(&format!("{number} ")))
            .unwrap()
    };
    let spaces = " ".repeat(ENDS_AT + ENDS[0]);
    let first = format!(
        "     1    0.000 198.51.100.7:40000 > 192.0.2.1:443\n{spaces} S     answer  challenged web\n"
    );
    assert!(told.contains(&first), "{told}");
    assert!(line(4).contains("0.750"), "{}", line(4));
    for part in [
        "(ack_invalid) web",
        "unprotected -",
        "too_large -",
        "cut -",
        "link_unknown -",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let words: Vec<&str> = told.split_whitespace().collect();
    assert!(
        words
            .windows(2)
            .any(|two| two == ["icmp_translated_out", "#2"]),
        "{told}"
    );
    assert!(
        told.contains("9 packets, from 2023-11-14T22:13:20Z"),
        "{told}"
    );
    assert!(!told.contains("Sent to a group"));
    assert!(text(true, true).contains("A SYN answered with a SYN cookie from"));
}

#[test]
fn other_programs_get_a_packet_to_a_line() {
    let form = Form {
        json: false,
        packets: true,
        long: false,
        columns: None,
    };
    let told = report(form, true);
    let challenged = told.lines().filter(|line| line.contains("challenged web"));
    let challenged: Vec<_> = challenged.collect();
    assert!(challenged[0].contains("198.51.100.7:40000 > 192.0.2.1:443"));
    assert!(challenged[1].contains("]:40000 > [2001:db8::1]:443 S     answer"));
}

#[test]
fn the_summary_counts_the_most_frequent_first() {
    let told = text(false, false);
    assert!(!told.contains("198.51.100.7"));
    let sums: Vec<Vec<&str>> = told
        .lines()
        .skip_while(|line| !line.contains("VERDICT"))
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(sums[0], ["2", "answer", "challenged", "web"]);
    assert_eq!(sums.len(), 9, "{told}");
    assert!(told.contains("mode observe"), "{told}");
}

#[test]
fn json_is_one_document_and_a_packet_is_a_line() {
    for whole in [true, false] {
        let form = Form {
            json: true,
            packets: true,
            long: false,
            columns: Some(80),
        };
        let told = report(form, whole);
        let document: Value = serde_json::from_str(&told).unwrap();
        let packets = document["packets"].as_array().unwrap();
        assert_eq!(packets.len(), 9);
        let first = &packets[0];
        assert_eq!(first["source"], "198.51.100.7:40000");
        assert_eq!(first["verdict"], "answer");
        assert_eq!(first["reason"], "challenged");
        assert_eq!(
            (&first["service"], &first["service_number"]),
            (&"web".into(), &1.into())
        );
        let time = packets[1]["time"].as_f64().unwrap();
        assert!((time - 1_700_000_000.25).abs() < 1e-6, "{time}");
        assert_eq!(
            (&packets[3]["verdict"], &packets[3]["observed"]),
            (&"pass".into(), &true.into())
        );
        assert!(packets[5]["reason"].is_null() && packets[7]["verdict"].is_null());
        assert_eq!(document["total"], 9);
        assert_eq!(document["whole"], whole);
        assert_eq!(document["interface"], "eth0");
        let sums = document["summary"].as_array().unwrap();
        let total: u64 = sums.iter().filter_map(|sum| sum["packets"].as_u64()).sum();
        assert_eq!(total, 9);
        let lines = told.lines().filter(|line| line.starts_with("{\"number\""));
        assert_eq!(lines.count(), 9);
    }
    let form = Form {
        json: true,
        packets: false,
        long: false,
        columns: None,
    };
    let document: Value = serde_json::from_str(&report(form, true)).unwrap();
    assert!(document.get("packets").is_none());
    assert_eq!(document["summary"][0]["packets"], 2);
}

#[test]
fn an_empty_capture_is_a_report_too() {
    for json in [false, true] {
        let form = Form {
            json,
            packets: true,
            long: false,
            columns: Some(80),
        };
        let mut out = Vec::new();
        Report::begin(&mut out, form, &against(), BTreeMap::new())
            .unwrap()
            .end(true)
            .unwrap();
        let told = String::from_utf8(out).unwrap();
        if json {
            let document: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(document["total"], 0);
        } else {
            assert!(told.contains("0 packets\n"), "{told}");
        }
    }
}
