//! `synguard top` on a terminal, while a guarded service is flooded.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use synguard::top::screen::Screen;
use synguard_lab::{
    edge::{Edge, EdgeOptions},
    flood::{Flood, FloodSpec, Kind, Rate},
    skip_unless_root,
};

use crate::{
    client::{HTTP, both, serve},
    guard::{Guard, binary, within},
    terminal::Terminal,
};

const SIZE: (u16, u16) = (80, 24);
/// SYNs per second.
const RATE: u64 = 20_000;

/// `synguard top` with an environment that promises everything.
fn command(socket: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["top", "--socket"])
        .arg(socket)
        .env("TERM", "xterm-256color")
        .env("LC_ALL", "C.UTF-8")
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG");
    command
}

fn flood(edge: &Edge) -> Flood {
    let spec = FloodSpec {
        duration: Duration::from_secs(120),
        ..FloodSpec::new(Kind::Syn, Rate::Pps(RATE), both(HTTP)[0])
    };
    edge.flood(spec).unwrap()
}

/// A number as people read it: 20.1k.
fn number(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic());
    let (digits, unit) = text.split_at(split.unwrap_or(text.len()));
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// SYNs and challenges per second that a row shows; `None` where it has no rates.
fn rates(row: &str) -> Option<[f64; 2]> {
    // The name, the state and its age come first.
    let mut cells = row.split_whitespace().skip(3);
    Some([number(cells.next()?)?, number(cells.next()?)?])
}

