//! CPU time: of tasks, to the nanosecond, and of cores; and binding tasks to cores.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Binds a task to one CPU.
pub fn pin(task: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(task, &set).with_context(|| format!("cannot bind task {task} to CPU {cpu}"))
}

/// A kernel or user task: one thread, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task(pub Pid);

impl Task {
    /// The calling thread.
    pub fn current() -> Self {
        Self(nix::unistd::gettid())
    }

    /// CPU time the task has had so far.
    pub fn time(self) -> Result<Duration> {
        let path = format!("/proc/{}/schedstat", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let nanos = text
            .split_ascii_whitespace()
            .next()
            .and_then(|value| value.parse().ok());
        nanos
            .map(Duration::from_nanos)
            .with_context(|| format!("{path} holds {text:?}"))
    }
}

/// Every thread of a process.
pub fn tasks_of(process: Pid) -> Result<Vec<Task>> {
    let path = format!("/proc/{process}/task");
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(|id| Task(Pid::from_raw(id)))
        .collect())
}

/// CPU time of several tasks together. A task that has ended counts nothing.
pub fn time_of(tasks: &[Task]) -> Duration {
    tasks.iter().filter_map(|task| task.time().ok()).sum()
}

/// The kernel threads whose name begins with `prefix`.
pub fn kernel_threads(prefix: &str) -> Result<Vec<Task>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(id) = entry
            .ok()
            .and_then(|entry| entry.file_name().to_str()?.parse().ok())
        else {
            continue;
        };
        // A task may end while we look.
        if fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with(prefix))
        {
            found.push(Task(Pid::from_raw(id)));
        }
    }
    Ok(found)
}

/// Lets a task run before all ordinary ones (`SCHED_FIFO`), as interrupts do.
pub fn run_first(task: Task) -> Result<()> {
    schedule(task.0, libc::SCHED_FIFO, 1)
        .with_context(|| format!("cannot choose SCHED_FIFO for task {}", task.0))
}

/// Lets the calling thread have only the time that nobody else wants (`SCHED_IDLE`). Whatever wakes
/// up takes its place at once, not at the end of a time slice.
pub fn run_when_idle() -> Result<()> {
    schedule(Pid::from_raw(0), libc::SCHED_IDLE, 0).context("cannot choose SCHED_IDLE")
}

fn schedule(task: Pid, policy: libc::c_int, priority: libc::c_int) -> std::io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the structure is only read, during the call.
    match unsafe { libc::sched_setscheduler(task.as_raw(), policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sleeps until then, or not at all where that has passed.
pub(crate) fn sleep_until(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()));
}

/// Time a core has spent working and in all, since boot, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// Neither idle nor waiting for I/O.
    pub busy: u64,
    /// All of it.
    pub total: u64,
}

impl Core {
    /// Reads `/proc/stat`.
    pub fn read(cpu: usize) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text, cpu).with_context(|| format!("/proc/stat has no line for CPU {cpu}"))
    }

    fn parse(text: &str, cpu: usize) -> Option<Self> {
        let name = format!("cpu{cpu}");
        let line = text
            .lines()
            .find(|line| line.split_ascii_whitespace().next() == Some(&name))?;
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> = line
            .split_ascii_whitespace()
            .skip(1)
            .take(8)
            .map_while(|value| value.parse().ok())
            .collect();
        let total = ticks.iter().sum();
        Some(Self {
            busy: total - ticks.get(3)? - ticks.get(4)?,
            total,
        })
    }

    /// Share of the time since `earlier` that was spent working, 0 to 1.
    pub fn load_since(self, earlier: Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total);
        if total == 0 {
            0.0
        } else {
            self.busy.saturating_sub(earlier.busy) as f64 / total as f64
        }
    }
}

/// Microseconds of CPU time per packet; `None` where there were no packets.
pub fn micros_per(time: Duration, packets: u64) -> Option<f64> {
    (packets != 0).then(|| time.as_nanos() as f64 / 1e3 / packets as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_stat() {
        let text =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu1 1 1 1 1 1 1 1 1 0 0\ncpu10 10 1 20 100 5 3 4 2 7 7\n";
        assert_eq!(
            Core::parse(text, 10),
            Some(Core {
                busy: 40,
                total: 145
            })
        );
        assert_eq!(Core::parse(text, 2), None);
    }

    #[test]
    fn a_spinning_thread_gathers_time() {
        let task = Task::current();
        let before = task.time().unwrap();
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        assert!(task.time().unwrap() > before);
    }

    #[test]
    fn no_packets_no_cost() {
        assert_eq!(micros_per(Duration::from_secs(1), 0), None);
        assert_eq!(micros_per(Duration::from_secs(1), 500_000), Some(2.0));
    }
}
