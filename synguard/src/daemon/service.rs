//! One running service: follows its state, says what changes, and turns it calm.

use super::{
    admission::{Decision, Kind},
    attack::{self, Attack, Moment},
    calm::{Calm, Rules, Sample},
    clock,
    keyless::Keyless,
    patience::Patience,
    rate::Rate,
    sweep::Wants,
    sysctl::Profile,
    tuning::{self, Advice, Tuning},
    watermark::{self, Listeners, Watermarks},
};
use crate::{
    config::cover,
    dataplane::{states::SharedState, stats, tables::Target},
    journal::{self, End, Journal, What},
    model::{Addresses, Mode, Server, ServerOffer, ServerStatus, Service},
};
use serde_json::Value;
use synguard_common::{
    abi::{
        MODE_ADAPTIVE, MODE_ALWAYS, MODE_OBSERVE, OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS,
        OFFER_WINDOW_SCALE, STATE_GUARDED, ServiceConfig, ServiceState, ServiceStats,
    },
    clock::GRACE_NS,
    verdict::Reason,
};

/// A service and what the daemon remembers of it.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its number in the tables.
    pub number: u16,
    /// What it is configured to do; the mode may have been changed since.
    pub service: Service,
    /// Its watermarks at present.
    pub watermarks: Watermarks,
    /// What is known of its listeners.
    pub listeners: Listeners,
    /// What its valid ACKs become.
    pub admission: Decision,
    /// Whether it is guarded, as of the last tick.
    pub guarded: bool,
    /// Wall-clock second of the last change of that.
    pub state_since: Option<u64>,
    /// Turns to calm.
    pub calmed_total: u64,
    /// SYNs.
    pub syn_rate: Rate,
    guarded_count: u32,
    calm: Calm,
    attack: Option<Attack>,
    keyless: Keyless,
    /// How it stood at the last tick, and in which mode.
    last: Option<(Mode, Moment)>,
    /// What its servers were last seen to offer.
    profile: Option<ServerStatus>,
}

impl Running {
    /// A service that nothing is known of.
    pub fn new(number: u16, service: Service) -> Self {
        let listeners = Listeners::Here(None);
        let Service { high, low, .. } = service;
        Self {
            number,
            watermarks: watermark::choose(high, low, listeners, Advice::default()),
            listeners,
            service,
            admission: Decision {
                kind: Kind::None,
                reason: "not decided yet".to_owned(),
                here: false,
            },
            guarded: false,
            state_since: None,
            calmed_total: 0,
            syn_rate: Rate::default(),
            guarded_count: 0,
            calm: Calm::default(),
            attack: None,
            keyless: Keyless::default(),
            last: None,
            profile: None,
        }
    }

    /// A service that an earlier daemon has followed.
    pub fn resumed(
        number: u16,
        service: Service,
        state: &ServiceState,
        calmed: u64,
        journal: &Journal,
    ) -> Self {
        let guarded_for = clock::monotonic_ns().saturating_sub(state.guarded_at);
        let attack = (state.state == STATE_GUARDED)
            .then(|| Attack::resumed(state.guarded_at, service.mode, &service.name, journal))
            .flatten();
        Self {
            attack,
            guarded: state.state == STATE_GUARDED,
            state_since: (state.state == STATE_GUARDED)
                .then(|| clock::wall_seconds().saturating_sub(guarded_for / 1_000_000_000)),
            calmed_total: calmed,
            guarded_count: state.guarded_count,
            profile: told_profile(&service.name, journal),
            ..Self::new(number, service)
        }
    }

    /// The same service as it is configured now.
    pub fn reconfigured(&self, service: Service) -> Self {
        Self {
            service,
            ..self.clone()
        }
    }

    /// What to compile for it.
    pub fn target(&self, profile: &Profile) -> Target {
        Target {
            number: self.number,
            name: self.service.name.clone(),
            prefixes: match &self.service.addresses {
                Addresses::Interface => None,
                Addresses::Prefixes(prefixes) => Some(prefixes.clone()),
            },
            ports: self.service.ports.clone(),
            config: self.config(profile),
        }
    }

