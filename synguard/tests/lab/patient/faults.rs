//! Faults that people and machines make around a running daemon: what the data plane and the daemon
//! do then. docs/operations.md lists them, with those that other files try.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::Path,
    process::Command,
};

use nix::{libc, sys::signal::Signal};
use synguard_common::{abi::map, verdict::Reason};
use synguard_lab::{
    client,
    edge::{Edge, EdgeOptions},
    link::End,
    skip_unless_root,
    topology::Shape,
};

use crate::{
    client::{ECHO, HTTP, Talk, both, connect, exchange, serve},
    daemon::scrape,
    guard::{Guard, PATIENCE, admitted, binary, challenged, eventually, packets, within},
    proxy_site::{Place, Site},
};

const ALWAYS: &[&str] = &["--mode", "always"];

/// A connection that must come from a cookie.
#[track_caller]
fn is_guarded(edge: &Edge, guard: &Guard, when: &str) {
    let before = admitted(&guard.service());
    exchange(&connect(edge, both(HTTP)[0]), 1000);
    assert_eq!(admitted(&guard.service()), before + 1, "{when}");
}

/// Starts it again; it must refuse, with one line that has these parts.
#[track_caller]
fn refuses(guard: &mut Guard, parts: &[&str]) {
    guard.again();
    let status = guard.process.wait(PATIENCE).unwrap();
    let line = guard.process.wait_until(PATIENCE, |lines| {
        let mut lines = lines.iter().filter(|line| line.starts_with("synguard: "));
        lines.next().cloned().filter(|_| lines.next().is_none())
    });
    let line = line.unwrap();
    assert_eq!(status.code(), Some(1), "{line}");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
}

/// What a command says that must fail with this exit status.
#[track_caller]
fn fails(guard: &Guard, code: i32, arguments: &[&str]) -> String {
    let output = guard.command(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[track_caller]
fn ip(end: &End, arguments: &str) -> std::process::Output {
    let run = || Ok(Command::new("ip").args(arguments.split(' ')).output()?);
    end.ns.run(run).unwrap()
}

/// Takes a program off as `bpftool link detach pinned PATH` does.
fn sever(path: &Path) {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let bpf = |command: libc::c_long, attributes: [u64; 2]| {
        // SAFETY: both commands read no more than these bytes, and the path they may point to, which
        // outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        assert!(
            result >= 0,
            "{}: {}",
            path.display(),
            io::Error::last_os_error()
        );
        result
    };
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let link = bpf(BPF_OBJ_GET, [name.as_ptr() as u64, 0]);
    // SAFETY: the kernel has just made it, for us alone.
    let link = unsafe { OwnedFd::from_raw_fd(link as i32) };
    bpf(BPF_LINK_DETACH, [link.as_raw_fd() as u64, 0]);
}

/// Programs that somebody takes off an interface are back at the next look; whoever is connected stays.
#[test]
fn programs_that_are_taken_off_return() {
    let name = "programs_that_are_taken_off_return";
    for (place, admission, links) in [
        (Place::OnEdge, "local", &["admit"][..]),
        (
            Place::Behind(Shape::Routed),
            "proxy",
            &["xdp_native", "out"],
        ),
    ] {
        if !place.is_possible(name) {
            continue;
        }
        let site = Site::plain(place);
        let _server = site.serve();
        let guard = site.guard_by(admission, "", "", &[]);
        if admission == "proxy" {
            site.teach(&guard);
        } else {
            guard.set_mode("always");
        }
        let talk = Talk::over(site.connect(site.dial(false, ECHO)));
        let index = site.guarded().index;
        let pins = guard.pins().join("current/links").join(index.to_string());
        for &link in links {
            let severed = || guard.status().events["program_severed"];
            let told = severed();
            sever(&match link {
                "admit" => pins.join(format!("admit_{index}")),
                name => pins.join(name),
            });
            eventually("it is noticed", || (severed() > told).then_some(()));
            let before = challenged(&guard.service());
            exchange(&site.connect(site.dial(true, HTTP)), 1000);
            let after = challenged(&guard.service());
            assert_eq!(after, before + 1, "{place:?}: {link}");
            talk.lives(link);
        }
        assert_eq!(guard.status().interfaces.len(), 1);
        talk.finish();
        guard.stop();
        assert!(!site.guarded().has_xdp().unwrap(), "{place:?}: left behind");
    }
}

/// A state directory that cannot be written, or is full, or has nonsense in it.
#[test]
fn a_state_directory_that_fails() {
    if !skip_unless_root("a_state_directory_that_fails") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::start(&edge, ALWAYS);
    guard.end(Signal::SIGTERM);
    let state = guard.state();
    let events = state.join("events.jsonl");

    // A line that is no event, and one that was cut short.
    let mut text = fs::read(&events).unwrap();
    text.extend(b"nonsense\n\xff\xfe\n{\"seq\":7,\"ti");
    fs::write(&events, text).unwrap();
    guard.again();
    guard.wait_until_ready();
    let told = guard.told(&["events", "--json", "--kind", "daemon_started"]);
    assert_eq!(told.lines().count(), 2, "{told}");
    is_guarded(&edge, &guard, "with a damaged journal");
    guard.end(Signal::SIGTERM);

    // The disk is full.
    fs::remove_file(&events).unwrap();
    std::os::unix::fs::symlink("/dev/full", &events).unwrap();
    guard.again();
    guard.wait_until_ready();
    guard.set_mode("adaptive");
    guard.set_mode("always");
    let line = "events are not kept in";
    guard.process.wait_for_line(line, PATIENCE).unwrap();
    let log = guard.process.log();
    assert!(log.contains("No space left on device"), "{log}");
    assert_eq!(log.matches(line).count(), 1, "{log}");
    let told = guard.told(&["events", "--json", "--kind", "mode_changed"]);
    assert_eq!(told.lines().count(), 2, "{told}");
    is_guarded(&edge, &guard, "with a full disk");
    guard.end(Signal::SIGTERM);

    // It cannot be written.
    fs::remove_file(&events).unwrap();
    through(
        &mut guard,
        &format!("mount -t tmpfs -o ro tmpfs {state:?}"),
        "",
    );
    guard.again();
    guard.wait_until_ready();
    let log = guard.process.log();
    assert!(
        log.contains("events are not kept for the next start"),
        "{log}"
    );
    let said = fails(&guard, 1, &["service", "add", "web", "--port", "80"]);
    assert!(said.contains("cannot write"), "{said}");
    assert_eq!(guard.status().services.len(), 1);
    is_guarded(&edge, &guard, "without a state directory");
    guard.end(Signal::SIGTERM);
    guard.binary = binary();

    // A service that was added by command, and changed into nonsense since.
    let kept = state.join("services.d/web.toml");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "[[service]]\nname = \"web\"\nports = [\"http\"]\n").unwrap();
    refuses(&mut guard, &["services.d/web.toml:3", "ports"]);
    assert!(edge.server_end.has_xdp().unwrap(), "no longer guarded");
}

