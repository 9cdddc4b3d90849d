//! The command as a user meets it: what it prints, where, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    fs,
    process::{Command, Output, Stdio},
};

fn synguard(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synguard"))
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Asserts that the command fails with exactly this on stderr, and nothing on stdout.
#[track_caller]
fn fails(args: &[&str], stderr: &str) {
    let output = synguard(args);
    assert_eq!(text(&output.stderr), stderr);
    assert_eq!(text(&output.stdout), "");
    let unreachable = stderr.starts_with("synguard: no daemon answers on");
    let code = if unreachable { 3 } else { 1 };
    assert_eq!(output.status.code(), Some(code));
}

#[test]
fn without_a_daemon_each_command_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let socket = socket.to_str().unwrap();
    let expected =
        format!("synguard: no daemon answers on {socket}: start it with `synguard run -i IFACE`\n");
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["top", "--once"],
        &["top", "--json"],
        &["service", "list"],
        &["service", "show", "web", "--json"],
        &["service", "add", "web", "--port", "80"],
        &["service", "remove", "web"],
        &["events"],
        &["events", "--follow"],
        &["attach", "eth0"],
        &["detach", "eth0"],
        &["mode", "web", "always"],
        &["mode", "--all", "observe"],
        &["reload"],
    ] {
        fails(&[args, &["--socket", socket]].concat(), &expected);
    }
}

#[test]
fn a_socket_of_others_says_so() {
    // Root may connect to anything, so the kernel's answer is got from an unreachable path only
    // where this test is not root.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let nobody = "65534";
    let mut permissions = fs::metadata(directory.path()).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(directory.path(), permissions).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", nobody, "--regid", nobody, "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_synguard"))
        .args(["status", "--socket"])
        .arg(&socket)
        .output();
    let output = match output {
        Ok(output) if !text(&output.stderr).starts_with("setpriv:") => output,
        Ok(output) => {
            println!(
                "SKIP a_socket_of_others_says_so: {}",
                text(&output.stderr).trim()
            );
            return;
        }
        Err(e) => {
            println!("SKIP a_socket_of_others_says_so: setpriv: {e}");
            return;
        }
    };
    assert_eq!(
        text(&output.stderr),
        format!(
            "synguard: permission denied on {}: run as root, or join the group that owns the \
             socket\n",
            socket.display()
        )
    );
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn config_check_lists_every_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, "[daemon]\nsocket = 1\nport = 2\n").unwrap();
    fails(
        &["config", "check", path],
        &format!(
            "synguard: {path}:2:10: `socket` is 1; give an absolute path\n\
             synguard: {path}:3:1: unknown key `port` in [daemon]; its keys are interfaces, metrics, \
             socket, secret, pins, state, xdp_mode, half_open_entries, flow_entries, flow_idle_timeout, \
             verified_entries, verified_timeout, syn_cache\n"
        ),
    );
    fs::write(&file, "").unwrap();
    let output = synguard(&["config", "check", path]);
    assert_eq!(text(&output.stdout), format!("{path}: valid, 1 service\n"));
    assert_eq!(output.status.code(), Some(0));
    fs::remove_file(&file).unwrap();
    fails(
        &["config", "check", path],
        &format!(
            "synguard: {path}: cannot be read: No such file or directory (os error 2); name a file \
             that can be\n"
        ),
    );
}

#[test]
fn config_check_tells_programs_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f.toml");
    let path = file.to_str().unwrap();
    let check = |text: String| {
        fs::write(&file, text).unwrap();
        let output = synguard(&["config", "check", "--json", path]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json, output.stderr)
    };
    let state = format!("[daemon]\nstate = {:?}\n", directory.path());
    let (code, json, stderr) = check(state.clone());
    let valid = serde_json::json!({"file": path, "valid": true, "services": 1, "mistakes": []});
    assert_eq!((code, json, text(&stderr)), (Some(0), valid, ""));
    let (code, json, stderr) = check(format!("{state}port = 2\n"));
    assert_eq!((code, &json["valid"]), (Some(1), &false.into()));
    assert_eq!(json["mistakes"][0]["line"], 3);
    assert_eq!(json["mistakes"][0]["column"], 1);
    let message = json["mistakes"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("unknown key `port`"), "{message}");
    assert_eq!(text(&stderr).lines().count(), 1);

    // With what was added by command.
    let added = directory.path().join("services.d");
    fs::create_dir(&added).unwrap();
    fs::write(
        added.join("web.toml"),
        "[[service]]\nname = \"web\"\nports = [80]\n",
    )
    .unwrap();
    assert_eq!(check(state.clone()).1["services"], 2);
    let conflict = format!("{state}[[service]]\nname = \"http\"\nports = [80]\n");
    let (code, json, _) = check(conflict);
    let mistake = &json["mistakes"][0];
    assert_eq!(code, Some(1));
    assert!(
        mistake["file"]
            .as_str()
            .unwrap()
            .ends_with("services.d/web.toml")
    );
    assert!(mistake["message"].as_str().unwrap().contains("both cover"));
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &[][..],
        &["run"],
        &["frobnicate"],
        &["mode", "always"],
        &["mode", "web"],
        &["mode", "web", "on"],
        &["events", "--kind", "attack"],
        &["events", "--since", "yesterday"],
        &["service", "add"],
        &["service", "add", "web", "--server", "sack,=1"],
        &["mode", "--all", "web", "observe"],
        &["run", "-i", "eth0", "--metrics", "localhost:1"],
    ] {
        let output = synguard(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    let output = synguard(&["run", "-i", "eth0", "--metrics", "localhost:1"]);
    let expected = "give IP:PORT such as 127.0.0.1:9911 or [::1]:9911, or `off`";
    assert!(
        text(&output.stderr).contains(expected),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_wrong_log_level_is_one_line() {
    let output = synguard(&["--log-level", "a=b=c", "reload"]);
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("synguard: `a=b=c` is no log level; give error, warn,"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn completions_and_help_go_to_stdout() {
    let output = synguard(&["completions", "bash"]);
    assert!(text(&output.stdout).contains("complete -F _synguard"));
    let output = synguard(&["--help"]);
    assert!(text(&output.stdout).contains("Exit status: 0 done, 1 failed"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_synguard"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}
