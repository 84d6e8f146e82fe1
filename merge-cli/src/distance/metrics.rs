//! The four distances between two vectors.

use serde::Serialize;

use super::threshold::{Real, threshold};

/// L2, cosine, SSD and TSSD of two vectors x and y of n elements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// ‖x − y‖₂; 0 is closest.
    pub l2: f64,
    /// Cosine similarity x·y / (‖x‖‖y‖): 1 is closest, −1 opposite. `None` when x or y is zero.
    pub cosine: Option<f64>,
    /// Soft sign dissimilarity, 0 (no signs differ) to 1 (y = −x): mean of 1 − |xᵢ+yᵢ| / (|xᵢ|+|yᵢ|),
    /// where 0/0 counts as 0.
    pub ssd: f64,
    /// Truncated soft sign dissimilarity: SSD after zeroing, in x and in y, all but the largest magnitudes.
    pub tssd: f64,
}

/// The distances between two slices of one length. TSSD keeps the elements that reach [`threshold`] for
/// `top_k` percent, each vector by its own threshold.
///
/// # Panics
/// If the lengths differ.
pub fn metrics<T: Real>(x: &[T], y: &[T], top_k: f64) -> Metrics {
    let sums = Sums::of(x, y);
    let mut truncated = [0.0];
    add_truncated(x, y, &[[threshold(x, top_k), threshold(y, top_k)]], &mut truncated);
    sums.metrics(truncated[0])
}

/// What the distances are made of. Sums over pieces of two vectors add up to the sums over the vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// n
    pub elements: u64,
    /// Σ xᵢ²
    pub xx: f64,
    /// Σ yᵢ²
    pub yy: f64,
    /// Σ xᵢyᵢ
    pub xy: f64,
    /// Σ (xᵢ − yᵢ)²
    pub apart: f64,
    /// Σ 1 − |xᵢ+yᵢ| / (|xᵢ|+|yᵢ|)
    pub soft_sign: f64,
}

impl Sums {
    /// The sums over two slices of one length, in f64 and always in the same order.
    pub fn of<T: Real>(x: &[T], y: &[T]) -> Sums {
        assert_eq!(x.len(), y.len(), "vectors of one length");
        // Independent sums side by side: the compiler makes SIMD of them, which it may not of one sum.
        const LANES: usize = 4;
        let mut lanes = [[0.0; LANES]; 5];
        let mut take = |lane: usize, x: T, y: T| {
            let (x, y) = (x.to_f64(), y.to_f64());
            lanes[0][lane] += x * x;
            lanes[1][lane] += y * y;
            lanes[2][lane] += x * y;
            lanes[3][lane] += (x - y) * (x - y);
            lanes[4][lane] += soft_sign(x, y);
        };
        let (head_x, tail_x) = x.as_chunks::<LANES>();
        let (head_y, tail_y) = y.as_chunks::<LANES>();
        for (x, y) in head_x.iter().zip(head_y) {
            for lane in 0..LANES {
                take(lane, x[lane], y[lane]);
            }
        }
        for (lane, (&x, &y)) in tail_x.iter().zip(tail_y).enumerate() {
            take(lane, x, y);
        }
        let [xx, yy, xy, apart, soft_sign] = lanes.map(|lanes| lanes.iter().sum());
        Sums { elements: x.len() as u64, xx, yy, xy, apart, soft_sign }
    }

    pub fn add(&mut self, other: &Sums) {
        self.elements += other.elements;
        self.xx += other.xx;
        self.yy += other.yy;
        self.xy += other.xy;
        self.apart += other.apart;
        self.soft_sign += other.soft_sign;
    }

    /// The distances. `truncated` is the sum of soft sign dissimilarities that truncation leaves, as
    /// [`add_truncated`] gives it.
    pub fn metrics(&self, truncated: f64) -> Metrics {
        let norms = (self.xx * self.yy).sqrt();
        let mean = |sum: f64| if self.elements == 0 { 0.0 } else { sum / self.elements as f64 };
        Metrics {
            l2: self.apart.sqrt(),
            cosine: (norms > 0.0).then(|| (self.xy / norms).clamp(-1.0, 1.0)),
            ssd: mean(self.soft_sign),
            tssd: mean(truncated),
        }
    }
}

