//! A server behind an edge that routes, and a daemon on the edge that guards it by admission `proxy`.

use std::net::SocketAddr;

use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    topology::Forwarding,
};

use crate::guard::{Guard, PATIENCE, eventually, packets};

/// Guards what is behind an edge, on all ports, calm at first.
#[track_caller]
pub fn guard(topology: &Forwarding) -> Guard {
    let [v4, v6] = [false, true].map(|v6| topology.dial(v6, 0).ip());
    let config = format!(
        "[[service]]\nname = \"behind\"\naddresses = [\"{v4}\", \"{v6}\"]\nadmission = \"proxy\"\n"
    );
    Guard::at(&topology.outside, &config, &[])
}

/// Has the daemon see what the server offers, and guard it from then on. `targets` are ports of the
/// server.
#[track_caller]
pub fn teach(guard: &Guard, topology: &Forwarding, targets: &[SocketAddr]) {
    for &target in targets {
        let options = ConnectOptions {
            timeout: PATIENCE,
            ..ConnectOptions::default()
        };
        client::connect(&topology.client, target, &options).unwrap();
    }
    switch(guard);
}

/// Switches to the guard, once it knows the server.
pub fn switch(guard: &Guard) {
    let known = guard.service().server.unwrap();
    assert_eq!(known.source, "learned", "{known:?}");
    guard.set_mode("always");
    eventually("it is guarded", || {
        (guard.service().state == "guarded").then_some(())
    });
}

/// How many connections were spliced.
pub fn spliced(guard: &Guard) -> u64 {
    packets(&guard.service(), Reason::SpliceCompleted)
}
