//! Connections at random, each made twice: through a guarded edge, and through one that only routes.
//! What both ends receive, and how they see it end, must be the same.
//!
//! The seed is chosen at random and printed. `SYNGUARD_DIFFERENTIAL=seed` repeats a run,
//! `SYNGUARD_DIFFERENTIAL=seed:number` one connection of it.

mod play;
mod script;

use std::time::{Duration, Instant};

use synguard_common::verdict::Reason;
use synguard_lab::{
    client::{self, ConnectOptions},
    programs::Programs,
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions, Stack},
};

use self::{
    play::{End, Outcome, Played, Stage},
    script::{LISTENERS, Role, Script},
};
use crate::{guard::packets, routed};

const NAME: &str = "connections_are_what_they_are_without_a_guard";
const VARIABLE: &str = "SYNGUARD_DIFFERENTIAL";
const CONNECTIONS: u64 = 10_000;
/// A server for each combination of timestamps, SACK and window scaling.
const SERVERS: u64 = 8;
/// Clients that each of them meets, one after the other.
const CLIENTS: u64 = 3;
/// Differences that are shown in full.
const SHOWN: usize = 5;
/// How often a connection is played at most, where the wires lost packets meanwhile.
const PLAYS: u32 = 3;

/// The seed, and the only connection that is wanted.
fn wanted() -> (u64, Option<u64>) {
    let Ok(text) = std::env::var(VARIABLE) else {
        return (fastrand::u64(..), None);
    };
    let (seed, number) = match text.split_once(':') {
        Some((seed, number)) => (seed, Some(number)),
        None => (&*text, None),
    };
    let number = number.map(|number| number.parse().expect(VARIABLE));
    (seed.parse().expect(VARIABLE), number)
}

/// The numbers of a group's connections.
fn numbers(group: u64) -> std::ops::Range<u64> {
    let groups = SERVERS * CLIENTS;
    group * CONNECTIONS / groups..(group + 1) * CONNECTIONS / groups
}

/// What an end must have to show.
fn expected(script: &Script, role: Role) -> (u64, End) {
    let end = match script.ending.broken_off() {
        None => End::Fin,
        Some((by, _)) if by == role => End::Own,
        Some(_) => End::Rst,
    };
    (script.receives(role), end)
}

/// What is wrong with a connection, if anything is.
fn difference(script: &Script, free: &Played, guarded: &Played) -> Option<String> {
    let is_right = |role: Role, outcome: &Outcome| {
        let (received, end) = expected(script, role);
        (outcome.received, &outcome.end, outcome.wrong) == (received, &end, None)
    };
    let is_same = Role::BOTH.into_iter().all(|role| {
        let [free, guarded] = [free, guarded].map(|played| &played.outcomes[role as usize]);
        free == guarded && is_right(role, free)
    });
    (!is_same).then(|| {
        format!(
            "to be seen: {:?}\nwithout a guard: {free:?}\nguarded: {guarded:?}",
            Role::BOTH.map(|role| expected(script, role))
        )
    })
}

/// Sums of what may differ.
#[derive(Debug, Default)]
struct Sums {
    again: u64,
    slow: u64,
    took: Duration,
}

impl Sums {
    fn add(&mut self, played: &Played) {
        self.again += u64::from(played.again);
        self.slow += u64::from(played.took > Duration::from_millis(200));
        self.took += played.took;
    }
}

#[test]
fn connections_are_what_they_are_without_a_guard() {
    if !skip_unless_root(NAME) {
        return;
    }
    let (seed, only) = wanted();
    println!("{NAME}: {VARIABLE}={seed}");
    let begun = Instant::now();
    let [free, guarded] =
        [(), ()].map(|()| Stage::new(Forwarding::routed(ForwardingOptions::default()).unwrap()));
    // With a program on its interface that passes all: without one the same wire has larger packets.
    let mut programs = Programs::load().unwrap();
    let _pass = programs.attach("lab_pass", &free.topology.outside).unwrap();
    let mut sums = [Sums::default(), Sums::default()];
    let mut failures = Vec::new();
    let (mut spliced, mut probes, mut again) = (0, 0, 0);

    for server in 0..SERVERS {
        let groups = server * CLIENTS..(server + 1) * CLIENTS;
        if only.is_some_and(|n| !groups.clone().any(|group| numbers(group).contains(&n))) {
            continue;
        }
        // A daemon for each server: it is told once what the server offers.
        let [_, stack] = script::stacks(seed, 0, server);
        for stage in [&free, &guarded] {
            stack.apply(&stage.topology.server).unwrap();
            Stack::default().apply(&stage.topology.client).unwrap();
        }
        let guard = routed::guard(&guarded.topology);
        let targets = [false, true].map(|v6| guarded.topology.dial(v6, LISTENERS[0].0));
        routed::teach(&guard, &guarded.topology, &targets);
        if only.is_some() {
            // Once a second what a server may have learned to offer is tried: now.
            let options = ConnectOptions::default();
            client::connect(&guarded.topology.client, targets[0], &options).unwrap();
        }

        let before = failures.len();
        for group in groups {
            let [client, _] = script::stacks(seed, group, server);
            let scripts: Vec<_> = numbers(group)
                .filter(|number| only.is_none_or(|only| only == *number))
                .map(|number| Script::new(seed, number))
                .collect();
            for stage in [&free, &guarded] {
                client.apply(&stage.topology.client).unwrap();
            }
            let (mut scripts, mut plays) = (scripts, 0);
            while !scripts.is_empty() {
                let lost = free.lost_packets() + guarded.lost_packets();
                let [alone, watched] = std::thread::scope(|scope| {
                    [&free, &guarded]
                        .map(|stage| scope.spawn(|| stage.play(&scripts)))
                        .map(|thread| thread.join().unwrap())
                });
                let lost = free.lost_packets() + guarded.lost_packets() - lost;
                plays += 1;
                let mut different = Vec::new();
                for (script, (alone, watched)) in
                    scripts.into_iter().zip(alone.iter().zip(&watched))
                {
                    sums[0].add(alone);
                    sums[1].add(watched);
                    let Some(difference) = difference(&script, alone, watched) else {
                        continue;
                    };
                    // Nobody sends a RST again that a busy machine has lost on its wires.
                    if lost > 0 && plays < PLAYS {
                        println!("{NAME}: {lost} packets lost, {} again", script.number);
                        different.push(script);
                    } else {
                        failures.push(format!(
                            "{VARIABLE}={seed}:{}, client {client:?}, server {stack:?}, {lost} packets \
                             lost\n{script:?}\n{difference}",
                            script.number
                        ));
                    }
                }
                again += different.len() as u64;
                scripts = different;
            }
        }
        spliced += routed::spliced(&guard);
        probes += packets(&guard.service(), Reason::ProfileProbe);
        if only.is_some() || failures.len() > before {
            println!("{NAME}, server {server}: {:?}", guard.service().packets);
        }
        guard.stop();
    }

    println!(
        "{NAME}: {:.1?}; without a guard {:?}; guarded {:?}, {spliced} spliced, {probes} probes",
        begun.elapsed(),
        sums[0],
        sums[1]
    );
    assert!(
        failures.is_empty(),
        "{} connections differ:\n{}",
        failures.len(),
        failures[..failures.len().min(SHOWN)].join("\n\n")
    );
    // But those that pass to show what the server offers.
    if only.is_none() {
        assert_eq!(
            spliced + probes,
            CONNECTIONS + again,
            "each goes through the proxy"
        );
        assert!(
            probes <= CONNECTIONS / 100,
            "{probes} connections only passed"
        );
    }
}
