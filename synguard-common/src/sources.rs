//! What the operator says of sources, and how much one of them may ask for.
//!
//! *Lists*: a prefix is allowed (its SYNs pass unasked, as a monitoring host's should) or blocked (its
//! packets for any service are dropped). The longest prefix decides.
//!
//! *Budgets*: how many SYNs one source may send in a second that come to nothing. While a service is
//! calm this limits what one source can leave half-open ([`Runtime::syn_budget`]); while it is guarded,
//! how many SYN-ACKs go to one address, so that nobody can have us shout at a third party whose address
//! he forges ([`Runtime::answer_budget`], RFC 4987 section 4). A handshake that completes gives back what
//! its SYN took, so that a proxy or a gateway with many real clients is not limited.
//!
//! The budgets lie in a table of fixed size, and a packet never enters anything: each slot belongs to the
//! source that asks most of those that share it, as in the majority vote of Boyer and Moore (1981).
//! Another one that comes by votes against it, and takes the slot over when nothing is left. A flood from
//! random sources spreads over all slots, so that one of them keeps the slots of steady senders from
//! reaching their limit by as much as its own share of the flood, [`BUDGET_SLOTS`]th of it.
//!
//! [`Runtime::syn_budget`]: crate::abi::Runtime::syn_budget
//! [`Runtime::answer_budget`]: crate::abi::Runtime::answer_budget

use core::cell::Cell;

use crate::{
    abi::{Address, BUDGET_SLOTS, SOURCE_ALLOWED, SOURCE_BLOCKED, TICKS_PER_SECOND},
    flow::Net,
    tables::Tables,
};

/// What the lists say of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Nothing.
    Not,
    /// Let it pass unasked.
    Allowed,
    /// Drop what it sends.
    Blocked,
}

/// What the lists say of a source. An entry that has expired and is still there says nothing, and hides
/// shorter prefixes for the moment it takes the daemon to remove it.
#[inline(always)]
pub fn listed<N: Net, T: Tables>(tables: &T, net: &N) -> Listed {
    if tables.has_sources() {
        look_up(*tables, net)
    } else {
        Listed::Not
    }
}

/// A function of its own, for the sake of the stack.
#[inline(never)]
fn look_up<N: Net, T: Tables>(tables: T, net: &N) -> Listed {
    let Some(entry) = tables.source(&net.client()) else {
        return Listed::Not;
    };
    if entry.until != 0 && tables.tick().wrapping_sub(entry.until) as i32 >= 0 {
        return Listed::Not;
    }
    match entry.list {
        SOURCE_ALLOWED => Listed::Allowed,
        SOURCE_BLOCKED => Listed::Blocked,
        _ => Listed::Not,
    }
}

/// One slot of the budgets, in a word: a tag of the source, the second, and how many SYNs of that second
/// have come to nothing so far.
#[derive(Clone, Copy)]
struct Account(u64);

impl Account {
    #[inline(always)]
    fn new(tag: u32, second: u16, count: u16) -> Self {
        Self((tag as u64) << 32 | (second as u64) << 16 | count as u64)
    }

    #[inline(always)]
    fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    fn second(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    fn count(self) -> u16 {
        self.0 as u16
    }
}

/// Where the account of a source lies.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    tag: u32,
}

impl Place {
    /// An IPv6 source is its /64, which is what one host has (RFC 7421).
    #[inline(always)]
    fn of<T: Tables>(tables: &T, source: &Address) -> Self {
        let [high, low] = source.words();
        let source = if high == 0 { low } else { high };
        // Keyed, so that nobody outside can tell who shares a slot with whom.
        let hash = (source ^ tables.seed()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = hash ^ (hash >> 32);
        Self {
            slot: hash as u32 & (BUDGET_SLOTS - 1),
            tag: (hash >> 32) as u32,
        }
    }
}

#[inline(always)]
fn second<T: Tables>(tables: &T) -> u16 {
    (tables.tick() / TICKS_PER_SECOND) as u16
}

/// Whether one more SYN of this source is within `limit`, which is charged for it; 0 is no limit.
#[inline(always)]
pub fn charge<T: Tables>(tables: &T, source: &Address, limit: u32) -> bool {
    if limit == 0 {
        return true;
    }
    let place = Place::of(tables, source);
    let Some(slot) = tables.budget(place.slot) else {
        return true;
    };
    let account = Account(slot.get());
    let now = second(tables);
    if account.second() != now {
        slot.set(Account::new(place.tag, now, 1).0);
        return true;
    }
    let count = account.count();
    if account.tag() != place.tag {
        slot.set(match count {
            0 => Account::new(place.tag, now, 1).0,
            _ => Account::new(account.tag(), now, count - 1).0,
        });
        return true;
    }
    if count as u32 >= limit {
        return false;
    }
    slot.set(Account::new(place.tag, now, count + 1).0);
    true
}

/// Gives back what a SYN of this source took: its handshake has completed.
#[inline(always)]
pub fn refund<T: Tables>(tables: &T, source: &Address) {
    if tables.answer_budget() == 0 && tables.syn_budget() == 0 {
        return;
    }
    let place = Place::of(tables, source);
    let Some(slot) = tables.budget(place.slot) else {
        return;
    };
    let account = Account(slot.get());
    if account.tag() == place.tag && account.count() != 0 {
        slot.set(Account::new(place.tag, account.second(), account.count() - 1).0);
    }
}

/// A slot as the kernel's map has it: read and written whole.
pub type Slot = Cell<u64>;
