//! Programs that people run, as Debian ships them, through a guarded edge under a SYN flood: behind an
//! edge that proxies, and on the edge itself. `cargo xtask test` provides what is missing.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    flood::{Flood, FloodSpec, Kind, Rate},
    netns::Netns,
    pattern::Pattern,
    process::Process,
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions},
};
use tempfile::TempDir;

use crate::{
    guard::{Guard, PATIENCE, challenged, eventually},
    routed,
};

/// SYNs per second.
const FLOOD: u64 = 200_000;
/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where a program is, if it is here. Daemons lie where a user's `PATH` does not look.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(name)).find(|file| {
        fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 1 != 0)
    })
}

/// Whether a test has all that it needs; says on standard output what is missing.
pub fn has(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|name| program(name).is_none())
        .collect();
    if !missing.is_empty() {
        println!("SKIP {test}: no program {missing:?} here; cargo xtask setup provides it");
    }
    skip_unless_root(test) && missing.is_empty()
}

/// A program that is here.
pub fn command(name: &str) -> Command {
    Command::new(program(name).unwrap())
}

/// A server behind an edge, or on it.
enum Site {
    Behind(Box<Forwarding>),
    OnEdge(Box<Edge>),
}

impl Site {
    fn both() -> [Self; 2] {
        [
            Self::Behind(Box::new(
                Forwarding::routed(ForwardingOptions::default()).unwrap(),
            )),
            Self::OnEdge(Box::new(Edge::new(EdgeOptions::default()).unwrap())),
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Behind(_) => "behind a proxying edge",
            Self::OnEdge(_) => "on the edge",
        }
    }

    fn client(&self) -> &Netns {
        match self {
            Self::Behind(topology) => &topology.client,
            Self::OnEdge(edge) => &edge.client,
        }
    }

    fn server(&self) -> &Netns {
        match self {
            Self::Behind(topology) => &topology.server,
            Self::OnEdge(edge) => &edge.server,
        }
    }

    fn targets(&self, port: u16) -> [SocketAddr; 2] {
        match self {
            Self::Behind(topology) => [false, true].map(|v6| topology.dial(v6, port)),
            Self::OnEdge(_) => [(SERVER_V4, port).into(), (SERVER_V6, port).into()],
        }
    }

    /// Guards it, and begins to flood what listens on a port.
    fn besiege(&self, port: u16) -> Siege {
        let spec = FloodSpec {
            duration: Duration::from_secs(120),
            ..FloodSpec::new(Kind::Syn, Rate::Pps(FLOOD), self.targets(port)[0])
        };
        let (guard, flood) = match self {
            Self::Behind(topology) => {
                let guard = routed::guard(topology);
                for target in self.targets(port) {
                    // iperf3 stops listening for a moment whenever a client has gone.
                    eventually("the server takes a connection", || {
                        client::connect(&topology.client, target, &ConnectOptions::default()).ok()
                    });
                }
                routed::switch(&guard);
                (guard, topology.flood(spec))
            }
            Self::OnEdge(edge) => (Guard::always(edge), edge.flood(spec)),
        };
        Siege {
            guard,
            flood: flood.unwrap(),
        }
    }

    /// Runs a client's program to its end, which must be a good one; returns what it said.
    #[track_caller]
    fn run(&self, command: Command) -> String {
        let what = format!("{command:?}, {}", self.name());
        let mut process = Process::spawn(self.client(), command).unwrap();
        let status = process.wait(LIMIT).unwrap();
        // Its last lines may still be on their way to us.
        std::thread::sleep(Duration::from_millis(50));
        let log = process.log();
        assert!(status.success(), "{what}: {status}\n{log}");
        log
    }

    /// Starts a server's program and waits until it listens.
    #[track_caller]
    fn serve(&self, command: Command, port: u16) -> Process {
        let mut process = Process::spawn(self.server(), command).unwrap();
        process
            .wait_for_port(self.server(), port, PATIENCE)
            .unwrap();
        process
    }
}

/// A guard at work.
struct Siege {
    guard: Guard,
    flood: Flood,
}

impl Siege {
    /// Asserts that there was a flood to the end, and that it was answered.
    #[track_caller]
    fn lift(self, site: &Site) {
        assert!(!self.flood.is_finished(), "the flood ended early");
        let sent = self.flood.stop().unwrap();
        let service = self.guard.service();
        let answered = challenged(&service);
        println!("{}: {sent} SYNs sent, {answered} answered", site.name());
        assert!(sent > FLOOD / 2 && answered > sent / 2, "{service:?}");
        self.guard.stop();
    }
}

