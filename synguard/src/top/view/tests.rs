//! What is drawn, at the sizes that terminals have, read back from ratatui's test backend.

use std::time::Instant;

use ratatui::{
    Terminal,
    backend::TestBackend,
    style::{Color, Modifier},
};

use super::*;
use crate::{
    model::{Mode, Snapshot},
    top::model::tests::{later, snapshot},
};

/// When the fixture was taken: an epoch that began then, less three seconds.
const NOW: u64 = 1_800_000_003;
const LOOK: Look = Look {
    unicode: true,
    colours: true,
};
const SIZES: [(u16, u16); 3] = [(80, 24), (60, 15), (200, 60)];

/// A daemon that has nothing to complain about, and its next snapshot.
fn healthy() -> Model {
    let mut first = snapshot();
    first.interfaces.truncate(1);
    first.services[1].admission = "local".into();
    let t = Instant::now();
    let mut second = later(&later(&first, "challenged", 1_234_000), "admitted", 1500);
    second.services[0].syns -= 1500;
    second.services[0].half_open = 700;
    let mut model = Model::new(first, t);
    model.update(second, t + Duration::from_secs(1));
    model
}

fn scene(model: &Model) -> Scene<'_> {
    Scene {
        model,
        wall: NOW,
        taken: NOW,
        silence: None,
        delay: Duration::from_secs(1),
        look: LOOK,
        paused: false,
    }
}

/// What a terminal of this size shows.
fn shown(scene: &Scene<'_>, ui: &mut Ui, (width, height): (u16, u16)) -> Vec<String> {
    text(&buffer(scene, ui, (width, height)))
}

fn buffer(scene: &Scene<'_>, ui: &mut Ui, (width, height): (u16, u16)) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(scene, ui, frame.area(), frame.buffer_mut()))
        .unwrap();
    terminal.backend().buffer().clone()
}

#[track_caller]
fn line<'a>(lines: &'a [String], start: &str) -> &'a str {
    let found = lines.iter().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no line begins with {start:?} in\n{}", lines.join("\n")))
}

/// Services with names, numbers and everything else as long as they get.
fn many(services: usize) -> Snapshot {
    let mut snapshot = snapshot();
    let worst = snapshot.services[0].clone();
    snapshot.services = (0..services)
        .map(|n| {
            let mut service = worst.clone();
            service.name = format!("{n:03}-{}", "x".repeat(59));
            service.covers = vec!["[2001:db8:1111:2222:3333:4444:5555:6666]:443".into(); 40];
            service.state_since = Some(NOW - 9 * 86_400 - 23 * 3_600);
            service.half_open = 4_000_000;
            service.high = 999_999_999;
            service
        })
        .collect();
    snapshot.interfaces[0].name = "a-long-if-name0".into();
    let interface = snapshot.interfaces[0].clone();
    snapshot.interfaces.extend(vec![interface; 10]);
    snapshot
}

#[test]
fn a_service_has_its_row() {
    let model = healthy();
    let lines = shown(&scene(&model), &mut Ui::new(&model), (80, 24));
    println!("{}", lines.join("\n"));
    for (line, start, end) in [
        (
            &lines[0],
            "synguard 0.1.0, up 3days 4h, Linux 6.18.0  ",
            "  2027-01-15T08:00:03Z every 1s",
        ),
        (&lines[1], "eth0 native  ", "  unprotected 0/s"),
        (
            &lines[2],
            "key 3s old, next in 13s, 2 ahead  ",
            "  half-open 12 of 65.5k  flows 57 of 262k",
        ),
    ] {
        assert!(line.starts_with(start) && line.ends_with(end), "{line}");
        assert_eq!(line.chars().count(), 80, "{line}");
    }
    let row: Vec<_> = line(&lines, "web ").split_whitespace().collect();
    assert_eq!(
        row,
        [
            "web", "guarded", "45s", "1.2M", "1.2M", "1500", "0", "700/2000", "▇"
        ]
    );
    let row: Vec<_> = line(&lines, "rest ").split_whitespace().collect();
    assert_eq!(row, ["rest", "observed", "0", "0", "0", "0", "0/100", "▁"]);
    assert!(lines[23].starts_with("q quit  ? help  s sort: SYN/s  ↑↓ details  p pause"));
}

