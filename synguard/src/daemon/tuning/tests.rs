use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600;
/// A Monday, 00:00 UTC.
const MONDAY: u64 = 1_800_000_000 / (7 * 86_400) * (7 * 86_400) + 4 * 86_400;
const TIMEOUT: Duration = Duration::from_secs(64);

/// A service whose clients complete their handshakes, but for some.
#[derive(Clone)]
struct Service {
    tuner: Tuner,
    sample: Sample,
}

/// What it is like for a while.
#[derive(Clone, Copy)]
struct Load {
    half_open: u64,
    syns: u64,
    completed: u64,
}

/// A second's load at which everybody answers.
fn answered(half_open: u64, syns: u64) -> Load {
    Load {
        half_open,
        syns,
        completed: syns,
    }
}

impl Service {
    fn new() -> Self {
        let mut tuner = Tuner::default();
        tuner.set_half_open_timeout(TIMEOUT);
        Self {
            tuner,
            sample: Sample {
                wall: MONDAY,
                high: u32::MAX,
                ..Sample::default()
            },
        }
    }

    /// A sample a second.
    fn run(&mut self, seconds: u64, load: impl Fn(u64) -> Load) {
        for _ in 0..seconds {
            let Load {
                half_open,
                syns,
                completed,
            } = load(self.sample.wall);
            self.sample.wall += 1;
            self.sample.now += SECOND;
            self.sample.half_open = half_open;
            self.sample.started += syns;
            self.sample.completed += completed;
            self.tuner.observe(self.sample);
        }
    }

    fn high(&self) -> u32 {
        self.tuner
            .advice()
            .learned
            .map_or(0, |learned| learned.high)
    }

    fn normal(&self) -> f64 {
        self.tuner
            .normal()
            .map_or(0.0, |normal| normal.half_open.location)
    }
}

#[test]
fn it_advises_nothing_before_it_knows_anything() {
    let mut service = Service::new();
    service.run(3 * HOUR - 60, |_| answered(10, 20));
    assert_eq!(service.tuner.advice().learned, None);
    service.run(120, |_| answered(10, 20));
    let learned = service.tuner.advice().learned.unwrap();
    // 10 + 6 × √10 = 29, rounded up to half an octave.
    assert_eq!(
        (learned.high, learned.normal, learned.weekly),
        (32, 10, false)
    );
}

#[test]
fn an_hour_of_the_week_is_known_after_two_weeks() {
    // Ten half-open connections, but two hundred on Mondays from eight to ten.
    let load = |wall: u64| match (wall - MONDAY) / HOUR % (7 * 24) {
        8..10 => answered(200, 400),
        _ => answered(10, 20),
    };
    let mut service = Service::new();
    service.run(14 * 24 * HOUR + 7 * HOUR, load);
    assert!(
        (10.0..60.0).contains(&service.normal()),
        "{}",
        service.normal()
    );
    let night = service.high();
    service.run(HOUR, load);
    assert!(service.tuner.normal().unwrap().weekly);
    service.run(HOUR / 2, load);
    assert_eq!(service.normal(), 200.0);
    assert!(
        service.high() >= 350 && night < 200,
        "{} {night}",
        service.high()
    );
    service.run(4 * HOUR, load);
    assert_eq!((service.normal(), service.high() < 100), (10.0, true));
}

#[test]
fn a_crowd_that_completes_raises_the_watermark_within_a_second_and_only_that() {
    let mut service = Service::new();
    service.run(4 * HOUR, |_| answered(10, 20));
    assert!(service.tuner.advice().crowd <= 32);
    service.run(1, |_| answered(200, 1000));
    // A handshake takes half a second here: 10 half-open at 20 a second.
    let crowd = service.tuner.advice().crowd;
    assert_eq!(crowd, 1024, "2 × 0.5 s × 1000/s");
    // The same number of SYNs that nobody completes raises nothing.
    let mut flooded = Service::new();
    flooded.run(4 * HOUR, |_| answered(10, 20));
    let before = flooded.tuner.advice();
    flooded.run(1, |_| Load {
        half_open: 1000,
        syns: 1000,
        completed: 20,
    });
    assert_eq!(flooded.tuner.advice(), before);
    // It is over once nobody has come for a minute, and less has been enough for five.
    service.run(70, |_| answered(10, 20));
    assert_eq!(service.tuner.advice().crowd, 1024);
    service.run(310, |_| answered(10, 20));
    assert!(service.tuner.advice().crowd <= 32);
}

