//! The measurement: rounds over floors and paths.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nix::unistd::gettid;
use synguard_common::abi::Tuple;

use super::{
    check::{check, expect},
    flows::{tuple, tuples},
    frames::{self, Kind, RING, Ring, Syn},
    harness::{Harness, Measured, Target},
    paths::{HalfOpen, Hook, Path},
    scene::{Admission, Scene, State},
};
use crate::{cpu, testrun};

/// Nanoseconds, round by round.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Least, median and greatest; all zero where there are none.
    pub fn spread(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(least), Some(greatest)) = (sorted.first(), sorted.last()) else {
            return [0.0; 3];
        };
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            (sorted[half - 1] + sorted[half]) / 2.0
        };
        [*least, median, *greatest]
    }
}

/// What was measured.
pub struct Results {
    /// An empty program, by itself.
    pub empty: Samples,
    /// The harness around an empty program.
    pub harness: Samples,
    /// Swapping the MAC addresses and sending back.
    pub tx: Samples,
    /// SipHash-2-4 of 24 bytes.
    pub siphash: Samples,
    /// Looking up a connection, 40 bytes, in a hash table.
    pub hash: Samples,
    /// The same in an LRU hash table.
    pub lru: Samples,
    /// Entering a connection in an LRU hash table that has room.
    pub insert: Samples,
    /// `bpf_skc_lookup_tcp` and release, where it finds a listener.
    pub listener: Samples,
    /// The same where it finds a connection.
    pub connection: Samples,
    /// An empty TC program, by itself.
    pub tc_empty: Samples,
    /// The TC harness around an empty program.
    pub tc_harness: Samples,
    /// Every path.
    pub paths: Vec<(Path, Samples)>,
}

/// How many rounds there are where nobody said.
const ROUNDS: u32 = 31;
/// No further round is begun after this time where nobody said how many there must be.
const LIMIT: Duration = Duration::from_secs(45);

/// Tours of the ring at most where the flows that it makes are removed in between: the kernel waits for
/// all CPUs before each call (`bpf_dispatcher_change_prog`), tens of milliseconds.
const TOURS: u32 = 16;

/// Measures floors and paths.
pub fn run(paths: &[Path], rounds: Option<u32>, packets: u32, cpu: usize) -> Result<Results> {
    let mut scene = Scene::new().context("cannot build the bench's scene")?;
    let ns = scene.ns.clone();
    let packets = packets.next_multiple_of(RING as u32);
    ns.run(|| {
        cpu::pin(gettid(), cpu)?;
        let mut bench = Bench {
            harness: Harness::load(&scene.program_in()?)?,
            scene: &mut scene,
            packets,
        };
        bench.rounds(paths, rounds)
    })
}

struct Bench<'a> {
    scene: &'a mut Scene,
    harness: Harness,
    packets: u32,
}