#[test]
fn details_are_below() {
    let model = healthy();
    let mut ui = Ui {
        selected: Some("web".into()),
        ..Ui::default()
    };
    for size in SIZES {
        let lines = shown(&scene(&model), &mut ui, size);
        println!("{}\n", lines.join("\n"));
        line(&lines, "── web ──");
        line(
            &lines,
            "adaptive: guarded at 2000 half-open, calm below 500; now",
        );
        assert!(line(&lines, "challenged ").contains(" answer     1.2M"));
        if size != (60, 15) {
            line(&lines, "admission local (the kernel can)");
            line(&lines, "no handshake timed in the last 60 intervals");
            line(
                &lines,
                "turned guarded 3 times, calm again twice; 7 half-open given up",
            );
            line(&lines, "covers 192.0.2.1:443 [2001:db8::1]:443");
            line(&lines, "leaves alone 192.0.2.1:22: no listener");
            let graph = line(&lines, "admitted ");
            assert!(graph.contains("challenged   1.2M"), "{graph}");
        }
    }
    ui.selected = Some("forwarded".into());
    let lines = shown(&scene(&model), &mut ui, (80, 24));
    line(
        &lines,
        "offers timestamps, window scale 7, MSS 1400 (learned from its servers);",
    );
    // Only `local` times them.
    assert!(!lines.iter().any(|line| line.contains("handshake timed")));
}

#[test]
fn everything_fits_and_scrolls() {
    for services in [0, 1, 3, 200] {
        let (first, t) = (many(services), Instant::now());
        let mut second = first.clone();
        for service in &mut second.services {
            service.syns = u64::MAX;
            service.packets[0].packets = u64::MAX / 2;
        }
        let mut model = Model::new(first, t);
        model.update(second, t + Duration::from_secs(1));
        for size in SIZES {
            for selected in [None, Some(0), Some(services / 2), services.checked_sub(1)] {
                let name = |at: usize| Some(model.service(at)?.0.name.clone());
                let mut ui = Ui {
                    selected: selected.and_then(name),
                    ..Ui::default()
                };
                let lines = shown(&scene(&model), &mut ui, size);
                println!("{size:?} {selected:?}\n{}\n", lines.join("\n"));
                assert_eq!(lines.len(), usize::from(size.1));
                line(&lines, "synguard 0.1.0, up");
                line(&lines, "SERVICE");
                line(&lines, "q quit");
                if services == 0 {
                    line(&lines, "no services");
                    continue;
                }
                let rows = lines.iter().filter(|line| line.contains("4.0M/1.0G"));
                assert!(rows.count() >= services.min(4), "too few rows");
                if let Some(at) = selected.filter(|at| *at < services) {
                    let row = line(&lines, &format!("{at:03}-"));
                    assert!(row.contains("guarded"), "{row}");
                    line(&lines, &format!("── {at:03}-xxx"));
                }
            }
        }
        let mut ui = Ui::new(&model);
        let lines = shown(&scene(&model), &mut ui, (80, 24));
        let place = lines[23].rsplit("  ").next().unwrap();
        if services == 200 {
            assert!(
                place.starts_with("1-") && place.ends_with(" of 200"),
                "{place}"
            );
        }
    }
}

#[test]
fn any_size_is_survived() {
    let mut all = many(30);
    all.keys.ready_ahead = 0;
    let model = Model::new(all, Instant::now());
    for width in (0..45).chain([59, 71, 72, 75, 76, 99, 100, 119, 120, 600]) {
        for height in 0..30 {
            let mut ui = Ui {
                selected: Some(model.service(17).unwrap().0.name.clone()),
                help: height % 2 == 0,
                ..Ui::default()
            };
            let area = Rect::new(0, 0, width, height);
            draw(&scene(&model), &mut ui, area, &mut Buffer::empty(area));
        }
    }
    let lines = shown(&scene(&model), &mut Ui::default(), (39, 5));
    assert_eq!(lines[0], "needs 40x6 or more; q quits");
}

