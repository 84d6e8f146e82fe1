//! The magnitude that the largest k percent of a vector's elements reach, exactly, for vectors too large to hold.
//!
//! The magnitude of a float orders like its bits, so the threshold is found digit by digit: count how many
//! elements have each leading digit, see which digit the wanted rank falls in, then count the next digit among
//! the elements that begin so. Three passes settle f32. Counts add up, so one count for each layer and part
//! serves every union of them.

use std::collections::BTreeMap;

/// A floating-point type that vectors are made of.
pub trait Real: Copy + Default + PartialOrd + Send + Sync + 'static {
    /// Bits of a magnitude that each pass settles, from the most significant on. The first is [`FIRST_DIGIT`].
    const DIGITS: &'static [u32];

    fn to_f64(self) -> f64;
    fn abs(self) -> Self;
    /// Whether the sign bit is set.
    fn is_negative(self) -> bool;
    fn minus(self, other: Self) -> Self;
    /// A whole number that orders like the magnitude.
    fn key(self) -> u64;
    /// The magnitude with this key.
    fn from_key(key: u64) -> Self;
}

const FIRST_DIGIT: u32 = 11;

impl Real for f32 {
    const DIGITS: &'static [u32] = &[FIRST_DIGIT, 10, 10];

    fn to_f64(self) -> f64 {
        self.into()
    }

    fn abs(self) -> f32 {
        self.abs()
    }

    fn is_negative(self) -> bool {
        self.is_sign_negative()
    }

    fn minus(self, other: f32) -> f32 {
        self - other
    }

    fn key(self) -> u64 {
        (self.to_bits() & (u32::MAX >> 1)).into()
    }

    fn from_key(key: u64) -> f32 {
        f32::from_bits(key as u32)
    }
}

impl Real for f64 {
    const DIGITS: &'static [u32] = &[FIRST_DIGIT, 13, 13, 13, 13];

    fn to_f64(self) -> f64 {
        self
    }

    fn abs(self) -> f64 {
        self.abs()
    }

    fn is_negative(self) -> bool {
        self.is_sign_negative()
    }

    fn minus(self, other: f64) -> f64 {
        self - other
    }

    fn key(self) -> u64 {
        self.to_bits() & (u64::MAX >> 1)
    }

    fn from_key(key: u64) -> f64 {
        f64::from_bits(key)
    }
}

/// How many of `elements` are the largest `top_k` percent, rounded up: at least one of any.
pub fn kept(elements: u64, top_k: f64) -> u64 {
    ((top_k * elements as f64 / 100.0).ceil() as u64).min(elements)
}

/// The magnitude of the [`kept`]-th largest element; 0 for an empty slice. Every element that reaches it counts
/// as among the largest, so ties at the threshold are all kept and the result doesn't depend on their order.
pub fn threshold<T: Real>(values: &[T], top_k: f64) -> T {
    let mut keys: Vec<u64> = values.iter().map(|value| value.key()).collect();
    match kept(keys.len() as u64, top_k) as usize {
        0 => T::default(),
        n => T::from_key(*keys.select_nth_unstable_by(n - 1, |a, b| b.cmp(a)).1),
    }
}

/// One pass: which bits of a key are settled already, and which it settles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    number: usize,
    /// Bits below those this pass settles.
    below: u32,
    bits: u32,
    total: u32,
}

impl Pass {
    pub fn all<T: Real>() -> Vec<Pass> {
        let total = T::DIGITS.iter().sum();
        let mut below = total;
        let pass = |(number, &bits): (usize, &u32)| {
            below -= bits;
            Pass { number, below, bits, total }
        };
        T::DIGITS.iter().enumerate().map(pass).collect()
    }
}

/// The search for one vector's threshold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    /// Rank of the threshold, from 1 for the largest, among the elements that begin with `prefix`.
    rank: u64,
    /// The threshold's key as far as it is settled.
    pub prefix: u64,
}

impl Search {
    pub fn new(elements: u64, top_k: f64) -> Search {
        Search { rank: kept(elements, top_k), prefix: 0 }
    }

    /// Settles the next digit from the pass's counts of all parts of the vector.
    pub fn narrow<'t>(&mut self, pass: Pass, parts: impl Iterator<Item = &'t Tally>) {
        let digits = self.prefix << pass.bits..(self.prefix + 1) << pass.bits;
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for part in parts {
            for (&digit, count) in part.counts.range(digits.clone()) {
                *counts.entry(digit).or_default() += count;
            }
        }
        self.prefix = digits.start;
        for (&digit, &count) in counts.iter().rev() {
            self.prefix = digit;
            if count >= self.rank {
                break;
            }
            self.rank -= count;
        }
    }
}

/// How many elements of one part of a vector begin with each of the digits that searches ask about.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<u64, u64>,
}

impl Tally {
    /// Adds and clears what a counter has counted for these prefixes.
    pub fn take(&mut self, pass: Pass, prefixes: &[u64], counter: &mut Counter) {
        let digits = prefixes.iter().flat_map(|&prefix| prefix << pass.bits..(prefix + 1) << pass.bits);
        for (digit, count) in digits.zip(&mut counter.counts) {
            if *count > 0 {
                *self.counts.entry(digit).or_default() += u64::from(std::mem::take(count));
            }
        }
    }
}

