//! The order of examples and the randomness of each: functions of seeds alone, so that a run can be repeated or taken
//! up again anywhere.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream of random numbers is for; streams of different purposes are independent.
const ORDER: u64 = 1;
const ITEM: u64 = 2;
/// See [`super::toy`].
pub(super) const TOY: u64 = 3;

/// ChaCha with 8 rounds, its key four little-endian 64-bit numbers: seed, epoch, purpose,
/// index.
pub(super) fn stream(seed: u64, epoch: u64, purpose: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key.chunks_exact_mut(8).zip([seed, epoch, purpose, index]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The order of `len` examples in an epoch: Fisher and Yates' shuffle of 0, 1, … from the end. For i = len − 1 down to
/// 1, i changes places with ⌊r · (i + 1) / 2⁶⁴⌋, r the next 64 bits of the stream for this seed and epoch.
pub fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut random = stream(seed, epoch, ORDER, 0);
    let mut order: Vec<u32> = (0..u32::try_from(len).unwrap_or(u32::MAX)).collect();
    for last in (1..order.len()).rev() {
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, other as usize);
    }
    order
}

/// The random numbers that an example's augmentation may draw: of the seed, the epoch and the example's index, not of
/// the thread or the batch that it falls into.
pub fn item_rng(seed: u64, epoch: u64, index: usize) -> ChaCha8Rng {
    stream(seed, epoch, ITEM, index as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_another_order_each_epoch() {
        let mut order = permutation(1000, 7, 0);
        assert_ne!(order, permutation(1000, 7, 1));
        assert_ne!(order, permutation(1000, 8, 0));
        assert_eq!(order, permutation(1000, 7, 0));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
        assert_eq!(permutation(1, 7, 0), [0]);
        assert!(permutation(0, 7, 0).is_empty());
    }

    /// A change here changes what a resumed run trains on: it must not happen unnoticed.
    #[test]
    fn the_order_is_fixed_for_good() {
        assert_eq!(permutation(10, 1, 2), EXPECTED);
        assert_eq!(item_rng(1, 2, 3).next_u64(), EXPECTED_DRAW);
    }

    /// Computed by another implementation.
    const EXPECTED: [u32; 10] = [3, 8, 6, 5, 9, 0, 2, 1, 7, 4];
    const EXPECTED_DRAW: u64 = 7721313440808763356;

    #[test]
    fn places_are_about_equally_likely() {
        let mut counts = [0; 5];
        for seed in 0..5000 {
            counts[permutation(5, seed, 0).iter().position(|item| *item == 2).unwrap()] += 1;
        }
        // 1000 ± 5 standard deviations.
        assert!(counts.iter().all(|count| (859..1141).contains(count)), "{counts:?}");
    }

    #[test]
    fn items_have_streams_of_their_own() {
        let draw = |seed, epoch, index| item_rng(seed, epoch, index).next_u64();
        let draws = [draw(1, 0, 0), draw(1, 0, 1), draw(1, 1, 0), draw(2, 0, 0)];
        let different: std::collections::HashSet<_> = draws.iter().collect();
        assert_eq!(different.len(), draws.len());
        assert_eq!(draw(1, 0, 0), draws[0]);
    }
}
