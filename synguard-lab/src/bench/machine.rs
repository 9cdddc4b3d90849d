//! The machine that is measured on, and whether it is quiet enough.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

/// The CPU to measure on: the one that was asked for, else the last; the first serves most
/// interrupts.
pub fn choose(asked: Option<usize>) -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs there are")?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    match asked {
        Some(cpu) if !is_allowed(&cpu) => {
            let cpus: Vec<_> = (0..CpuSet::count())
                .filter(is_allowed)
                .map(|cpu| cpu.to_string())
                .collect();
            bail!(
                "there is no CPU {cpu} for this process; choose one of {}",
                cpus.join(", ")
            )
        }
        Some(cpu) => Ok(cpu),
        None => (0..CpuSet::count())
            .rev()
            .find(is_allowed)
            .context("this process may run on no CPU"),
    }
}

/// What is measured on: the processor's name, as it gives it, the CPU, and who shares its core.
pub fn describe(cpu: usize) -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&text, "model name").unwrap_or("a CPU that does not say its name");
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let siblings = fs::read_to_string(path).unwrap_or_default();
    match siblings.trim() {
        // Where only one is listed it is the CPU itself.
        list if list.contains([',', '-']) => {
            format!(
                "{model}, CPU {cpu}; CPUs {list} share a core, and each slows the other down when it works"
            )
        }
        _ => format!("{model}, CPU {cpu}"),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// A sentence where the kernel defends itself in a way that makes every return from a function slow:
/// each helper call and each subprogram then costs some nanoseconds more, and the hash nothing.
pub fn slow_returns() -> Option<String> {
    let found = ["retbleed", "spec_rstack_overflow"]
        .into_iter()
        .find_map(|name| {
            let path = format!("/sys/devices/system/cpu/vulnerabilities/{name}");
            let text = fs::read_to_string(path).ok()?;
            is_slow_return(&text).then(|| format!("{name}: {}", text.trim()))
        })?;
    Some(format!(
        "each helper call and subprogram takes longer here ({found}), which goals scaled by the hash do not allow for"
    ))
}

/// Whether the state of a vulnerability names one of the kernel's return thunks.
fn is_slow_return(state: &str) -> bool {
    let state = state.to_ascii_lowercase();
    state.contains("safe ret")
        || state.contains("untrained return thunk")
        || state.contains("stuffing")
}

/// A sentence where the machine has other things to do.
pub fn load_warning() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let (load, others) = parse(&text)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (others > 0 || load > 0.5 * cpus as f64).then(|| {
        format!(
            "the machine is busy (load {load:.2} on {cpus} CPUs, {others} other tasks want to run): \
             trust the least values, not the medians"
        )
    })
}

/// Load of the last minute, and how many tasks besides this one want to run.
fn parse(loadavg: &str) -> Option<(f64, u32)> {
    let mut fields = loadavg.split_ascii_whitespace();
    let load = fields.next()?.parse().ok()?;
    let (running, _) = fields.nth(2)?.split_once('/')?;
    let running: u32 = running.parse().ok()?;
    Some((load, running.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        assert_eq!(parse("0.52 0.40 0.30 3/123 456\n"), Some((0.52, 2)));
        assert_eq!(parse("0.52 0.40"), None);
        assert_eq!(
            field("processor\t: 0\nmodel name\t: A B\n", "model name"),
            Some("A B")
        );
        assert_eq!(field("processor\t: 0\n", "model name"), None);
    }

    #[test]
    fn what_makes_returns_slow() {
        for slow in [
            "Vulnerable: Safe RET, no microcode",
            "Mitigation: Safe RET",
            "Mitigation: untrained return thunk; SMT disabled",
            "Mitigation: Stuffing",
        ] {
            assert!(is_slow_return(slow), "{slow}");
        }
        for fast in ["Not affected", "Vulnerable", "Mitigation: Enhanced IBRS"] {
            assert!(!is_slow_return(fast), "{fast}");
        }
    }

    #[test]
    fn a_cpu_that_is_not_there() {
        assert!(
            choose(Some(1_000_000))
                .unwrap_err()
                .to_string()
                .starts_with("there is no CPU 1000000")
        );
        assert!(choose(None).is_ok());
    }
}
