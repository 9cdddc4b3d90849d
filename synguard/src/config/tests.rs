//! Each kind of mistake, by its exact message; and the shipped file.

use std::fs;

use super::*;
use crate::model::{Addresses, Admission, Server, ServerOffer, Watermark};

const SHIPPED: &str = include_str!("../../../deploy/synguard.toml");

/// Checks `text`, which came from `path`.
fn parse(path: &Path, text: &str) -> Result<Config, Error> {
    sources::parse(Some((path, text)), &listed::read_files(text), &[])
}

fn good(text: &str) -> Config {
    match parse(Path::new("f.toml"), text) {
        Ok(config) => config,
        Err(e) => panic!(
            "{:#?}",
            e.mistakes().map(ToString::to_string).collect::<Vec<_>>()
        ),
    }
}

/// Asserts that `text` has exactly these mistakes.
#[track_caller]
fn bad(text: &str, expected: &[&str]) {
    let error = parse(Path::new("f.toml"), text).unwrap_err();
    let found: Vec<String> = error.mistakes().map(ToString::to_string).collect();
    assert_eq!(found, expected, "in {text}");
}

/// Asserts that a service called `a` with these further keys (on line 3) has this mistake.
#[track_caller]
fn bad_service(keys: &str, expected: &str) {
    bad(
        &format!("[[service]]\nname = \"a\"\n{keys}\n"),
        &[&format!("f.toml:3:{expected}")],
    );
}

#[test]
fn the_shipped_file_says_what_is_built_in() {
    assert_eq!(good(SHIPPED), built_in());
    assert_eq!(good(""), built_in());
}

#[test]
fn the_shipped_file_documents_every_key() {
    let document: Vec<_> = SHIPPED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let document = document.join("\n");
    let (_, rest) = document.split_once("[daemon]").unwrap();
    let (daemon, rest) = rest.split_once("[sources]").unwrap();
    let (sources, rest) = rest.split_once("[defaults]").unwrap();
    let (defaults, service) = rest.split_once("[[service]]").unwrap();
    let has = |section: &str, key: &str| {
        section
            .lines()
            .any(|line| line.starts_with(&format!("{key} = ")))
    };
    for key in values::DAEMON_KEYS {
        assert!(has(daemon, key), "[daemon] {key}");
    }
    for key in listed::SOURCES_KEYS {
        assert!(has(sources, key), "[sources] {key}");
    }
    for key in values::DEFAULTS_KEYS {
        assert!(has(defaults, key), "[defaults] {key}");
    }
    for key in values::SERVICE_KEYS {
        assert!(has(service, key) || has(defaults, key), "[[service]] {key}");
    }
}

#[test]
fn the_examples_in_the_shipped_file_are_valid() {
    let (rest, example) = SHIPPED
        .split_once("# A service with thresholds of its own:\n")
        .unwrap();
    let example: String = example
        .lines()
        .map(|l| format!("{}\n", l.trim_start_matches('#')))
        .collect();
    let config = good(&format!("{rest}{example}"));
    assert_eq!(config.services.len(), 2);
    assert_eq!(config.services[1].high, Watermark::Fixed(2000));
    assert_eq!(config.services[1].low, Watermark::Fixed(500));
}

#[test]
fn interfaces_are_names() {
    let mut config = good("[daemon]\ninterfaces = [\"eth0\", \"br-lan.7\"]\n");
    assert_eq!(config.interfaces, ["eth0", "br-lan.7"]);
    Overrides::default().apply(&mut config);
    assert_eq!(config.interfaces, ["eth0", "br-lan.7"]);
    let overrides = Overrides {
        interfaces: vec!["eth1".into()],
        ..Overrides::default()
    };
    overrides.apply(&mut config);
    assert_eq!(config.interfaces, ["eth1"]);

    bad(
        "[daemon]\ninterfaces = \"eth0\"\n",
        &["f.toml:2:14: `interfaces` is \"eth0\"; give an array of names such as [\"eth0\"]"],
    );
    let right = "give the name of one such as \"eth0\", as `ip link` shows it";
    bad(
        "[daemon]\ninterfaces = [\"eth0\", \"eth0\", \"a/b\", \"\", 7, \"sixteen-letters-\"]\n",
        &[
            "f.toml:2:23: eth0 is there twice; remove one",
            &format!("f.toml:2:31: \"a/b\" is no interface; {right}"),
            &format!("f.toml:2:38: \"\" is no interface; {right}"),
            &format!("f.toml:2:42: 7 is no interface; {right}"),
            &format!("f.toml:2:45: \"sixteen-letters-\" is no interface; {right}"),
        ],
    );
}

