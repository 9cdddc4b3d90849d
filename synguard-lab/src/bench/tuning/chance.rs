//! Chance, the same in every run.

use crate::bench::random::Random;

/// Draws from the distributions that traffic is made of.
pub struct Chance(Random);

impl Chance {
    /// Starts the sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// From 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.0.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something happens that does in this share of all cases.
    pub fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.unit() < share
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Lognormal with this median.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// How often something happens that does `mean` times on average: Poisson.
    pub fn poisson(&mut self, mean: f64) -> u32 {
        /// From here on the normal approximation is as good.
        const MANY: f64 = 60.0;
        if mean <= 0.0 {
            return 0;
        }
        if mean > MANY {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u32;
        }
        // Knuth: uniform numbers are multiplied until the product is too small.
        let limit = (-mean).exp();
        let mut product = self.unit();
        let mut count = 0;
        while product > limit {
            product *= self.unit();
            count += 1;
        }
        count
    }
}

/// A smooth random function of time, around 0: one value for each interval, interpolated.
pub fn wander(seed: u64, time: f64, interval: f64) -> f64 {
    let at = time / interval;
    let value = |index: f64| Chance::new(seed ^ (index as u64).wrapping_mul(0x9e37)).normal();
    let share = at.fract();
    value(at.floor()) * (1.0 - share) + value(at.floor() + 1.0) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_variances_are_as_they_should_be() {
        const N: u32 = 20_000;
        let mut chance = Chance::new(1);
        for mean in [0.02, 3.0, 59.0, 61.0, 500.0] {
            let draws: Vec<f64> = (0..N).map(|_| chance.poisson(mean).into()).collect();
            let average = draws.iter().sum::<f64>() / f64::from(N);
            let deviations = draws.iter().map(|draw| (draw - average).powi(2));
            let variance = deviations.sum::<f64>() / f64::from(N);
            let tolerance = 5.0 * (mean / f64::from(N)).sqrt();
            assert!((average - mean).abs() < tolerance, "{mean}: {average}");
            assert!((variance / mean - 1.0).abs() < 0.2, "{mean}: {variance}");
        }
        let mut draws: Vec<f64> = (0..N).map(|_| chance.lognormal(60.0, 0.7)).collect();
        draws.sort_by(f64::total_cmp);
        assert!((58.0..62.0).contains(&draws[N as usize / 2]));
        assert_eq!(chance.poisson(0.0), 0);
    }

    #[test]
    fn a_wandering_value_does_not_jump() {
        let steps = (0..10_000).map(|step| f64::from(step) / 10.0);
        let values: Vec<f64> = steps.map(|time| wander(7, time, 60.0)).collect();
        assert!(
            values
                .windows(2)
                .all(|pair| (pair[1] - pair[0]).abs() < 0.05)
        );
        assert!(values.iter().any(|value| value.abs() > 0.5));
    }
}