/// Writes a file of so many bytes.
fn write_pattern(path: &Path, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Pattern::new(length as u64).fill(0, &mut bytes);
    fs::write(path, &bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_same(path: &Path, expected: &[u8], what: &str) {
    let found = fs::read(path).unwrap();
    assert!(
        found == expected,
        "{what}: {} bytes of {}",
        found.len(),
        expected.len()
    );
}

/// A web server's files, and its process.
struct Nginx {
    files: TempDir,
    large: Vec<u8>,
    _process: Process,
}

impl Nginx {
    const SMALL: &str = "a small page\n";

    fn start(site: &Site) -> Self {
        let files = tempfile::tempdir().unwrap();
        let at = files.path().display();
        let pages = files.path().join("pages");
        fs::create_dir(&pages).unwrap();
        fs::write(pages.join("small"), Self::SMALL).unwrap();
        let large = write_pattern(&pages.join("large"), 20_000_000);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|module| format!("{module}_temp_path {at}/{module};\n"))
            .concat();
        // One process: no child outlives it.
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr;
             events {{ worker_connections 2000; }}
             http {{
                 {temporary}
                 access_log off; client_max_body_size 1g;
                 server {{
                     listen 80 backlog=2000; listen [::]:80 backlog=2000;
                     root {at}/pages; dav_methods PUT;
                 }}
             }}"
        );
        let path = files.path().join("nginx.conf");
        fs::write(&path, config).unwrap();
        let mut nginx = command("nginx");
        nginx.args(["-e", "stderr", "-p"]).arg(files.path());
        nginx.arg("-c").arg(&path);
        let process = site.serve(nginx, 80);
        Self {
            files,
            large,
            _process: process,
        }
    }
}

#[test]
fn nginx_and_curl() {
    if !has("nginx_and_curl", &["nginx", "curl"]) {
        return;
    }
    for site in Site::both() {
        let nginx = Nginx::start(&site);
        let siege = site.besiege(80);
        for target in site.targets(80) {
            let what = format!("{target}, {}", site.name());
            let curl = |arguments: &[&str]| {
                let mut curl = command("curl");
                curl.args([
                    "--silent",
                    "--show-error",
                    "--fail",
                    "--globoff",
                    "--noproxy",
                    "*",
                ]);
                site.run({
                    curl.args(arguments);
                    curl
                })
            };
            let down = nginx.files.path().join("down");
            let large = format!("http://{target}/large");
            curl(&["--output", down.to_str().unwrap(), &large]);
            assert_same(&down, &nginx.large, &what);

            let up = format!("http://{target}/up{}", u8::from(target.is_ipv6()));
            curl(&["--upload-file", down.to_str().unwrap(), &up]);
            let stored = nginx
                .files
                .path()
                .join("pages")
                .join(&up[up.rfind('/').unwrap() + 1..]);
            assert_same(&stored, &nginx.large, &what);

            // Each on a connection of its own; then all on one.
            let small = format!("http://{target}/small");
            for header in ["Connection: close", "Connection: keep-alive"] {
                let said = curl(&[&["--header", header][..], &[&*small; 50]].concat());
                assert_eq!(said.lines().count(), 50, "{what}: {said}");
                assert!(
                    said.lines().all(|line| line == Nginx::SMALL.trim_end()),
                    "{what}: {said}"
                );
            }
        }
        siege.lift(&site);
    }
}

#[test]
fn nginx_and_wrk() {
    if !has("nginx_and_wrk", &["nginx", "wrk"]) {
        return;
    }
    for site in Site::both() {
        let _nginx = Nginx::start(&site);
        let siege = site.besiege(80);
        for target in site.targets(80) {
            for header in ["Connection: close", "Connection: keep-alive"] {
                let mut wrk = command("wrk");
                wrk.args(["--threads", "1", "--connections", "32", "--duration", "2s"]);
                wrk.args(["--timeout", "2s", "--header", header]);
                wrk.arg(format!("http://{target}/small"));
                let said = site.run(wrk);
                let what = format!("{target}, {header}, {}: {said}", site.name());
                let requests = said
                    .lines()
                    .find_map(|line| line.split_once(" requests in"));
                let requests: u64 = requests.expect(&what).0.trim().parse().expect(&what);
                println!("{target}, {header}, {}: {requests} requests", site.name());
                assert!(requests > 200, "{what}");
                assert!(
                    !said.contains("Socket errors") && !said.contains("Non-2xx"),
                    "{what}"
                );
            }
        }
        siege.lift(&site);
    }
}

