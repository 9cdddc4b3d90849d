//! The traces: what a service is like, week after week, and what happens to it.
//!
//! Each is generated, the same every time, from a seed. A trace without an attack is as long as it is asked
//! to be; one with an attack has some days of peace before.

use std::{f64::consts::TAU, ops::Range};

use super::{
    chance::wander,
    traffic::{Clients, Part},
};

/// Seconds.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;
const WEEK: f64 = 7.0 * DAY;

/// A trace.
pub struct Trace {
    /// What it is called.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// The backlog of the service's listener.
    pub backlog: u32,
    /// Seconds.
    pub length: f64,
    /// When somebody attacks, in seconds since the beginning.
    pub attack: Option<Range<f64>>,
    /// Its traffic.
    pub parts: Vec<Part>,
    /// Of chance.
    pub seed: u64,
}

/// How the traces are made.
#[derive(Clone, Copy, Debug)]
pub struct Making {
    /// Of chance.
    pub seed: u64,
    /// Weeks of a trace without an attack.
    pub weeks: f64,
    /// Days of peace before an attack.
    pub days_before: f64,
    /// What every rate of real clients is multiplied by.
    pub scale: f64,
}

/// Clients of a web site, of all sorts.
const WEB: Clients = Clients {
    rtt: 60.0,
    sigma: 0.7,
    loss: 0.005,
    vanish: 0.004,
    reset: 0.001,
};
/// Phones on the move.
const MOBILE: Clients = Clients {
    rtt: 150.0,
    sigma: 0.8,
    loss: 0.06,
    vanish: 0.02,
    reset: 0.005,
};
/// Machines of the same company.
const MACHINES: Clients = Clients {
    rtt: 20.0,
    sigma: 0.5,
    loss: 0.001,
    vanish: 0.0005,
    reset: 0.0,
};
/// Those who are refused, by a server that is there.
const REFUSED: Clients = Clients {
    rtt: 2.0,
    sigma: 0.1,
    loss: 0.0,
    vanish: 0.0,
    reset: 1.0,
};
/// Those who do not answer.
const SILENT: Clients = Clients {
    rtt: 1.0,
    sigma: 0.0,
    loss: 0.0,
    vanish: 1.0,
    reset: 0.0,
};
/// Hosts that send SYNs from addresses of their own: the kernels of some refuse the answer, the others
/// have been told to be silent.
const BOTS: Clients = Clients {
    rtt: 40.0,
    sigma: 0.3,
    loss: 0.0,
    vanish: 0.7,
    reset: 1.0,
};

impl Making {
    /// Every trace.
    pub fn all(self) -> Vec<Trace> {
        vec![
            self.diurnal_web(),
            self.flash_crowd(),
            self.deploy_reconnect(),
            self.slow_ramp(),
            self.low_rate_flood(),
            self.pulsing_flood(),
            self.real_sources(),
            self.lossy_mobile(),
            self.idle(),
            self.cron_bursts(),
            self.fast_flood(),
        ]
    }

    fn peaceful(self, name: &'static str, about: &'static str, backlog: u32) -> Trace {
        Trace {
            name,
            about,
            backlog,
            length: self.weeks * WEEK,
            attack: None,
            parts: Vec::new(),
            seed: self.seed,
        }
    }

