//! Spherical linear interpolation: along the arc between two tensors instead of the chord.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::soup::weighted_sum;
use super::{Method, Runs, Span, to_map};
use crate::jobs::{Merge, Role};

/// sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b, with θ the angle between the whole tensors a and b
/// (Shoemake, 1985). t = 0 is a, t = 1 is b.
///
/// Where |cos θ| > 0.9995 (nearly parallel or opposite), or where there is no angle (a tensor of
/// zeros, NaN or infinities), it is (1−t)·a + t·b; so single numbers such as `logit_scale` are
/// interpolated linearly. Between experts a is v and b is l; a `vl` expert is met last, at t = ⅓
/// from what the others gave, so that it weighs as in interpolation. Angles and sums in f64,
/// rounded once.
///
/// mergekit 0.1.5's `slerp` is within 2e-15 of a tensor's largest magnitude on f64 tensors and, taking the
/// angle in f32, within 6e-6 on f32 ones (`tests/against_mergekit.py`). It takes a tensor of zeros for
/// perpendicular to everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slerp {
    pub t: f64,
}

/// mergekit's: beyond it the arc and the chord are the same to f32, and sin θ soon divides by nothing.
const PARALLEL: f64 = 0.9995;

/// How far towards `vl` the third step goes.
const THIRD: f64 = 1.0 / 3.0;

impl Method for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn parameters(&self) -> Map<String, Value> {
        to_map(self)
    }

    fn warnings(&self) -> Vec<String> {
        let outside = !(0.0..=1.0).contains(&self.t);
        outside.then(|| format!("t {} is outside 0 to 1: this extrapolates", self.t)).into_iter().collect()
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        let experts = merge.inputs.iter().all(|input| matches!(input.role, Role::Expert(_)));
        match merge.inputs.len() {
            _ if !self.t.is_finite() => Err(format!("t is {}", self.t)),
            2 => Ok(()),
            1 | 3 if experts => Ok(()),
            n => Err(format!("slerp goes from one tensor to another, and here are {n}")),
        }
    }

    /// The inputs' coefficients.
    fn survey(&self, merge: &Merge, runs: &mut dyn Runs) -> formats::Result<Vec<f64>> {
        let count = merge.inputs.len();
        if count < 2 {
            return Ok(vec![1.0; count]);
        }
        let mut products = [[0.0; 3]; 3];
        runs.for_each(&mut |_, inputs| {
            for (i, x) in inputs.iter().enumerate().take(3) {
                for (j, y) in inputs.iter().enumerate().take(i + 1) {
                    products[i][j] += x.iter().zip(*y).map(|(x, y)| x * y).sum::<f64>();
                }
            }
        })?;
        let [[aa, ..], [ab, bb, _], [ac, bc, cc]] = products;
        let (a, b) = arc(aa, ab, bb, self.t);
        if count == 2 {
            return Ok(vec![a, b]);
        }
        let so_far = a * a * aa + 2.0 * a * b * ab + b * b * bb;
        let (rest, c) = arc(so_far, a * ac + b * bc, cc, THIRD);
        Ok(vec![rest * a, rest * b, c])
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        weighted_sum(span.survey, inputs, out);
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        weighted_sum(span.survey, inputs, out);
        Ok(())
    }
}