/// An SSH server whose users are those of a private `/etc/passwd`, so that it needs none of the
/// machine's own.
fn sshd(site: &Site, files: &Path) -> Process {
    let at = files.display();
    let config = format!(
        "ListenAddress 0.0.0.0\nListenAddress ::\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\n\
         PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPrintMotd no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nMaxStartups 100\n"
    );
    let users =
        format!("root:x:0:0::{at}:/bin/sh\nsshd:x:65533:65533::/run/sshd:/usr/sbin/nologin\n");
    let passwords = "root:*:19000:0:99999:7:::\nsshd:!:19000:0:99999:7:::\n";
    for (file, content) in [
        ("config", &*config),
        ("passwd", &users),
        ("shadow", passwords),
    ] {
        fs::write(files.join(file), content).unwrap();
    }
    for key in ["host", "user"] {
        let mut keygen = command("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        assert!(keygen.arg(files.join(key)).status().unwrap().success());
    }
    let script = "set -e
        mount --bind \"$1/passwd\" /etc/passwd
        mount --bind \"$1/shadow\" /etc/shadow
        mount -t tmpfs -o mode=755 none /run
        mkdir /run/sshd
        exec \"$2\" -D -e -f \"$1/config\"";
    let mut command = command("unshare");
    command.args(["--mount", "sh", "-c", script, "sshd"]);
    command.arg(files).arg(program("sshd").unwrap());
    site.serve(command, 22)
}

#[test]
fn an_ssh_session() {
    if !has("an_ssh_session", &["sshd", "ssh", "ssh-keygen", "unshare"]) {
        return;
    }
    for site in Site::both() {
        let files = tempfile::tempdir().unwrap();
        let files = files.path();
        let _server = sshd(&site, files);
        let siege = site.besiege(22);
        let sent = write_pattern(&files.join("sent"), 5_000_000);
        for target in site.targets(22) {
            for round in 0..3 {
                let received = files.join("received");
                // The bytes go there and back again.
                let script = "exec \"$2\" -F none -i \"$1/user\" -o BatchMode=yes -o ConnectTimeout=10 \
                    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                    \"root@$3\" 'echo hello >&2; cat' < \"$1/sent\" > \"$1/received\"";
                let mut ssh = Command::new("sh");
                ssh.args(["-c", script, "ssh"]).arg(files);
                ssh.arg(program("ssh").unwrap())
                    .arg(target.ip().to_string());
                let said = site.run(ssh);
                assert_eq!(said.trim(), "hello", "{target}, {}", site.name());
                assert_same(
                    &received,
                    &sent,
                    &format!("{target}, round {round}, {}", site.name()),
                );
            }
        }
        siege.lift(&site);
    }
}

#[test]
fn iperf_both_ways() {
    const PORT: u16 = 5201;
    if !has("iperf_both_ways", &["iperf3"]) {
        return;
    }
    for site in Site::both() {
        let mut server = command("iperf3");
        server.args(["--server", "--forceflush"]);
        let _server = site.serve(server, PORT);
        let siege = site.besiege(PORT);
        for target in site.targets(PORT) {
            for reverse in [false, true] {
                let mut iperf = command("iperf3");
                iperf.arg("--client").arg(target.ip().to_string());
                iperf.args(["--json", "--time", "2", "--parallel", "2"]);
                if reverse {
                    iperf.arg("--reverse");
                }
                let said = site.run(iperf);
                let report: serde_json::Value = serde_json::from_str(&said).unwrap();
                let bytes = report["end"]["sum_received"]["bytes"].as_u64();
                let bytes = bytes.unwrap_or_else(|| panic!("{said}"));
                println!(
                    "{target}, reverse {reverse}, {}: {bytes} bytes",
                    site.name()
                );
                assert!(
                    report.get("error").is_none() && bytes > 10_000_000,
                    "{said}"
                );
            }
        }
        siege.lift(&site);
    }
}