#[test]
fn neither_guarded_minutes_nor_what_they_leave_are_learned() {
    let mut service = Service::new();
    service.run(24 * HOUR, |_| answered(10, 20));
    let before = (service.high(), service.normal());
    for _ in 0..30 {
        service.sample.guarded = true;
        service.run(HOUR / 2, |_| answered(5000, 20));
        service.sample.guarded = false;
        // Left over for a minute.
        service.run(60, |_| answered(4000, 20));
        service.run(HOUR / 2 - 60, |_| answered(10, 20));
    }
    assert_eq!((service.high(), service.normal()), before);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let load = |wall: u64| answered(10 + wall / HOUR % 24, 20);
    let mut one = Service::new();
    one.run(30 * HOUR + 1800, load);
    let mut other = one.clone();
    let (history, minutes) = one.tuner.known();
    other.tuner = Tuner::resumed(history.clone(), minutes.to_vec());
    other.tuner.set_half_open_timeout(TIMEOUT);
    other.run(1, load);
    assert_eq!(other.high(), one.high(), "at once");
    for service in [&mut one, &mut other] {
        service.run(HOUR, load);
    }
    assert_eq!(one.tuner.known().0.hours().count(), 31);
    assert!(
        one.tuner
            .known()
            .0
            .hours()
            .eq(other.tuner.known().0.hours()),
        "the hour of the restart is whole"
    );
}

#[test]
fn steps_rise_at_once_and_fall_after_five_minutes() {
    let mut step = Step::default();
    step.settle(100.0, 2, 0);
    assert_eq!(step.value, 128);
    step.settle(128.1, 2, 1);
    assert_eq!(step.value, 182);
    let fall = 1 + PATIENCE.as_nanos() as u64;
    step.settle(60.0, 2, 2);
    step.settle(100.0, 2, fall);
    assert_eq!(step.value, 182);
    step.settle(10.0, 2, fall + 1);
    assert_eq!(step.value, 128, "the most that was wanted meanwhile");
    for (value, steps, rounded) in [
        (0.0, 2, 0),
        (1.0, 2, 1),
        (128.0, 2, 128),
        (128.0, 1, 128),
        (129.0, 1, 256),
        (1e30, 1, u32::MAX),
        (f64::NAN, 1, 0),
    ] {
        assert_eq!(round_up(value, steps), rounded, "{value}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// An attacker who stays below every watermark, for as long as he likes, lifts what is normal by no
    /// more than what a twentieth of the service's SYNs, or three a minute, make in their time.
    #[test]
    fn a_patient_attacker_gains_a_twentieth(rate in 1u64..200, flood in 0.01..50.0f64, hours in 4u64..60) {
        let own = rate / 2 + 1;
        let mut service = Service::new();
        service.run(24 * HOUR, |_| answered(own, rate));
        let before = service.normal();
        let extra = (flood * TIMEOUT.as_secs_f64()) as u64;
        service.run(hours * HOUR, |wall| Load {
            half_open: own + extra,
            // Fractions of a SYN add up over the seconds.
            syns: rate + ((wall + 1) as f64 * flood) as u64 - (wall as f64 * flood) as u64,
            completed: rate,
        });
        let unnoticed = (rate as f64 / 19.0).max(3.0 / 60.0) * TIMEOUT.as_secs_f64();
        let gained = service.normal() - before;
        // As dwell is kept in ms.
        prop_assert!(gained <= unnoticed * 1.01 + 1.0, "{before} + {gained}, of {unnoticed}");
    }

    /// Whatever the counters say, nothing panics and advice does not change all the time.
    #[test]
    fn advice_is_calm(samples in prop::collection::vec(any::<(u16, u16, u16, u16, bool)>(), 1..2000)) {
        let mut tuner = Tuner::default();
        let mut sample = Sample { wall: MONDAY, high: 100, ..Sample::default() };
        let (mut falls, mut last) = (0, Advice::default());
        for (half_open, started, completed, reset, guarded) in samples {
            sample = Sample {
                wall: sample.wall + 1,
                now: sample.now + SECOND,
                half_open: half_open.into(),
                started: sample.started + u64::from(started),
                completed: sample.completed + u64::from(completed),
                reset: sample.reset + u64::from(reset),
                guarded,
                high: 100,
            };
            tuner.observe(sample);
            let advice = tuner.advice();
            falls += u64::from(advice.crowd < last.crowd);
            last = advice;
        }
        prop_assert!(falls <= sample.now / PATIENCE.as_nanos() as u64);
    }

    /// A clock that jumps, and counters that do, are survived.
    #[test]
    fn nonsense_is_survived(samples in prop::collection::vec(any::<[u64; 6]>(), 1..200)) {
        let mut tuner = Tuner::default();
        for [wall, now, half_open, started, completed, reset] in samples {
            tuner.observe(Sample {
                wall: wall % (1 << 40), now, half_open, started, completed, reset,
                guarded: false,
                high: u32::MAX,
            });
        }
    }
}