/// Adds to `sums[i]` the soft sign dissimilarities of the elements that `thresholds[i]`, one for x and one for y,
/// leave standing: the numerator of TSSD, for several thresholds at once.
pub fn add_truncated<T: Real>(x: &[T], y: &[T], thresholds: &[[T; 2]], sums: &mut [f64]) {
    let mut least = thresholds.first().copied().unwrap_or_default();
    for threshold in thresholds {
        for (least, &side) in least.iter_mut().zip(threshold) {
            *least = if side < *least { side } else { *least };
        }
    }
    // Where one of the two is zeroed the dissimilarity is 1 − |x|/|x| = 0, and it is 0 where both are or signs
    // agree: that leaves few. They are sorted out without a branch, which would be mispredicted too often.
    let mut standing = [(T::default(), T::default()); BLOCK];
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let mut count = 0;
        for (&x, &y) in x.iter().zip(y) {
            standing[count % BLOCK] = (x, y);
            let kept = (x.abs() >= least[0]) & (y.abs() >= least[1]);
            count += usize::from(kept & (x.is_negative() != y.is_negative()));
        }
        for &(x, y) in &standing[..count] {
            let dissimilarity = soft_sign(x.to_f64(), y.to_f64());
            for (threshold, sum) in thresholds.iter().zip(&mut *sums) {
                if x.abs() >= threshold[0] && y.abs() >= threshold[1] {
                    *sum += dissimilarity;
                }
            }
        }
    }
}

/// Elements sorted out at a time.
const BLOCK: usize = 1024;

