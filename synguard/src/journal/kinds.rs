//! What can happen: the one list. Each entry has what is told of a kind, its name, how much it
//! matters, its details, and the sentence that they make.
//!
//! `rustfmt` does not look into the list: lines end at 100 columns by hand.

use clap::{ValueEnum, builder::PossibleValue};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    details::{Drained, End, Totals, lasted},
    event::Level,
    time::Timestamp,
};
use crate::{
    human,
    lists::{Counts, List, Prefix},
    model::Mode,
};

macro_rules! kinds {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident = $label:literal, $level:ident $({
            $($(#[$attribute:meta])* $field:ident: $type:ty,)+
        })? => $sentence:expr;
    )+) => {
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

        /// What happened. The fields are the event's details, except for `service` and `interface`,
        /// which every event may have.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        #[allow(missing_docs, reason = "what a field is stands in the sentence it is part of")]
        pub enum What {
            $($(#[doc = $doc])+ $name $({ $($(#[$attribute])* $field: $type,)+ })?,)+
        }

        impl What {
            /// Its kind.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$name { .. } => Kind::$name,)+ }
            }

            /// It for people.
            #[allow(unused_variables, reason = "some details are for programs only")]
            pub fn sentence(&self) -> String {
                match self { $(Self::$name $({ $($field),+ })? => $sentence,)+ }
            }
        }
    };
}

kinds! {
    /// The daemon is ready.
    DaemonStarted = "daemon_started", Info {
        version: String,
        interfaces: Vec<String>,
    } => format!("ready: synguard {version} guards {}", interfaces.join(", "));

    /// The daemon has ended.
    DaemonStopped = "daemon_stopped", Info {
        signal: String,
    } => format!("stopped by {signal}");

    /// Tables of another version are in use: nobody is challenged until its spliced connections have
    /// ended.
    VersionDrainBegan = "version_drain_began", Warn {
        abi: u32,
        patience_seconds: u64,
    } => format!(
        "the tables of another version (ABI {abi}) are in use: challenging nobody for up to \
         {patience_seconds} s, until its spliced connections have ended"
    );

    /// The tables of another version are gone.
    VersionDrainEnded = "version_drain_ended", Info {
        abi: u32,
        cut: u64,
    } => match cut {
        0 => format!("the tables of the other version (ABI {abi}) are gone; nobody was cut"),
        cut => format!(
            "the tables of the other version (ABI {abi}) are gone: {cut} spliced connections are cut"
        ),
    };

    /// A service became guarded.
    AttackBegan = "attack_began", Warn {
        service: String,
        mode: Mode,
        half_open: u64,
        high: u32,
        /// The counters before: a daemon that takes over goes on from there.
        counted_before: Totals,
    } => {
        let is = match mode {
            Mode::Observe => "would be guarded now (mode observe)",
            Mode::Adaptive | Mode::Always => "is guarded",
        };
        format!("service {service} {is}: {half_open} half-open connections, high watermark {high}")
    };

    /// A service that was guarded is so no more.
    AttackEnded = "attack_ended", Info {
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
    } => {
        let end = match reason {
            End::Calm => format!(
                "is calm: {half_open} half-open connections, low watermark {low}"
            ),
            End::ModeChanged => "has another mode".to_owned(),
            End::AdmissionLost => "cannot be guarded".to_owned(),
            End::ServiceRemoved => "is removed".to_owned(),
            End::DaemonStopped => "is left as the daemon stops".to_owned(),
        };
        format!(
            "service {service} {end}; the attack lasted {}: {totals}, at most {peak_half_open} \
             half-open ({peak_projected} without the guard)",
            lasted(*duration_seconds)
        )
    };

    /// A service is calm again without an attack: it had been in mode always.
    Calm = "calm", Info {
        service: String,
        half_open: u64,
        low: u32,
    } => format!(
        "service {service} is calm: {half_open} half-open connections, low watermark {low}"
    );

    /// The watermarks of a service are others now.
    ThresholdChanged = "threshold_changed", Info {
        service: String,
        high: u32,
        low: u32,
        old_high: u32,
        old_low: u32,
        reason: String,
    } => format!(
        "watermarks of {service}: high {high}, low {low}, were {old_high} and {old_low} ({reason})"
    );

    /// What a valid ACK becomes is something else now.
    AdmissionChanged = "admission_changed", Info {
        service: String,
        admission: String,
        reason: String,
    } => format!("admission of {service}: {admission} ({reason})");

    /// A service cannot be guarded: its SYNs pass.
    AdmissionLost = "admission_lost", Warn {
        service: String,
        reason: String,
    } => format!("service {service} is watched but cannot be guarded: {reason}");

    /// A service can be guarded again.
    AdmissionRegained = "admission_regained", Info {
        service: String,
        admission: String,
        reason: String,
    } => format!("service {service} can be guarded again: admission {admission} ({reason})");

    /// SYNs of a guarded service pass without a challenge, for want of a key.
    FailingOpen = "failing_open", Error {
        service: String,
    } => format!(
        "SYNs of {service} pass without a challenge: the kernel has no key for the present epoch"
    );

    /// They are challenged again.
    FailingOpenEnded = "failing_open_ended", Info {
        service: String,
        passed: u64,
    } => format!("SYNs of {service} are challenged again; {passed} have passed without");

    /// A port of a service must be left alone.
    PortLeftOut = "port_left_out", Warn {
        service: String,
        why: String,
    } => format!("service {service} must leave out {why}");

    /// The options of a service's servers were learned, or are others than were known.
    ProfileLearned = "profile_learned", Info {
        service: String,
        timestamps: bool,
        sack: bool,
        window_scale: Option<u8>,
        ecn: bool,
        mss: Option<u16>,
    } => format!(
        "servers of {service} were seen to use {}",
        human::options(*timestamps, *sack, *ecn, *window_scale, *mss)
    );

    /// Options are not offered for a while, because a server fell short of them.
    ProfileWithheld = "profile_withheld", Warn {
        service: String,
        options: Vec<String>,
    } => format!(
        "a server of {service} fell short of what clients were offered; withheld for a while: {}",
        options.join(", ")
    );

    /// Cookie keys were written: routine, every epoch.
    KeyRotated = "key_rotated", Debug {
        epoch: u64,
        written: usize,
    } => {
        let keys = if *written == 1 { "key" } else { "keys" };
        format!("epoch {epoch}: {written} {keys} written")
    };

    /// An epoch began before its key was in place.
    KeyLate = "key_late", Error {
        epoch: u64,
    } => format!(
        "epoch {epoch} began before its key was in place: SYNs of guarded services may have passed \
         without a challenge"
    );

    /// The wall clock was set.
    ClockSet = "clock_set", Warn {
        seconds: f64,
    } => format!(
        "the wall clock was set by {seconds:+.3} s: cookies of the last seconds may be lost"
    );

    /// The TCP settings of the kernel are others now.
    KernelSettingsChanged = "kernel_settings_changed", Info =>
        "the TCP settings of the kernel have changed".to_owned();

    /// An interface is guarded.
    Attached = "attached", Info {
        interface: String,
        xdp_mode: String,
        driver: Option<String>,
        mtu: u32,
    } => format!(
        "guarding {interface} ({xdp_mode} XDP, driver {}, MTU {mtu})",
        driver.as_deref().unwrap_or("unknown")
    );

    /// An interface is guarded no more, as was asked for.
    Detached = "detached", Info {
        interface: String,
    } => format!("no longer guarding {interface}");

    /// A driver refused native XDP.
    FellBackToGeneric = "fell_back_to_generic", Warn {
        interface: String,
        driver: Option<String>,
        reason: String,
    } => format!(
        "driver {} of {interface} refuses native XDP {reason}: using generic XDP, which is several \
         times slower",
        driver.as_deref().unwrap_or("(unknown)")
    );

    /// An interface stays guarded while no daemon runs.
    LeftGuarded = "left_guarded", Info {
        interface: String,
    } => format!("{interface} stays guarded; `synguard detach --now` takes the guard off");

    /// A guarded interface is gone.
    InterfaceGone = "interface_gone", Error {
        interface: String,
    } => format!("interface {interface} is gone: it will be guarded again when it returns");

    /// A guarded interface that was gone is back.
    InterfaceReturned = "interface_returned", Info {
        interface: String,
    } => format!("interface {interface} is back");

    /// A guarded interface has another name.
    InterfaceRenamed = "interface_renamed", Info {
        interface: String,
        old_name: String,
    } => format!("interface {old_name} is called {interface} now");

    /// A drain began: nobody is challenged any more, and spliced connections are waited for.
    DrainBegan = "drain_began", Info {
        spliced: u64,
    } => format!(
        "draining: nobody is challenged any more; {spliced} spliced connections are left"
    );

    /// A drain is over.
    DrainEnded = "drain_ended", Info {
        outcome: Drained,
        spliced: u64,
    } => match outcome {
        Drained::Whole => "drained".to_owned(),
        Drained::Cut => format!(
            "drained for long enough: {spliced} spliced connections are cut"
        ),
        Drained::CalledOff => "no longer draining".to_owned(),
    };

    /// What an earlier daemon left on an interface was taken over.
    ProgramAdopted = "program_adopted", Info {
        interface: String,
        xdp_mode: String,
    } => format!("still guarding {interface} ({xdp_mode} XDP)");

    /// The program on an interface was replaced by another.
    ProgramSwapped = "program_swapped", Info {
        interface: String,
        xdp_mode: String,
    } => format!("programs swapped, still guarding {interface} ({xdp_mode} XDP)");

    /// Somebody else took a program off an interface; it is attached anew.
    ProgramSevered = "program_severed", Error {
        interface: String,
    } => format!(
        "somebody has taken a program of synguard off {interface}: attaching anew"
    );

    /// The configuration was applied again.
    ConfigReloaded = "config_reloaded", Info {
        changes: String,
    } => format!("configuration reloaded: {changes}");

    /// A configuration was refused: the old one holds.
    ConfigRefused = "config_refused", Warn {
        error: String,
    } => format!("configuration not reloaded, the old one stays: {error}");

    /// A mode was changed by command.
    ModeChanged = "mode_changed", Info {
        /// None for all of them.
        service: Option<String>,
        mode: Mode,
    } => {
        let whose = service.as_deref().unwrap_or("every service");
        format!("mode of {whose} is {mode} now")
    };

    /// A service is new.
    ServiceAdded = "service_added", Info {
        service: String,
    } => format!("service {service} is added");

    /// A service is configured otherwise than before.
    ServiceChanged = "service_changed", Info {
        service: String,
    } => format!("service {service} is changed");

    /// A service is no more.
    ServiceRemoved = "service_removed", Info {
        service: String,
    } => format!("service {service} is removed");

    /// Sources were allowed or blocked, or are so no more.
    SourcesChanged = "sources_changed", Info {
        /// `command`, or `configuration`.
        by: String,
        added: usize,
        removed: usize,
        /// None where both lists may have changed.
        list: Option<List>,
        /// The first of them, where a command said which.
        prefix: Option<Prefix>,
        until: Option<Timestamp>,
        comment: Option<String>,
        #[serde(flatten)]
        now: Counts,
    } => {
        let lists = list.map_or_else(|| "lists of sources".to_owned(), |list| format!("{list} list"));
        let first = prefix.map_or_else(String::new, |prefix| format!(", {prefix}"));
        let more = if added.max(removed) > &1 && prefix.is_some() { " and others" } else { "" };
        let until = until.map_or_else(String::new, |until| format!(" until {until}"));
        let comment = comment.as_ref().map_or_else(String::new, |text| format!(" ({text})"));
        format!(
            "{lists} changed by {by}: {added} added, {removed} removed{first}{more}{until}{comment}; {} \
             allowed, {} blocked now",
            now.allowed,
            now.blocked
        )
    };

    /// The time of sources that were allowed or blocked is over.
    SourcesExpired = "sources_expired", Info {
        allowed: u64,
        blocked: u64,
    } => format!("no longer listed, as their time is over: {allowed} allowed, {blocked} blocked prefixes");

    /// A table of the kernel is nearly full.
    TableNearlyFull = "table_nearly_full", Warn {
        table: String,
        entries: u64,
        capacity: u64,
    } => format!("table {table} is nearly full: {entries} of {capacity} entries");

    /// It has room again.
    TableHasRoom = "table_has_room", Info {
        table: String,
        entries: u64,
        capacity: u64,
    } => format!("table {table} has room again: {entries} of {capacity} entries");

    /// A table that is in use keeps the size it has, though the configuration says another.
    TableKeepsSize = "table_keeps_size", Warn {
        table: String,
        capacity: u64,
        configured: u64,
    } => format!(
        "table {table} keeps its {capacity} entries while it is in use, though {configured} are \
         configured: `synguard detach --drain` and a restart change it"
    );
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
    fn sentences_say_what_the_details_say() {
        let profile = |timestamps, window_scale, mss| What::ProfileLearned {
            service: "web".into(),
            timestamps,
            sack: timestamps,
            window_scale,
            ecn: false,
            mss,
        };
        let ended = |cut| What::VersionDrainEnded { abi: 7, cut };
        for (what, sentence) in [
            (
                profile(true, Some(7), Some(1400)),
                "servers of web were seen to use timestamps, SACK, window scale 7, MSS 1400",
            ),
            (
                profile(false, None, None),
                "servers of web were seen to use no options",
            ),
            (
                What::ProfileWithheld {
                    service: "web".into(),
                    options: vec!["sack".into(), "timestamps".into()],
                },
                "a server of web fell short of what clients were offered; withheld for a while: \
                 sack, timestamps",
            ),
            (
                ended(0),
                "the tables of the other version (ABI 7) are gone; nobody was cut",
            ),
            (
                ended(3),
                "the tables of the other version (ABI 7) are gone: 3 spliced connections are cut",
            ),
            (
                What::ModeChanged {
                    service: None,
                    mode: Mode::Observe,
                },
                "mode of every service is observe now",
            ),
        ] {
            assert_eq!(what.sentence(), sentence);
        }
    }
}
