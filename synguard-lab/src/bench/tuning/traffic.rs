//! Who connects when, and what becomes of it: the arrivals of a trace.

use std::time::Duration;

use super::chance::Chance;

/// Length of a step of the generator, and of a tick of the daemon.
pub const TICK: Duration = Duration::from_millis(250);
/// When Linux sends a SYN, or a SYN-ACK, that was not answered: RFC 6298 with a first timeout of a
/// second, and `tcp_syn_retries` and `tcp_synack_retries` of 5, ms after the first.
pub const ATTEMPTS: [u32; 6] = [0, 1000, 3000, 7000, 15_000, 31_000];

/// A SYN with which a connection begins.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// µs since the beginning of the trace.
    pub at: u64,
    /// What its sender does next.
    pub fate: Fate,
}

/// What the sender of a SYN does when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Completes the handshake, a round trip (ms) after the answer of that [attempt](ATTEMPTS) that was
    /// the first not to get lost.
    Answers {
        /// ms.
        rtt: u32,
        /// Index into [`ATTEMPTS`].
        attempt: u8,
    },
    /// Is refused, or refuses the answer, after this time (ms).
    Resets(u32),
    /// Nothing: it is spoofed, or gone.
    Vanishes,
}

/// The clients of a service, or those who flood it.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Median round trip, ms; lognormal.
    pub rtt: f64,
    /// Standard deviation of its logarithm.
    pub sigma: f64,
    /// Share of round trips in which something gets lost.
    pub loss: f64,
    /// Share of clients that vanish.
    pub vanish: f64,
    /// Share of those left that are refused, or refuse.
    pub reset: f64,
}

/// Round trips of that many clients are drawn beforehand.
const ROUND_TRIPS: usize = 1 << 14;

impl Clients {
    /// Round trips of many, ms.
    fn round_trips(&self, chance: &mut Chance) -> Vec<u32> {
        let draw = |_| chance.lognormal(self.rtt, self.sigma).clamp(1.0, 5000.0) as u32;
        (0..ROUND_TRIPS).map(draw).collect()
    }

    fn draw(&self, round_trips: &[u32], chance: &mut Chance) -> Fate {
        if chance.happens(self.vanish) {
            return Fate::Vanishes;
        }
        let rtt = round_trips[(chance.unit() * ROUND_TRIPS as f64) as usize];
        if chance.happens(self.reset) {
            return Fate::Resets(rtt);
        }
        let mut attempt = 0;
        while chance.happens(self.loss) {
            attempt += 1;
            if usize::from(attempt) == ATTEMPTS.len() {
                return Fate::Vanishes;
            }
        }
        Fate::Answers { rtt, attempt }
    }
}

/// Part of a trace's traffic.
pub struct Part {
    /// SYNs per second at a moment, in seconds since the beginning of the trace.
    pub rate: Box<dyn Fn(f64) -> f64 + Send + Sync>,
    /// Who sends them.
    pub clients: Clients,
}

/// The arrivals of a trace, step by step.
pub struct Traffic<'a> {
    /// With the round trips of their clients.
    parts: Vec<(&'a Part, Vec<u32>)>,
    chance: Chance,
    step: u64,
}

impl<'a> Traffic<'a> {
    /// From the beginning.
    pub fn new(parts: &'a [Part], seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let parts = parts
            .iter()
            .map(|part| (part, part.clients.round_trips(&mut chance)))
            .collect();
        Self {
            parts,
            chance,
            step: 0,
        }
    }

    /// The arrivals of the next step, in order.
    pub fn next(&mut self, arrivals: &mut Vec<Arrival>) {
        arrivals.clear();
        let length = TICK.as_micros() as u64;
        let begin = self.step * length;
        self.step += 1;
        let middle = (begin + length / 2) as f64 / 1e6;
        for (part, round_trips) in &self.parts {
            let mean = (part.rate)(middle) * TICK.as_secs_f64();
            for _ in 0..self.chance.poisson(mean) {
                arrivals.push(Arrival {
                    at: begin + (self.chance.unit() * length as f64) as u64,
                    fate: part.clients.draw(round_trips, &mut self.chance),
                });
            }
        }
        arrivals.sort_unstable_by_key(|arrival| arrival.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_in_order_at_the_rate_and_the_same_every_time() {
        let parts = [Part {
            rate: Box::new(|second| if second < 50.0 { 10.0 } else { 1000.0 }),
            clients: Clients {
                rtt: 50.0,
                sigma: 0.5,
                loss: 0.1,
                vanish: 0.2,
                reset: 0.0,
            },
        }];
        let run = || {
            let mut traffic = Traffic::new(&parts, 5);
            let (mut all, mut some) = (Vec::new(), Vec::new());
            for _ in 0..400 {
                traffic.next(&mut some);
                all.extend(some.iter().map(|arrival| (arrival.at, arrival.fate)));
            }
            all
        };
        let all = run();
        assert_eq!(all, run());
        assert!(all.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!(all.last().unwrap().0 < 100_000_000);
        let early = all.iter().filter(|(at, _)| *at < 50_000_000).count();
        assert!((400..600).contains(&early), "{early}");
        assert!((49_000..52_000).contains(&all.len()), "{}", all.len());
        let vanished = all.iter().filter(|(_, fate)| *fate == Fate::Vanishes);
        assert!((9_500..10_500).contains(&vanished.count()));
        let lost = |(_, fate): &&(u64, Fate)| matches!(fate, Fate::Answers { attempt: 1, .. });
        let lost = all.iter().filter(lost).count();
        assert!(
            (3_300..3_900).contains(&lost),
            "{lost}: 8% less the second loss"
        );
    }
}
