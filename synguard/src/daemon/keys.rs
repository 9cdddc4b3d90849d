//! Cookie keys: derived from the master secret for every epoch, and kept in the kernel ahead of
//! time.
//!
//! `root = BLAKE3-derive-key(context, secret)`, and the key of epoch *e* is the first 16 bytes of
//! `BLAKE3-keyed(root, e as 8 bytes, little-endian)`, read as two little-endian words. Boxes with
//! the same secret have the same keys without talking to each other.

use aya::maps::{Array, MapData, MapError};
use synguard_common::{
    abi::{EpochKey, KEY_SLOTS},
    clock::EPOCH_NS,
};

use super::{clock, secret::Secret};
use crate::{dataplane::wire::Wire, model::KeyStatus};

/// Part of the definition of the keys: a fleet must agree on it.
const CONTEXT: &str = "synguard 2026 cookie key v1";

/// Epochs ahead of the present one that have their key in place: a daemon that dies leaves the
/// box able to challenge for at least this many epochs.
const AHEAD: u64 = 2;

const _: () = assert!(AHEAD + 2 <= KEY_SLOTS as u64);

/// Derives keys.
pub struct Deriver {
    root: [u8; 32],
}

impl Deriver {
    /// For this secret.
    pub fn new(secret: &Secret) -> Self {
        Self {
            root: blake3::derive_key(CONTEXT, secret.bytes()),
        }
    }

    /// The key of `epoch`.
    pub fn key(&self, epoch: u64) -> EpochKey {
        let hash = blake3::keyed_hash(&self.root, &epoch.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        let key = u128::from_le_bytes(bytes);
        EpochKey {
            epoch,
            k0: key as u64,
            k1: (key >> 64) as u64,
        }
    }
}

/// What a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Keys written.
    pub written: usize,
    /// Whether that of the present epoch was one of them.
    pub late: bool,
}

/// The key ring in the kernel.
pub struct KeyRing {
    deriver: Deriver,
    written: [Option<u64>; KEY_SLOTS as usize],
    epoch: u64,
    last_rotation: u64,
}

impl KeyRing {
    /// An empty ring.
    pub fn new(secret: &Secret) -> Self {
        Self {
            deriver: Deriver::new(secret),
            written: [None; KEY_SLOTS as usize],
            epoch: 0,
            last_rotation: 0,
        }
    }

    /// Goes on with keys that an earlier daemon has put in place, until their time is over: cookies are
    /// out that were made with them, and its secret may have been another.
    pub fn adopt(&mut self, map: &Array<MapData, Wire<EpochKey>>) -> Result<(), MapError> {
        for (slot, written) in (0..).zip(&mut self.written) {
            let Wire(key) = map.get(&slot, 0)?;
            *written = (key.k0 != 0 || key.k1 != 0).then_some(key.epoch);
        }
        Ok(())
    }

    /// Puts the keys of the last, the present and the next epochs in place; says which were
    /// missing. A clock that was set back simply makes other epochs the present one.
    pub fn rotate(
        &mut self,
        map: &mut Array<MapData, Wire<EpochKey>>,
        epoch: u64,
    ) -> Result<Rotation, MapError> {
        self.epoch = epoch;
        let missing = self.missing(epoch);
        for epoch in &missing {
            let slot = epoch % u64::from(KEY_SLOTS);
            map.set(slot as u32, Wire(self.deriver.key(*epoch)), 0)?;
            self.written[slot as usize] = Some(*epoch);
            self.last_rotation = clock::wall_seconds();
        }
        Ok(Rotation {
            written: missing.len(),
            late: missing.contains(&epoch),
        })
    }

    fn missing(&self, epoch: u64) -> Vec<u64> {
        (epoch.saturating_sub(1)..=epoch.saturating_add(AHEAD))
            .filter(|epoch| !self.holds(*epoch))
            .collect()
    }

    fn holds(&self, epoch: u64) -> bool {
        self.written[(epoch % u64::from(KEY_SLOTS)) as usize] == Some(epoch)
    }

    /// For people and metrics.
    pub fn status(&self) -> KeyStatus {
        let ready =
            (1..u64::from(KEY_SLOTS)).take_while(|n| self.holds(self.epoch.wrapping_add(*n)));
        KeyStatus {
            epoch: self.epoch,
            epoch_seconds: EPOCH_NS / 1_000_000_000,
            last_rotation: self.last_rotation,
            ready_ahead: ready.count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deriver() -> Deriver {
        let secret: Vec<u8> = (0..32).collect();
        Deriver::new(&Secret::from_bytes(secret.try_into().unwrap()))
    }

    /// Computed with the reference implementation's Python binding.
    #[test]
    fn keys_are_those_of_an_independent_implementation() {
        let zero = EpochKey {
            epoch: 0,
            k0: 0x0a28_b7e4_11d1_79ea,
            k1: 0xc72f_fdd2_103f_bf54,
        };
        assert_eq!(deriver().key(0), zero);
        let today = EpochKey {
            epoch: 111_111_111,
            k0: 0x6344_c9f6_e735_b4f1,
            k1: 0x4901_1984_e7ac_1232,
        };
        assert_eq!(deriver().key(111_111_111), today);
    }

    #[test]
    fn neighbouring_epochs_have_unrelated_keys() {
        let (a, b) = (deriver().key(5), deriver().key(6));
        assert_eq!((a.epoch, b.epoch), (5, 6));
        assert_ne!((a.k0, a.k1), (b.k0, b.k1));
    }

    #[test]
    fn the_ring_asks_for_the_last_the_present_and_two_more() {
        let secret = Secret::from_bytes([7; 32]);
        let mut ring = KeyRing::new(&secret);
        assert_eq!(ring.missing(100), [99, 100, 101, 102]);
        for epoch in ring.missing(100) {
            ring.written[(epoch % 8) as usize] = Some(epoch);
        }
        ring.epoch = 100;
        assert_eq!(ring.status().ready_ahead, 2);
        assert_eq!(ring.missing(101), [103]);
        // The clock was set back by a day: the keys of then.
        assert_eq!(ring.missing(50), [49, 50, 51, 52]);
        assert_eq!(ring.missing(0), [0, 1, 2]);
    }
}
