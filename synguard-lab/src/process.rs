//! Child processes inside a namespace: killed and reaped when dropped, their output kept for the
//! message of whatever fails.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        mpsc::{self, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Netns;

/// A child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
}

/// What a child has written to both outputs, line by line.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

type Started = std::io::Result<Child>;

impl Process {
    /// Starts a command inside a namespace. Unlike `ip netns exec` this leaves the mounts alone, so
    /// that bpffs stays visible. The child dies with this process, however that ends.
    pub fn spawn(ns: &Netns, mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ns = ns.clone();
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(ns.as_fd().as_raw_fd(), libc::CLONE_NEWNET) != 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = start(command)?.with_context(|| format!("cannot start {name}"))?;
        let log = Arc::new(Log::default());
        if let Some(output) = child.stdout.take() {
            log.clone().follow(output);
        }
        if let Some(output) = child.stderr.take() {
            log.clone().follow(output);
        }
        Ok(Self { name, child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        self.log
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n")
    }

    /// Waits for a line that contains `text` and returns it. Fails at once when the process ends.
    pub fn wait_for_line(&mut self, text: &str, timeout: Duration) -> Result<String> {
        self.wait_until(timeout, |lines| {
            lines.iter().find(|line| line.contains(text)).cloned()
        })
        .with_context(|| format!("waiting for a line with {text:?}"))
    }

    /// Waits until `found` finds something in the lines written so far.
    pub fn wait_until<T>(
        &mut self,
        timeout: Duration,
        found: impl Fn(&[String]) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        loop {
            // Before looking at the lines: what a process wrote last is read before we give up.
            let ended = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
            if ended.is_some() {
                std::thread::sleep(Duration::from_millis(50));
            }
            {
                let lines = self
                    .log
                    .lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(result) = found(&lines) {
                    return Ok(result);
                }
                if ended.is_none() && Instant::now() < end {
                    let step = Duration::from_millis(50);
                    drop(
                        self.log
                            .changed
                            .wait_timeout(lines, step)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                    continue;
                }
            }
            match ended {
                Some(status) => bail!("{} ended ({status}); it said:\n{}", self.name, self.log()),
                None => bail!(
                    "{} said nothing of the kind in {timeout:?}, but:\n{}",
                    self.name,
                    self.log()
                ),
            }
        }
    }

    /// Waits until it listens on a TCP port of its own namespace.
    pub fn wait_for_port(&mut self, ns: &Netns, port: u16, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        while !listens(ns, port)? {
            if let Some(status) = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?
            {
                bail!("{} ended ({status}); it said:\n{}", self.name, self.log());
            }
            if Instant::now() > end {
                bail!(
                    "{} does not listen on port {port} after {timeout:?}; it said:\n{}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?
            {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!(
                    "{} still runs after {timeout:?}; it said:\n{}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where it has ended already, and then there is nothing to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    /// Reads an output to its end, on a thread.
    fn follow(self: Arc<Self>, output: impl Read + Send + 'static) {
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                self.lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
                self.changed.notify_all();
            }
        });
    }
}

/// Starts a command from a thread that lives as long as this process: the kernel sends the signal of
/// `PR_SET_PDEATHSIG` when the *thread* that started a child ends.
fn start(command: Command) -> Result<Started> {
    static STARTER: OnceLock<Sender<(Command, Sender<Started>)>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<(Command, Sender<Started>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Nobody waits for the reply only where the asking thread has panicked.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (sender, receiver) = mpsc::channel();
    starter
        .send((command, sender))
        .ok()
        .context("the thread that starts processes is gone")?;
    receiver
        .recv()
        .context("the thread that starts processes is gone")
}

/// Whether anything in the namespace listens on a TCP port, by the kernel's own list: to connect
/// would leave its mark on what is measured.
pub fn listens(ns: &Netns, port: u16) -> Result<bool> {
    const LISTEN: &str = "0A";
    ns.run(|| {
        for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            let suffix = format!(":{port:04X}");
            let found = text.lines().skip(1).any(|line| {
                let mut fields = line.split_ascii_whitespace().skip(1);
                let local = fields.next().unwrap_or_default();
                local.ends_with(&suffix) && fields.nth(1) == Some(LISTEN)
            });
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    })
}