    /// Its entry in `SERVICES`.
    pub fn config(&self, profile: &Profile) -> ServiceConfig {
        let (offers, rcv_wscale, learns, mss) = match (self.admission.kind, self.service.server) {
            (Kind::None | Kind::Local, _) => (profile.offers, profile.rcv_wscale, 0, 0),
            (Kind::Proxy, Server::Learned) => (EVERY_OFFER, 0, 1, 0),
            (Kind::Proxy, Server::Fixed(offer)) => (
                offers(&offer),
                offer.window_scale.unwrap_or(0),
                0,
                offer.mss.unwrap_or(0),
            ),
            // The client is to refuse that SYN-ACK anyway.
            (Kind::Reset, _) => (0, 0, 0, 0),
        };
        ServiceConfig {
            high: self.watermarks.high,
            offers,
            window: profile.window,
            mode: match self.service.mode {
                Mode::Adaptive => MODE_ADAPTIVE,
                Mode::Always => MODE_ALWAYS,
                Mode::Observe => MODE_OBSERVE,
            },
            admission: self.admission.kind.number(),
            rcv_wscale,
            ttl: profile.ttl,
            learns,
            pad: 0,
            mss,
            pad2: 0,
        }
    }

    /// The watermarks that are right for it now.
    pub fn choose(&self, tuning: &Tuning) -> Watermarks {
        let Service { high, low, .. } = self.service;
        let advice = tuning.advice(&self.service.name);
        watermark::choose(high, low, self.listeners, advice)
    }

    /// What its counters say of what is normal.
    pub fn sample(&self, now: u64, slot: &SharedState, counted: &ServiceStats) -> tuning::Sample {
        let state = slot.read();
        tuning::Sample {
            wall: clock::wall_seconds(),
            now,
            half_open: state.half_open,
            started: stats::total(counted, &[Reason::SynTracked, Reason::SynCrossed]),
            completed: stats::count(counted, Reason::HandshakeDone)
                + stats::total(counted, &stats::LET_IN),
            reset: stats::total(counted, &[Reason::HalfOpenReset, Reason::ServerReset]),
            guarded: state.state == STATE_GUARDED || self.guarded,
            high: self.watermarks.high,
        }
    }

    /// Half-open connections there would be, were it not guarded.
    pub fn projected(&self) -> u64 {
        self.calm.projected(self.service.half_open_timeout)
    }

