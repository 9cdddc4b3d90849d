//! The edge's netfilter rules, loaded by `nft`: strict connection tracking and address translation.

use std::{
    io::{ErrorKind, Write as _},
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use crate::netns::Netns;

/// Whether there is `nft`, which [`Shape::Dnat`](super::Shape) and connection tracking need; says on
/// standard output that `what` is skipped where not.
pub fn skip_unless_nft(what: &str) -> bool {
    let found = Command::new("nft").arg("--version").output();
    if let Err(error) = &found {
        println!("SKIP {what}: needs nft (Debian: apt install nftables): {error}");
    }
    found.is_ok()
}

/// Tracks connections in `edge` and translates each address of `services` to the one beside it.
///
/// `nf_conntrack_tcp_loose` off: a connection is known by its own SYN or not at all, so one that
/// looks different on the way in than on the way out is invalid here, and dropped.
pub(super) fn track(edge: &Netns, services: &[(SocketAddr, SocketAddr)]) -> Result<()> {
    let mut rules = String::from(
        "table inet lab {\n\
         counter invalid {}\n\
         chain check {\n\
         type filter hook prerouting priority filter; policy accept;\n\
         ct state invalid counter name invalid drop\n\
         }\n\
         chain translate {\n\
         type nat hook prerouting priority dstnat; policy accept;\n",
    );
    for (dialled, bound) in services {
        let family = if dialled.is_ipv4() { "ip" } else { "ip6" };
        rules += &format!(
            "{family} daddr {} tcp dport {} dnat {family} to {bound}\n",
            dialled.ip(),
            dialled.port()
        );
    }
    rules += "}\n}\n";
    nft(edge, &["-f", "-"], &rules)?;
    edge.set_sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
}

/// How many packets the edge has dropped as invalid.
pub(super) fn invalid(edge: &Netns) -> Result<u64> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        counter: Option<Counter>,
    }
    #[derive(Deserialize)]
    struct Counter {
        packets: u64,
    }
    let output = nft(
        edge,
        &["-j", "list", "counter", "inet", "lab", "invalid"],
        "",
    )?;
    let listing: Listing =
        serde_json::from_slice(&output.stdout).context("nft lists a counter in another form")?;
    let counters = listing
        .nftables
        .into_iter()
        .filter_map(|object| object.counter);
    let [counter] = <[Counter; 1]>::try_from(counters.collect::<Vec<_>>())
        .map_err(|all| anyhow!("nft lists {} counters where there is one", all.len()))?;
    Ok(counter.packets)
}

/// Runs `nft` in a namespace.
fn nft(ns: &Netns, arguments: &[&str], input: &str) -> Result<Output> {
    let output = ns.run(|| {
        let child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no nft, which this topology needs (Debian: apt install nftables)")
            }
            other => other.context("cannot run nft")?,
        };
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .context("cannot hand nft its rules")?;
        }
        child.wait_with_output().context("cannot wait for nft")
    })?;
    if !output.status.success() {
        bail!(
            "nft {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}