/// No daemon until the last key has run out, and a secret that is another, damaged or exposed.
#[test]
fn keys_that_run_out_and_secrets_that_change() {
    if !skip_unless_root("keys_that_run_out_and_secrets_that_change") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::always(&edge);
    is_guarded(&edge, &guard, "at first");
    let secret = guard.state().with_file_name("secret");

    guard.kill();
    for (text, mode, part) in [
        (
            "nonsense\n".to_owned(),
            0o600,
            "is not 64 hexadecimal digits",
        ),
        ("ab".repeat(32), 0o644, "can be read by others"),
    ] {
        fs::write(&secret, text).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        refuses(&mut guard, &["secret", part]);
        exchange(&connect(&edge, both(HTTP)[0]), 1000);
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    guard.again();
    guard.wait_until_ready();
    assert_eq!(admitted(&guard.service()), 3, "by the keys in place");
    is_guarded(&edge, &guard, "with another secret");

    // Time does the same in 32 to 48 s.
    guard.kill();
    wipe_keys(&guard.pins().join("current/maps").join(map::KEYS));
    for target in both(HTTP) {
        exchange(&connect(&edge, target), 1000);
    }
    guard.again();
    guard.wait_until_ready();
    let service = guard.service();
    assert_eq!(packets(&service, Reason::NoKey), 2, "{service:?}");
    assert_eq!(admitted(&service), 4, "{service:?}");
    is_guarded(&edge, &guard, "with keys again");
    guard.stop();
}

/// Leaves the kernel without any key, as it is when the last has run out.
fn wipe_keys(path: &Path) {
    use aya::maps::{Array, Map, MapData};
    use synguard::dataplane::wire::Wire;
    use synguard_common::abi::{EpochKey, KEY_SLOTS};
    let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    let mut keys: Array<MapData, Wire<EpochKey>> = map.try_into().unwrap();
    for slot in 0..KEY_SLOTS {
        keys.set(slot, Wire(EpochKey::default()), 0).unwrap();
    }
}

/// The wall clock is set forwards, and back by more: connections of before and after live, and no SYN
/// passes for want of a key.
#[test]
fn a_clock_that_is_set() {
    // The machine's own clock stays as it is: what the daemon asks the C library is answered by this.
    const SHIFTED: &str = "
        #define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t id, struct timespec *now) {
            int result = syscall(SYS_clock_gettime, id, now);
            FILE *file = id == CLOCK_REALTIME ? fopen(getenv(\"SHIFT\"), \"r\") : NULL;
            long seconds = 0;
            if (file) {
                if (fscanf(file, \"%ld\", &seconds) == 1) now->tv_sec += seconds;
                fclose(file);
            }
            return result;
        }";
    let name = "a_clock_that_is_set";
    if !skip_unless_root(name) {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name);
    fs::write(file("shifted.c"), SHIFTED).unwrap();
    let cc = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([file("shifted.so"), file("shifted.c")])
        .status();
    if !cc.is_ok_and(|status| status.success()) {
        println!("SKIP {name}: no working C compiler");
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::start(&edge, ALWAYS);
    guard.end(Signal::SIGTERM);
    let run = format!(
        "#!/bin/sh\nSHIFT={:?} LD_PRELOAD={:?} exec {:?} \"$@\"\n",
        file("shift"),
        file("shifted.so"),
        binary()
    );
    let set = |seconds: i64| {
        fs::write(file("next"), seconds.to_string()).unwrap();
        fs::rename(file("next"), file("shift")).unwrap();
    };
    set(0);
    fs::write(file("synguard"), run).unwrap();
    fs::set_permissions(file("synguard"), fs::Permissions::from_mode(0o755)).unwrap();
    guard.binary = file("synguard");
    guard.again();
    guard.wait_until_ready();
    let talk = Talk::start(&edge, both(ECHO)[0]);
    for (seconds, said) in [(3600, "set by +3600."), (-86_400, "set by -90000.")] {
        set(seconds);
        guard.process.wait_for_line(said, PATIENCE).unwrap();
        is_guarded(&edge, &guard, said);
        talk.lives(said);
    }
    let service = guard.service();
    assert_eq!(packets(&service, Reason::NoKey), 0, "{service:?}");
    let events = guard.status().events;
    assert_eq!((events["clock_set"], events["key_late"]), (2, 0));
    talk.finish();
    guard.stop();
}

/// An interface that goes down and up, is renamed, gets another MTU, or somebody else's XDP program.
#[test]
fn an_interface_that_changes() {
    if !skip_unless_root("an_interface_that_changes") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let guard = Guard::always(&edge);
    let talk = Talk::start(&edge, both(ECHO)[0]);
    let end = &edge.server_end;
    let set = |arguments: &str| {
        let output = ip(end, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {arguments}: {said}");
    };

    // The kernel protects what is attached by a link.
    let off = ip(end, &format!("link set dev {} xdp off", end.name));
    assert!(!off.status.success());
    is_guarded(&edge, &guard, "after somebody tried to take XDP off");

    let mss = |when: &str| {
        let stream = connect(&edge, both(HTTP)[0]);
        exchange(&stream, 1000);
        let info = client::tcp_info(&stream).unwrap();
        println!("{when}: MSS {}", info.send_mss);
        info.send_mss
    };
    assert_eq!(mss("MTU 1500"), 1500 - 40 - 12);
    set(&format!("link set dev {} mtu 1400", end.name));
    eventually("clients are told of the MTU", || {
        (mss("MTU 1400") == 1400 - 40 - 12).then_some(())
    });
    set(&format!("link set dev {} mtu 1500", end.name));

    // IPv4 addresses and fixed neighbours outlive it.
    let renamed = format!("{}r", end.name);
    set(&format!("link set dev {} down", end.name));
    set(&format!("link set dev {} name {renamed}", end.name));
    set(&format!("link set dev {renamed} up"));
    eventually("the new name is known", || {
        (guard.status().interfaces[0].name == renamed).then_some(())
    });
    is_guarded(&edge, &guard, "down, renamed, and up again");
    talk.lives("through all of it");
    talk.finish();
    assert_eq!(guard.status().events["interface_renamed"], 1);
    guard.told(&["detach", &renamed]);
    assert!(!end.has_xdp().unwrap());
}

/// Files that somebody removes, replaces or damages.
#[test]
fn files_that_are_taken_away() {
    if !skip_unless_root("files_that_are_taken_away") {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let end = &edge.server_end;
    let mut guard = Guard::always(&edge);
    let talk = Talk::start(&edge, both(ECHO)[0]);

    // The control socket: nobody can command, all else goes on, and a restart makes it again.
    fs::remove_file(guard.socket()).unwrap();
    fails(&guard, 3, &["status"]);
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    let metrics = scrape(&edge);
    assert!(metrics.contains("reason=\"admitted\""), "{metrics}");
    guard.end(Signal::SIGTERM);
    fs::write(guard.socket(), "").unwrap();
    refuses(&mut guard, &["control.sock", "is no socket"]);
    fs::remove_file(guard.socket()).unwrap();

    // What a crash in the middle of a start leaves in the BPF file system.
    for leftover in ["new/maps", "old/links", "current/links/new_99"] {
        fs::create_dir_all(guard.pins().join(leftover)).unwrap();
    }
    guard.again();
    guard.wait_until_ready();
    for leftover in ["new", "old", "current/links/new_99"] {
        assert!(!guard.pins().join(leftover).exists(), "{leftover}");
    }
    is_guarded(&edge, &guard, "after the start that cleaned up");

    // A pinned table: the next daemon cannot know what is in it, and the guard goes on without one.
    guard.kill();
    fs::remove_file(guard.pins().join("current/maps").join(map::STATES)).unwrap();
    refuses(
        &mut guard,
        &["cannot be taken over", "synguard detach --now"],
    );
    assert!(end.has_xdp().unwrap());
    exchange(&connect(&edge, both(HTTP)[0]), 1000);
    let pins = guard.pins();
    let detach = ["detach", "--now", "--pins", pins.to_str().unwrap()];
    assert!(guard.command(&detach).status.success());
    eventually("the guard is off", || {
        (!end.has_xdp().unwrap()).then_some(())
    });
    guard.again();
    guard.wait_until_ready();
    is_guarded(&edge, &guard, "begun anew");

    // All pins under the running daemon: it guards as long as it runs, and says so when it ends.
    fs::remove_dir_all(guard.pins().join("current")).unwrap();
    is_guarded(&edge, &guard, "without pins");
    guard.end(Signal::SIGTERM);
    let log = guard.process.log();
    assert!(log.contains("somebody has removed its pins"), "{log}");
    // The kernel lets a link go some time after its last descriptor is closed.
    eventually("the guard is off", || {
        (!end.has_xdp().unwrap()).then_some(())
    });

    talk.lives("through all of it");
    talk.finish();
}

/// No BPF file system, and nobody who can take the log.
#[test]
fn a_machine_that_lacks_something() {
    let name = "a_machine_that_lacks_something";
    if !skip_unless_root(name) {
        return;
    }
    let edge = Edge::new(EdgeOptions::default()).unwrap();
    let _server = serve(&edge);
    let mut guard = Guard::start(&edge, ALWAYS);
    guard.end(Signal::SIGTERM);
    let pins = guard.pins();
    let detach = ["detach", "--now", "--pins", pins.to_str().unwrap()];
    assert!(guard.command(&detach).status.success());

    // Gone with the daemon in both cases: what it mounts is in a namespace of its own.
    let unmount = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done";
    let confined = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin --";
    for (how, said) in [
        ("", "mounted a BPF file system at /sys/fs/bpf"),
        (confined, "nothing outlives this daemon"),
    ] {
        through(&mut guard, unmount, how);
        guard.again();
        guard.wait_until_ready();
        let log = guard.process.log();
        assert!(log.contains(said), "{log}");
        is_guarded(&edge, &guard, said);
        guard.end(Signal::SIGTERM);
        eventually("the guard has ended with the daemon", || {
            (!edge.server_end.has_xdp().unwrap()).then_some(())
        });
    }

    through(&mut guard, "exec 2>/dev/full", "");
    guard.again();
    within(PATIENCE, "it runs", || {
        guard.command(&["status"]).status.success().then_some(())
    });
    guard.set_mode("adaptive");
    guard.set_mode("always");
    is_guarded(&edge, &guard, "with a log that cannot be written");
    assert_eq!(guard.status().events["mode_changed"], 2);
    guard.stop();
}

/// Has it started from a mount namespace of its own after these shell commands, by another program if
/// one is named.
fn through(guard: &mut Guard, commands: &str, by: &str) {
    let script = guard.socket().with_file_name("start");
    let program = binary();
    let run = format!(
        "#!/bin/sh\n[ \"$0\" = inside ] || exec unshare --mount sh -c \"$(sed 1,2d \"$0\")\" inside \"$@\"\n\
         {commands}\nexec {by} {program:?} \"$@\"\n"
    );
    fs::write(&script, run).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    guard.binary = script;
}