    /// Follows what the programs did, and turns the service calm when it is time.
    pub fn tick(
        &mut self,
        now: u64,
        slot: &SharedState,
        counted: &ServiceStats,
        journal: &Journal,
    ) {
        let state = slot.read();
        let moment = Moment {
            half_open: state.half_open,
            low: self.watermarks.low,
            totals: attack::totals(self.service.mode, counted),
        };
        self.syn_rate.observe(now, counted.syns);
        // Each mode has counters of its own.
        let mode = self.service.mode;
        let changed = self
            .attack
            .as_ref()
            .is_some_and(|attack| attack.mode() != mode);
        if changed {
            self.end_attack(now, End::ModeChanged, journal);
        }
        let before = match self.last.replace((mode, moment)) {
            Some((of, before)) if of == mode => before,
            _ => moment,
        };
        self.calm.observe(Sample {
            now,
            // In mode observe these are counted elsewhere, and rightly not here: what passes is
            // half-open itself, and needs no projection.
            challenged: stats::count(counted, Reason::Challenged),
            // One of them each, by admission; together, so that a change of it makes no jump.
            admitted: stats::total(counted, &stats::LET_IN),
            lost: stats::total(
                counted,
                &[
                    Reason::AdmitRefused,
                    Reason::AdmitNoListener,
                    Reason::FlowTableFull,
                ],
            ),
        });
        let admits = self.admission.kind != Kind::None;
        let crossed = state.guarded_count != self.guarded_count;
        if crossed {
            self.guarded_count = state.guarded_count;
            self.calm.restart();
        }
        if crossed || changed {
            let watches = mode != Mode::Always && self.attack.is_none();
            if state.state == STATE_GUARDED && watches {
                self.attack = Some(Attack::new(state.guarded_at, mode, before.totals));
                journal.note(What::AttackBegan {
                    service: self.service.name.clone(),
                    mode,
                    half_open: state.half_open,
                    high: self.watermarks.high,
                    counted_before: before.totals,
                });
            }
        }
        if let Some(attack) = &mut self.attack {
            let projected = self.calm.projected(self.service.half_open_timeout);
            attack.observe(state.half_open, projected);
        }
        let mut kernel_guards = state.state == STATE_GUARDED;
        if kernel_guards {
            let over = match self.service.mode {
                _ if !admits => true,
                Mode::Always => false,
                Mode::Adaptive | Mode::Observe => {
                    self.calm
                        .decide(state.guarded_at, state.half_open, self.rules())
                }
            };
            if over && slot.turn_calm(now.saturating_add(GRACE_NS)) {
                kernel_guards = false;
                self.calm.restart();
                self.calmed_total += 1;
                if self.attack.is_some() {
                    let reason = if admits {
                        End::Calm
                    } else {
                        End::AdmissionLost
                    };
                    self.end_attack(now, reason, journal);
                } else {
                    journal.note(What::Calm {
                        service: self.service.name.clone(),
                        half_open: state.half_open,
                        low: self.watermarks.low,
                    });
                }
            }
        }
        if !kernel_guards {
            self.end_attack(now, End::ModeChanged, journal);
        }
        let keyless = stats::count(counted, Reason::NoKey);
        self.keyless
            .observe(now, &self.service.name, keyless, journal);
        let guarded = admits
            && match self.service.mode {
                Mode::Always => true,
                Mode::Adaptive => kernel_guards,
                Mode::Observe => false,
            };
        if guarded != self.guarded {
            self.guarded = guarded;
            self.state_since = Some(clock::wall_seconds());
        }
    }

    /// Says how the attack that is going on has ended, if there is one.
    pub fn end_attack(&mut self, now: u64, reason: End, journal: &Journal) {
        if let Some(attack) = self.attack.take() {
            let moment = self.last.map(|(_, moment)| moment).unwrap_or_default();
            journal.note(attack.ended(&self.service.name, reason, now, moment));
        }
    }

    /// Says what its servers offer, where that is news.
    pub fn follow_profile(&mut self, seen: ServerStatus, journal: &Journal) {
        let service = || self.service.name.clone();
        let unknown = ServerStatus::default();
        let known = self.profile.as_ref().unwrap_or(&unknown);
        let unwithheld = |status: &ServerStatus| ServerStatus {
            withheld: Vec::new(),
            ..status.clone()
        };
        if seen.source == "learned" && unwithheld(&seen) != unwithheld(known) {
            journal.note(What::ProfileLearned {
                service: service(),
                timestamps: seen.timestamps,
                sack: seen.sack,
                window_scale: seen.window_scale,
                ecn: seen.ecn,
                mss: seen.mss,
            });
        }
        if !seen.withheld.is_empty() && seen.withheld != known.withheld {
            journal.note(What::ProfileWithheld {
                service: service(),
                options: seen.withheld.clone(),
            });
        }
        self.profile = Some(seen);
    }

    fn rules(&self) -> Rules {
        Rules {
            low: self.watermarks.low,
            calm_after: self.service.calm_after,
            half_open_timeout: self.service.half_open_timeout,
        }
    }

    /// To be called before another mode is written to the tables, so that clients who hold a
    /// cookie are still let in: `always` → `adaptive` leaves by way of guarded, and whatever stops
    /// guarding at once gives cookies their grace.
    pub fn leave_mode(&self, next: Mode, slot: &SharedState) {
        let now = clock::monotonic_ns();
        match (self.service.mode, next) {
            (Mode::Always, Mode::Adaptive) => {
                slot.turn_guarded(now);
            }
            (Mode::Always | Mode::Adaptive, Mode::Observe) => {
                slot.turn_calm(now.saturating_add(GRACE_NS));
            }
            _ => {}
        }
    }

