//! DARE: drop most of a vector's elements at random, and rescale the rest.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::vectors::{Combine, Vectors};
use super::{Element, Method, Span, one, to_map, unusual_lambda};
use crate::jobs::Merge;
use crate::random::Stream;

/// base + λ · Σ of the thinned vectors, where each element of a vector model − base stays with
/// probability `density` and is then divided by it, which keeps its expectation (Yu et al., 2024).
///
/// With `ties`, what is left is combined as in [`super::Ties`]: signs elected by mass, the mean of those
/// that agree. A tensor of one element, such as `logit_scale`, is never dropped: it would be all or nothing.
///
/// Whether an element stays depends on the seed, the tensor's name in the result, the model's number (or
/// its modality) and the element's position alone: the same for any number of threads, in any container.
///
/// mergekit 0.1.5's `dare_linear` and `dare_ties` draw other numbers. At density 1 they are the same bit for bit
/// on f64 tensors and within 8e-8 of a tensor's largest magnitude on f32 ones; below it as many
/// elements stay, with the same values (`tests/against_mergekit.py`). They rescale to the vector's L1 norm instead of by
/// 1/density unless `rescale` is off, and `dare_ties` adds up what agrees unless `normalize` is on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dare {
    /// The probability to stay, above 0 and at most 1.
    pub density: f64,
    #[serde(default = "one")]
    pub lambda: f64,
    #[serde(default)]
    pub seed: u64,
    /// Elect signs and take the mean instead of the sum.
    #[serde(default)]
    pub ties: bool,
}

impl Dare {
    fn merge<T: Element>(&self, span: &Span, inputs: &[&[T]], out: &mut [T]) {
        // Checked before the run began.
        let Ok(vectors) = Vectors::of(span.merge) else { return };
        let combine = if self.ties { Combine::Elect } else { Combine::Sum };
        if self.density >= 1.0 || span.elements == 1 {
            return vectors.merge(inputs, out, self.lambda, combine, |_, _, value| value);
        }
        let streams: Vec<Stream> =
            vectors.iter().map(|vector| Stream::new(self.seed, vector.id, &span.merge.name)).collect();
        vectors.merge(inputs, out, self.lambda, combine, |vector, at, value| {
            let stays = streams[vector].uniform((span.start + at) as u64) < self.density;
            if stays { value / self.density } else { 0.0 }
        });
    }
}

impl Method for Dare {
    fn name(&self) -> &'static str {
        "dare"
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

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        self.merge(span, inputs, out);
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        self.merge(span, inputs, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{base_and_models, merge_of, models, run, run_f32};
    use super::*;

    fn dare(density: f64) -> Dare {
        Dare { density, lambda: 1.0, seed: 1, ties: false }
    }

    /// What is left of a vector of `count` ones.
    fn ones(method: &Dare, name: &str, count: usize, step: usize) -> Vec<f32> {
        run_f32(method, name, &base_and_models(1), &[&vec![0.0; count], &vec![1.0; count]], step)
    }

    #[test]
    fn what_stays_is_rescaled() {
        let out = ones(&dare(0.25), "w", 4096, 4096);
        assert!(out.iter().all(|&x| x == 0.0 || x == 4.0));
        assert!(out.contains(&0.0) && out.contains(&4.0));
    }

    #[test]
    fn the_expectation_is_kept() {
        for (density, seed) in [(0.1, 1), (0.5, 2), (0.9, 3)] {
            let n = 1 << 18;
            let out = ones(&Dare { seed, ..dare(density) }, "w", n, n);
            let kept = out.iter().filter(|&&x| x != 0.0).count() as f64 / n as f64;
            // Four standard deviations.
            let spread = 4.0 * (density * (1.0 - density) / n as f64).sqrt();
            assert!((kept - density).abs() < spread, "density {density}: {kept}");
        }
    }

    #[test]
    fn runs_dont_matter() {
        let all = ones(&dare(0.5), "w", 3000, 3000);
        for step in [1, 7, 1024] {
            assert_eq!(ones(&dare(0.5), "w", 3000, step), all);
        }
    }

    #[test]
    fn seeds_names_models_and_places_differ() {
        let n = 4096;
        let reference = ones(&dare(0.5), "w", n, n);
        // Independent masks agree on half of the elements, give or take four standard deviations.
        let independent = |other: &[f32]| {
            assert_eq!(reference.len(), other.len());
            let same = reference.iter().zip(other).filter(|(a, b)| a == b).count() as f64 / n as f64;
            (same - 0.5).abs() < 4.0 * 0.5 / (n as f64).sqrt()
        };
        assert!(independent(&ones(&Dare { seed: 2, ..dare(0.5) }, "w", n, n)));
        assert!(independent(&ones(&dare(0.5), "u", n, n)));
        assert!(independent(&[&reference[1..], &reference[..1]].concat()));
        let (zeros, ones) = (vec![0.0f32; n], vec![1.0f32; n]);
        let second = run_f32(&dare(0.5), "w", &base_and_models(2), &[&zeros, &zeros, &ones], n);
        assert!(independent(&second));
    }

    #[test]
    fn vectors_add_up_or_vote() {
        let (base, a, b): (&[f64], &[f64], &[f64]) = (&[1.0, 1.0], &[2.0, 3.0], &[5.0, -4.0]);
        let sum = Dare { lambda: 0.5, ..dare(1.0) };
        // 1 + ½(1 + 4), 1 + ½(2 − 5)
        assert_eq!(run(&sum, &base_and_models(2), &[base, a, b]), [3.5, -0.5]);
        // 1 + ½·(1 + 4)/2, 1 + ½·(−5)
        let vote = Dare { ties: true, ..sum };
        assert_eq!(run(&vote, &base_and_models(2), &[base, a, b]), [2.25, -1.5]);
    }

    #[test]
    fn everything_stays_at_density_1() {
        let base: Vec<f32> = (0..999).map(|i| (i as f32 * 0.9).sin()).collect();
        let model: Vec<f32> = (0..999).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(run_f32(&dare(1.0), "w", &base_and_models(1), &[&base, &model], 100), model);
    }

    #[test]
    fn a_single_number_is_never_dropped() {
        for seed in 0..20 {
            let method = Dare { seed, ..dare(0.1) };
            assert_eq!(run(&method, &base_and_models(1), &[&[2.0], &[3.0]]), [3.0]);
        }
    }

    #[test]
    fn nan_is_not_dropped() {
        let out = run(&dare(0.01), &base_and_models(1), &[&[0.0; 64], &[f64::NAN; 64]]);
        assert!(out.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn parameters_must_be_in_range() {
        let merge = merge_of(&base_and_models(2));
        for density in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(dare(density).check(&merge).is_err(), "{density}");
        }
        assert!(Dare { lambda: f64::NAN, ..dare(0.5) }.check(&merge).is_err());
        assert!(dare(0.5).check(&merge_of(&models(2))).is_err());
    }
}