#[test]
fn top_shows_what_is_sent() {
    if !skip_unless_root("top_shows_what_is_sent") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let service = guard.service().name;
    let mut terminal = Terminal::run(command(&guard.socket()), SIZE);
    terminal.shows(&format!("{} native", edge.server_end.name));
    terminal.shows("guarded");

    let flood = flood(&edge);
    let row = |terminal: &Terminal| rates(&terminal.line(&format!("{service} "))?);
    within(Duration::from_secs(15), "the flood is shown", || {
        row(&terminal).filter(|rates| rates[0] > RATE as f64 / 2.0)
    });
    let (began, before) = (Instant::now(), flood.sent_in_all().unwrap());
    let mut shown = Vec::new();
    while began.elapsed() < Duration::from_secs(6) {
        shown.extend(row(&terminal));
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = (flood.sent_in_all().unwrap() - before) as f64 / began.elapsed().as_secs_f64();
    for (what, at) in [("SYNs", 0), ("challenges", 1)] {
        let mean = shown.iter().map(|rates| rates[at]).sum::<f64>() / shown.len() as f64;
        assert!(
            (mean / sent - 1.0).abs() < 0.2,
            "{what}: {mean:.0}/s shown, {sent:.0}/s sent\n{}",
            terminal.lines().join("\n")
        );
    }

    // The only service has its details from the beginning.
    terminal.shows(&format!("── {service} ──"));
    terminal.shows("challenged          answer");
    terminal.press("\u{1b}[B\u{1b}");
    terminal.until("without details", |lines| {
        !lines.iter().any(|l| l.contains("── "))
    });
    terminal.press("?");
    terminal.shows("Ctrl-L        draw everything again");
    terminal.press("?s");
    terminal.shows("sort: challenged");
    terminal.press("\u{c}s");
    terminal.shows("sort: admitted");

    terminal.resize(130, 40);
    terminal.shows("CHALLENGED/s");
    terminal.until("drawn to the last line", |lines| {
        lines.len() == 40 && lines[39].starts_with("q quit")
    });
    terminal.resize(60, 15);
    terminal.until("drawn to the last line", |lines| {
        lines.len() == 15 && lines[14].starts_with("q quit") && lines[0].starts_with("synguard")
    });
    terminal.resize(80, 24);
    terminal.shows("guarded ");

    terminal.press("p");
    terminal.shows(" PAUSED ");
    flood.stop().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let paused = row(&terminal).unwrap();
    assert!(paused[0] > RATE as f64 / 2.0, "{paused:?} after a pause");
    terminal.press("p");
    within(Duration::from_secs(15), "the flood is over", || {
        row(&terminal).filter(|rates| *rates == [0.0; 2])
    });
    terminal.press("q");
    assert!(terminal.end().success());

    // The same for scripts.
    let frames = guard.told(&["top", "-n", "2", "-d", "0.2", "--json"]);
    assert_eq!(frames.lines().count(), 2);
    let frame: serde_json::Value = serde_json::from_str(frames.lines().last().unwrap()).unwrap();
    assert_eq!(frame["services"][0]["name"], service.as_str());
    assert_eq!(frame["services"][0]["per_second"]["syns"], 0.0);
    let frame = guard.told(&["top", "--once"]);
    let row = frame
        .lines()
        .find(|line| line.starts_with(&service))
        .unwrap();
    assert_eq!(rates(row), Some([0.0; 2]), "{frame}");
    guard.stop();
}

#[test]
fn top_outlives_the_daemon() {
    if !skip_unless_root("top_outlives_the_daemon") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let service = format!("{} ", guard.service().name);
    let first_flood = flood(&edge);
    // Counters that the next daemon begins without.
    std::thread::sleep(Duration::from_secs(3));
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("control.sock");
    symlink(guard.socket(), &socket).unwrap();
    let mut terminal = Terminal::run(command(&socket), SIZE);
    let row = |terminal: &Terminal| rates(&terminal.line(&service)?);
    let flooded = |terminal: &Terminal| row(terminal).filter(|r| r[0] > RATE as f64 / 2.0);
    within(Duration::from_secs(15), "the flood is shown", || {
        flooded(&terminal)
    });

    guard.process.signal(Signal::SIGKILL).unwrap();
    terminal.shows("! daemon does not answer, data is ");
    terminal.shows("no daemon answers on ");
    std::thread::sleep(Duration::from_secs(2));
    assert!(terminal.is_running());

    // A busy machine has enough to do with loading programs.
    first_flood.stop().unwrap();
    drop(guard);
    let next = Guard::always(&edge);
    let _flood = flood(&edge);
    std::fs::remove_file(&socket).unwrap();
    symlink(next.socket(), &socket).unwrap();
    let mut most: f64 = 0.0;
    within(Duration::from_secs(15), "the next daemon is shown", || {
        most = most.max(row(&terminal).map_or(0.0, |rates| rates[0].max(rates[1])));
        let silent = terminal.line("! daemon does not answer").is_some();
        (!silent).then_some(())
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        most = most.max(row(&terminal).map_or(0.0, |rates| rates[0].max(rates[1])));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(most < 3.0 * RATE as f64, "{most} SYN/s shown, {RATE} sent");
    within(Duration::from_secs(15), "the flood is shown", || {
        flooded(&terminal)
    });

    next.stop();
    terminal.shows("! daemon does not answer");
    terminal.signal(Signal::SIGTERM);
    assert!(terminal.end().success());
}

/// Connections to one that is stopped are accepted, and nothing comes back.
#[test]
fn a_daemon_that_hangs_is_told_of() {
    if !skip_unless_root("a_daemon_that_hangs_is_told_of") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--socket").arg(guard.socket());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut terminal = Terminal::run(command(&guard.socket()), SIZE);
    terminal.shows("q quit");
    let mut follower = run(&["events", "--follow", "--json", "--kind", "mode_changed"]);
    // It has what there was.
    std::thread::sleep(Duration::from_secs(1));

    guard.process.signal(Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let questions = [&["status"][..], &["events"], &["top", "--once"]];
    let asked = questions.map(|arguments| (arguments, run(arguments)));
    terminal.shows("! daemon does not answer, data is ");
    assert!(began.elapsed() < Duration::from_secs(8), "top is late");
    terminal.press("?");
    terminal.shows("Ctrl-L        draw everything again");
    terminal.press("?");
    let hangs = format!(
        "synguard: the daemon on {} has not answered for 10 s",
        guard.socket().display()
    );
    for (arguments, asked) in asked {
        let output = asked.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("{hangs}\n"), "{arguments:?}");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
    }
    let mut said = String::new();
    let stderr = follower.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut said).unwrap();
    assert_eq!(said, format!("{hangs}: still waiting\n"));
    assert!(began.elapsed() < Duration::from_secs(25), "{began:?}");
    terminal.shows("s old: still waiting");

    // It was only slow.
    guard.process.signal(Signal::SIGCONT).unwrap();
    terminal.until("answered", |lines| {
        !lines.iter().any(|line| line.contains("does not answer"))
    });
    guard.set_mode("observe");
    let mut event = String::new();
    let stdout = follower.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut event).unwrap();
    assert!(event.contains("mode_changed"), "{event}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    terminal.press("q");
    assert!(terminal.end().success());
    guard.stop();
}

#[test]
fn top_gives_the_terminal_back() {
    if !skip_unless_root("top_gives_the_terminal_back") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    for signal in [
        None,
        Some(Signal::SIGINT),
        Some(Signal::SIGTERM),
        Some(Signal::SIGHUP),
    ] {
        let mut terminal = Terminal::run(command(&guard.socket()), SIZE);
        terminal.shows("q quit");
        assert!(terminal.look(|screen| screen.alternate_screen() && screen.hide_cursor()));
        match signal {
            None => terminal.press("\u{3}"),
            Some(signal) => terminal.signal(signal),
        }
        assert!(terminal.end().success(), "{signal:?}");
    }

    // Ctrl-Z means something to a shell only.
    let mut shell = Command::new("bash");
    shell
        .args(["--norc", "--noprofile", "-i"])
        .env("PS1", "shell> ")
        .env("SYNGUARD", binary())
        .env("SOCKET", guard.socket())
        .env("TERM", "xterm")
        .env("LC_ALL", "C.UTF-8");
    let mut terminal = Terminal::run(shell, SIZE);
    terminal.shows("shell>");
    terminal.press("\"$SYNGUARD\" top --socket \"$SOCKET\"\n");
    terminal.shows("q quit");
    terminal.press("\u{1a}");
    terminal.shows("Stopped");
    assert!(terminal.look(|screen| !screen.alternate_screen() && !screen.hide_cursor()));
    terminal.press("fg\n");
    terminal.shows("q quit");
    assert!(terminal.look(|screen| screen.alternate_screen() && screen.hide_cursor()));
    terminal.press("q");
    terminal.shows("shell>");
    terminal.press("exit\n");
    assert!(terminal.end().success());
    guard.stop();
}

#[test]
fn top_on_terminals_that_can_little() {
    if !skip_unless_root("top_on_terminals_that_can_little") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    for (name, value, ascii, coloured) in [
        ("TERM", "linux", true, true),
        ("LC_ALL", "C", true, true),
        ("NO_COLOR", "1", false, false),
        ("TERM", "vt220", false, false),
    ] {
        let mut command = command(&guard.socket());
        command.env(name, value);
        let mut terminal = Terminal::run(command, SIZE);
        terminal.shows("q quit");
        terminal.shows("guarded");
        // With a sparkline.
        std::thread::sleep(Duration::from_millis(1500));
        let text = terminal.lines().join("\n");
        assert_eq!(text.is_ascii(), ascii, "{name}={value}\n{text}");
        let colours = terminal.look(|screen| {
            let (lines, columns) = screen.size();
            let cells = (0..lines.get()).flat_map(|y| (0..columns.get()).map(move |x| (y, x)));
            let colours = cells.filter_map(|(y, x)| Some(screen.cell(y, x)?.fgcolor()));
            colours
                .filter(|c| *c != vt100::Color::Default)
                .collect::<Vec<_>>()
        });
        assert_eq!(!colours.is_empty(), coloured, "{name}={value}");
        let eight = |colour: &vt100::Color| matches!(colour, vt100::Color::Idx(0..8));
        assert!(colours.iter().all(eight), "{colours:?}");
        terminal.press("q");
        assert!(terminal.end().success());
    }

    let mut command = command(&guard.socket());
    command.env("TERM", "dumb");
    let mut terminal = Terminal::run(command, (200, 24));
    terminal.shows("synguard top -b");
    assert_eq!(terminal.end().code(), Some(1));
    let said = terminal.lines().join("\n");
    assert_eq!(
        said.trim(),
        "synguard: TERM=dumb is no terminal to draw on: use `synguard status`, or `synguard top -b`"
    );
    let piped = guard.command(&["top"]);
    assert_eq!(piped.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(piped.stderr).unwrap(),
        "synguard: this is no terminal: use `synguard status`, or `synguard top --once` for rates too\n"
    );
    guard.stop();
}

/// This test runs itself on a terminal, and panics there.
#[test]
fn top_gives_the_terminal_back_before_a_panic() {
    const INSIDE: &str = "SYNGUARD_TEST_PANICS";
    if std::env::var_os(INSIDE).is_some() {
        let mut screen = Screen::take().unwrap();
        screen
            .draw(|frame| frame.render_widget("on the other screen", frame.area()))
            .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        panic!("as intended");
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--nocapture", "--exact"])
        .arg("patient::top::top_gives_the_terminal_back_before_a_panic")
        .env(INSIDE, "1");
    let mut terminal = Terminal::run(command, SIZE);
    terminal.shows("on the other screen");
    assert!(terminal.look(|screen| screen.alternate_screen() && screen.hide_cursor()));
    terminal.shows("as intended");
    assert_eq!(terminal.end().code(), Some(101));
}