#[test]
fn what_is_wrong_is_said_first() {
    let mut sick = snapshot();
    sick.keys.ready_ahead = 0;
    sick.draining = true;
    sick.flows.left = 40;
    sick.maps[0].entries = 60_000;
    sick.services[0].admission = "none".into();
    sick.services[0].admission_reason = "the kernel is too old".into();
    let model = Model::new(sick, Instant::now());
    let why = "no daemon answers on /run/synguard/control.sock";
    let scene = Scene {
        silence: Some((Duration::from_secs(12), why)),
        taken: NOW + 30,
        ..scene(&model)
    };
    let lines = shown(&scene, &mut Ui::default(), (80, 60));
    let said: Vec<_> = lines.iter().filter(|line| line.starts_with("! ")).collect();
    assert_eq!(
        said,
        [
            "! daemon does not answer, data is 12s old: no daemon answers on /run/synguard/c…",
            "! quo\"te has generic XDP: far slower than in the driver",
            "! quo\"te is down",
            "! draining: leaves when 40 spliced connections have ended",
            "! key rotation is 17s late",
            "! no key ahead is in place: nothing is challenged after this epoch",
            "! table HALF_OPEN is 91 % full",
            "! web is never guarded: the kernel is too old",
        ]
    );
    // A small terminal says how much it keeps to itself.
    let lines = shown(&scene, &mut Ui::default(), (80, 24));
    let said: Vec<_> = lines.iter().filter(|line| line.starts_with("! ")).collect();
    assert_eq!(said.len(), 4);
    assert_eq!(
        said[3],
        "! draining: leaves when 40 spliced connections have ended (and 4 more)"
    );
}

#[test]
fn mode_observe_says_what_it_would_do() {
    let (mut first, t) = (snapshot(), Instant::now());
    first.services.swap(0, 1);
    let mut second = first.clone();
    second.services[0].observed[0].packets += 40;
    let mut model = Model::new(first, t);
    model.update(second, t + Duration::from_secs(1));
    let mut ui = Ui::new(&model);
    ui.selected = Some("rest".into());
    let lines = shown(&scene(&model), &mut ui, (80, 24));
    let row = line(&lines, "rest ");
    assert!(row.contains("would guard") && row.contains(" 40 "), "{row}");
    line(&lines, "challenged          (answer)     40     42");
    let small = shown(&scene(&model), &mut ui, (60, 15));
    assert!(line(&small, "rest ").contains(" would "));
}

#[test]
fn without_unicode_everything_is_ascii() {
    let model = healthy();
    let mut scene = scene(&model);
    scene.look.unicode = false;
    for size in SIZES {
        for help in [false, true] {
            let mut ui = Ui {
                selected: Some("web".into()),
                help,
                ..Ui::default()
            };
            for line in shown(&scene, &mut ui, size) {
                assert!(line.is_ascii(), "{line}");
            }
        }
    }
}

#[test]
fn colours_are_the_eight_or_none() {
    let model = healthy();
    for colours in [false, true] {
        let mut scene = scene(&model);
        scene.look.colours = colours;
        let mut ui = Ui {
            selected: Some("web".into()),
            ..Ui::default()
        };
        let buffer = buffer(&scene, &mut ui, (200, 60));
        let eight = [
            Color::Reset,
            Color::Red,
            Color::Green,
            Color::Yellow,
            Color::Cyan,
        ];
        let foregrounds = buffer.content.iter().map(|cell| cell.fg);
        let coloured = foregrounds.clone().filter(|colour| *colour != Color::Reset);
        assert_eq!(coloured.count() > 0, colours);
        assert!(foregrounds.clone().all(|colour| eight.contains(&colour)));
        assert!(buffer.content.iter().all(|cell| cell.bg == Color::Reset));
        // The selection is seen without them.
        let row = buffer
            .content
            .iter()
            .filter(|cell| cell.modifier.contains(Modifier::REVERSED));
        assert!(row.count() >= "SERVICE".len());
    }
}

#[test]
fn help_and_pause_are_seen() {
    let model = healthy();
    let mut scene = scene(&model);
    scene.paused = true;
    let mut ui = Ui {
        help: true,
        ..Ui::default()
    };
    for size in [(80, 24), (60, 15)] {
        let lines = shown(&scene, &mut ui, size);
        let all = lines.join("\n");
        for key in HELP.lines().filter(|line| !line.is_empty()) {
            assert!(all.contains(key), "no {key:?} in\n{all}");
        }
        assert!(
            lines[usize::from(size.1) - 1].starts_with(" PAUSED  q quit"),
            "{all}"
        );
    }
}

#[test]
fn a_plain_frame_has_all_services_and_nothing_else() {
    let mut all = many(200);
    all.services[7].mode = Mode::Observe;
    let model = Model::new(all, Instant::now());
    let mut scene = scene(&model);
    scene.look.unicode = false;
    let lines = plain(&scene, 80);
    assert!(
        lines
            .iter()
            .all(|line| line.len() <= 80 && !line.contains('\u{1b}'))
    );
    for n in 0..200 {
        line(&lines, &format!("{n:03}-"));
    }
    assert!(lines.last().unwrap().starts_with("199-"));
}