    /// Real clients at a rate.
    fn clients(self, clients: Clients, rate: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Part {
        Part {
            rate: Box::new(move |time| self.scale * rate(time)),
            clients,
        }
    }

    /// A trace with an attack on a small web site, which has 6 SYNs a second on average.
    fn attacked(
        self,
        (name, about): (&'static str, &'static str),
        backlog: u32,
        duration: f64,
        (attackers, rate): (Clients, impl Fn(f64) -> f64 + Send + Sync + 'static),
    ) -> Trace {
        let begin = self.days_before * DAY;
        let flood = Part {
            rate: Box::new(move |time| {
                let since = time - begin;
                if (0.0..duration).contains(&since) {
                    rate(since)
                } else {
                    0.0
                }
            }),
            clients: attackers,
        };
        Trace {
            length: begin + duration + HOUR,
            attack: Some(begin..begin + duration),
            parts: vec![self.clients(WEB, move |time| 6.0 * daily(time, 0.5)), flood],
            ..self.peaceful(name, about, backlog)
        }
    }

    fn diurnal_web(self) -> Trace {
        let about = "a web site by day and night, work day and weekend: 20 SYN/s on average";
        Trace {
            parts: vec![self.clients(WEB, move |time| {
                let weekend = (time / DAY) as u64 % 7 >= 5;
                let noise = (0.15 * wander(self.seed, time, 10.0 * MINUTE)).exp();
                20.0 * daily(time, 0.7) * noise * if weekend { 0.6 } else { 1.0 }
            })],
            ..self.peaceful("diurnal_web", about, 511)
        }
    }

    fn flash_crowd(self) -> Trace {
        let about = "12 SYN/s, and every two days or so a crowd of 1200 a second within a minute";
        Trace {
            parts: vec![self.clients(WEB, |time| {
                let since = (time + DAY) % (2.3 * DAY) - 6.0 * HOUR;
                let crowd = match since {
                    // Twice as many every seven seconds.
                    -300.0..0.0 => (since / 10.0).exp(),
                    0.0..180.0 => 1.0,
                    180.0..2400.0 => (-(since - 180.0) / 240.0).exp(),
                    _ => 0.0,
                };
                12.0 * daily(time, 0.5) + 1200.0 * crowd
            })],
            ..self.peaceful("flash_crowd", about, 4096)
        }
    }

    fn deploy_reconnect(self) -> Trace {
        let about = "4000 lasting connections, all of which come again after each deploy";
        // Twice a day, on work days.
        let deploys = |time: f64| {
            let hours = (time / HOUR) % 24.0;
            let at = [10.5, 15.25]
                .into_iter()
                .find(|at| (*at..at + 0.1).contains(&hours));
            let work = (time / DAY) as u64 % 7 < 5;
            at.filter(|_| work).map(|at| (hours - at) * HOUR)
        };
        let refused = move |time| match deploys(time) {
            Some(0.0..2.0) => 2000.0,
            _ => 0.0,
        };
        let back = move |time| match deploys(time) {
            Some(2.0..10.0) => 500.0,
            _ => 0.0,
        };
        Trace {
            parts: vec![
                self.clients(WEB, |time| 4.0 * daily(time, 0.5)),
                self.clients(REFUSED, refused),
                self.clients(WEB, back),
            ],
            ..self.peaceful("deploy_reconnect", about, 4096)
        }
    }

    fn slow_ramp(self) -> Trace {
        let about = "a flood from 0 to 60 SYN/s within two hours, to get used to";
        self.attacked(
            ("slow_ramp", about),
            4096,
            2.5 * HOUR,
            (SILENT, |since| 60.0 * (since / (2.0 * HOUR)).min(1.0)),
        )
    }

    fn low_rate_flood(self) -> Trace {
        let about = "50 SYN/s against a backlog of 128";
        self.attacked(
            ("low_rate_flood", about),
            128,
            20.0 * MINUTE,
            (SILENT, |_| 50.0),
        )
    }

    fn pulsing_flood(self) -> Trace {
        let about = "400 SYN/s for 5 s, nothing for 20 s, and so on";
        let pulses = |since: f64| if since % 25.0 < 5.0 { 400.0 } else { 0.0 };
        self.attacked(
            ("pulsing_flood", about),
            4096,
            30.0 * MINUTE,
            (SILENT, pulses),
        )
    }

    fn real_sources(self) -> Trace {
        let about = "600 SYN/s from a few hosts of their own, of which a third refuse the answer";
        self.attacked(
            ("real_sources", about),
            4096,
            20.0 * MINUTE,
            (BOTS, |_| 600.0),
        )
    }

    fn lossy_mobile(self) -> Trace {
        let about = "12 SYN/s of phones that lose 6% of all round trips, and 2% of which vanish";
        Trace {
            parts: vec![self.clients(MOBILE, |time| 12.0 * daily(time, 0.3))],
            ..self.peaceful("lossy_mobile", about, 511)
        }
    }

    fn idle(self) -> Trace {
        let about = "20 connections an hour, and a scanner every five minutes";
        Trace {
            parts: vec![
                self.clients(WEB, |_| 20.0 / HOUR),
                self.clients(SILENT, |_| 1.0 / (5.0 * MINUTE)),
            ],
            ..self.peaceful("idle", about, 128)
        }
    }

    fn cron_bursts(self) -> Trace {
        let about = "machines that come at the full minute: 60 each five, 500 hourly, 1500 daily";
        let bursts = |time: f64| {
            let burst = |every: f64, offset: f64, clients: f64, spread: f64| {
                let since = (time - offset).rem_euclid(every);
                if since < spread {
                    clients / spread
                } else {
                    0.0
                }
            };
            1.0 + burst(5.0 * MINUTE, 0.0, 60.0, 0.5)
                + burst(HOUR, 17.0 * MINUTE, 500.0, 1.0)
                + burst(DAY, 3.0 * HOUR, 1500.0, 2.0)
        };
        Trace {
            parts: vec![self.clients(MACHINES, bursts)],
            ..self.peaceful("cron_bursts", about, 4096)
        }
    }

    fn fast_flood(self) -> Trace {
        let about = "20,000 SYN/s";
        self.attacked(
            ("fast_flood", about),
            4096,
            5.0 * MINUTE,
            (SILENT, |_| 20_000.0),
        )
    }
}

/// By the time of day: 1 on average, most at 15:00, least at 03:00.
fn daily(time: f64, swing: f64) -> f64 {
    1.0 + swing * (TAU * (time / DAY - 9.0 / 24.0)).sin()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKING: Making = Making {
        seed: 1,
        weeks: 3.0,
        days_before: 2.0,
        scale: 1.0,
    };

    #[test]
    fn traces_are_told_in_a_line_and_attacks_have_an_end() {
        let traces = MAKING.all();
        for trace in &traces {
            assert!(trace.about.len() <= 80, "{}", trace.about);
            let Some(attack) = &trace.attack else {
                assert_eq!(trace.length, 3.0 * WEEK);
                continue;
            };
            assert!(attack.end + 64.0 < trace.length, "{}", trace.name);
            let rate = |time| {
                trace
                    .parts
                    .iter()
                    .map(|part| (part.rate)(time))
                    .sum::<f64>()
            };
            let before = rate(attack.start - 1.0);
            assert!(rate(attack.end + 1.0) < 10.0 && before < 10.0);
            assert!(rate(attack.end - 30.0 * MINUTE).max(rate(attack.start + 1.0)) >= before);
        }
        assert_eq!(daily(15.0 * HOUR, 0.5), 1.5);
    }

    #[test]
    fn bursts_have_their_size() {
        let clients = |trace: &Trace, from: f64, to: f64| {
            let steps = ((to - from) * 4.0) as u32;
            let rates = (0..steps).map(|step| {
                let time = from + (f64::from(step) + 0.5) / 4.0;
                trace
                    .parts
                    .iter()
                    .map(|part| (part.rate)(time))
                    .sum::<f64>()
                    / 4.0
            });
            rates.sum::<f64>()
        };
        let cron = MAKING.cron_bursts();
        assert_eq!(clients(&cron, HOUR + 300.0, HOUR + 310.0), 70.0);
        assert_eq!(clients(&cron, HOUR + 1020.0, HOUR + 1030.0), 510.0);
        let deploy = MAKING.deploy_reconnect();
        let all = clients(&deploy, 10.5 * HOUR - 10.0, 10.5 * HOUR + 20.0);
        assert!((8000.0..8300.0).contains(&all), "{all}: each comes twice");
    }
}
