//! Threads of the daemon that do something now and then.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tracing::{error, warn};

/// A thread with something to do; stopped and waited for on drop.
pub struct Worker {
    name: &'static str,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// Rings once, when it is time to stop.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<bool>,
    waiting: Condvar,
}

/// Whether the last failure of something was said already.
#[derive(Debug, Default)]
pub struct Complaint(bool);

impl Complaint {
    /// Says what went wrong, once until it goes well again.
    pub fn about(&mut self, what: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.0 = false,
            Err(_) if self.0 => {}
            Err(error) => {
                self.0 = true;
                error!(error = format!("{error:#}"), "cannot {what}");
            }
        }
    }
}

impl Worker {
    /// Starts a thread that waits for `pause`, works, waits for as long as `work` then says, and so on.
    /// Work that may take long looks at the bell now and then.
    pub fn start(
        name: &'static str,
        mut pause: Duration,
        mut work: impl FnMut(&Bell) -> Duration + Send + 'static,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::default());
        let theirs = Arc::clone(&bell);
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            while theirs.rest(pause) {
                pause = work(&theirs);
            }
        })?;
        Ok(Self {
            name,
            bell,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(thread = self.name, "a thread of the daemon had died");
        }
    }
}

impl Bell {
    /// Whether it is time to stop.
    pub fn has_rung(&self) -> bool {
        *self.state()
    }

    fn ring(&self) {
        *self.state() = true;
        self.waiting.notify_all();
    }

    /// Waits; false once the bell has rung.
    fn rest(&self, pause: Duration) -> bool {
        let waited = self
            .waiting
            .wait_timeout_while(self.state(), pause, |rung| !*rung);
        let (rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !*rung
    }

    fn state(&self) -> MutexGuard<'_, bool> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Instant,
    };

    use super::*;

    #[test]
    fn a_worker_works_until_it_is_dropped() {
        let rounds = Arc::new(AtomicU32::new(0));
        let theirs = Arc::clone(&rounds);
        let worker = Worker::start("test", Duration::ZERO, move |_| {
            theirs.fetch_add(1, Ordering::Relaxed);
            Duration::from_micros(10)
        })
        .unwrap();
        while rounds.load(Ordering::Relaxed) < 3 {
            thread::yield_now();
        }
        drop(worker);
        let then = rounds.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(rounds.load(Ordering::Relaxed), then);
    }

    #[test]
    fn a_long_pause_ends_with_the_bell() {
        let begin = Instant::now();
        let hour = Duration::from_secs(3600);
        drop(Worker::start("test", hour, move |_| hour).unwrap());
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}