    /// What its half-open connections can expect.
    pub fn wants(&self) -> Wants {
        Wants {
            number: self.number,
            patience: Patience::new(
                self.service.half_open_timeout,
                self.service.release && self.service.mode != Mode::Observe,
            ),
            low: self.watermarks.low,
        }
    }

    /// Whether its connections are spliced.
    pub fn is_proxied(&self) -> bool {
        self.admission.kind == Kind::Proxy
    }

    /// What it covers, for people.
    pub fn covers(&self) -> Vec<String> {
        cover::describe(&self.service)
    }
}

/// What was told last of what its servers offer: with the tables that is taken over.
fn told_profile(service: &str, journal: &Journal) -> Option<ServerStatus> {
    let told = journal.latest(journal::Kind::ProfileLearned, service)?;
    let mut details = told.details.clone();
    details.insert("source".to_owned(), "learned".into());
    details.insert("withheld".to_owned(), Value::Array(Vec::new()));
    serde_json::from_value(Value::Object(details)).ok()
}

/// All that servers are let offer.
const EVERY_OFFER: u32 = OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE | OFFER_ECN;

fn offers(offer: &ServerOffer) -> u32 {
    [
        (offer.timestamps, OFFER_TIMESTAMPS),
        (offer.sack, OFFER_SACK),
        (offer.window_scale.is_some(), OFFER_WINDOW_SCALE),
        (offer.ecn, OFFER_ECN),
    ]
    .into_iter()
    .filter_map(|(on, bit)| on.then_some(bit))
    .sum()
}

#[cfg(test)]
mod tests {
    use synguard_common::abi::{ADMISSION_LOCAL, ADMISSION_PROXY, ADMISSION_RESET};

    use super::*;
    use crate::{config::built_in, dataplane::stats::ZERO, journal::Query};

    const SECOND: u64 = 1_000_000_000;

    fn running(mode: Mode) -> Running {
        let mut service = built_in().services.remove(0);
        service.mode = mode;
        let mut running = Running::new(1, service);
        running.admission.kind = Kind::Local;
        running
    }

    #[test]
    fn each_admission_has_its_configuration() {
        let profile = Profile {
            offers: OFFER_SACK,
            window: 64_240,
            rcv_wscale: 7,
            ttl: 64,
        };
        let config = |kind, server| {
            let mut running = running(Mode::Adaptive);
            running.admission.kind = kind;
            running.service.server = server;
            let config = running.config(&profile);
            assert_eq!((config.window, config.ttl), (64_240, 64));
            (
                config.admission,
                config.offers,
                config.rcv_wscale,
                config.learns,
                config.mss,
            )
        };
        let fixed = Server::Fixed(ServerOffer {
            timestamps: true,
            window_scale: Some(0),
            mss: Some(1400),
            ..ServerOffer::default()
        });
        for server in [Server::Learned, fixed] {
            let local = (ADMISSION_LOCAL, OFFER_SACK, 7, 0, 0);
            assert_eq!(config(Kind::Local, server), local);
            assert_eq!(config(Kind::Reset, server), (ADMISSION_RESET, 0, 0, 0, 0));
        }
        assert_eq!(
            config(Kind::Proxy, Server::Learned),
            (ADMISSION_PROXY, 0b1111, 0, 1, 0)
        );
        assert_eq!(
            config(Kind::Proxy, fixed),
            (
                ADMISSION_PROXY,
                OFFER_TIMESTAMPS | OFFER_WINDOW_SCALE,
                0,
                0,
                1400
            )
        );
    }

