//! The half-open connections that one defence sees. Each defence has a world of its own, because what it
//! does decides what happens next.

use std::collections::VecDeque;

use super::traffic::{ATTEMPTS, Arrival, Fate};

/// Length of a slot of the wheel, µs: departures are that exact, arrivals to the µs.
const SLOT: u64 = 10_000;
/// Slots of the wheel; nothing lies further ahead.
const SLOTS: u64 = 1 << 13;

/// What happens in a slot, how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    completed: u32,
    reset: u32,
    challenged: u32,
    admitted: u32,
}

/// How a connection leaves.
enum Kind {
    Completed,
    Reset,
}

/// Counters, since the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// SYNs that passed and became half-open.
    pub started: u64,
    /// Handshakes of those that were completed.
    pub completed: u64,
    /// Refused, by either side.
    pub reset: u64,
    /// SYNs that were answered with a cookie.
    pub challenged: u64,
    /// Clients that came back with theirs.
    pub admitted: u64,
}

/// The half-open connections.
pub struct World {
    /// How many there are.
    pub half_open: u64,
    /// What happened so far.
    pub counts: Counts,
    wheel: Vec<Slot>,
    /// A bit for each slot in which anything happens.
    busy: Vec<u64>,
    /// Slots in which connections expire: rising, as each has as long as the one before, or longer.
    expiring: VecDeque<u64>,
    /// The first slot that has not happened yet.
    next: u64,
}

impl World {
    /// Without any.
    pub fn new() -> Self {
        Self {
            half_open: 0,
            counts: Counts::default(),
            wheel: vec![Slot::default(); SLOTS as usize],
            busy: vec![0; SLOTS as usize / 64],
            expiring: VecDeque::new(),
            next: 0,
        }
    }

    /// Has everything happen that does before `now` (µs).
    pub fn advance(&mut self, now: u64) {
        let end = now / SLOT;
        while self.next < end {
            let index = self.next % SLOTS;
            let word = &mut self.busy[(index / 64) as usize];
            let ahead = (*word >> (index % 64)).trailing_zeros();
            if ahead > 0 {
                // To the next one, but not beyond this word.
                let left = 64 - index % 64;
                self.next = end.min(self.next + u64::from(ahead).min(left));
                continue;
            }
            *word &= !(1 << (index % 64));
            let slot = std::mem::take(&mut self.wheel[index as usize]);
            self.half_open -= u64::from(slot.completed) + u64::from(slot.reset);
            self.counts.completed += u64::from(slot.completed);
            self.counts.reset += u64::from(slot.reset);
            self.counts.challenged += u64::from(slot.challenged);
            self.counts.admitted += u64::from(slot.admitted);
            self.next += 1;
        }
        while self.expiring.front().is_some_and(|slot| *slot < end) {
            self.give_up_oldest();
        }
    }

    /// A SYN passes and is half-open, for `lifetime` ms at most.
    pub fn pass(&mut self, arrival: &Arrival, lifetime: u32) {
        self.half_open += 1;
        self.counts.started += 1;
        let (after, kind) = match arrival.fate {
            Fate::Answers { rtt, attempt } => {
                (ATTEMPTS[usize::from(attempt)] + rtt, Kind::Completed)
            }
            Fate::Resets(after) => (after, Kind::Reset),
            Fate::Vanishes => (u32::MAX, Kind::Reset),
        };
        if after >= lifetime {
            let slot = (arrival.at + u64::from(lifetime) * 1000) / SLOT;
            return self.expiring.push_back(slot);
        }
        let slot = self.at(arrival.at, after);
        match kind {
            Kind::Completed => slot.completed += 1,
            Kind::Reset => slot.reset += 1,
        }
    }

    /// A SYN is answered with a cookie, and again as often as its client sends it anew.
    pub fn challenge(&mut self, arrival: &Arrival) {
        self.counts.challenged += 1;
        if let Fate::Answers { rtt, attempt } = arrival.fate {
            let attempt = usize::from(attempt);
            for again in &ATTEMPTS[1..=attempt] {
                self.at(arrival.at, *again).challenged += 1;
            }
            self.at(arrival.at, ATTEMPTS[attempt] + rtt).admitted += 1;
        }
    }

    /// The connection that would expire next is given up now, if there is one.
    pub fn give_up_oldest(&mut self) {
        if self.expiring.pop_front().is_some() {
            self.half_open -= 1;
        }
    }

    /// Connections expire by so much (ms) earlier, some of them now.
    pub fn hasten(&mut self, by: u32) {
        let by = u64::from(by) * 1000 / SLOT;
        for slot in &mut self.expiring {
            *slot = slot.saturating_sub(by);
        }
        while self.expiring.front().is_some_and(|slot| *slot < self.next) {
            self.give_up_oldest();
        }
    }

    fn at(&mut self, from: u64, after: u32) -> &mut Slot {
        let slot = (from + u64::from(after) * 1000) / SLOT;
        let slot = slot.clamp(self.next, self.next + SLOTS - 1);
        self.slot(slot)
    }

    fn slot(&mut self, slot: u64) -> &mut Slot {
        let index = slot % SLOTS;
        self.busy[(index / 64) as usize] |= 1 << (index % 64);
        &mut self.wheel[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const LIFETIME: u32 = 64_000;

    fn arrival(at: u64, fate: Fate) -> Arrival {
        Arrival { at, fate }
    }

    #[test]
    fn everybody_leaves_in_their_time() {
        let mut world = World::new();
        let answers = |attempt| Fate::Answers { rtt: 100, attempt };
        for fate in [answers(0), answers(2), Fate::Resets(50), Fate::Vanishes] {
            world.pass(&arrival(0, fate), LIFETIME);
        }
        let mut left = Vec::new();
        for at in [
            40_000, 90_000, 150_000, 3_000_000, 3_200_000, 63_990_000, 64_020_000,
        ] {
            world.advance(at);
            left.push(world.half_open);
        }
        assert_eq!(left, [4, 3, 2, 2, 1, 1, 0]);
        let Counts {
            started,
            completed,
            reset,
            ..
        } = world.counts;
        assert_eq!((started, completed, reset), (4, 2, 1));
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let mut world = World::new();
        let fate = Fate::Answers {
            rtt: 100,
            attempt: 2,
        };
        world.challenge(&arrival(0, fate));
        world.challenge(&arrival(0, Fate::Vanishes));
        world.advance(2 * SECOND);
        assert_eq!((world.counts.challenged, world.counts.admitted), (3, 0));
        world.advance(4 * SECOND);
        assert_eq!((world.counts.challenged, world.counts.admitted), (4, 1));
        assert_eq!(world.half_open, 0);
    }

    #[test]
    fn the_oldest_goes_first_and_time_can_be_cut_short() {
        let mut world = World::new();
        for second in 0..10 {
            world.advance(second * SECOND);
            world.pass(&arrival(second * SECOND, Fate::Vanishes), 30_000);
        }
        world.give_up_oldest();
        assert_eq!(world.half_open, 9);
        world.advance(20 * SECOND);
        // Of ages 11 to 19 s, those of more than 15 go.
        world.hasten(15_000);
        assert_eq!(world.half_open, 5);
        world.advance(24 * SECOND + SLOT);
        assert_eq!(world.half_open, 0);
    }
}
