//! Judges the kernel.

use super::{
    Check,
    facts::{Host, Kernel},
};
use crate::{dataplane::error::OLDEST_KERNEL, model::Admission};

/// `bpf_sk_assign_tcp_reqsk` came with it.
const LOCAL_SINCE: &str = "6.9";

pub(super) fn judge(kernel: &Kernel, host: &Host) -> Vec<Check> {
    vec![
        btf(kernel),
        kfuncs(kernel, host),
        Check::seen("helpers", &kernel.helpers, |helpers| {
            if helpers.missing.is_empty() {
                let (called, programs) = (helpers.called, helpers.programs);
                return Check::ok(
                    "helpers",
                    format!("all {called} that {programs} programs call"),
                );
            }
            let missing: Vec<String> = helpers
                .missing
                .iter()
                .map(|(program, helper, since)| format!("{program}: {helper} (Linux {since})"))
                .collect();
            let found = format!("missing: {}", missing.join(", "));
            let (major, minor) = OLDEST_KERNEL;
            let fix = format!("run Linux {major}.{minor} or newer, {LOCAL_SINCE} at best");
            Check::fail("helpers", found, fix)
        }),
        Check::seen("programs", &kernel.programs, |programs| {
            match &programs.refused {
                None => Check::ok("programs", "pass the kernel's verifier"),
                Some(reason) => Check::fail(
                    "programs",
                    reason.as_str(),
                    "run another kernel, and report this one with the log",
                ),
            }
        }),
        jit(kernel),
        Check::seen("tcx", &kernel.tcx, |there| {
            if *there {
                Check::ok("tcx", "the guard can outlive the daemon")
            } else {
                Check::warn(
                    "tcx",
                    "missing: the guard ends with the daemon",
                    "run Linux 6.6 or newer",
                )
            }
        }),
        Check::seen("live-frames", &kernel.programs, |programs| {
            if programs.refused.is_some() {
                return Check::unsure(
                    "live-frames",
                    "cannot be told of programs that are not loaded",
                );
            }
            if programs.live_frames {
                return Check::ok(
                    "live-frames",
                    "frames can be sent again for a silent server",
                );
            }
            Check::warn(
                "live-frames",
                "missing: a SYN that a proxied server lost is not sent again",
                "run Linux 5.18 or newer",
            )
        }),
    ]
}

fn btf(kernel: &Kernel) -> Check {
    let release = &kernel.release;
    if kernel.btf {
        Check::ok("kernel", format!("Linux {release}, with BTF"))
    } else {
        Check::fail(
            "kernel",
            format!("Linux {release} without BTF in /sys/kernel/btf/vmlinux"),
            "run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    }
}

fn kfuncs(kernel: &Kernel, host: &Host) -> Check {
    const NAME: &str = "kfunc";
    let Some(missing) = kernel.missing_kfuncs.first() else {
        return Check::ok(
            NAME,
            "bpf_sk_assign_tcp_reqsk: admission `local` is possible",
        );
    };
    let services = host.config.iter().flat_map(|config| &config.services);
    let local: Vec<&str> = services
        .filter(|service| service.admission == Admission::Local)
        .map(|service| service.name.as_str())
        .collect();
    let fix = format!("run Linux {LOCAL_SINCE} or newer, or set admission = \"proxy\"");
    if local.is_empty() {
        let found = format!("no {missing}: admission is `proxy`, never `local`");
        Check::warn(NAME, found, fix)
    } else {
        let found = format!(
            "no {missing}: not guarded, only watched: {}",
            local.join(", ")
        );
        Check::fail(NAME, found, fix)
    }
}

fn jit(kernel: &Kernel) -> Check {
    const NAME: &str = "jit";
    const FIX: &str = "sysctl -w net.core.bpf_jit_enable=1";
    let off = || {
        Check::fail(
            NAME,
            "off: programs are interpreted, many times slower",
            FIX,
        )
    };
    match (&kernel.programs, kernel.jit_enabled) {
        // What became of our own programs is the best evidence.
        (Ok(programs), _) if programs.refused.is_none() && programs.jited => {
            Check::ok(NAME, "on: the programs are machine code")
        }
        (Ok(programs), _) if programs.refused.is_none() => off(),
        (_, Some(0)) => off(),
        (_, Some(_)) => Check::ok(NAME, "on"),
        (Err(unseen), None) => Check::seen(NAME, &Err::<(), _>(unseen.clone()), |()| off()),
        (Ok(_), None) => Check::warn(
            NAME,
            "not told in this network namespace",
            "look at net.core.bpf_jit_enable in the first one",
        ),
    }
}
