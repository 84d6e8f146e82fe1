//! Interpolation: a weighted mean of the experts.

use formats::layout::Modality;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Method, Span};
use crate::jobs::{Merge, Role};

/// Weights vision by `ratio` and language by 1 − `ratio`; where there is a `vl` expert too, it
/// gets ⅓ and the others share the rest (Sung et al., 2023, section 3.2).
///
/// Computed in the tensors' own precision, product then sum in the order v, l, vl, which is
/// bit for bit what PyTorch computes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpolate {
    pub ratio: f64,
}

impl Interpolate {
    /// The experts' coefficients, in f64.
    fn coefficients(&self, merge: &Merge) -> Vec<f64> {
        let thirds = merge.inputs.len() == 3;
        let share = if thirds { 2.0 / 3.0 } else { 1.0 };
        let weight = |role: &Role| match role {
            _ if merge.inputs.len() == 1 => 1.0,
            Role::Expert(Modality::Vision) => share * self.ratio,
            Role::Expert(Modality::Language) => share * (1.0 - self.ratio),
            _ => 1.0 / 3.0,
        };
        merge.inputs.iter().map(|input| weight(&input.role)).collect()
    }
}

impl Method for Interpolate {
    fn name(&self) -> &'static str {
        "interpolate"
    }

    fn parameters(&self) -> Map<String, Value> {
        Map::from_iter([("ratio".into(), json!(self.ratio))])
    }

    fn warnings(&self) -> Vec<String> {
        match self.ratio {
            0.0..=1.0 => Vec::new(),
            ratio => vec![format!("ratio {ratio} is outside 0 to 1: this extrapolates")],
        }
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        let coefficients: Vec<f32> = self.coefficients(span.merge).into_iter().map(|c| c as f32).collect();
        weighted_sum(&coefficients, inputs, out, 0.0);
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        weighted_sum(&self.coefficients(span.merge), inputs, out, 0.0);
        Ok(())
    }
}

/// Σ coefficient · input, summed from zero in order. Two and three inputs in one pass.
fn weighted_sum<T>(coefficients: &[T], inputs: &[&[T]], out: &mut [T], zero: T)
where
    T: Copy + std::ops::Add<Output = T> + std::ops::Mul<Output = T>,
{
    // PyTorch's sum starts from 0, and 0 + (−0) is +0.
    match (coefficients, inputs) {
        (&[a, b], &[x, y]) => {
            for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                *out = zero + a * x + b * y;
            }
        }
        (&[a, b, c], &[x, y, z]) => {
            for (((out, &x), &y), &z) in out.iter_mut().zip(x).zip(y).zip(z) {
                *out = zero + a * x + b * y + c * z;
            }
        }
        _ => {
            out.fill(zero);
            for (&c, x) in coefficients.iter().zip(inputs) {
                for (out, &x) in out.iter_mut().zip(*x) {
                    *out = *out + c * x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Input;

    fn merge(modalities: &[Modality]) -> Merge {
        let inputs = modalities.iter().map(|&m| Input { checkpoint: 0, tensor: 0, role: Role::Expert(m) });
        Merge { name: String::new(), layer: Some(0), part: formats::layout::Part::Mlp, inputs: inputs.collect() }
    }

    fn run(ratio: f64, modalities: &[Modality], inputs: &[&[f32]]) -> Vec<f32> {
        let mut out = vec![f32::NAN; inputs[0].len()];
        let merge = merge(modalities);
        Interpolate { ratio }.merge_f32(&Span::whole(&merge), inputs, &mut out).unwrap();
        out
    }

    #[test]
    fn two_experts_share_by_ratio() {
        use Modality::{Language, Vision};
        assert_eq!(run(0.25, &[Vision, Language], &[&[4.0, 8.0], &[8.0, 0.0]]), [7.0, 2.0]);
        assert_eq!(run(1.0, &[Vision, Language], &[&[4.0], &[8.0]]), [4.0]);
    }

    #[test]
    fn three_experts_give_a_third_to_vl() {
        let out = run(0.5, &Modality::ALL, &[&[3.0], &[6.0], &[9.0]]);
        assert!((out[0] - 6.0).abs() < 1e-6);
        let out = run(0.0, &Modality::ALL, &[&[100.0], &[6.0], &[9.0]]);
        assert!((out[0] - 7.0).abs() < 1e-6);
    }

    #[test]
    fn one_expert_is_itself_but_for_the_sign_of_zero() {
        let out = run(0.3, &[Modality::VisionLanguage], &[&[1.5, -0.0]]);
        assert_eq!(out, [1.5, 0.0]);
        assert!(out[1].is_sign_positive());
    }
}