/// 1 − |x+y| / (|x|+|y|), and 0 where both are 0.
fn soft_sign(x: f64, y: f64) -> f64 {
    let size = x.abs() + y.abs();
    if size == 0.0 { 0.0 } else { 1.0 - (x + y).abs() / size }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1.0)
    }

    #[test]
    fn by_hand() {
        // Element by element, |x+y|/(|x|+|y|): 7/7, 2/4, 0/0 → counts as alike, 4/4, 0/2.
        let x = [3.0f32, -1.0, 0.0, 4.0, 1.0];
        let y = [4.0f32, 3.0, 0.0, 0.0, -1.0];
        let m = metrics(&x, &y, 100.0);
        assert_eq!(m.l2, f64::sqrt(1.0 + 16.0 + 0.0 + 16.0 + 4.0));
        // x·y = 12 − 3 − 1; ‖x‖² = 9 + 1 + 16 + 1; ‖y‖² = 16 + 9 + 1.
        assert!(close(m.cosine.unwrap(), 8.0 / f64::sqrt(27.0 * 26.0)));
        assert_eq!(m.ssd, (0.0 + 0.5 + 0.0 + 0.0 + 1.0) / 5.0);
        assert_eq!(m.tssd, m.ssd);
    }

    #[test]
    fn truncation_by_hand() {
        // Of ten elements 20 % are two: −6, 5 of x and −5, 4 of y. Both are kept in places 0 (signs agree)
        // and 1: 1 − |5−4| / (5+4) = 8/9. Elsewhere one or both are zero.
        let x = [-6.0f32, 5.0, 1.0, -1.0, 2.0, 0.5, 3.0, -3.0, 1.0, 1.0];
        let y = [-5.0f32, -4.0, -1.0, 1.0, -2.0, -0.5, -3.0, 3.0, 1.0, 1.0];
        assert!(close(metrics(&x, &y, 20.0).tssd, 8.0 / 9.0 / 10.0));
        // One element: −6 and −5 agree.
        assert_eq!(metrics(&x, &y, 10.0).tssd, 0.0);
        // Four: 3 and −3 too, and with them the ties.
        assert!(close(metrics(&x, &y, 40.0).tssd, (8.0 / 9.0 + 1.0 + 1.0) / 10.0));
    }

    #[test]
    fn equal_and_opposite() {
        let x = [0.1f32, -0.7, 3.0];
        let same = metrics(&x, &x, 50.0);
        assert_eq!((same.l2, same.cosine, same.ssd, same.tssd), (0.0, Some(1.0), 0.0, 0.0));
        let opposite = metrics(&x, &x.map(|v| -v), 100.0);
        assert_eq!((opposite.cosine, opposite.ssd, opposite.tssd), (Some(-1.0), 1.0, 1.0));
    }

    #[test]
    fn zero_vectors_have_no_angle() {
        let m = metrics(&[0.0f32, 0.0], &[1.0, 2.0], 20.0);
        assert_eq!((m.cosine, m.ssd, m.tssd), (None, 0.0, 0.0));
        assert_eq!(metrics::<f32>(&[], &[], 20.0), Metrics { l2: 0.0, cosine: None, ssd: 0.0, tssd: 0.0 });
    }

    #[test]
    fn values_at_the_ends_of_f32() {
        let m = metrics(&[f32::MAX, f32::MIN_POSITIVE / 4.0], &[f32::MAX, -f32::MIN_POSITIVE / 4.0], 100.0);
        assert_eq!((m.cosine, m.ssd), (Some(1.0), 0.5));
    }

    fn vectors() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        let value = || prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => -1e-3f32..1e-3];
        prop::collection::vec((value(), value()), 1..200).prop_map(|pairs| pairs.into_iter().unzip())
    }

    proptest! {
        #[test]
        fn symmetric((x, y) in vectors(), top_k in 0.1f64..100.0) {
            let (a, b) = (metrics(&x, &y, top_k), metrics(&y, &x, top_k));
            prop_assert_eq!(a, b);
        }

        #[test]
        fn bounded((x, y) in vectors(), top_k in 0.1f64..100.0) {
            let m = metrics(&x, &y, top_k);
            prop_assert!((0.0..=1.0).contains(&m.ssd));
            prop_assert!((0.0..=m.ssd + 1e-15).contains(&m.tssd));
            prop_assert!(m.cosine.is_none_or(|cosine| (-1.0..=1.0).contains(&cosine)));
        }

        #[test]
        fn everything_kept_truncates_nothing((x, y) in vectors()) {
            let m = metrics(&x, &y, 100.0);
            prop_assert!(close(m.tssd, m.ssd));
        }

        /// Powers of two scale f32 exactly.
        #[test]
        fn scale((x, y) in vectors(), top_k in 0.1f64..100.0) {
            let times = |v: &[f32], s: f32| v.iter().map(|v| v * s).collect::<Vec<_>>();
            let m = metrics(&x, &y, top_k);
            let both = metrics(&times(&x, 8.0), &times(&y, 8.0), top_k);
            prop_assert!(close(both.l2, 8.0 * m.l2));
            prop_assert_eq!((both.cosine, both.ssd, both.tssd), (m.cosine, m.ssd, m.tssd));
            let one = metrics(&times(&x, 8.0), &y, top_k);
            prop_assert!(close(one.cosine.unwrap_or(0.0), m.cosine.unwrap_or(0.0)));
            let turned = metrics(&times(&x, -1.0), &times(&y, -1.0), top_k);
            prop_assert_eq!(turned, m);
        }

        #[test]
        fn pieces_add_up((x, y) in vectors(), cut in 0usize..200) {
            let cut = cut.min(x.len());
            let mut sums = Sums::of(&x[..cut], &y[..cut]);
            sums.add(&Sums::of(&x[cut..], &y[cut..]));
            let (a, b) = (sums.metrics(0.0), Sums::of(&x, &y).metrics(0.0));
            prop_assert!(close(a.l2, b.l2) && close(a.ssd, b.ssd));
        }
    }
}