impl Bench<'_> {
    fn rounds(&mut self, paths: &[Path], asked: Option<u32>) -> Result<Results> {
        let none = Samples::default;
        let mut results = Results {
            empty: none(),
            harness: none(),
            tx: none(),
            siphash: none(),
            hash: none(),
            lru: none(),
            insert: none(),
            listener: none(),
            connection: none(),
            tc_empty: none(),
            tc_harness: none(),
            paths: paths.iter().map(|path| (*path, none())).collect(),
        };
        for client in frames::clients(Kind::V4) {
            let connection = tuple(client.address, Kind::V4.server());
            self.harness.enter_connection(connection)?;
        }
        let rounds = asked.unwrap_or(ROUNDS);
        let start = Instant::now();
        let steps = u64::from(rounds) * (paths.len() as u64 + 1);
        let style = ProgressStyle::with_template("{bar:40} round {prefix} {msg} ({eta} left)")?;
        let bar = ProgressBar::new(steps).with_style(style);
        for round in 0..rounds {
            if asked.is_none() && start.elapsed() > LIMIT {
                let limit = LIMIT.as_secs();
                bar.suspend(|| {
                    eprintln!("warning: {round} rounds instead of {rounds}, to end after {limit} s")
                });
                break;
            }
            self.scene.write_keys()?;
            bar.set_prefix(format!("{}/{rounds}", round + 1));
            bar.set_message("floors");
            self.floors(&mut results)?;
            bar.inc(1);
            for (path, samples) in &mut results.paths {
                bar.set_message(path.name);
                let net = self
                    .path(path, round % 2 == 1)
                    .with_context(|| format!("path {}", path.name))?;
                samples.0.push(net);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(results)
    }

    fn floors(&mut self, results: &mut Results) -> Result<()> {
        use testrun::Action::{Pass, Tx};
        // `TC_ACT_OK` and `XDP_ABORTED` are one number.
        const TC_OK: testrun::Action = testrun::Action::Aborted;
        self.harness.set_ring(&frames::syns(Kind::V4, Syn::Linux))?;
        results
            .empty
            .0
            .push(self.floor(Target::Bare, Pass)?.gross_ns);
        let empty = self.floor(Target::Empty, Pass)?;
        results.harness.0.push(empty.gross_ns);
        for (samples, target, action) in [
            (&mut results.tx, Target::Tx, Tx),
            (&mut results.siphash, Target::SipHash, Pass),
            (&mut results.hash, Target::Hash, Pass),
            (&mut results.lru, Target::Lru, Pass),
            (&mut results.listener, Target::Lookup, Pass),
        ] {
            samples.0.push(self.floor(target, action)?.ns - empty.ns);
        }
        for (samples, target) in [
            (&mut results.tc_empty, Target::TcBare),
            (&mut results.tc_harness, Target::TcEmpty),
        ] {
            samples.0.push(self.floor(target, TC_OK)?.gross_ns);
        }
        let ring = frames::syns(Kind::V4, Syn::Linux);
        let made = tuples(&ring)?;
        let empty = self.measure(Target::Empty, Some(&made))?;
        let insert = self.measure(Target::Insert, Some(&made))?;
        expect(Target::Insert, insert.value, Pass)?;
        results.insert.0.push(insert.ns - empty.ns);
        let segments = frames::established(self.scene, Kind::V4)?;
        self.harness.set_ring(&segments)?;
        let empty = self.floor(Target::Empty, Pass)?;
        let lookup = self.floor(Target::Lookup, Pass)?;
        results.connection.0.push(lookup.ns - empty.ns);
        Ok(())
    }

    /// Measures one of the lab's own programs.
    fn floor(&self, target: Target, action: testrun::Action) -> Result<Measured> {
        // Once round the ring for the caches.
        self.harness.measure(target, RING as u32)?;
        let measured = self.harness.measure(target, self.packets)?;
        expect(target, measured.value, action)?;
        Ok(measured)
    }

    /// Net cost of one sequence of a path, ns.
    fn path(&mut self, path: &Path, subject_first: bool) -> Result<f64> {
        let ring = self.prepare(path)?;
        self.harness.set_ring(&ring)?;
        let (empty, subject) = match path.hook {
            Hook::In => (Target::Empty, Target::Subject),
            Hook::Admit | Hook::Out => (Target::TcEmpty, Target::TcSubject),
        };
        let made = if path.afresh {
            Some(tuples(&ring)?)
        } else {
            None
        };
        // Once round the ring for the caches.
        self.harness.measure(empty, RING as u32)?;
        self.harness.measure(subject, RING as u32)?;
        let floor_before = if subject_first {
            None
        } else {
            Some(self.measure(empty, made.as_deref())?)
        };
        let before = self.scene.counts()?;
        let measured = self.measure(subject, made.as_deref())?;
        let after = self.scene.counts()?;
        let floor = match floor_before {
            Some(floor) => floor,
            None => self.measure(empty, made.as_deref())?,
        };
        check(
            path,
            self.measured(path.afresh),
            measured.value,
            &before,
            &after,
        )?;
        Ok((measured.ns - floor.ns) * path.leaves.len() as f64)
    }

    /// Packets of one measurement, where they make flows or not.
    fn measured(&self, afresh: bool) -> u32 {
        if afresh {
            self.packets.min(TOURS * RING as u32)
        } else {
            self.packets
        }
    }

    /// Runs a program over the ring; where flows are `made` on the way, in calls of one tour each, with
    /// none of them there at its beginning.
    fn measure(&mut self, target: Target, made: Option<&[Tuple]>) -> Result<Measured> {
        let Some(made) = made else {
            return self.harness.measure(target, self.packets);
        };
        let tours = self.measured(true) / RING as u32;
        let mut sum = Measured {
            ns: 0.0,
            gross_ns: 0.0,
            value: 0,
        };
        for _ in 0..tours {
            self.scene.remove_flows(made)?;
            self.harness.remove_inserted(made)?;
            let tour = self.harness.measure(target, RING as u32)?;
            sum.gross_ns += tour.gross_ns;
            sum.value = tour.value;
        }
        // The calls would outweigh what is measured. The kernel's own mean is without them, and of
        // thousands of packets it is fine enough.
        let mean = sum.gross_ns / f64::from(tours);
        Ok(Measured {
            ns: mean,
            gross_ns: mean,
            ..sum
        })
    }

    /// Has the programs learn what the server offers: a SYN passes, its answer leaves, and its client
    /// gives up.
    fn learn_profile(&mut self) -> Result<()> {
        self.harness.set_tc(&self.scene.program_out()?)?;
        for (frames, target) in [
            (frames::syns(Kind::V4, Syn::Linux), Target::Subject),
            (frames::syn_acks(), Target::TcSubject),
            (frames::rsts(), Target::Subject),
        ] {
            self.harness.set_ring(&frames[..1])?;
            self.harness.run_once(target)?;
        }
        ensure!(
            self.scene.has_profile()?,
            "the programs did not learn what the server offers"
        );
        Ok(())
    }

    /// Brings the tables into the path's state; its packets.
    fn prepare(&mut self, path: &Path) -> Result<Ring> {
        self.scene.calm(path.admission, path.state)?;
        self.scene.block_sources(path.sources)?;
        if path.admission == Admission::Proxy {
            self.learn_profile()?;
        }
        self.scene.guard(path.state)?;
        self.scene.enter_flows(path.flows)?;
        match path.hook {
            Hook::In => {}
            Hook::Admit => self.harness.set_tc(&self.scene.program_admit()?)?,
            Hook::Out => self.harness.set_tc(&self.scene.program_out()?)?,
        }
        match path.half_open {
            HalfOpen::Nothing => {}
            HalfOpen::Another => {
                ensure!(path.state == State::Calm, "only a calm service tracks SYNs");
                // The count is the program's to raise.
                self.harness
                    .set_ring(&frames::syns(Kind::V4, Syn::Linux)[..1])?;
                self.harness.measure(Target::Subject, 1)?;
            }
            HalfOpen::All => {
                for client in frames::clients(Kind::V4) {
                    self.scene.track(client)?;
                }
            }
        }
        (path.ring)(self.scene, &mut self.harness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_greatest() {
        assert_eq!(Samples(vec![3.0, -1.0, 2.0]).spread(), [-1.0, 2.0, 3.0]);
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).spread(), [1.0, 2.5, 4.0]);
        assert_eq!(Samples::default().spread(), [0.0; 3]);
    }
}
