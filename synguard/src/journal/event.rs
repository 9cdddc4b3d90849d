//! What can happen: the one list of kinds, what is told of each, and the sentence it makes.

use std::{fmt, time::Duration};

use clap::{ValueEnum, builder::PossibleValue};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value};

use super::Timestamp;
use crate::model::Mode;

/// How much an event matters; also the level of its line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Happens all the time, and nobody need know.
    Debug,
    /// As it should be.
    Info,
    /// Somebody should look.
    Warn,
    /// Somebody should act.
    Error,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $level:ident;)+) => {
        /// The kind of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)+];

            /// What it is called in JSON, on the command line and in metrics: lower case, stable.
            pub const fn label(self) -> &'static str {
                match self { $(Kind::$name => $label,)+ }
            }

            /// How much it matters.
            pub const fn level(self) -> Level {
                match self { $(Kind::$name => Level::$level,)+ }
            }

            /// One sentence for people: the documentation line of the kind.
            pub const fn describe(self) -> &'static str {
                match self { $(Kind::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

kinds! {
    /// The daemon is ready.
    DaemonStarted = "daemon_started", Info;
    /// The daemon has ended.
    DaemonStopped = "daemon_stopped", Info;

    /// A service became guarded.
    AttackBegan = "attack_began", Warn;
    /// A service that was guarded is so no more.
    AttackEnded = "attack_ended", Info;
    /// A service is calm again without an attack: it had been in mode always.
    Calm = "calm", Info;
    /// The watermarks of a service are others now.
    ThresholdChanged = "threshold_changed", Info;
    /// What a valid ACK becomes is something else now.
    AdmissionChanged = "admission_changed", Info;
    /// A service cannot be guarded: its SYNs pass.
    AdmissionLost = "admission_lost", Warn;
    /// A service can be guarded again.
    AdmissionRegained = "admission_regained", Info;
    /// SYNs of a guarded service pass without a challenge, for want of a key.
    FailingOpen = "failing_open", Error;
    /// They are challenged again.
    FailingOpenEnded = "failing_open_ended", Info;
    /// A port of a service must be left alone.
    PortLeftOut = "port_left_out", Warn;
    /// The options of a service's servers were learned, or are others than were known.
    ProfileLearned = "profile_learned", Info;
    /// Options are not offered for a while, because a server fell short of them.
    ProfileWithheld = "profile_withheld", Warn;

    /// Cookie keys were written: routine, every epoch.
    KeyRotated = "key_rotated", Debug;
    /// An epoch began before its key was in place.
    KeyLate = "key_late", Error;
    /// The wall clock was set.
    ClockSet = "clock_set", Warn;
    /// The TCP settings of the kernel are others now.
    KernelSettingsChanged = "kernel_settings_changed", Info;

    /// An interface is guarded.
    Attached = "attached", Info;
    /// An interface is guarded no more, as was asked for.
    Detached = "detached", Info;
    /// A driver refused native XDP.
    FellBackToGeneric = "fell_back_to_generic", Warn;
    /// An interface stays guarded while no daemon runs.
    LeftGuarded = "left_guarded", Info;
    /// A guarded interface is gone.
    InterfaceGone = "interface_gone", Error;
    /// A guarded interface that was gone is back.
    InterfaceReturned = "interface_returned", Info;
    /// A guarded interface has another name.
    InterfaceRenamed = "interface_renamed", Info;
    /// A drain began: nobody is challenged any more, and spliced connections are waited for.
    DrainBegan = "drain_began", Info;
    /// A drain is over.
    DrainEnded = "drain_ended", Info;
    /// What an earlier daemon left on an interface was taken over.
    ProgramAdopted = "program_adopted", Info;
    /// The program on an interface was replaced by another.
    ProgramSwapped = "program_swapped", Info;

    /// The configuration was applied again.
    ConfigReloaded = "config_reloaded", Info;
    /// A configuration was refused: the old one holds.
    ConfigRefused = "config_refused", Warn;
    /// A mode was changed by command.
    ModeChanged = "mode_changed", Info;
    /// A service is new.
    ServiceAdded = "service_added", Info;
    /// A service is configured otherwise than before.
    ServiceChanged = "service_changed", Info;
    /// A service is no more.
    ServiceRemoved = "service_removed", Info;

    /// A table of the kernel is nearly full.
    TableNearlyFull = "table_nearly_full", Warn;
    /// It has room again.
    TableHasRoom = "table_has_room", Info;
}

impl Kind {
    /// Whether it happens all the time: such events are kept apart, lest they push out the others.
    pub fn is_routine(self) -> bool {
        self.level() == Level::Debug
    }
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.label()).help(self.describe()))
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let label = String::deserialize(deserializer)?;
        let kind = Self::ALL.iter().find(|kind| kind.label() == label);
        kind.copied().ok_or_else(|| {
            D::Error::custom(format_args!("there is no kind of event called `{label}`"))
        })
    }
}

