//! SYNs of a guarded service that pass without a challenge, because the kernel has no key.

use crate::journal::{Journal, What};

/// How long none must have passed before it is over, ns.
const QUIET: u64 = 10_000_000_000;

/// What is known of one service.
#[derive(Clone, Debug, Default)]
pub struct Keyless {
    counted: Option<u64>,
    present: Option<Present>,
}

#[derive(Clone, Debug)]
struct Present {
    before: u64,
    last: u64,
}

impl Keyless {
    /// Takes note of how many have passed since ever, at a moment in monotonic ns.
    pub fn observe(&mut self, now: u64, service: &str, counted: u64, journal: &Journal) {
        let before = self.counted.replace(counted).unwrap_or(counted);
        let service = service.to_owned();
        match &mut self.present {
            Some(present) if counted > before => present.last = now,
            Some(present) if now.saturating_sub(present.last) >= QUIET => {
                let passed = counted.saturating_sub(present.before);
                self.present = None;
                journal.note(What::FailingOpenEnded { service, passed });
            }
            None if counted > before => {
                self.present = Some(Present { before, last: now });
                journal.note(What::FailingOpen { service });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Query;

    #[test]
    fn it_is_told_once_and_over_when_none_has_passed_for_a_while() {
        let journal = Journal::in_memory();
        let mut keyless = Keyless::default();
        let mut observe = |second: u64, counted| {
            keyless.observe(second * 1_000_000_000, "web", counted, &journal);
            journal.select(&Query::default()).len()
        };
        // What an earlier daemon left in the counters is no news.
        assert_eq!(observe(0, 5), 0);
        assert_eq!(observe(1, 7), 1);
        assert_eq!(observe(2, 9), 1);
        assert_eq!(observe(9, 10), 1);
        assert_eq!(observe(18, 10), 1);
        assert_eq!(observe(19, 10), 2);
        let events = journal.select(&Query::default());
        assert_eq!(events[0].kind, "failing_open");
        assert_eq!(events[1].kind, "failing_open_ended");
        assert_eq!(events[1].details["passed"], 5);
        assert_eq!(observe(20, 11), 3);
    }
}
