//! A pseudo-terminal with a program on it: what the program shows, keys for it, and whether the
//! terminal is as it was when the program has ended.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZero,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::{Pid, setsid},
};

use crate::guard::{PATIENCE, eventually};

/// A terminal; what runs on it is killed when this is dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Our own hold of the program's end, to ask what mode it is in.
    line: OwnedFd,
    before: Termios,
    parser: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts a command on a terminal of so many columns and lines.
    pub fn run(mut command: Command, (columns, lines): (u16, u16)) -> Self {
        let pty = openpty(Some(&size(columns, lines)), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        command
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave.try_clone().unwrap());
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let parser = Arc::new(Mutex::new(vt100::Parser::new(
            side(lines),
            side(columns),
            0,
        )));
        let mut output = File::from(pty.master.try_clone().unwrap());
        let screen = parser.clone();
        // Ends when nobody holds the other end any more.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                screen.lock().unwrap().process(&bytes[..n]);
            }
        });
        Self {
            child,
            keyboard: pty.master.into(),
            line: pty.slave,
            before,
            parser,
        }
    }

    /// Looks at the screen.
    pub fn look<T>(&self, at: impl FnOnce(&vt100::Screen) -> T) -> T {
        at(self.parser.lock().unwrap().screen())
    }

    /// The lines of the screen.
    pub fn lines(&self) -> Vec<String> {
        self.look(|screen| {
            let (_, columns) = screen.size();
            screen.rows(0, columns.get()).collect()
        })
    }

    /// The line that begins so.
    pub fn line(&self, start: &str) -> Option<String> {
        let mut lines = self.lines().into_iter();
        lines.find(|line| line.starts_with(start))
    }

    /// Waits until something is on the screen.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(&format!("{text:?} is shown"), |lines| {
            lines.iter().any(|line| line.contains(text))
        });
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    pub fn until(&self, what: &str, is: impl Fn(&[String]) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = self.lines();
            if is(&lines) {
                return;
            }
            assert!(Instant::now() < end, "not {what}:\n{}", lines.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Makes it larger or smaller.
    pub fn resize(&mut self, columns: u16, lines: u16) {
        let mut parser = self.parser.lock().unwrap();
        parser.screen_mut().set_size(side(lines), side(columns));
        let size = size(columns, lines);
        // SAFETY: the descriptor is open, and the kernel reads a size from a valid pointer.
        let done =
            unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0);
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether the program runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the program, which must leave the terminal as it was.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let status = eventually("the program ends", || self.child.try_wait().unwrap());
        eventually(
            "the terminal shows its first screen, and its cursor",
            || {
                self.look(|screen| !screen.alternate_screen() && !screen.hide_cursor())
                    .then_some(())
            },
        );
        assert_eq!(tcgetattr(&self.line).unwrap(), self.before);
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn side(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

fn size(columns: u16, lines: u16) -> Winsize {
    Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