/// An event as it is kept, sent and shown. What a later version tells of it is no obstacle to
/// reading it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before.
    pub seq: u64,
    /// When it happened (RFC 3339, UTC).
    pub time: Timestamp,
    /// [`Kind::label`].
    pub kind: String,
    /// [`Kind::level`].
    pub level: Level,
    /// The service it is about.
    #[serde(default)]
    pub service: Option<String>,
    /// The interface it is about.
    #[serde(default)]
    pub interface: Option<String>,
    /// One sentence.
    pub message: String,
    /// What the sentence says, for programs.
    #[serde(default)]
    pub details: Map<String, Value>,
}

impl Event {
    /// Whether its kind is [routine](Kind::is_routine).
    pub fn is_routine(&self) -> bool {
        self.level == Level::Debug
    }
}

/// Packets of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// SYNs received.
    pub syns: u64,
    /// SYNs answered with a cookie.
    pub challenged: u64,
    /// Challenged clients let in.
    pub admitted: u64,
    /// Packets dropped.
    pub dropped: u64,
}

impl Totals {
    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            syns: self.syns.saturating_sub(earlier.syns),
            challenged: self.challenged.saturating_sub(earlier.challenged),
            admitted: self.admitted.saturating_sub(earlier.admitted),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}

/// Why an attack is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// There were few enough half-open connections for long enough.
    Calm,
    /// The service has another mode, in which nothing is watched or nothing is done.
    ModeChanged,
    /// It cannot be guarded any more.
    AdmissionLost,
    /// It is no more.
    ServiceRemoved,
    /// The daemon has ended.
    DaemonStopped,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drained {
    /// Nothing was left to wait for.
    Whole,
    /// What was left had its time.
    Cut,
    /// It was called off.
    CalledOff,
}

