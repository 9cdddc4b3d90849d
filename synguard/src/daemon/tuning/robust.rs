//! Location and spread that outliers do not drag: the median, and the median absolute deviation.
//!
//! Both keep their meaning until half of the values are bad (their breakdown point is 50 %), where
//! one bad value moves a mean and a standard deviation as far as it likes.

/// What makes the median absolute deviation of normally distributed values their standard deviation.
const CONSISTENCY: f64 = 1.4826;

/// Location and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Robust {
    /// Their median.
    pub location: f64,
    /// Their median absolute deviation, scaled so that it is the standard deviation where they are
    /// normally distributed.
    pub spread: f64,
}

impl Robust {
    /// Of these values; `None` where there are none.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        let location = median(&mut values)?;
        for value in &mut values {
            *value = (*value - location).abs();
        }
        let spread = CONSISTENCY * median(&mut values)?;
        Some(Self { location, spread })
    }

    /// What lies between `self` and `other`, at `share` of the way.
    pub fn towards(self, other: Self, share: f64) -> Self {
        let mix = |from: f64, to: f64| from + (to - from) * share;
        Self {
            location: mix(self.location, other.location),
            spread: mix(self.spread, other.spread),
        }
    }
}

/// The median; reorders the values.
pub fn median(values: &mut [f64]) -> Option<f64> {
    let half = values.len() / 2;
    let is_odd = values.len() % 2 == 1;
    if values.is_empty() {
        return None;
    }
    let (below, middle, _) = values.select_nth_unstable_by(half, f64::total_cmp);
    let middle = *middle;
    if is_odd {
        return Some(middle);
    }
    let below = below.iter().copied().max_by(f64::total_cmp);
    Some(below.map_or(middle, |below| f64::midpoint(below, middle)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0]), Some(3.0));
        assert_eq!(median(&mut [4.0, 1.0]), Some(2.5));
        assert_eq!(median(&mut [9.0, 1.0, 5.0]), Some(5.0));
        let robust = Robust::of([1.0, 2.0, 3.0, 4.0, 1000.0].into_iter()).unwrap();
        assert_eq!(robust.location, 3.0);
        assert!((robust.spread - 1.4826).abs() < 1e-9);
        assert_eq!(Robust::of(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn a_minority_moves_them_no_further_than_the_others_reach(
            good in prop::collection::vec(0.0..100.0f64, 11..30),
            bad in prop::collection::vec(0.0..1e12f64, 0..10),
        ) {
            let all = good.iter().chain(&bad).copied();
            let robust = Robust::of(all).unwrap();
            prop_assert!(robust.location <= 100.0);
            prop_assert!(robust.spread <= 1.4826 * 100.0 + 1e-6);
        }
    }
}
