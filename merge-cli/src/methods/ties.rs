//! TIES: trim the vectors, elect signs, merge what agrees.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::vectors::{Combine, Vector, Vectors};
use super::{Element, Method, Runs, Span, one, to_map, unusual_lambda};
use crate::jobs::Merge;

/// base + λ · mean of the trimmed vectors' elements that have the elected sign (Yadav et al., 2023).
///
/// - **Trim.** Of each vector model − base, tensor by tensor, the ⌊density · n⌋ elements of
///   largest magnitude stay, at least one, as in mergekit. Magnitudes are compared in f32; of equal ones the first in
///   row-major order stay. (The paper's code trims a whole model at once, which favours the tensors
///   that moved most.)
/// - **Elect.** An element's sign is that of the sum of what is left of it, positive if the sum is 0.
/// - **Merge.** The mean of the elements left that have this sign.
///
/// Computed in f64, rounded once. mergekit 0.1.5's `ties` computes in f32 and is within 6e-8 of this on the same f32 tensors
/// where no magnitudes tie at the cut; which of equal ones it keeps is not defined.
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
        vectors.merge(inputs, out, self.lambda, Combine::Elect, |vector, at, value| match cuts.get(vector) {
            Some(cut) if !cut.keeps(value, span.start + at) => 0.0,
            _ => value,
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
        magnitude > self.magnitude || (magnitude == self.magnitude && at < self.until)
    }

    /// For [`Span::survey`]; positions are exact up to 2^53.
    fn to_numbers(self) -> [f64; 2] {
        [self.magnitude as f64, self.until as f64]
    }

    fn from_numbers(numbers: &[f64]) -> Cut {
        Cut { magnitude: numbers[0] as f32, until: numbers[1] as usize }
    }
}

/// Finds the cut that leaves `keep` elements of each vector, without holding one: the bits of a
/// magnitude order like the magnitude, so counting their upper half tells in which few of them
/// the cut lies, and counting the lower half of those where. `keep` is less than the number of elements.
fn cuts(vectors: &Vectors, runs: &mut dyn Runs, keep: u64) -> formats::Result<Vec<Cut>> {
    let mut searches: Vec<Search> = vectors.iter().map(|vector| Search::new(vector, keep)).collect();
    runs.for_each(&mut |_, inputs| searches.iter_mut().for_each(|search| search.count_upper(inputs)))?;
    searches.iter_mut().for_each(Search::choose_upper);
    runs.for_each(&mut |_, inputs| searches.iter_mut().for_each(|search| search.count_lower(inputs)))?;
    searches.iter_mut().for_each(Search::choose_lower);
    // Equal magnitudes that don't all stay are rare, but for zeros, which are nothing either way.
    if searches.iter().any(|search| search.left > 0) {
        runs.for_each(&mut |start, inputs| searches.iter_mut().for_each(|search| search.find_last(start, inputs)))?;
    }
    Ok(searches.iter().map(|search| Cut { magnitude: f32::from_bits(search.bits), until: search.until }).collect())
}

struct Search {
    vector: Vector,
    counts: Vec<u64>,
    /// The cut's magnitude, as far as it is known.
    bits: u32,
    /// Elements still to be found: of those not above the cut's magnitude.
    left: u64,
    until: usize,
}

/// A magnitude has 31 bits; this many of them are counted in the second pass.
const LOWER: u32 = 15;

impl Search {
    fn new(vector: Vector, keep: u64) -> Search {
        Search { vector, counts: vec![0; 1 << (31 - LOWER)], bits: 0, left: keep, until: usize::MAX }
    }

    fn magnitudes<'v>(&self, inputs: &[&'v [f64]]) -> impl Iterator<Item = u32> + use<'v> {
        // NaN is above infinity here; merging keeps it anyway.
        self.vector.values(inputs).map(|value| (value as f32).abs().to_bits())
    }

    fn count_upper(&mut self, inputs: &[&[f64]]) {
        for bits in self.magnitudes(inputs) {
            self.counts[(bits >> LOWER) as usize] += 1;
        }
    }

    fn choose_upper(&mut self) {
        self.bits = self.choose() << LOWER;
        self.counts = vec![0; 1 << LOWER];
    }

    fn count_lower(&mut self, inputs: &[&[f64]]) {
        let upper = self.bits;
        for bits in self.magnitudes(inputs) {
            // Below 2^LOWER for exactly those in the chosen bucket.
            if let Some(count) = self.counts.get_mut((bits ^ upper) as usize) {
                *count += 1;
            }
        }
    }

    fn choose_lower(&mut self) {
        let lower = self.choose();
        self.bits |= lower;
        if self.counts[lower as usize] == self.left || self.bits == 0 {
            self.left = 0;
        }
    }

    /// The largest bucket that the last of the `left` elements is in; `left` becomes its place there.
    fn choose(&mut self) -> u32 {
        for (bucket, &count) in self.counts.iter().enumerate().rev() {
            if count >= self.left {
                return bucket as u32;
            }
            self.left -= count;
        }
        0
    }

    fn find_last(&mut self, start: usize, inputs: &[&[f64]]) {
        if self.left == 0 {
            return;
        }
        for (at, bits) in self.magnitudes(inputs).enumerate() {
            if bits == self.bits {
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

    use super::super::testing::{base_and_models, experts, merge_of, models, run, run_f32};
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

    #[test]
    fn one_model_undivided_is_itself() {
        let base: Vec<f32> = (0..999).map(|i| (i as f32 * 0.9).sin()).collect();
        let model: Vec<f32> = (0..999).map(|i| (i as f32 * 0.9).sin() + 0.01 * (i as f32).cos()).collect();
        assert_eq!(run_f32(&ties(1.0, 1.0), "w", &base_and_models(1), &[&base, &model], 100), model);
        assert_eq!(run_f32(&ties(0.3, 0.0), "w", &base_and_models(1), &[&base, &model], 100), base);
    }

    #[test]
    fn the_largest_stay_whatever_the_runs() {
        let values: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2654435761) as i32) as f32 * 1e-7).collect();
        let base = vec![0.0f32; values.len()];
        for density in [1e-9, 0.001, 0.2, 0.5, 0.99] {
            let mut sorted: Vec<f32> = values.iter().map(|x| x.abs()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let keep = ((density * 5000.0) as usize).max(1);
            let expected: Vec<f32> =
                values.iter().map(|&x| if x.abs() >= sorted[keep - 1] { x } else { 0.0 }).collect();
            for step in [7, 1000, 5000] {
                let out = run_f32(&ties(density, 1.0), "w", &base_and_models(1), &[&base, &values], step);
                assert_eq!(out, expected, "density {density}, runs of {step}");
                assert_eq!(out.iter().filter(|&&x| x != 0.0).count(), keep);
            }
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
