//! The daemon under test: started in the server's namespace, asked by its own command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use synguard::{
    dataplane::Pins,
    model::{ReasonCount, ServiceStatus, Snapshot},
};
use synguard_common::verdict::Reason;
use synguard_lab::{edge::Edge, link::End, netns::Netns, process::Process};
use tempfile::TempDir;

/// What anything may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test.
pub fn binary() -> PathBuf {
    std::env::var_os("SYNGUARD_BIN")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_synguard").into())
        .into()
}

/// Repeats a question until it is answered; panics with `what` where that takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask)
}

/// As [`eventually`], with a limit of its own.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running daemon and its files.
pub struct Guard {
    pub process: Process,
    /// What is run.
    pub binary: PathBuf,
    ns: Netns,
    arguments: Vec<String>,
    files: TempDir,
}

impl Guard {
    /// Guards the server's end of the wire with these arguments of `synguard run`.
    pub fn start(edge: &Edge, arguments: &[&str]) -> Self {
        Self::with_config(edge, "", arguments)
    }

    /// The same in mode `always`.
    pub fn always(edge: &Edge) -> Self {
        Self::start(edge, &["--mode", "always"])
    }

    /// The same with a configuration file; an empty one is none.
    pub fn with_config(edge: &Edge, config: &str, arguments: &[&str]) -> Self {
        Self::at(&edge.server_end, config, arguments)
    }

    /// The same at any end of a wire; with native XDP where nothing else is said, for the other ends of
    /// the lab's wires run XDP.
    pub fn at(end: &End, config: &str, arguments: &[&str]) -> Self {
        let interface = ["-i", &end.name];
        let is_said = arguments.contains(&"--xdp-mode") || config.contains("xdp_mode");
        let native: &[_] = if is_said {
            &[]
        } else {
            &["--xdp-mode", "native"]
        };
        let arguments = [&interface, native, arguments].concat();
        let guard = Self::spawn(&end.ns, config, &arguments).ready();
        assert!(end.has_xdp().unwrap(), "nothing is attached");
        guard
    }

    /// Starts the daemon, ready or not.
    pub fn spawn(ns: &Netns, config: &str, arguments: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let binary = binary();
        let mut command = run_command(&binary, &files);
        let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        if !config.is_empty() {
            let path = files.path().join("synguard.toml");
            fs::write(&path, config).unwrap();
            arguments.extend(["--config".to_owned(), path.to_str().unwrap().to_owned()]);
        }
        command.args(&arguments);
        let process = Process::spawn(ns, command).unwrap();
        Self {
            process,
            binary,
            ns: ns.clone(),
            arguments,
            files,
        }
    }

    /// Starts it again, ready or not; it must have ended.
    pub fn again(&mut self) {
        let mut command = run_command(&self.binary, &self.files);
        command.args(&self.arguments);
        self.process = Process::spawn(&self.ns, command).unwrap();
    }

    /// [`another_build`] of the program under test.
    pub fn another_build(&self) -> PathBuf {
        let path = self.files.path().join("another-build");
        another_build(&self.binary, &path);
        path
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL).unwrap();
        self.process.wait(PATIENCE).unwrap();
    }

    /// Waits until it says that it is ready.
    pub fn ready(mut self) -> Self {
        self.wait_until_ready();
        self
    }

    /// The same, for one that was started again.
    pub fn wait_until_ready(&mut self) {
        self.process.wait_for_line("ready", PATIENCE).unwrap();
    }

    /// Writes another configuration over the old one.
    pub fn rewrite_config(&self, config: &str) {
        fs::write(self.files.path().join("synguard.toml"), config).unwrap();
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.files.path().join("state")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.files.path().join("control.sock")
    }

    /// Runs a command that talks to the daemon.
    pub fn command(&self, arguments: &[&str]) -> Output {
        Command::new(binary())
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .unwrap()
    }

    /// Runs such a command, which must succeed, and returns what it prints.
    #[track_caller]
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.process.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `synguard status --json`.
    #[track_caller]
    pub fn status(&self) -> Snapshot {
        serde_json::from_str(&self.told(&["status", "--json"])).unwrap()
    }

    /// The status of the only service.
    #[track_caller]
    pub fn service(&self) -> ServiceStatus {
        let [service] = <[_; 1]>::try_from(self.status().services).unwrap();
        service
    }

    /// Changes the mode of every service.
    #[track_caller]
    pub fn set_mode(&self, mode: &str) {
        self.told(&["mode", "--all", mode]);
    }

    /// Ends it, and takes the guard off; it must succeed.
    #[track_caller]
    pub fn stop(mut self) {
        self.end(Signal::SIGINT);
    }

    /// Ends it by this signal; it must succeed.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) {
        let status = self
            .process
            .signal(signal)
            .and_then(|()| self.process.wait(PATIENCE));
        assert!(status.unwrap().success(), "{}", self.process.log());
    }

    /// Where it pins what outlives it.
    pub fn pins(&self) -> PathBuf {
        pins(&self.files)
    }
}

