//! TIES: trim the vectors, elect signs, merge what agrees.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::vectors::{Combine, Vector, Vectors};
use super::{Element, Method, Runs, Span, one, to_map, unusual_lambda};
use crate::jobs::Merge;

/// base + λ · mean of the trimmed vectors' elements that have the elected sign (Yadav et al., 2023).
///
/// - **Trim.** Of each vector model − base, tensor by tensor, the ⌊density · n⌋ elements of largest
///   magnitude stay, at least one. Magnitudes are compared in f32; of equal ones the first in
///   row-major order stay. (mergekit trims likewise; the paper's code trims a whole model at once,
///   which favours the tensors that moved most.)
/// - **Elect.** An element's sign is that of the sum of what is left of it, positive if the sum is 0.
/// - **Merge.** The mean of the elements left that have this sign.
///
/// Computed in f64, rounded once. mergekit 0.1.5's `ties` is the same bit for bit on f64 tensors and
/// within 9e-8 of a tensor's largest magnitude on f32 ones (`tests/against_mergekit.py`), where no magnitudes
/// tie at the cut. On f16 and bf16 it computes in these, so that close elections can go the other way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ties {
    /// The share of elements that stay, above 0 and at most 1.
    pub density: f64,
    #[serde(default = "one")]
    pub lambda: f64,
}

impl Ties {
    fn merge<T: Element>(&self, span: &Span, inputs: &[&[T]], out: &mut [T]) {
        // Checked before the run began.
        let Ok(vectors) = Vectors::of(span.merge) else { return };
        let cuts: Vec<Cut> = span.survey.chunks_exact(2).map(Cut::from_numbers).collect();
        if cuts.is_empty() {
            return vectors.merge(inputs, out, self.lambda, Combine::Elect, |_, _, value| value);
        }
        vectors.merge(inputs, out, self.lambda, Combine::Elect, |vector, at, value| {
            if cuts[vector].keeps(value, span.start + at) { value } else { 0.0 }
        });
    }
}

