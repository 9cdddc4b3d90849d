//! The daemon's own resources, under the names that every Prometheus client library uses.

use std::fmt;

use procfs::{ProcResult, process::Process};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::families::Writer;

/// Reads `/proc/self` when it is scraped.
#[derive(Debug)]
pub(super) struct OwnProcess;

struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_files: u64,
    threads: i64,
}

fn usage() -> ProcResult<Usage> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    Ok(Usage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        resident_bytes: stat.rss * procfs::page_size(),
        virtual_bytes: stat.vsize,
        open_files: process.fd_count()? as u64,
        threads: stat.num_threads,
    })
}

impl Collector for OwnProcess {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc there are no such metrics; the others are worth having all the same.
        let Ok(usage) = usage() else { return Ok(()) };
        let mut w = Writer(encoder);
        w.counter(
            "process_cpu_seconds",
            "CPU time of the daemon, user and system, in seconds.",
            [(vec![], usage.cpu_seconds)],
        )?;
        w.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon.",
            [(vec![], usage.resident_bytes)],
        )?;
        w.gauge(
            "process_virtual_memory_bytes",
            "Virtual memory of the daemon.",
            [(vec![], usage.virtual_bytes)],
        )?;
        w.gauge(
            "process_open_fds",
            "Open file descriptors.",
            [(vec![], usage.open_files)],
        )?;
        w.gauge(
            "process_threads",
            "Threads of the daemon.",
            [(vec![], usage.threads)],
        )
    }
}
