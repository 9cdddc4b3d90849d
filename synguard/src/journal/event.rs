//! An event as it is kept, sent and shown.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Timestamp, What};

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

/// An event as it is kept, sent and shown. What a later version tells of it is no obstacle to
/// reading it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: greater than that of any event before.
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

impl What {
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
            message: crate::one_line(&self.sentence()),
            details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{End, Totals},
        model::Mode,
    };

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
