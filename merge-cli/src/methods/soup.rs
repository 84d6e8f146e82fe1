//! Model soups: a weighted mean of models.

use formats::layout::Modality;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Element, Method, Span, to_map};
use crate::jobs::{Merge, Role};

/// Σ wₘ · modelₘ (Wortsman et al., 2022), uniform unless weights are given. Summed in f64, rounded once.
///
/// The uniform soup of a modality-specific checkpoint's experts is their mean in every layer; with
/// weights, a layer without a `vl` expert shares the others' among v and l.
///
/// mergekit 0.1.5's `linear` is within 3e-16 of a tensor's largest magnitude on f64 tensors and, summing in
/// f32, within 8e-8 on f32 ones (`tests/against_mergekit.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Soup {
    /// A weight for each model or, for experts, for v, l and vl; `None` is uniform.
    #[serde(default)]
    pub weights: Option<Vec<f64>>,
    /// Divide the weights by their sum.
    #[serde(default = "yes")]
    pub normalize: bool,
}

fn yes() -> bool {
    true
}

impl Soup {
    /// The weights of a merge's inputs.
    ///
    /// # Errors
    /// There are too few weights, or they add up to nothing.
    fn coefficients(&self, merge: &Merge) -> Result<Vec<f64>, String> {
        let Some(weights) = &self.weights else {
            return Ok(vec![1.0 / merge.inputs.len() as f64; merge.inputs.len()]);
        };
        let mut chosen = Vec::new();
        for input in &merge.inputs {
            let (number, what) = match input.role {
                Role::Model(number) => (number, format!("model {}", number + 1)),
                Role::Expert(modality) => (modality as usize, format!("the {modality} expert")),
                Role::Base | Role::BaseExpert(_) => return Err("a soup has no place for a base".into()),
            };
            chosen.push(*weights.get(number).ok_or_else(|| format!("there is no weight for {what}"))?);
        }
        if self.normalize {
            let sum: f64 = chosen.iter().sum();
            if sum == 0.0 || !sum.is_finite() {
                return Err(format!("weights that add up to {sum} can't be normalised"));
            }
            chosen.iter_mut().for_each(|weight| *weight /= sum);
        }
        Ok(chosen)
    }

    fn merge<T: Element>(&self, span: &Span, inputs: &[&[T]], out: &mut [T]) {
        // Checked before the run began.
        let coefficients = self.coefficients(span.merge).unwrap_or_default();
        weighted_sum(&coefficients, inputs, out);
    }
}

impl Method for Soup {
    fn name(&self) -> &'static str {
        "soup"
    }

    fn parameters(&self) -> Map<String, Value> {
        to_map(self)
    }

    fn warnings(&self) -> Vec<String> {
        let below = self.weights.iter().flatten().any(|&weight| weight < 0.0);
        below.then(|| "a weight below 0 extrapolates".to_string()).into_iter().collect()
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        self.coefficients(merge).map(|_| ())
    }

    fn check_all(&self, merges: &[&Merge]) -> Result<(), String> {
        let Some(weights) = &self.weights else { return Ok(()) };
        let roles = || merges.iter().flat_map(|merge| &merge.inputs).map(|input| input.role);
        let models =
            roles().filter_map(|role| if let Role::Model(number) = role { Some(number + 1) } else { None }).max();
        if let Some(models) = models {
            return match weights.len() > models {
                true => Err(format!("there are {} weights for {models} models", weights.len())),
                false => Ok(()),
            };
        }
        let idle = Modality::ALL.into_iter().take(weights.len()).find(|&m| roles().all(|role| role != Role::Expert(m)));
        match idle {
            Some(idle) => Err(format!("there is a weight for {idle}, and no {idle} expert is merged with others")),
            None if weights.len() > Modality::ALL.len() => {
                Err(format!("there are {} weights: experts are v, l and vl", weights.len()))
            }
            None => Ok(()),
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

/// Σ coefficient · input in f64, in order, rounded once.
pub(super) fn weighted_sum<T: Element>(coefficients: &[f64], inputs: &[&[T]], out: &mut [T]) {
    // A block of sums stays in cache while the inputs pass by.
    const BLOCK: usize = 1024;
    let mut sums = [0.0; BLOCK];
    for (number, out) in out.chunks_mut(BLOCK).enumerate() {
        let start = number * BLOCK;
        let sums = &mut sums[..out.len()];
        sums.fill(0.0);
        for (&coefficient, input) in coefficients.iter().zip(inputs) {
            for (sum, &x) in sums.iter_mut().zip(&input[start..]) {
                *sum += coefficient * x.into();
            }
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = T::round(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::layout::Modality::{Language, Vision, VisionLanguage};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::testing::{experts, finite_f32, merge_of, models, run, run_f32};
    use super::*;

    fn weighted(weights: &[f64]) -> Soup {
        Soup { weights: Some(weights.to_vec()), normalize: true }
    }

    #[test]
    fn uniform_is_the_mean() {
        let soup = Soup { weights: None, normalize: true };
        assert_eq!(run(&soup, &models(2), &[&[1.0, 2.0], &[3.0, -2.0]]), [2.0, 0.0]);
        assert_eq!(run(&soup, &models(4), &[&[1.0], &[2.0], &[3.0], &[10.0]]), [4.0]);
        assert_eq!(run(&soup, &experts(&[VisionLanguage]), &[&[7.0]]), [7.0]);
    }

    #[test]
    fn weights_are_shares() {
        // (4 + 8 + 2·2) / 4
        assert_eq!(run(&weighted(&[1.0, 1.0, 2.0]), &models(3), &[&[4.0], &[8.0], &[2.0]]), [4.0]);
        let as_given = Soup { weights: Some(vec![1.0, 1.0, 2.0]), normalize: false };
        assert_eq!(run(&as_given, &models(3), &[&[4.0], &[8.0], &[2.0]]), [16.0]);
    }

    #[test]
    fn a_layer_without_vl_shares_the_rest() {
        let soup = weighted(&[0.6, 0.2, 0.2]);
        assert_eq!(run(&soup, &experts(&[Vision, Language]), &[&[4.0], &[8.0]]), [5.0]);
        let deep = run(&soup, &experts(&Modality::ALL), &[&[4.0], &[8.0], &[1.0]]);
        assert!((deep[0] - 4.2).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn identical_models_make_themselves(model in vec(finite_f32(), 1..2500), count in 1usize..8) {
            let soup = Soup { weights: None, normalize: true };
            let out = run_f32(&soup, "w", &models(count), &vec![model.as_slice(); count], 700);
            prop_assert_eq!(out, model);
        }
    }

    #[test]
    fn weights_must_fit() {
        let merge = merge_of(&models(3));
        assert_eq!(weighted(&[0.5, 0.5]).check(&merge).unwrap_err(), "there is no weight for model 3");
        assert!(weighted(&[1.0, -2.0, 1.0]).check(&merge).unwrap_err().contains("add up to 0"));
        let merge = merge_of(&experts(&Modality::ALL));
        assert_eq!(weighted(&[0.5, 0.5]).check(&merge).unwrap_err(), "there is no weight for the vl expert");
    }
}