#[test]
fn a_full_file_is_read() {
    let config = good(
        r#"
        [daemon]
        metrics = "off"
        socket = "/s"
        secret = "/k"
        pins = "/sys/fs/bpf/edge/syn"
        state = "off"
        xdp_mode = "native"
        half_open_entries = 100_000
        flow_entries = 1_000_000
        flow_idle_timeout = "2h 4min"
        verified_entries = 1024
        verified_timeout = 60
        syn_cache = true
        [defaults]
        mode = "observe"
        high = 1000
        low = 0x64
        calm_seconds = 60
        half_open_timeout = 30
        release = false
        [[service]]
        name = "web"
        addresses = ["192.0.2.1", "2001:db8::/32", "127.0.0.0/8", "0.0.0.0/0"]
        ports = [443, "80-90", 91, "85-88"]
        [[service]]
        name = "rest.of-it_1"
        mode = "always"
        admission = "local"
        low = "auto"
        half_open_timeout = "1min 30s"
        release = true
        "#,
    );
    assert_eq!(config.metrics, None);
    assert_eq!(config.socket, Path::new("/s"));
    assert_eq!(config.secret, Path::new("/k"));
    let pins = Path::new("/sys/fs/bpf/edge/syn");
    assert_eq!(config.pins.as_deref(), Some(pins));
    assert_eq!(config.state, None);
    assert_eq!(config.xdp_mode, XdpMode::Native);
    assert_eq!(config.half_open_entries, 100_000);
    assert_eq!(config.flow_entries, 1_000_000);
    assert_eq!(config.flow_idle_timeout, Duration::from_secs(124 * 60));
    assert_eq!(config.verified_entries, 1024);
    assert_eq!(config.verified_timeout, Duration::from_secs(60));
    assert!(config.syn_cache);
    let web = Service {
        name: "web".into(),
        addresses: Addresses::Prefixes(vec![
            "192.0.2.1/32".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
            "127.0.0.0/8".parse().unwrap(),
            "0.0.0.0/0".parse().unwrap(),
        ]),
        ports: Some(vec![80..=91, 443..=443]),
        mode: Mode::Observe,
        admission: Admission::Auto,
        server: Server::Learned,
        high: Watermark::Fixed(1000),
        low: Watermark::Fixed(100),
        calm_after: Duration::from_secs(60),
        half_open_timeout: Duration::from_secs(30),
        release: false,
    };
    let rest = Service {
        name: "rest.of-it_1".into(),
        addresses: Addresses::Interface,
        ports: None,
        mode: Mode::Always,
        admission: Admission::Local,
        low: Watermark::Auto,
        half_open_timeout: Duration::from_secs(90),
        release: true,
        ..web.clone()
    };
    assert_eq!(config.services, [web, rest]);
}

