//! The newest events, in memory.

use std::{collections::VecDeque, sync::Arc};

use super::{Event, Kind, Timestamp};

/// Events kept. Those of the file are as many, more or less.
pub(super) const CAPACITY: usize = 4096;
/// Routine events kept.
const ROUTINE: usize = 64;

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// With a greater number than this. A number that no event has had yet belongs to another
    /// journal, one that was not kept: then all are greater.
    pub after: Option<u64>,
    /// Not before this moment.
    pub since: Option<Timestamp>,
    /// Of this kind; it may be a routine one.
    pub kind: Option<Kind>,
    /// About this service.
    pub service: Option<String>,
    /// Routine ones too.
    pub routine: bool,
    /// At most so many, the newest.
    pub limit: Option<usize>,
}

impl Query {
    fn takes(&self, event: &Event) -> bool {
        let by_kind = match self.kind {
            Some(kind) => event.kind == kind.label(),
            None => self.routine || !event.is_routine(),
        };
        by_kind
            && self.after.is_none_or(|after| event.seq > after)
            && self.since.is_none_or(|since| event.time >= since)
            && (self.service.is_none() || self.service == event.service)
    }
}

/// The newest events, routine ones apart.
#[derive(Debug, Default)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    routine: VecDeque<Arc<Event>>,
    last: u64,
}

impl Ring {
    /// The last number that is taken; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Gives nobody the next `numbers`.
    pub(super) fn skip(&mut self, numbers: u64) {
        self.last = self.last.saturating_add(numbers);
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.last = self.last.max(event.seq);
        let (ring, capacity) = if event.is_routine() {
            (&mut self.routine, ROUTINE)
        } else {
            (&mut self.events, CAPACITY)
        };
        if ring.len() == capacity {
            ring.pop_front();
        }
        ring.push_back(event);
    }

    /// What is asked for, oldest first.
    pub(super) fn select(&self, query: &Query) -> Vec<Arc<Event>> {
        let query = Query {
            after: query.after.filter(|after| *after <= self.last),
            ..query.clone()
        };
        let taken = |ring: &VecDeque<Arc<Event>>| -> Vec<_> {
            ring.iter()
                .filter(|event| query.takes(event))
                .cloned()
                .collect()
        };
        let mut events = taken(&self.events);
        events.extend(taken(&self.routine));
        events.sort_by_key(|event| event.seq);
        let skipped = events.len() - query.limit.unwrap_or(usize::MAX).min(events.len());
        events.split_off(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::What;

    fn service(seq: u64, name: &str) -> Arc<Event> {
        let what = What::ServiceAdded {
            service: name.into(),
        };
        Arc::new(what.event(seq, Timestamp::from_millis(seq * 1000)))
    }

    fn key(seq: u64) -> Arc<Event> {
        let what = What::KeyRotated {
            epoch: seq,
            written: 1,
        };
        Arc::new(what.event(seq, Timestamp::from_millis(seq * 1000)))
    }

    fn numbers(ring: &Ring, query: Query) -> Vec<u64> {
        let events = ring.select(&query);
        events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn what_is_asked_for_comes_in_order() {
        let mut ring = Ring::default();
        for event in [
            service(1, "web"),
            key(2),
            service(3, "mail"),
            service(4, "web"),
        ] {
            ring.push(event);
        }
        let all = Query::default();
        assert_eq!(numbers(&ring, all.clone()), [1, 3, 4]);
        let routine = Query {
            routine: true,
            ..all.clone()
        };
        assert_eq!(numbers(&ring, routine.clone()), [1, 2, 3, 4]);
        let newest = Query {
            limit: Some(2),
            ..routine
        };
        assert_eq!(numbers(&ring, newest), [3, 4]);
        let web = Query {
            service: Some("web".into()),
            ..all.clone()
        };
        assert_eq!(numbers(&ring, web), [1, 4]);
        let keys = Query {
            kind: Some(Kind::KeyRotated),
            ..all.clone()
        };
        assert_eq!(numbers(&ring, keys), [2]);
        let since = Query {
            since: Some(Timestamp::from_millis(3000)),
            ..all.clone()
        };
        assert_eq!(numbers(&ring, since), [3, 4]);
        for (after, expected) in [(3, &[4][..]), (4, &[]), (5, &[1, 3, 4])] {
            let query = Query {
                after: Some(after),
                ..all.clone()
            };
            assert_eq!(numbers(&ring, query), expected, "after {after}");
        }
    }

    #[test]
    fn the_oldest_go_and_routine_pushes_out_nothing_else() {
        let mut ring = Ring::default();
        let capacity = CAPACITY as u64;
        for seq in 1..=capacity + 10 {
            ring.push(service(seq, "web"));
        }
        for seq in capacity + 11..capacity + 200 {
            ring.push(key(seq));
        }
        let events = numbers(&ring, Query::default());
        assert_eq!((events[0], events.len()), (11, CAPACITY));
        let keys = Query {
            kind: Some(Kind::KeyRotated),
            ..Query::default()
        };
        assert_eq!(numbers(&ring, keys).len(), ROUTINE);
        assert_eq!(ring.last(), capacity + 199);
    }
}
