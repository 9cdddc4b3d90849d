//! Service numbers: a service keeps its number, and so its counters, for as long as its name is
//! configured. A number that is free again goes to another service only after the half-open
//! table holds no entry with it any more and its counters are zero.

use std::collections::BTreeMap;

use crate::dataplane::load::SERVICE_SLOTS;

/// Numbers there are; 0 is no service's.
const LAST: u16 = (SERVICE_SLOTS - 1) as u16;

/// Who has which number.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    by_name: BTreeMap<String, u16>,
    /// Free numbers that may be given away.
    clean: Vec<u16>,
    /// Numbers given up, with the number of sweeps completed at that time.
    used: Vec<(u16, u64)>,
    highest: u16,
}

/// More services than numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there are more than {LAST} services, some of them just removed: configure fewer, or wait a few seconds"
)]
pub struct Exhausted;

impl Numbers {
    /// Goes on with the numbers of an earlier daemon. Those that nobody has may be unclean.
    pub fn adopt(names: Vec<(String, u16)>) -> Self {
        let by_name: BTreeMap<String, u16> = names.into_iter().collect();
        let highest = by_name.values().copied().max().unwrap_or(0);
        let has: std::collections::BTreeSet<u16> = by_name.values().copied().collect();
        Self {
            used: (1..highest)
                .filter(|number| !has.contains(number))
                .map(|number| (number, 0))
                .collect(),
            by_name,
            clean: Vec::new(),
            highest,
        }
    }

    /// Who has which number.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.by_name
            .iter()
            .map(|(name, number)| (name.as_str(), *number))
    }

    /// The numbers that hold once exactly these names are configured.
    pub fn assign<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        sweeps: u64,
    ) -> Result<Self, Exhausted> {
        let mut next = Self {
            by_name: BTreeMap::new(),
            ..self.clone()
        };
        let mut new = Vec::new();
        for name in names {
            match self.by_name.get(name) {
                Some(number) => {
                    next.by_name.insert(name.to_owned(), *number);
                }
                None => new.push(name.to_owned()),
            }
        }
        for (name, number) in &self.by_name {
            if !next.by_name.contains_key(name) {
                next.used.push((*number, sweeps));
            }
        }
        for name in new {
            let number = next.take().ok_or(Exhausted)?;
            next.by_name.insert(name, number);
        }
        Ok(next)
    }

    fn take(&mut self) -> Option<u16> {
        if let Some(number) = self.clean.pop() {
            return Some(number);
        }
        self.highest = self
            .highest
            .checked_add(1)
            .filter(|number| *number <= LAST)?;
        Some(self.highest)
    }

    /// The number of a service.
    pub fn get(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// Numbers whose entries two whole sweeps have removed since they were given up. Zero their
    /// counters; from now on they may be given away.
    pub fn reclaim(&mut self, sweeps: u64) -> Vec<u16> {
        // The sweep under way at that time may have begun before.
        let (ready, waiting) = self.used.drain(..).partition(|(_, at)| sweeps >= at + 2);
        self.used = waiting;
        let ready: Vec<(u16, u64)> = ready;
        let ready: Vec<u16> = ready.into_iter().map(|(number, _)| number).collect();
        self.clean.extend(&ready);
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(numbers: &Numbers, names: &[&str], sweeps: u64) -> Numbers {
        numbers.assign(names.iter().copied(), sweeps).unwrap()
    }

    #[test]
    fn a_name_keeps_its_number_and_a_free_number_rests_for_two_sweeps() {
        let first = assign(&Numbers::default(), &["a", "b", "c"], 0);
        assert_eq!(
            [first.get("a"), first.get("b"), first.get("c")],
            [Some(1), Some(2), Some(3)]
        );
        let mut second = assign(&first, &["c", "d", "a"], 10);
        assert_eq!(
            [second.get("a"), second.get("c"), second.get("d")],
            [Some(1), Some(3), Some(4)]
        );
        assert_eq!(second.get("b"), None);
        assert!(second.reclaim(11).is_empty());
        assert_eq!(second.reclaim(12), [2]);
        assert!(second.reclaim(13).is_empty());
        let third = assign(&second, &["c", "d", "a", "e", "f"], 14);
        assert_eq!([third.get("e"), third.get("f")], [Some(2), Some(5)]);
    }

    #[test]
    fn numbers_outlive_the_daemon() {
        let adopted = Numbers::adopt(vec![("a".into(), 1), ("c".into(), 3)]);
        let mut next = assign(&adopted, &["c", "d"], 0);
        assert_eq!((next.get("c"), next.get("d")), (Some(3), Some(4)));
        // Nobody knows what 2 was, and `a` is gone.
        assert_eq!(next.reclaim(2), [2, 1]);
        assert_eq!(
            assign(&Numbers::adopt(Vec::new()), &["x"], 0).get("x"),
            Some(1)
        );
    }

    #[test]
    fn there_is_an_end() {
        let names: Vec<String> = (0..1024).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(
            assign(&Numbers::default(), &names[..1023], 0).get("1022"),
            Some(1023)
        );
        assert_eq!(
            Numbers::default().assign(names.into_iter(), 0).unwrap_err(),
            Exhausted
        );
    }
}