    #[test]
    fn what_servers_offer_is_told_when_it_is_news() {
        let journal = Journal::in_memory();
        let learned = ServerStatus {
            source: "learned".into(),
            sack: true,
            window_scale: Some(7),
            mss: Some(1400),
            ..ServerStatus::default()
        };
        let with_ecn = ServerStatus {
            ecn: true,
            ..learned.clone()
        };
        let withheld = ServerStatus {
            withheld: vec!["sack".into()],
            ..learned.clone()
        };
        let of = |source: &str| ServerStatus {
            source: source.into(),
            ..with_ecn.clone()
        };
        let mut running = running(Mode::Always);
        for (seen, news) in [
            (of("unknown"), vec![]),
            (of("configured"), vec![]),
            (learned.clone(), vec!["profile_learned"]),
            (learned.clone(), vec![]),
            (withheld.clone(), vec!["profile_withheld"]),
            (withheld, vec![]),
            (learned.clone(), vec![]),
            (with_ecn.clone(), vec!["profile_learned"]),
        ] {
            let before = journal.select(&Query::default()).len();
            running.follow_profile(seen.clone(), &journal);
            let events = journal.select(&Query::default()).split_off(before);
            let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
            assert_eq!(kinds, news, "{seen:?}");
        }
        let told = journal.latest(journal::Kind::ProfileLearned, "default");
        let told = told.unwrap();
        let details = serde_json::json!({
            "timestamps": false, "sack": true, "window_scale": 7, "ecn": true, "mss": 1400,
        });
        assert_eq!(Value::Object(told.details.clone()), details);

        // The next daemon finds it as it was told, or otherwise.
        let state = SharedState::default().read();
        let service = running.service.clone();
        let mut next = Running::resumed(1, service, &state, 0, &journal);
        let before = journal.select(&Query::default()).len();
        next.follow_profile(with_ecn, &journal);
        assert_eq!(journal.select(&Query::default()).len(), before);
        next.follow_profile(learned, &journal);
        assert_eq!(journal.select(&Query::default()).len(), before + 1);
    }

    #[test]
    fn clients_let_in_by_any_admission_were_no_flood() {
        for reason in stats::LET_IN {
            let mut running = running(Mode::Adaptive);
            let slot = SharedState::default();
            let mut counted = ZERO;
            for second in 1..=4 {
                counted.reasons[Reason::Challenged as usize] += 1000;
                counted.reasons[reason as usize] += 1000;
                running.tick(second * SECOND, &slot, &counted, &Journal::in_memory());
            }
            assert_eq!(running.projected(), 0, "{reason:?}");
        }
    }

    #[test]
    fn an_adaptive_service_follows_the_kernel_and_comes_back() {
        let journal = Journal::in_memory();
        let mut running = running(Mode::Adaptive);
        let slot = SharedState::default();
        running.tick(SECOND, &slot, &ZERO, &Journal::in_memory());
        assert!(!running.guarded && running.state_since.is_none());
        assert!(slot.turn_guarded(SECOND));
        let mut counted = ZERO;
        let mut now = SECOND;
        for _ in 0..80 {
            now += SECOND / 4;
            counted.reasons[Reason::Challenged as usize] += 10_000;
            running.tick(now, &slot, &counted, &journal);
            assert!(running.guarded);
        }
        let flood_ended = now;
        while running.guarded {
            now += SECOND / 4;
            running.tick(now, &slot, &counted, &journal);
            assert!(now < flood_ended + 60 * SECOND);
        }
        assert!(now >= flood_ended + 15 * SECOND);
        assert_eq!(running.calmed_total, 1);
        assert_eq!(slot.read().grace_until, now + GRACE_NS);
    }

    #[test]
    fn without_admission_nothing_is_guarded() {
        for mode in [Mode::Adaptive, Mode::Always] {
            let mut running = running(mode);
            running.admission.kind = Kind::None;
            let slot = SharedState::default();
            slot.turn_guarded(1);
            running.tick(SECOND, &slot, &ZERO, &Journal::in_memory());
            assert!(!running.guarded);
            assert_eq!(slot.read().state, 0);
        }
    }

    #[test]
    fn always_leaves_by_way_of_guarded_and_observe_gives_grace() {
        let slot = SharedState::default();
        let mut service = running(Mode::Always);
        service.tick(SECOND, &slot, &ZERO, &Journal::in_memory());
        assert!(service.guarded);
        service.leave_mode(Mode::Adaptive, &slot);
        assert_eq!(slot.read().state, STATE_GUARDED);
        service.service.mode = Mode::Adaptive;
        service.leave_mode(Mode::Observe, &slot);
        let state = slot.read();
        assert_eq!(state.state, 0);
        assert!(state.grace_until >= GRACE_NS);
    }
}