/// What happened. The fields are the event's details, except for `service` and `interface`, which
/// every event may have.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(
    missing_docs,
    reason = "what a field is stands in the sentence it is part of"
)]
pub enum What {
    DaemonStarted {
        version: String,
        interfaces: Vec<String>,
    },
    DaemonStopped {
        signal: String,
    },
    AttackBegan {
        service: String,
        mode: Mode,
        half_open: u64,
        high: u32,
        /// The counters before: a daemon that takes over goes on from there.
        counted_before: Totals,
    },
    AttackEnded {
        service: String,
        mode: Mode,
        reason: End,
        duration_seconds: f64,
        half_open: u64,
        peak_half_open: u64,
        peak_projected: u64,
        low: u32,
        #[serde(flatten)]
        totals: Totals,
    },
    Calm {
        service: String,
        half_open: u64,
        low: u32,
    },
    ThresholdChanged {
        service: String,
        high: u32,
        low: u32,
        old_high: u32,
        old_low: u32,
        reason: String,
    },
    AdmissionChanged {
        service: String,
        admission: String,
        reason: String,
    },
    AdmissionLost {
        service: String,
        reason: String,
    },
    AdmissionRegained {
        service: String,
        admission: String,
        reason: String,
    },
    FailingOpen {
        service: String,
    },
    FailingOpenEnded {
        service: String,
        passed: u64,
    },
    PortLeftOut {
        service: String,
        why: String,
    },
    ProfileLearned {
        service: String,
        timestamps: bool,
        sack: bool,
        window_scale: Option<u8>,
        ecn: bool,
        mss: Option<u16>,
    },
    ProfileWithheld {
        service: String,
        options: Vec<String>,
    },
    KeyRotated {
        epoch: u64,
        written: usize,
    },
    KeyLate {
        epoch: u64,
    },
    ClockSet {
        seconds: f64,
    },
    KernelSettingsChanged,
    Attached {
        interface: String,
        xdp_mode: String,
        driver: Option<String>,
        mtu: u32,
    },
    Detached {
        interface: String,
    },
    FellBackToGeneric {
        interface: String,
        driver: Option<String>,
        reason: String,
    },
    InterfaceGone {
        interface: String,
    },
    InterfaceReturned {
        interface: String,
    },
    InterfaceRenamed {
        interface: String,
        old_name: String,
    },
    LeftGuarded {
        interface: String,
    },
    DrainBegan {
        spliced: u64,
    },
    DrainEnded {
        outcome: Drained,
        spliced: u64,
    },
    ProgramAdopted {
        interface: String,
        xdp_mode: String,
    },
    ProgramSwapped {
        interface: String,
        xdp_mode: String,
    },
    ConfigReloaded {
        changes: String,
    },
    ConfigRefused {
        error: String,
    },
    ModeChanged {
        /// None for all of them.
        service: Option<String>,
        mode: Mode,
    },
    ServiceAdded {
        service: String,
    },
    ServiceChanged {
        service: String,
    },
    ServiceRemoved {
        service: String,
    },
    TableNearlyFull {
        table: String,
        entries: u64,
        capacity: u64,
    },
    TableHasRoom {
        table: String,
        entries: u64,
        capacity: u64,
    },
}

impl What {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::DaemonStarted { .. } => Kind::DaemonStarted,
            Self::DaemonStopped { .. } => Kind::DaemonStopped,
            Self::AttackBegan { .. } => Kind::AttackBegan,
            Self::AttackEnded { .. } => Kind::AttackEnded,
            Self::Calm { .. } => Kind::Calm,
            Self::ThresholdChanged { .. } => Kind::ThresholdChanged,
            Self::AdmissionChanged { .. } => Kind::AdmissionChanged,
            Self::AdmissionLost { .. } => Kind::AdmissionLost,
            Self::AdmissionRegained { .. } => Kind::AdmissionRegained,
            Self::FailingOpen { .. } => Kind::FailingOpen,
            Self::FailingOpenEnded { .. } => Kind::FailingOpenEnded,
            Self::PortLeftOut { .. } => Kind::PortLeftOut,
            Self::ProfileLearned { .. } => Kind::ProfileLearned,
            Self::ProfileWithheld { .. } => Kind::ProfileWithheld,
            Self::KeyRotated { .. } => Kind::KeyRotated,
            Self::KeyLate { .. } => Kind::KeyLate,
            Self::ClockSet { .. } => Kind::ClockSet,
            Self::KernelSettingsChanged => Kind::KernelSettingsChanged,
            Self::Attached { .. } => Kind::Attached,
            Self::Detached { .. } => Kind::Detached,
            Self::FellBackToGeneric { .. } => Kind::FellBackToGeneric,
            Self::InterfaceGone { .. } => Kind::InterfaceGone,
            Self::InterfaceReturned { .. } => Kind::InterfaceReturned,
            Self::InterfaceRenamed { .. } => Kind::InterfaceRenamed,
            Self::LeftGuarded { .. } => Kind::LeftGuarded,
            Self::DrainBegan { .. } => Kind::DrainBegan,
            Self::DrainEnded { .. } => Kind::DrainEnded,
            Self::ProgramAdopted { .. } => Kind::ProgramAdopted,
            Self::ProgramSwapped { .. } => Kind::ProgramSwapped,
            Self::ConfigReloaded { .. } => Kind::ConfigReloaded,
            Self::ConfigRefused { .. } => Kind::ConfigRefused,
            Self::ModeChanged { .. } => Kind::ModeChanged,
            Self::ServiceAdded { .. } => Kind::ServiceAdded,
            Self::ServiceChanged { .. } => Kind::ServiceChanged,
            Self::ServiceRemoved { .. } => Kind::ServiceRemoved,
            Self::TableNearlyFull { .. } => Kind::TableNearlyFull,
            Self::TableHasRoom { .. } => Kind::TableHasRoom,
        }
    }

    /// The event that this is, with a number and a time.
    pub(super) fn event(&self, seq: u64, time: Timestamp) -> Event {
        let mut details = match serde_json::to_value(self) {
            Ok(Value::Object(details)) => details,
            // A unit has no details.
            _ => Map::new(),
        };
        let mut subject = |name| match details.remove(name) {
            Some(Value::String(subject)) => Some(subject),
            _ => None,
        };
        let (service, interface) = (subject("service"), subject("interface"));
        Event {
            seq,
            time,
            kind: self.kind().label().to_owned(),
            level: self.kind().level(),
            service,
            interface,
            message: crate::one_line(&self.to_string()),
            details,
        }
    }
}