impl Method for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn parameters(&self) -> Map<String, Value> {
        to_map(self)
    }

    fn warnings(&self) -> Vec<String> {
        unusual_lambda(self.lambda).into_iter().collect()
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(format!("density is {}: it must be more than 0 and at most 1", self.density));
        }
        if !self.lambda.is_finite() {
            return Err(format!("λ is {}", self.lambda));
        }
        Vectors::of(merge).map(|_| ())
    }

    /// Each vector's [`Cut`]; nothing where everything stays.
    fn survey(&self, merge: &Merge, runs: &mut dyn Runs) -> formats::Result<Vec<f64>> {
        let elements = runs.elements();
        let keep = ((self.density * elements as f64) as usize).max(1);
        match Vectors::of(merge) {
            Ok(vectors) if keep < elements => {
                Ok(cuts(&vectors, runs, keep as u64)?.into_iter().flat_map(Cut::to_numbers).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        self.merge(span, inputs, out);
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        self.merge(span, inputs, out);
        Ok(())
    }
}

/// Which elements of a vector stay: those above `magnitude`, and those equal to it before `until`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    magnitude: f32,
    until: usize,
}

impl Cut {
    fn keeps(&self, value: f64, at: usize) -> bool {
        let magnitude = (value as f32).abs();
        (magnitude > self.magnitude) | ((magnitude == self.magnitude) & (at < self.until))
    }

    /// For [`Span::survey`]; positions are exact up to 2^53.
    fn to_numbers(self) -> [f64; 2] {
        [self.magnitude as f64, self.until as f64]
    }

    fn from_numbers(numbers: &[f64]) -> Cut {
        Cut { magnitude: numbers[0] as f32, until: numbers[1] as usize }
    }
}

/// Finds the cut that leaves `keep` elements of each vector, fewer than there are, without holding
/// a vector: the bits of magnitudes order like the magnitudes, so counting how often each value of the
/// highest bits occurs tells those of the cut, and then the next ones.
fn cuts(vectors: &Vectors, runs: &mut dyn Runs, keep: u64) -> formats::Result<Vec<Cut>> {
    // Counters for many bits at once save passes over large tensors; few are quick to clear for small ones.
    let steps: &[u32] = if runs.elements() > 1 << 18 { &[16, 15] } else { &[11, 10, 10] };
    let mut searches: Vec<Search> = vectors.iter().map(|vector| Search::new(vector, keep)).collect();
    for &bits in steps {
        searches.iter_mut().for_each(|search| search.begin(bits));
        runs.for_each(&mut |_, inputs| searches.iter_mut().for_each(|search| search.count(inputs)))?;
        searches.iter_mut().for_each(Search::choose);
    }
    // Equal magnitudes that don't all stay are rare, but for zeros, which are nothing either way.
    if searches.iter().any(Search::splits_equals) {
        runs.for_each(&mut |start, inputs| searches.iter_mut().for_each(|search| search.find_last(start, inputs)))?;
    }
    Ok(searches.iter().map(|search| Cut { magnitude: f32::from_bits(search.cut), until: search.until }).collect())
}

/// The search for one vector's cut.
struct Search {
    vector: Vector,
    /// The cut's magnitude: 31 bits, of which the lowest `unknown` are 0 so far.
    cut: u32,
    unknown: u32,
    /// How many elements are still to be kept of those that agree with the known bits, and how many agree.
    left: u64,
    agreeing: u64,
    counts: Vec<u64>,
    until: usize,
}

impl Search {
    fn new(vector: Vector, keep: u64) -> Search {
        Search { vector, cut: 0, unknown: 31, left: keep, agreeing: 0, counts: Vec::new(), until: usize::MAX }
    }

    fn magnitudes<'v>(&self, inputs: &[&'v [f64]]) -> impl Iterator<Item = u32> + use<'v> {
        // NaN comes above infinity here; merging keeps it anyway.
        self.vector.values(inputs).map(|value| (value as f32).abs().to_bits())
    }

    fn begin(&mut self, bits: u32) {
        self.unknown -= bits;
        self.counts = vec![0; 1 << bits];
    }

    fn count(&mut self, inputs: &[&[f64]]) {
        for magnitude in self.magnitudes(inputs) {
            // Beyond the counters where a known bit differs.
            if let Some(count) = self.counts.get_mut(((magnitude ^ self.cut) >> self.unknown) as usize) {
                *count += 1;
            }
        }
    }

    fn choose(&mut self) {
        for (bits, &count) in self.counts.iter().enumerate().rev() {
            if count >= self.left {
                self.cut |= (bits as u32) << self.unknown;
                self.agreeing = count;
                return;
            }
            self.left -= count;
        }
    }

    fn splits_equals(&self) -> bool {
        self.left < self.agreeing && self.cut != 0
    }

    /// Looks for the last of the equal magnitudes that stays.
    fn find_last(&mut self, start: usize, inputs: &[&[f64]]) {
        if !self.splits_equals() || self.left == 0 {
            return;
        }
        for (at, magnitude) in self.magnitudes(inputs).enumerate() {
            if magnitude == self.cut {
                self.left -= 1;
                if self.left == 0 {
                    self.until = start + at + 1;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::layout::Modality;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::testing::{base_and_models, experts, finite_f32, merge_of, models, run, run_f32};
    use super::*;
    use crate::jobs::Role;

    fn ties(density: f64, lambda: f64) -> Ties {
        Ties { density, lambda }
    }

    #[test]
    fn by_hand() {
        let base: &[f64] = &[1.0, 1.0, 1.0, 1.0, 1.0];
        // Vectors (4, −1, 2, 0.5, −3) and (−1, −4, 3, 0.25, 2), of which 3 of 5 stay:
        // (4, 0, 2, 0, −3) and (0, −4, 3, 0, 2). Elected: +, −, +, none, −. Means: 4, −4, 2.5, 0, −3.
        let a: &[f64] = &[5.0, 0.0, 3.0, 1.5, -2.0];
        let b: &[f64] = &[0.0, -3.0, 4.0, 1.25, 3.0];
        let roles = base_and_models(2);
        assert_eq!(run(&ties(0.6, 1.0), &roles, &[base, a, b]), [5.0, -3.0, 3.5, 1.0, -2.0]);
        assert_eq!(run(&ties(0.6, 0.5), &roles, &[base, a, b]), [3.0, -1.0, 2.25, 1.0, -0.5]);
        // One of each stays: 4 of a, −4 of b.
        assert_eq!(run(&ties(0.2, 1.0), &roles, &[base, a, b]), [5.0, -3.0, 1.0, 1.0, 1.0]);
        // All stay: + mass 4 − 1; both −; both +; both +; −3 + 2.
        assert_eq!(run(&ties(1.0, 1.0), &roles, &[base, a, b]), [5.0, -1.5, 3.5, 1.375, -2.0]);
    }

    #[test]
    fn experts_merge_alike() {
        let roles: Vec<Role> = std::iter::once(Role::Base).chain(experts(&Modality::ALL)).collect();
        // Vectors 1, −4, 2: − is elected by mass.
        assert_eq!(run(&ties(1.0, 1.0), &roles, &[&[0.0], &[1.0], &[-4.0], &[2.0]]), [-4.0]);
    }

    #[test]
    fn of_equal_magnitudes_the_first_stay() {
        let base = [0.0f32; 6];
        let model = [1.0f32, -1.0, 2.0, 1.0, -1.0, 0.5];
        let roles = base_and_models(1);
        for step in 1..=6 {
            let out = run_f32(&ties(0.5, 1.0), "w", &roles, &[&base, &model], step);
            assert_eq!(out, [1.0, -1.0, 2.0, 0.0, 0.0, 0.0], "runs of {step}");
        }
    }

    /// What stays of a vector, by sorting it.
    fn by_sorting(vector: &[f32], density: f64) -> Vec<f32> {
        let mut order: Vec<usize> = (0..vector.len()).collect();
        order.sort_by(|&a, &b| vector[b].abs().total_cmp(&vector[a].abs()));
        let mut left = vec![0.0; vector.len()];
        let keep = ((density * vector.len() as f64) as usize).max(1);
        order.into_iter().take(keep).for_each(|at| left[at] = vector[at]);
        left
    }

    proptest! {
        #[test]
        fn the_largest_stay(
            vector in vec(prop_oneof![finite_f32(), (-3i8..4).prop_map(f32::from)], 1..300),
            density in 1e-6..=1.0,
            step in 1usize..300,
        ) {
            let base = vec![0.0; vector.len()];
            let out = run_f32(&ties(density, 1.0), "w", &base_and_models(1), &[&base, &vector], step);
            prop_assert_eq!(out, by_sorting(&vector, density));
        }

        #[test]
        fn one_model_in_whole_is_itself(pairs in vec((-1f32..1.0, -1f32..1.0), 1..2000)) {
            let (base, model): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let run = |density, lambda| {
                run_f32(&ties(density, lambda), "w", &base_and_models(1), &[&base, &model], 700)
            };
            let whole = run(1.0, 1.0);
            prop_assert_eq!(whole.len(), model.len());
            for (found, model) in whole.into_iter().zip(&model) {
                // In f64 the sum with the base rounds by 2^-53 at most.
                prop_assert!((found - model).abs() <= 1.2e-16 + model.abs() * f32::EPSILON);
            }
            prop_assert_eq!(run(0.3, 0.0), base);
        }
    }

    #[test]
    fn large_tensors_are_cut_as_small_ones() {
        let vector: Vec<f32> =
            (0..300_000u32).map(|i| (i.wrapping_mul(2654435761) as i32 >> 12) as f32 * 1e-7).collect();
        let base = vec![0.0; vector.len()];
        for density in [0.2, 0.7] {
            let out = run_f32(&ties(density, 1.0), "w", &base_and_models(1), &[&base, &vector], 1 << 16);
            assert!(out == by_sorting(&vector, density), "density {density}");
        }
    }

    #[test]
    fn extremes_are_in_order() {
        let model = [f32::MAX, f32::INFINITY, 1e-45, -f32::MIN_POSITIVE, 0.0, -0.0];
        let base = [0.0f32; 6];
        let out = |density| run_f32(&ties(density, 1.0), "w", &base_and_models(1), &[&base, &model], 2);
        assert_eq!(out(0.2), [0.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(out(0.5), [f32::MAX, f32::INFINITY, 0.0, -f32::MIN_POSITIVE, 0.0, 0.0]);
        assert_eq!(out(0.9), [f32::MAX, f32::INFINITY, 1e-45, -f32::MIN_POSITIVE, 0.0, 0.0]);
    }

    #[test]
    fn nan_stays_and_the_rest_is_trimmed() {
        let model = [f32::NAN, f32::NAN, 3.0, 4.0];
        let out = run_f32(&ties(0.25, 1.0), "w", &base_and_models(1), &[&[0.0; 4], &model], 4);
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [0.0, 0.0]);
    }

    #[test]
    fn a_single_number_is_never_trimmed() {
        assert_eq!(run(&ties(0.2, 1.0), &base_and_models(2), &[&[2.0], &[3.0], &[4.0]]), [3.5]);
    }

    #[test]
    fn parameters_must_be_in_range() {
        let merge = merge_of(&base_and_models(2));
        for density in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(ties(density, 1.0).check(&merge).is_err(), "{density}");
        }
        assert!(ties(0.5, f64::INFINITY).check(&merge).is_err());
        assert!(ties(0.5, 1.0).check(&merge_of(&models(2))).unwrap_err().contains("no base"));
    }
}