/// One thread's counts: for each prefix, one for each digit that may follow it.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    counts: Vec<u32>,
}

impl Counter {
    /// Counts the elements that begin with one of `prefixes`, which are distinct; at most `u32::MAX` of them
    /// before [`Tally::take`].
    pub fn count<T: Real>(&mut self, pass: Pass, prefixes: &[u64], values: &[T]) {
        self.counts.resize(prefixes.len() << pass.bits, 0);
        if pass.number == 0 {
            self.count_first(pass, values);
            return;
        }
        // Few elements begin like a threshold. Their first digit sorts out the rest, without a branch that
        // could be mispredicted.
        let mut begins = [false; 1 << FIRST_DIGIT];
        let first = pass.total - FIRST_DIGIT;
        let settled = pass.below + pass.bits;
        for prefix in prefixes {
            begins[(prefix << settled >> first) as usize] = true;
        }
        let mut similar = [0; BLOCK];
        for block in values.chunks(BLOCK) {
            let mut count = 0;
            for value in block {
                let key = value.key();
                similar[count % BLOCK] = key;
                count += usize::from(begins[(key >> first) as usize % begins.len()]);
            }
            for key in &similar[..count] {
                let prefix = key >> settled;
                if let Some(at) = prefixes.iter().position(|&wanted| wanted == prefix) {
                    let digit = (key >> pass.below) as usize & ((1 << pass.bits) - 1);
                    self.counts[at << pass.bits | digit] += 1;
                }
            }
        }
    }

    fn count_first<T: Real>(&mut self, pass: Pass, values: &[T]) {
        // Neighbours often have the same digit; counting them in different places, neither waits for the other.
        const LANES: usize = 4;
        let mut lanes = [[0u32; 1 << FIRST_DIGIT]; LANES];
        let (head, tail) = values.as_chunks::<LANES>();
        let digit = |value: &T| (value.key() >> pass.below) as usize % (1 << FIRST_DIGIT);
        for values in head {
            for (lane, value) in lanes.iter_mut().zip(values) {
                lane[digit(value)] += 1;
            }
        }
        for value in tail {
            lanes[0][digit(value)] += 1;
        }
        for lane in &lanes {
            for (total, count) in self.counts.iter_mut().zip(lane) {
                *total += count;
            }
        }
    }
}

/// Elements sorted out at a time.
const BLOCK: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rounded_up() {
        assert_eq!(kept(10, 20.0), 2);
        assert_eq!(kept(11, 20.0), 3);
        assert_eq!(kept(3, 0.001), 1);
        assert_eq!(kept(7, 100.0), 7);
        assert_eq!(kept(0, 20.0), 0);
    }

    #[test]
    fn the_kth_largest_magnitude() {
        let values = [0.5f32, -3.0, 1.0, 2.0, -0.25];
        assert_eq!(threshold(&values, 20.0), 3.0);
        assert_eq!(threshold(&values, 40.0), 2.0);
        assert_eq!(threshold(&values, 100.0), 0.25);
        assert_eq!(threshold::<f32>(&[], 20.0), 0.0);
    }

    /// What [`threshold`] finds, by digits, from several parts of the vector.
    fn by_digits<T: Real>(parts: &[&[T]], top_k: f64) -> T {
        let mut search = Search::new(parts.iter().map(|part| part.len() as u64).sum(), top_k);
        for pass in Pass::all::<T>() {
            let tally = |part: &&[T]| {
                // Another search asks about its own prefix, which must not disturb this one's.
                let prefixes = if search.prefix == 0 { vec![0] } else { vec![0, search.prefix] };
                let (mut tally, mut counter) = (Tally::default(), Counter::default());
                counter.count(pass, &prefixes, part);
                tally.take(pass, &prefixes, &mut counter);
                tally
            };
            let tallies: Vec<Tally> = parts.iter().map(tally).collect();
            search.narrow(pass, tallies.iter());
        }
        T::from_key(search.prefix)
    }

    proptest! {
        #[test]
        fn by_digits_is_by_sorting(
            values in prop::collection::vec(prop_oneof![-1.0f32..1.0, Just(0.0f32), Just(0.5), any::<f32>()], 1..300),
            cut in 0usize..300,
            top_k in 0.1f64..=100.0,
        ) {
            let values: Vec<f32> = values.into_iter().filter(|v| !v.is_nan()).collect();
            let (a, b) = values.split_at(cut.min(values.len()));
            prop_assert_eq!(by_digits(&[a, b], top_k), threshold(&values, top_k));
            let wide: Vec<f64> = values.iter().map(|&v| f64::from(v) / 3.0).collect();
            let (a, b) = wide.split_at(cut.min(wide.len()));
            prop_assert_eq!(by_digits(&[a, b], top_k), threshold(&wide, top_k));
        }
    }
}
