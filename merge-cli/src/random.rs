//! Random numbers that depend on a seed, a tensor's name and a place in it, and on nothing else.

/// SplitMix64 (Steele, Lea and Flood, 2014), which gives its n-th number without the ones before.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The stream of one vector of one tensor, or of the tensor itself with 0: the first 8 bytes of a BLAKE3 hash, little-endian, are its state.
    pub fn new(seed: u64, vector: u64, name: &str) -> Stream {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&vector.to_le_bytes()).update(name.as_bytes());
        let mut state = [0; 8];
        hasher.finalize_xof().fill(&mut state);
        Stream { state: u64::from_le_bytes(state) }
    }

    /// The number at a place, counted from 0.
    fn bits(&self, at: u64) -> u64 {
        let z = self.state.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The number at a place, uniform in [0, 1) in steps of 2^−53.
    pub fn uniform(&self, at: u64) -> f64 {
        (self.bits(at) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The standard normal number at a place (Box and Muller, 1958).
    pub fn normal(&self, at: u64) -> f64 {
        let (u, v) = (1.0 - self.uniform(at.wrapping_mul(2)), self.uniform(at.wrapping_mul(2).wrapping_add(1)));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The reference implementation's first outputs for the seeds 0 and 1234567.
        let first = |state| [0, 1, 2].map(|at| Stream { state }.bits(at));
        assert_eq!(first(0), [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        assert_eq!(first(1234567), [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let stream = Stream::new(0, 0, "w");
        let n = 100_000;
        let moment = |power: i32| (0..n).map(|at| stream.normal(at).powi(power)).sum::<f64>() / n as f64;
        // Five standard errors.
        for (power, expected, error) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let found = moment(power);
            assert!((found - expected).abs() < 5.0 * f64::sqrt(error / n as f64), "moment {power}: {found}");
        }
        assert!((0..n).any(|at| stream.normal(at) > 3.5) && (0..n).any(|at| stream.normal(at) < -3.5), "not truncated");
    }
}