/// The sentence.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonStarted {
                version,
                interfaces,
            } => write!(
                f,
                "ready: synguard {version} guards {}",
                interfaces.join(", ")
            ),
            Self::DaemonStopped { signal } => write!(f, "stopped by {signal}"),
            Self::AttackBegan {
                service,
                mode,
                half_open,
                high,
                ..
            } => {
                let is = match mode {
                    Mode::Observe => "would be guarded now (mode observe)",
                    Mode::Adaptive | Mode::Always => "is guarded",
                };
                write!(
                    f,
                    "service {service} {is}: {half_open} half-open connections, high watermark {high}"
                )
            }
            Self::AttackEnded {
                service,
                reason,
                duration_seconds,
                half_open,
                peak_half_open,
                peak_projected,
                low,
                totals,
                ..
            } => {
                match reason {
                    End::Calm => write!(
                        f,
                        "service {service} is calm: {half_open} half-open connections, low watermark \
                         {low};"
                    )?,
                    End::ModeChanged => write!(f, "service {service} has another mode;")?,
                    End::AdmissionLost => write!(f, "service {service} cannot be guarded;")?,
                    End::ServiceRemoved => write!(f, "service {service} is removed;")?,
                    End::DaemonStopped => {
                        write!(f, "service {service} is left as the daemon stops;")?
                    }
                }
                let lasted = humantime::format_duration(whole_seconds(*duration_seconds));
                let Totals {
                    syns,
                    challenged,
                    admitted,
                    dropped,
                } = totals;
                write!(
                    f,
                    " the attack lasted {lasted}: {syns} SYNs, {challenged} challenged, {admitted} \
                     admitted, {dropped} packets dropped, at most {peak_half_open} half-open \
                     ({peak_projected} without the guard)"
                )
            }
            Self::Calm {
                service,
                half_open,
                low,
            } => write!(
                f,
                "service {service} is calm: {half_open} half-open connections, low watermark {low}"
            ),
            Self::ThresholdChanged {
                service,
                high,
                low,
                old_high,
                old_low,
                reason,
            } => write!(
                f,
                "watermarks of {service}: high {high}, low {low}, were {old_high} and {old_low} \
                 ({reason})"
            ),
            Self::AdmissionChanged {
                service,
                admission,
                reason,
            } => write!(f, "admission of {service}: {admission} ({reason})"),
            Self::AdmissionLost { service, reason } => write!(
                f,
                "service {service} is watched but cannot be guarded: {reason}"
            ),
            Self::AdmissionRegained {
                service,
                admission,
                reason,
            } => write!(
                f,
                "service {service} can be guarded again: admission {admission} ({reason})"
            ),
            Self::FailingOpen { service } => write!(
                f,
                "SYNs of {service} pass without a challenge: the kernel has no key for the present \
                 epoch"
            ),
            Self::FailingOpenEnded { service, passed } => write!(
                f,
                "SYNs of {service} are challenged again; {passed} have passed without"
            ),
            Self::PortLeftOut { service, why } => {
                write!(f, "service {service} must leave out {why}")
            }
            Self::ProfileLearned {
                service,
                timestamps,
                sack,
                window_scale,
                ecn,
                mss,
            } => {
                let mut options: Vec<String> =
                    [(timestamps, "timestamps"), (sack, "SACK"), (ecn, "ECN")]
                        .into_iter()
                        .filter(|(has, _)| **has)
                        .map(|(_, name)| name.to_owned())
                        .collect();
                options.extend(window_scale.map(|scale| format!("window scale {scale}")));
                options.extend(mss.map(|mss| format!("MSS {mss}")));
                let options = match options.as_slice() {
                    [] => "no options".to_owned(),
                    options => options.join(", "),
                };
                write!(f, "servers of {service} were seen to use {options}")
            }
            Self::ProfileWithheld { service, options } => write!(
                f,
                "a server of {service} fell short of what clients were offered; withheld for a \
                 while: {}",
                options.join(", ")
            ),
            Self::KeyRotated { epoch, written } => {
                let keys = if *written == 1 { "key" } else { "keys" };
                write!(f, "epoch {epoch}: {written} {keys} written")
            }
            Self::KeyLate { epoch } => write!(
                f,
                "epoch {epoch} began before its key was in place: SYNs of guarded services may have \
                 passed without a challenge"
            ),
            Self::ClockSet { seconds } => write!(
                f,
                "the wall clock was set by {seconds:+.3} s: cookies of the last seconds may be lost"
            ),
            Self::KernelSettingsChanged => {
                f.write_str("the TCP settings of the kernel have changed")
            }
            Self::Attached {
                interface,
                xdp_mode,
                driver,
                mtu,
            } => write!(
                f,
                "guarding {interface} ({xdp_mode} XDP, driver {}, MTU {mtu})",
                driver.as_deref().unwrap_or("unknown")
            ),
            Self::Detached { interface } => write!(f, "no longer guarding {interface}"),
            Self::FellBackToGeneric {
                interface,
                driver,
                reason,
            } => write!(
                f,
                "driver {} of {interface} refuses native XDP {reason}: using generic XDP, which is \
                 several times slower",
                driver.as_deref().unwrap_or("(unknown)")
            ),
            Self::InterfaceGone { interface } => {
                write!(
                    f,
                    "interface {interface} is gone: it will be guarded again when it returns"
                )
            }
            Self::InterfaceReturned { interface } => {
                write!(f, "interface {interface} is back")
            }
            Self::InterfaceRenamed {
                interface,
                old_name,
            } => write!(f, "interface {old_name} is called {interface} now"),
            Self::LeftGuarded { interface } => write!(
                f,
                "{interface} stays guarded; `synguard detach --now` takes the guard off"
            ),
            Self::DrainBegan { spliced } => write!(
                f,
                "draining: nobody is challenged any more; {spliced} spliced connections are left"
            ),
            Self::DrainEnded { outcome, spliced } => match outcome {
                Drained::Whole => f.write_str("drained"),
                Drained::Cut => write!(
                    f,
                    "drained for long enough: {spliced} spliced connections are cut"
                ),
                Drained::CalledOff => f.write_str("no longer draining"),
            },
            Self::ProgramAdopted {
                interface,
                xdp_mode,
            } => write!(f, "still guarding {interface} ({xdp_mode} XDP)"),
            Self::ProgramSwapped {
                interface,
                xdp_mode,
            } => write!(
                f,
                "programs swapped, still guarding {interface} ({xdp_mode} XDP)"
            ),
            Self::ConfigReloaded { changes } => write!(f, "configuration reloaded: {changes}"),
            Self::ConfigRefused { error } => {
                write!(f, "configuration not reloaded, the old one stays: {error}")
            }
            Self::ModeChanged { service, mode } => {
                let whose = service.as_deref().unwrap_or("every service");
                write!(f, "mode of {whose} is {mode} now")
            }
            Self::ServiceAdded { service } => write!(f, "service {service} is added"),
            Self::ServiceChanged { service } => write!(f, "service {service} is changed"),
            Self::ServiceRemoved { service } => write!(f, "service {service} is removed"),
            Self::TableNearlyFull {
                table,
                entries,
                capacity,
            } => write!(
                f,
                "table {table} is nearly full: {entries} of {capacity} entries"
            ),
            Self::TableHasRoom {
                table,
                entries,
                capacity,
            } => write!(
                f,
                "table {table} has room again: {entries} of {capacity} entries"
            ),
        }
    }
}

