//! Which of the kernel's tables are nearly full.

use std::collections::BTreeSet;

use crate::{
    journal::{Journal, What},
    model::MapFill,
};

/// Percent below which a table has room again.
const HAS_ROOM: u64 = 70;

/// Tables that are nearly full.
#[derive(Debug, Default)]
pub struct Room(BTreeSet<String>);

impl Room {
    /// Says what has changed.
    pub fn observe(&mut self, tables: &[MapFill], journal: &Journal) {
        for fill in tables {
            let (table, entries, capacity) = (fill.name.clone(), fill.entries, fill.capacity);
            if fill.is_nearly_full() && self.0.insert(table.clone()) {
                journal.note(What::TableNearlyFull {
                    table,
                    entries,
                    capacity,
                });
            } else if fill.percent() < HAS_ROOM && self.0.remove(&table) {
                journal.note(What::TableHasRoom {
                    table,
                    entries,
                    capacity,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Query;

    #[test]
    fn a_table_is_told_of_once_each_way() {
        let journal = Journal::in_memory();
        let mut room = Room::default();
        for entries in [0, 79, 80, 99, 100, 75, 80, 70, 69, 75, 0] {
            let fill = |name: &str, entries, capacity| MapFill {
                name: name.into(),
                entries,
                capacity,
            };
            room.observe(
                &[fill("FLOWS", entries, 100), fill("EMPTY", 0, 0)],
                &journal,
            );
        }
        let events = journal.select(&Query::default());
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.kind.as_str(), event.details["entries"].as_u64()))
            .collect();
        assert_eq!(
            told,
            [
                ("table_nearly_full", Some(80)),
                ("table_has_room", Some(69))
            ]
        );
    }
}