/// The coefficients of a and b at t, from their inner products.
fn arc(aa: f64, ab: f64, bb: f64, t: f64) -> (f64, f64) {
    let cosine = (ab / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0);
    if cosine.is_nan() || cosine.abs() > PARALLEL {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}

#[cfg(test)]
mod tests {
    use std::f64::consts::FRAC_1_SQRT_2;

    use formats::layout::Modality::{self, Language, Vision, VisionLanguage};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::testing::{experts, finite_f32, merge_of, models, run, run_f32};
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} for {expected}");
        }
    }

    #[test]
    fn goes_along_the_arc() {
        let (x, y): (&[f64], &[f64]) = (&[1.0, 0.0], &[0.0, 1.0]);
        close(&run(&Slerp { t: 0.5 }, &models(2), &[x, y]), &[FRAC_1_SQRT_2, FRAC_1_SQRT_2]);
        // 30° of 90°
        close(&run(&Slerp { t: 1.0 / 3.0 }, &models(2), &[x, y]), &[0.75f64.sqrt(), 0.5]);
        // Lengths 1 and 3 meet at the arc's weights: sin 45°/sin 90° of each.
        close(&run(&Slerp { t: 0.5 }, &models(2), &[x, &[0.0, 3.0]]), &[FRAC_1_SQRT_2, 3.0 * FRAC_1_SQRT_2]);
        // 120° apart, half way: sin 60°/sin 120° = 1, so a + b.
        let b = [-0.5, 0.75f64.sqrt()];
        close(&run(&Slerp { t: 0.5 }, &models(2), &[x, &b]), &[0.5, 0.75f64.sqrt()]);
    }

    proptest! {
        #[test]
        fn the_ends_are_the_models(pairs in vec((finite_f32(), finite_f32()), 1..500), t in -1.0..2.0) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let slerp = |t, a: &[f32], b: &[f32]| run_f32(&Slerp { t }, "w", &models(2), &[a, b], 300);
            prop_assert_eq!(&slerp(0.0, &a, &b), &a);
            prop_assert_eq!(&slerp(1.0, &a, &b), &b);
            let itself = slerp(t, &a, &a);
            prop_assert_eq!(itself.len(), a.len());
            for (found, &a) in itself.into_iter().zip(&a) {
                prop_assert!((found - a).abs() <= a.abs() * f32::EPSILON);
            }
        }
    }

    #[test]
    fn without_an_angle_it_is_linear() {
        close(&run(&Slerp { t: 0.25 }, &models(2), &[&[4.0, 0.0], &[8.0, 0.0]]), &[5.0, 0.0]);
        close(&run(&Slerp { t: 0.25 }, &models(2), &[&[4.0, 0.0], &[-4.0, 0.0]]), &[2.0, 0.0]);
        close(&run(&Slerp { t: 0.25 }, &models(2), &[&[0.0, 0.0], &[8.0, 4.0]]), &[2.0, 1.0]);
        // A 0-d tensor.
        close(&run(&Slerp { t: 0.5 }, &models(2), &[&[2.0], &[3.0]]), &[2.5]);
    }

    #[test]
    fn the_threshold_is_mergekits() {
        let at = |cosine: f64| {
            let b = [cosine, (1.0 - cosine * cosine).sqrt()];
            run(&Slerp { t: 0.5 }, &models(2), &[&[1.0, 0.0], &b]).iter().map(|x| x * x).sum::<f64>()
        };
        // The arc's middle has length 1, the chord's less.
        assert!((at(0.9994) - 1.0).abs() < 1e-12);
        assert!(at(0.9996) < 1.0 - 1e-4);
        assert!((at(-0.9994) - 1.0).abs() < 1e-9);
        assert!(at(-0.9996) < 0.1);
    }

    #[test]
    fn nan_stays_where_it_is() {
        let out = run(&Slerp { t: 0.5 }, &models(2), &[&[f64::NAN, 2.0], &[1.0, 4.0]]);
        assert!(out[0].is_nan());
        assert_eq!(out[1], 3.0);
    }

    #[test]
    fn vl_comes_last_at_a_third() {
        let (x, y, z): (&[f64], &[f64], &[f64]) = (&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0]);
        let out = run(&Slerp { t: 0.5 }, &experts(&Modality::ALL), &[x, y, z]);
        // The middle of x and y, then 30° of the 90° to z.
        let rest = 0.75f64.sqrt() * FRAC_1_SQRT_2;
        close(&out, &[rest, rest, 0.5]);
        close(&run(&Slerp { t: 0.5 }, &experts(&[Vision, Language]), &[x, y]), &[FRAC_1_SQRT_2, FRAC_1_SQRT_2, 0.0]);
        close(&run(&Slerp { t: 0.5 }, &experts(&[VisionLanguage]), &[z]), z);
    }

    #[test]
    fn three_models_are_refused() {
        assert!(Slerp { t: 0.5 }.check(&merge_of(&models(3))).unwrap_err().contains("here are 3"));
        assert!(Slerp { t: 0.5 }.check(&merge_of(&models(1))).is_err());
        assert!(Slerp { t: f64::NAN }.check(&merge_of(&models(2))).is_err());
    }
}