fn whole_seconds(seconds: f64) -> Duration {
    Duration::from_secs(seconds.round().max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_that_leads_back_to_it() {
        let labels: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.label()).collect();
        assert_eq!(labels.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.label()));
            assert_eq!(serde_json::from_str::<Kind>(&json).unwrap(), *kind);
            assert!(kind.describe().ends_with('.'), "{kind:?}");
        }
        assert!(serde_json::from_str::<Kind>("\"attack\"").is_err());
    }

    #[test]
    fn service_and_interface_stand_outside_the_details() {
        let time = Timestamp::from_millis(1_800_000_000_123);
        let event = What::AttackEnded {
            service: "web".into(),
            mode: Mode::Adaptive,
            reason: End::Calm,
            duration_seconds: 61.2,
            half_open: 3,
            peak_half_open: 256,
            peak_projected: 9_000,
            low: 128,
            totals: Totals {
                syns: 12,
                challenged: 10,
                admitted: 2,
                dropped: 1,
            },
        }
        .event(7, time);
        let json = serde_json::to_value(&event).unwrap();
        let expected = serde_json::json!({
            "seq": 7, "time": "2027-01-15T08:00:00.123Z", "kind": "attack_ended", "level": "info",
            "service": "web", "interface": null,
            "message": "service web is calm: 3 half-open connections, low watermark 128; the \
                        attack lasted 1m 1s: 12 SYNs, 10 challenged, 2 admitted, 1 packets \
                        dropped, at most 256 half-open (9000 without the guard)",
            "details": {
                "mode": "adaptive", "reason": "calm", "duration_seconds": 61.2, "half_open": 3,
                "peak_half_open": 256, "peak_projected": 9000, "low": 128,
                "syns": 12, "challenged": 10, "admitted": 2, "dropped": 1,
            },
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);

        let event = What::Detached {
            interface: "eth0".into(),
        }
        .event(8, time);
        assert_eq!(event.interface.as_deref(), Some("eth0"));
        assert!(event.details.is_empty() && event.service.is_none());
        assert!(
            What::KernelSettingsChanged
                .event(9, time)
                .details
                .is_empty()
        );
        let all = What::ModeChanged {
            service: None,
            mode: Mode::Observe,
        };
        assert_eq!(all.event(10, time).service, None);
        assert_eq!(all.to_string(), "mode of every service is observe now");
    }

    #[test]
    fn what_others_said_stays_one_line() {
        let refused = What::ConfigRefused {
            error: "two\nlines".into(),
        };
        let event = refused.event(1, Timestamp::from_millis(0));
        assert!(event.message.ends_with("two; lines"), "{}", event.message);
    }
}