/// What a failed test needs to be understood.
impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.command(&["status", "--json"]).stdout;
            println!("{}", String::from_utf8_lossy(&status));
            println!("{}", self.process.log());
        }
        drop(self.process.signal(Signal::SIGKILL));
        drop(self.process.wait(PATIENCE));
        if let Ok(Some(pins)) = Pins::open_existing(&self.pins()) {
            drop(pins.clear());
        }
        drop(fs::remove_dir(self.pins()));
    }
}

/// Makes a program of the same version whose eBPF object is another: a byte of its header counts for
/// nothing (`EI_PAD`).
pub fn another_build(binary: &Path, another: &Path) {
    const START: [u8; 7] = *b"\x7fELF\x02\x01\x01";
    const EM_BPF: [u8; 2] = 247u16.to_le_bytes();
    let mut bytes = fs::read(binary).unwrap();
    let objects: Vec<usize> = bytes
        .windows(20)
        .enumerate()
        .filter(|(_, header)| header.starts_with(&START) && header.ends_with(&EM_BPF))
        .map(|(at, _)| at)
        .collect();
    let [at] = objects[..] else {
        panic!("{} objects in {}", objects.len(), binary.display());
    };
    bytes[at + 15] ^= 1;
    fs::write(another, bytes).unwrap();
    let mode = fs::metadata(binary).unwrap().permissions();
    fs::set_permissions(another, mode).unwrap();
}

/// `synguard run` with files of its own.
pub fn run_command(binary: &Path, files: &TempDir) -> Command {
    let mut command = Command::new(binary);
    command
        .env_remove("RUST_LOG")
        .arg("run")
        .arg("--socket")
        .arg(files.path().join("control.sock"))
        .arg("--secret")
        .arg(files.path().join("secret"))
        .arg("--pins")
        .arg(pins(files))
        .arg("--state")
        .arg(files.path().join("state"));
    command
}

/// Where a daemon with these files pins what outlives it. The BPF file system has no names with dots.
fn pins(files: &TempDir) -> PathBuf {
    let name = files.path().file_name().unwrap().to_str().unwrap();
    PathBuf::from(format!(
        "/sys/fs/bpf/synguard-test-{}",
        name.replace('.', "")
    ))
}

/// How many packets left with a reason.
pub fn count(counts: &[ReasonCount], reason: Reason) -> u64 {
    counts
        .iter()
        .filter(|count| count.reason == reason.label())
        .map(|count| count.packets)
        .sum()
}

/// How many packets of a service left with a reason.
pub fn packets(service: &ServiceStatus, reason: Reason) -> u64 {
    count(&service.packets, reason)
}

/// How many packets of a service were answered with a cookie.
pub fn challenged(service: &ServiceStatus) -> u64 {
    packets(service, Reason::Challenged)
}

/// How many connections were made from cookies.
pub fn admitted(service: &ServiceStatus) -> u64 {
    packets(service, Reason::Admitted)
}