#[test]
fn defaults_hold_for_the_built_in_service() {
    let config = good("[defaults]\nmode = \"observe\"\nhigh = 7\n");
    assert_eq!(config.services.len(), 1);
    assert_eq!(config.services[0].name, "default");
    assert_eq!(config.services[0].mode, Mode::Observe);
    assert_eq!(config.services[0].high, Watermark::Fixed(7));
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides {
        interfaces: vec!["eth1".into()],
        metrics: Some("[::1]:1".parse().unwrap()),
        pins: Some(PinDirectory::Off),
        mode: Some(Mode::Always),
        xdp_mode: Some(XdpMode::Generic),
        socket: Some("/a".into()),
        secret: Some("/b".into()),
        state: Some(StateDirectory::At("/c".into())),
    };
    let config = load(None, &overrides).unwrap();
    let mut expected = built_in();
    expected.interfaces = vec!["eth1".into()];
    expected.metrics = Some("[::1]:1".parse().unwrap());
    expected.pins = None;
    expected.services[0].mode = Mode::Always;
    expected.xdp_mode = XdpMode::Generic;
    expected.socket = "/a".into();
    expected.secret = "/b".into();
    expected.state = Some("/c".into());
    assert_eq!(config, expected);
    assert_eq!("off".parse(), Ok(MetricsAddress::Off));
    assert_eq!(load(None, &Overrides::default()).unwrap(), built_in());
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.toml");
    let message = |content: Option<&[u8]>| {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = load(Some(&path), &Overrides::default()).unwrap_err();
        error
            .to_string()
            .strip_prefix(&format!("{}:", path.display()))
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        message(None),
        " cannot be read: No such file or directory (os error 2); name a file that can be"
    );
    assert_eq!(
        message(Some(b"# gr\xc3\xb6\xc3\x9fe\nx = \"\xff\"")),
        "2:6: byte 0xff is not UTF-8; save the file as UTF-8"
    );
    assert_eq!(
        message(Some(&vec![b'#'; 1 << 21])),
        " is larger than 1048576 bytes; is it the right file?"
    );
    let error = load(Some(directory.path()), &Overrides::default()).unwrap_err();
    let expected = "cannot be read: Is a directory (os error 21); name a file that can be";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn syntax() {
    for text in [
        "[daemon\n",
        "a = \n",
        "[daemon]\nsocket = \"/a\"\nsocket = \"/b\"\n",
        "x = 'a",
    ] {
        let error = parse(Path::new("f.toml"), text).unwrap_err();
        for mistake in error.mistakes().map(ToString::to_string) {
            assert!(
                mistake.ends_with("; see https://toml.io for the syntax"),
                "{mistake}"
            );
            assert!(!mistake.contains('\n'), "{mistake}");
        }
    }
    let text = "[daemon]\nsocket = \"/a\"\n  socket = \"/b\"\n";
    bad(
        text,
        &["f.toml:3:3: duplicate key; see https://toml.io for the syntax"],
    );
}

#[test]
fn unknown_keys() {
    bad(
        "[deamon]\n",
        &["f.toml:1:2: unknown key `deamon` in the file; did you mean `daemon`?"],
    );
    bad(
        "[defaults]\ncalm-seconds = 20\nHigh = 3\nquux = 1",
        &[
            "f.toml:2:1: unknown key `calm-seconds` in [defaults]; did you mean `calm_seconds`?",
            "f.toml:3:1: unknown key `High` in [defaults]; did you mean `high`?",
            "f.toml:4:1: unknown key `quux` in [defaults]; its keys are mode, admission, server, high, \
             low, calm_seconds, half_open_timeout, release",
        ],
    );
    bad_service(
        "adresses = []",
        "1: unknown key `adresses` in [[service]]; did you mean `addresses`?",
    );
}

#[test]
fn tables_of_the_wrong_kind() {
    bad(
        "daemon = 3",
        &["f.toml:1:10: `daemon` is 3; give a table, [daemon]"],
    );
    bad(
        "[[defaults]]",
        &["f.toml:1:1: `defaults` is an array; give a table, [defaults]"],
    );
    bad(
        "[service]\nname = \"a\"",
        &["f.toml:1:1: `service` is a table; give a table per service, [[service]]"],
    );
    bad(
        "service = [1]",
        &["f.toml:1:12: a service is 1; give a table, [[service]]"],
    );
    bad(
        "service = []",
        &["f.toml:1:11: `service` is an empty array; leave it out for the built-in service"],
    );
}

#[test]
fn daemon_values() {
    bad(
        "[daemon]\nmetrics = \"localhost:9911\"\nsocket = \"run/s\"\nsecret = \"\"\n\
         xdp_mode = \"skb\"\nhalf_open_entries = 10\nflow_entries = 5_000_000\n\
         flow_idle_timeout = \"9s\"\nverified_entries = \"all\"\nverified_timeout = 86401",
        &[
            "f.toml:2:11: `metrics` is \"localhost:9911\"; give IP:PORT such as 127.0.0.1:9911 or \
             [::1]:9911, or `off`",
            "f.toml:3:10: `socket` is \"run/s\"; give an absolute path",
            "f.toml:4:10: `secret` is \"\"; give an absolute path",
            "f.toml:5:12: `xdp_mode` is \"skb\"; give \"auto\", \"native\" or \"generic\"",
            "f.toml:6:21: `half_open_entries` is 10; give a number from 1024 to 4194304",
            "f.toml:7:16: `flow_entries` is 5000000; give a number from 1024 to 4194304",
            "f.toml:8:21: `flow_idle_timeout` is \"9s\"; give a time from \"10s\" to \"30days\", or a \
             number of seconds",
            "f.toml:9:20: `verified_entries` is \"all\"; give a number from 1024 to 4194304",
            "f.toml:10:20: `verified_timeout` is 86401; give a time from \"1s\" to \"24h\", or a \
             number of seconds",
        ],
    );
    bad(
        "[daemon]\nmetrics = \"127.0.0.1:0\"\nsocket = true\nhalf_open_entries = \"many\"",
        &[
            "f.toml:2:11: `metrics` is \"127.0.0.1:0\"; give IP:PORT such as 127.0.0.1:9911 or \
             [::1]:9911, or `off`",
            "f.toml:3:10: `socket` is true; give an absolute path",
            "f.toml:4:21: `half_open_entries` is \"many\"; give a number from 1024 to 4194304",
        ],
    );
}

#[test]
fn service_values() {
    bad_service(
        "mode = \"on\"",
        "8: `mode` is \"on\"; give \"adaptive\", \"always\" or \"observe\"",
    );
    for (wrong, shown) in [("1.5", "1.5"), ("\"splice\"", "\"splice\"")] {
        bad_service(
            &format!("admission = {wrong}"),
            &format!(
                "13: `admission` is {shown}; give \"auto\", \"local\", \"proxy\" or \"reset\""
            ),
        );
    }
    for (value, shown) in [
        ("0", "0"),
        ("-1", "-1"),
        ("4_000_001", "4000001"),
        ("0xffffffffffffffff", "18446744073709551615"),
        ("\"lots\"", "\"lots\""),
        ("1979-05-27", "a date or time"),
        ("[]", "an empty array"),
    ] {
        bad_service(
            &format!("high = {value}"),
            &format!("8: `high` is {shown}; give \"auto\" or a number from 1 to 4000000"),
        );
    }
    bad_service(
        "low = 0",
        "7: `low` is 0; give \"auto\" or a number from 1 to 4000000",
    );
    bad_service(
        "calm_seconds = 14",
        "16: `calm_seconds` is 14, too short to tell a lull from the end; give a number from 15 to \
         86400",
    );
    for wrong in ["86401", "\"15s\"", "20.5"] {
        bad_service(
            &format!("calm_seconds = {wrong}"),
            &format!("16: `calm_seconds` is {wrong}; give a number from 15 to 86400"),
        );
    }
    for wrong in ["0", "\"500ms\"", "\"2h\"", "\"soon\"", "1.5"] {
        bad_service(
            &format!("half_open_timeout = {wrong}"),
            &format!(
                "21: `half_open_timeout` is {wrong}; give a time from \"1s\" to \"1h\", or a number \
                 of seconds"
            ),
        );
    }
}

#[test]
fn what_servers_offer() {
    let server =
        |keys: &str| good(&format!("[[service]]\nname = \"a\"\n{keys}\n")).services[0].server;
    let all = ServerOffer {
        timestamps: true,
        sack: true,
        window_scale: Some(7),
        ecn: true,
        mss: Some(1400),
    };
    assert_eq!(server("server = \"learned\""), Server::Learned);
    assert_eq!(
        server("server = {}\nadmission = \"proxy\""),
        Server::Fixed(ServerOffer::default())
    );
    let table = "{ timestamps = true, sack = true, window_scale = 7, ecn = true, mss = 1400 }";
    assert_eq!(server(&format!("server = {table}")), Server::Fixed(all));
    // Inherited, unless a service says that its servers are to be looked at.
    let two = good(&format!(
        "[defaults]\nserver = {table}\n[[service]]\nname = \"a\"\nports = [1]\nserver = \
         \"learned\"\n[[service]]\nname = \"b\"\nports = [2]\n[[service]]\nname = \"c\"\nports = \
         [3]\nadmission = \"local\"\n"
    ));
    let servers: Vec<_> = two.services.iter().map(|service| service.server).collect();
    assert_eq!(
        servers,
        [Server::Learned, Server::Fixed(all), Server::Fixed(all)]
    );

    for wrong in ["true", "\"auto\""] {
        bad_service(
            &format!("server = {wrong}"),
            &format!(
                "10: `server` is {wrong}; give \"learned\" or a table such as {{ timestamps = true, \
                 sack = true, window_scale = 7 }}"
            ),
        );
    }
    for (key, at, shown, right) in [
        ("timestamps = 1", 25, "1", "true or false"),
        ("sack = \"yes\"", 19, "\"yes\"", "true or false"),
        ("ecn = 0", 18, "0", "true or false"),
        ("window_scale = 15", 27, "15", "a number from 0 to 14"),
        ("window_scale = false", 27, "false", "a number from 0 to 14"),
        ("mss = 215", 18, "215", "a number from 216 to 65495"),
        ("mss = 65496", 18, "65496", "a number from 216 to 65495"),
    ] {
        let (name, _) = key.split_once(' ').unwrap();
        bad_service(
            &format!("server = {{ {key} }}"),
            &format!("{at}: `{name}` is {shown}; give {right}"),
        );
    }
    bad_service(
        "server = { wscale = 7 }",
        "12: unknown key `wscale` in `server`; its keys are timestamps, sack, window_scale, ecn, mss",
    );
    for admission in ["local", "reset"] {
        bad_service(
            &format!("server = {{ sack = true }}\nadmission = \"{admission}\""),
            &format!(
                "10: `server` means nothing beside `admission` = \"{admission}\"; leave it out, or \
                 give \"proxy\" or \"auto\""
            ),
        );
        good(&format!(
            "[defaults]\nserver = \"learned\"\nadmission = \"{admission}\""
        ));
    }
}

#[test]
fn names() {
    let right = "give 1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or digit";
    for name in ["", "a b", "-a", "größe", "a/b"] {
        bad(
            &format!("[[service]]\nname = \"{name}\""),
            &[&format!("f.toml:2:8: `name` is \"{name}\"; {right}")],
        );
    }
    let long = "x".repeat(64);
    bad(
        &format!("[[service]]\nname = \"{long}\""),
        &[&format!(
            "f.toml:2:8: `name` is \"{long}\", which is too long; {right}"
        )],
    );
    good(&format!("[[service]]\nname = \"{}\"", "x".repeat(63)));
    bad(
        "[[service]]\nports = [1]",
        &["f.toml:1:1: [[service]] has no `name`; give it one, such as \"web\""],
    );
    bad(
        "[[service]]\nname = \"a\"\nports = [1]\n[[service]]\nname = \"a\"\nports = [2]",
        &["f.toml:5:8: another service is called `a`; give each its own name"],
    );
}

#[test]
fn addresses() {
    let item = |item: &str, expected: &str| {
        bad_service(
            &format!("addresses = [\"127.0.0.1\", {item}]"),
            &format!("27: {expected}"),
        );
    };
    let right =
        "give one such as \"192.0.2.1\", \"192.0.2.0/24\" or \"2001:db8::/32\", or \"interface\"";
    for wrong in [
        "\"192.0.2.300\"",
        "\"example.org\"",
        "\"fe80::1%eth0\"",
        "\"10.0.0.0/x\"",
        "7",
    ] {
        item(
            wrong,
            &format!("{wrong} is neither an address nor a prefix; {right}"),
        );
    }
    item(
        "\"192.0.2.0/33\"",
        "192.0.2.0/33 is longer than an address; give a prefix length of at most 32",
    );
    item(
        "\"192.0.2.1/24\"",
        "192.0.2.1/24 has host bits set; give 192.0.2.0/24 for the prefix, or 192.0.2.1 for the \
         address",
    );
    item(
        "\"2001:db8::1/32\"",
        "2001:db8::1/32 has host bits set; give 2001:db8::/32 for the prefix, or 2001:db8::1 for \
         the address",
    );
    item(
        "\"::ffff:192.0.2.1\"",
        "::ffff:192.0.2.1 is an IPv4 address mapped to IPv6; give 192.0.2.1",
    );
    item(
        "\"::ffff:192.0.2.0/120\"",
        "::ffff:192.0.2.0/120 is an IPv4 address mapped to IPv6; give 192.0.2.0/24",
    );
    for multicast in ["224.0.0.1", "239.0.0.0/8", "ff02::1"] {
        item(
            &format!("\"{multicast}\""),
            &format!(
                "{multicast} is multicast, where there is no TCP; give the address of the service"
            ),
        );
    }
    for (unspecified, every) in [("0.0.0.0", "0.0.0.0/0"), ("::", "::/0")] {
        item(
            &format!("\"{unspecified}\""),
            &format!(
                "{unspecified} is no service's address; give \"interface\" for the interface's own \
                 addresses, or \"{every}\" for every one"
            ),
        );
    }
    item("\"127.0.0.1/32\"", "127.0.0.1 is there twice; remove one");
    item(
        "\"interface\"",
        "\"interface\" does not mix with addresses; give them to a [[service]] of their own",
    );
    let right = "give [\"interface\"] or an array of addresses and prefixes";
    bad_service(
        "addresses = []",
        &format!("13: `addresses` is an empty array; {right}"),
    );
    bad_service(
        "addresses = \"interface\"",
        &format!("13: `addresses` is \"interface\"; {right}"),
    );
}

#[test]
fn ports() {
    let item = |item: &str, expected: &str| {
        bad_service(
            &format!("ports = [1, {item}]"),
            &format!("13: {item}{expected}"),
        );
    };
    let right = "give a port from 1 to 65535 such as 443, or a range such as \"8000-8080\"";
    for wrong in ["0", "65536", "-1", "true", "1.5"] {
        item(wrong, &format!(" is not a TCP port; {right}"));
    }
    for wrong in ["\"http\"", "\"1-2-3\"", "\"-5\"", "\"\"", "\"70000\""] {
        item(wrong, &format!(" is not a range of ports; {right}"));
    }
    for wrong in ["\"0-10\"", "\"1-65536\""] {
        item(wrong, &format!(" reaches beyond the TCP ports; {right}"));
    }
    item("\"443\"", " is in quotes; give 443");
    item("\"90-80\"", " is reversed; give \"80-90\"");
    let right = "give \"all\" or an array such as [443, \"8000-8080\"]";
    bad_service(
        "ports = []",
        &format!("9: `ports` is an empty array; {right}"),
    );
    bad_service("ports = 443", &format!("9: `ports` is 443; {right}"));
    bad_service(
        "ports = \"any\"",
        &format!("9: `ports` is \"any\"; {right}"),
    );
}

#[test]
fn thresholds() {
    bad_service(
        "low = 5",
        "7: `low` = 5 stands beside `high` = \"auto\"; give both as numbers, or leave `low` to \
         \"auto\"",
    );
    for high in [5, 4] {
        bad_service(
            &format!("low = 5\nhigh = {high}"),
            &format!(
                "7: `low` = 5 is not below `high` = {high}; give a lower `low` or a higher `high`"
            ),
        );
    }
    bad_service(
        "high = 65537",
        "8: `high` = 65537 is more than the half-open table holds; give at most 65536, or a larger \
         `half_open_entries` in [daemon]",
    );
    good("[daemon]\nhalf_open_entries = 4194304\n[defaults]\nhigh = 4000000\nlow = 3999999");
    // What [defaults] says wrong is said once, however many services inherit it.
    let services =
        "[[service]]\nname = \"a\"\nports = [1]\n[[service]]\nname = \"b\"\nports = [2]\n";
    bad(
        &format!("[defaults]\nhigh = 5\nlow = 6\n{services}"),
        &[
            "f.toml:3:7: `low` = 6 (from [defaults]) is not below `high` = 5 (from [defaults]); give \
           a lower `low` or a higher `high`",
        ],
    );
    bad(
        &format!("[defaults]\nhigh = 9\nlow = 6\n{services}high = 3\n"),
        &[
            "f.toml:10:8: `low` = 6 (from [defaults]) is not below `high` = 3; give a lower `low` or \
           a higher `high`",
        ],
    );
    bad(
        "[defaults]\nlow = 6",
        &[
            "f.toml:2:7: `low` = 6 (from [defaults]) stands beside `high` = \"auto\"; give both as \
           numbers, or leave `low` to \"auto\"",
        ],
    );
}

#[test]
fn services_with_equal_claims() {
    let two = |a: &str, b: &str| {
        format!("[[service]]\nname = \"a\"\n{a}\n[[service]]\nname = \"b\"\n{b}\n")
    };
    let right = "give one of them other ports or a longer prefix";
    bad(
        &two("", ""),
        &[&format!(
            "f.toml:4:1: services `a` and `b` both cover the interface's addresses, all ports; {right}"
        )],
    );
    bad(
        &two(
            "addresses = [\"192.0.2.1\"]\nports = [\"1-443\"]",
            "addresses = [\"192.0.2.2\", \"192.0.2.1\"]\nports = [443, 80]",
        ),
        &[&format!(
            "f.toml:7:27: services `a` and `b` both cover 192.0.2.1, port 80; {right}"
        )],
    );
    good(&two("", "ports = [443]"));
    good(&two("", "addresses = [\"192.0.2.1\"]"));
    good(&two(
        "addresses = [\"192.0.2.0/24\"]",
        "addresses = [\"192.0.2.1\"]",
    ));
    good(&two("ports = [80]", "ports = [443]"));
}

#[test]
fn too_many_services() {
    let services = |n: u16| -> String {
        (1..=n)
            .map(|i| format!("[[service]]\nname = \"s{i}\"\nports = [{i}]\n"))
            .collect()
    };
    assert_eq!(good(&services(1023)).services.len(), 1023);
    bad(
        &services(1024),
        &["f.toml:3070:1: 1024 services are too many; give at most 1023"],
    );
}

#[test]
fn several_mistakes_are_one_line_each_and_the_first_stands_for_all() {
    let error = parse(
        Path::new("f.toml"),
        "[daemon]\nsocket = 1\nsecret = 2\nmetrics = 3",
    )
    .unwrap_err();
    assert_eq!(error.mistakes().count(), 3);
    assert_eq!(
        error.to_string(),
        "f.toml:2:10: `socket` is 1; give an absolute path (and 2 more: `synguard config check \
         f.toml` lists them)"
    );
}

#[test]
fn sources_are_read_from_the_file_and_from_files_of_their_own() {
    use crate::{
        journal::Timestamp,
        lists::{Configured, Entry},
    };
    let directory = tempfile::tempdir().unwrap();
    let [drop, edrop] = ["drop.txt", "edrop.txt"].map(|name| directory.path().join(name));
    fs::write(&drop, "# a list\n192.0.2.0/24\n198.51.100.9\n").unwrap();
    fs::write(&edrop, "198.51.100.9\n2001:db8::/32 ; SBL1\n").unwrap();
    let config = good(&format!(
        r#"
[sources]
allow = [
    "203.0.113.7",
    {{ prefix = "203.0.113.8", comment = "ours", until = 2027-01-15T09:00:00+01:00 }},
]
block = [{{ prefix = "192.0.2.0/24", until = 2027-01-15 }}]
block_files = [{drop:?}, {edrop:?}]
syn_budget = 50
answer_budget = "off"
"#
    ));
    let sources = config.sources;
    assert_eq!((sources.syn_budget, sources.answer_budget), (50, 0));
    let place = |listed: &Configured, entry: &Entry| {
        let file = listed.file(entry.place).file_name().unwrap().to_owned();
        format!(
            "{} {} {file:?}:{}",
            entry.list, entry.prefix, entry.place.line
        )
    };
    let listed = &sources.listed;
    let told: Vec<_> = listed.entries().iter().map(|e| place(listed, e)).collect();
    // The file's own ends sooner than the same in the list.
    assert_eq!(
        told,
        [
            "block 192.0.2.0/24 \"drop.txt\":2",
            "block 198.51.100.9 \"drop.txt\":3",
            "allow 203.0.113.7 \"f.toml\":4",
            "allow 203.0.113.8 \"f.toml\":5",
            "block 2001:db8::/32 \"edrop.txt\":2",
        ]
    );
    let ours = listed.get(&"203.0.113.8".parse().unwrap()).unwrap();
    assert_eq!(ours.comment.as_deref(), Some("ours"));
    assert_eq!(ours.until, Some(Timestamp::from_millis(1_800_000_000_000)));

    assert_eq!(
        good("[sources]\nanswer_budget = 65535")
            .sources
            .answer_budget,
        65_535
    );
}

#[test]
fn mistakes_in_sources_are_told_by_line() {
    let right = "a prefix such as \"192.0.2.0/24\", or { prefix = \"192.0.2.0/24\", comment = \"why\", \
                 until = 2026-11-21T20:00:00Z }";
    bad(
        "[sources]\nblock = [\"10.0.0.1/8\", 7, \"::1\", \"::1\", { comment = \"x\" }]\nallow = [\n  \
         \"::1\",\n]\n",
        &[
            "f.toml:2:10: 10.0.0.1/8 has host bits set; give 10.0.0.0/8 for the prefix, or 10.0.0.1 for \
             the address",
            &format!("f.toml:2:24: 7 is no prefix; give {right}"),
            "f.toml:2:27: ::1 is blocked, and allowed in f.toml, line 4; remove one",
            "f.toml:2:34: ::1 is blocked, and allowed in f.toml, line 4; remove one",
            &format!("f.toml:2:41: there is no `prefix`; give {right}"),
        ],
    );
    bad(
        "[sources]\nblock = [\"::1\", \"::2\", \"::1/128\", { prefix = \"::3\", until = \"x\" }]\nsyn_budget \
         = 0\nanswer_budget = 65536\n",
        &[
            "f.toml:2:24: ::1 is there twice; remove one",
            "f.toml:2:61: `until` is \"x\"; give a date and time such as 2026-11-21T20:00:00Z, without \
             quotes",
            "f.toml:3:14: `syn_budget` is 0; give \"off\" or a number from 1 to 65535",
            "f.toml:4:17: `answer_budget` is 65536; give \"off\" or a number from 1 to 65535",
        ],
    );
    bad(
        "[sources]\nblock = \"::1\"\nallow_files = [\"a.txt\"]\nalow = []\n",
        &[
            "f.toml:2:9: `block` is \"::1\"; give an array of prefixes such as [\"192.0.2.0/24\"]",
            "f.toml:3:16: \"a.txt\" is no path; give absolute paths of files with one prefix a line",
            "f.toml:4:1: unknown key `alow` in [sources]; did you mean `allow`?",
        ],
    );

    let directory = tempfile::tempdir().unwrap();
    let [list, missing] = ["list.txt", "missing.txt"].map(|name| directory.path().join(name));
    fs::write(&list, "::1\n10.0.0.0/8\n x.example\n::1\n").unwrap();
    let (list_shown, missing_shown) = (list.display(), missing.display());
    bad(
        &format!(
            "[sources]\nallow = [\"10.0.0.0/8\"]\nblock_files = [{list:?}, {missing:?}, {list:?}]\n"
        ),
        &[
            &format!(
                "f.toml:3:{}: {list_shown} is there twice; remove one",
                20 + list_shown.to_string().len() + missing_shown.to_string().len() + 4
            ),
            &format!(
                "{list_shown}:3:2: \"x.example\" is neither an address nor a prefix; give one such as \
                 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32"
            ),
            &format!("{list_shown}:4:1: ::1 is there twice, also in line 1; remove one"),
            &format!(
                "{missing_shown}: cannot be read: No such file or directory (os error 2); name a file \
                 that can be"
            ),
            &format!(
                "{list_shown}:2:1: 10.0.0.0/8 is blocked, and allowed in f.toml, line 2; remove one"
            ),
        ],
    );
}
