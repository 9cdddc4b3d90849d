//! Bytes without end that depend on nothing but a seed and their place: either end of a connection
//! can make them, and check any piece of them, without having seen the others.

/// A sequence of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The eight bytes of the word at `index`: SplitMix64, whose state is a counter.
    const fn word(self, index: u64) -> [u8; 8] {
        let mut z = self
            .seed
            .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Writes the bytes from `offset` on.
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        self.pieces(offset, buffer.len(), |place, piece| {
            buffer[place..place + piece.len()].copy_from_slice(piece);
            true
        });
    }

    /// The first place in `bytes`, which should be those from `offset` on, that is different.
    pub fn difference(self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let mut different = None;
        self.pieces(offset, bytes.len(), |place, piece| {
            let found = &bytes[place..place + piece.len()];
            if found != piece {
                let within = found.iter().zip(piece).position(|(a, b)| a != b);
                different = within.map(|within| place + within);
            }
            different.is_none()
        });
        different
    }

    /// Hands `len` bytes from `offset` on to `each`, at most a word at a time, with their place; until
    /// it has had enough.
    fn pieces(self, offset: u64, len: usize, mut each: impl FnMut(usize, &[u8]) -> bool) {
        let mut place = 0;
        while place < len {
            let at = offset + place as u64;
            let word = self.word(at / 8);
            let from = (at % 8) as usize;
            let to = (from + len - place).min(8);
            if !each(place, &word[from..to]) {
                return;
            }
            place += to - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_whole() {
        let pattern = Pattern::new(7);
        let mut whole = [0; 100];
        pattern.fill(0, &mut whole);
        assert_ne!(whole[..50], whole[50..]);
        for from in 0..40 {
            for to in from..60 {
                let mut piece = vec![0; to - from];
                pattern.fill(from as u64, &mut piece);
                assert_eq!(piece, whole[from..to]);
                assert_eq!(pattern.difference(from as u64, &piece), None);
                for at in 0..piece.len() {
                    piece[at] ^= 1;
                    assert_eq!(pattern.difference(from as u64, &piece), Some(at));
                    piece[at] ^= 1;
                }
            }
        }
        let mut other = [0; 100];
        Pattern::new(8).fill(0, &mut other);
        assert_ne!(other, whole);
    }
}
