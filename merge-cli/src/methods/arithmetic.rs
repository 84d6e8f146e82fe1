//! Modality arithmetic: the base plus scaled modality vectors.

use std::collections::BTreeMap;
use std::ops::{Add, Div, Mul, Sub};

use formats::layout::Modality;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Method, Span, unusual_lambda};
use crate::jobs::{Merge, Role};

/// base + Σₘ λₘ · (expertₘ − base) (Sung et al., 2023, section 3.2, after Ilharco et al., 2023).
///
/// Where the base has experts itself, each vector starts from its own expert of the base, and the
/// mean of those takes the base's place.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arithmetic {
    pub lambda: Lambda,
    /// Apply the vectors one after another, each from the result so far: θ ← θ + λ(expert − θ).
    /// It is what the published Python code computes, by updating the base in place.
    #[serde(default)]
    pub sequential: bool,
}

/// λ for each modality; one for all is the usual case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "RawLambda")]
pub struct Lambda {
    pub all: f64,
    /// Exceptions.
    pub by_modality: BTreeMap<Modality, f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawLambda {
    All(f64),
    ByModality(BTreeMap<Modality, f64>),
}

impl From<RawLambda> for Lambda {
    fn from(raw: RawLambda) -> Lambda {
        match raw {
            RawLambda::All(all) => Lambda::one(all),
            RawLambda::ByModality(by_modality) => Lambda { all: 0.0, by_modality },
        }
    }
}

impl Lambda {
    pub fn one(all: f64) -> Lambda {
        Lambda { all, by_modality: BTreeMap::new() }
    }

    pub fn of(&self, modality: Modality) -> f64 {
        self.by_modality.get(&modality).copied().unwrap_or(self.all)
    }
}

impl Method for Arithmetic {
    fn name(&self) -> &'static str {
        "arithmetic"
    }

    fn parameters(&self) -> Map<String, Value> {
        let lambda = match self.lambda.by_modality.is_empty() {
            true => json!(self.lambda.all),
            false => json!(self.lambda.by_modality),
        };
        Map::from_iter([("lambda".into(), lambda), ("sequential".into(), json!(self.sequential))])
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        let given = &self.lambda.by_modality;
        for role in merge.inputs.iter().map(|input| input.role) {
            match role {
                Role::BaseExpert(_) if self.sequential => {
                    return Err("sequential arithmetic starts from one set of weights, and the base has experts".into());
                }
                Role::Expert(modality) if !given.is_empty() && !given.contains_key(&modality) => {
                    return Err(format!("lambda has no value for its {modality} expert"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_all(&self, merges: &[&Merge]) -> Result<(), String> {
        let is_merged = |modality: &Modality| {
            let wanted = Role::Expert(*modality);
            merges.iter().flat_map(|merge| &merge.inputs).any(|input| input.role == wanted)
        };
        match self.lambda.by_modality.keys().find(|modality| !is_merged(modality)) {
            Some(idle) => Err(format!("lambda has a value for {idle}, and no {idle} expert is merged with others")),
            None => Ok(()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let by_modality = &self.lambda.by_modality;
        let unusual = by_modality.iter().filter_map(|(modality, &lambda)| {
            unusual_lambda(lambda).map(|warning| warning.replace(" is", &format!(" for {modality} is")))
        });
        let all = unusual_lambda(self.lambda.all).filter(|_| by_modality.is_empty());
        unusual.chain(all).collect()
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        self.merge(span.merge, inputs, out, |value| value as f32);
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        self.merge(span.merge, inputs, out, |value| value);
        Ok(())
    }
}

trait Real: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {}
impl Real for f32 {}
impl Real for f64 {}

impl Arithmetic {
    fn merge<T: Real>(&self, merge: &Merge, inputs: &[&[T]], out: &mut [T], real: impl Fn(f64) -> T) {
        let bases: Vec<&[T]> = by_role(merge, inputs, |role| matches!(role, Role::Base | Role::BaseExpert(_)));
        let experts: Vec<&[T]> = by_role(merge, inputs, |role| matches!(role, Role::Expert(_)));
        let lambdas: Vec<T> = merge
            .inputs
            .iter()
            .filter_map(|input| match input.role {
                Role::Expert(modality) => Some(real(self.lambda.of(modality))),
                _ => None,
            })
            .collect();
        match (bases.as_slice(), experts.as_slice(), lambdas.as_slice()) {
            // The usual cases in one pass over memory.
            (&[base], &[x, y], &[a, b]) if !self.sequential => {
                for (((out, &base), &x), &y) in out.iter_mut().zip(base).zip(x).zip(y) {
                    *out = base + (a * (x - base) + b * (y - base));
                }
            }
            (&[base], &[x, y, z], &[a, b, c]) if !self.sequential => {
                for ((((out, &base), &x), &y), &z) in out.iter_mut().zip(base).zip(x).zip(y).zip(z) {
                    *out = base + (a * (x - base) + b * (y - base) + c * (z - base));
                }
            }
            (&[base], experts, lambdas) => {
                out.copy_from_slice(base);
                for (expert, &lambda) in experts.iter().zip(lambdas) {
                    for ((out, &x), &base) in out.iter_mut().zip(*expert).zip(base) {
                        let from = if self.sequential { *out } else { base };
                        *out = *out + lambda * (x - from);
                    }
                }
            }
            // A base with experts: its own for each.
            (bases, experts, lambdas) => {
                let count = real(bases.len() as f64);
                for (at, out) in out.iter_mut().enumerate() {
                    let mut vectors = real(0.0);
                    let mut mean = real(0.0);
                    for ((base, expert), &lambda) in bases.iter().zip(experts).zip(lambdas) {
                        mean = mean + base[at];
                        vectors = vectors + lambda * (expert[at] - base[at]);
                    }
                    *out = mean / count + vectors;
                }
            }
        }
    }
}

fn by_role<'v, T>(merge: &Merge, inputs: &[&'v [T]], wanted: impl Fn(&Role) -> bool) -> Vec<&'v [T]> {
    merge.inputs.iter().zip(inputs).filter(|(input, _)| wanted(&input.role)).map(|(_, values)| *values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Input;
    use Modality::{Language, Vision, VisionLanguage};

    fn run(method: &Arithmetic, roles: &[Role], inputs: &[&[f64]]) -> Vec<f64> {
        let inputs_of = roles.iter().map(|&role| Input { checkpoint: 0, tensor: 0, role });
        let merge = Merge {
            name: String::new(),
            layer: Some(0),
            part: formats::layout::Part::Mlp,
            inputs: inputs_of.collect(),
        };
        let mut out = vec![f64::NAN; inputs[0].len()];
        method.merge_f64(&Span::whole(&merge), inputs, &mut out).unwrap();
        out
    }

    #[test]
    fn the_published_formula() {
        let method = Arithmetic { lambda: Lambda::one(0.75), sequential: false };
        let roles = [Role::Base, Role::Expert(Vision), Role::Expert(Language)];
        // 1 + 0.75·(2 − 1) + 0.75·(5 − 1)
        assert_eq!(run(&method, &roles, &[&[1.0], &[2.0], &[5.0]]), [4.75]);
        let roles = [Role::Base, Role::Expert(Vision), Role::Expert(Language), Role::Expert(VisionLanguage)];
        assert_eq!(run(&method, &roles, &[&[1.0], &[2.0], &[5.0], &[1.0]]), [4.75]);
    }

    #[test]
    fn in_sequence_the_last_expert_wins() {
        let method = Arithmetic { lambda: Lambda::one(0.75), sequential: true };
        let roles = [Role::Base, Role::Expert(Vision), Role::Expert(Language)];
        // 0.0625 base + 0.1875 v + 0.75 l
        assert_eq!(run(&method, &roles, &[&[16.0], &[32.0], &[4.0]]), [10.0]);
    }

    #[test]
    fn each_modality_can_have_its_own_lambda() {
        let lambda = Lambda { all: 0.0, by_modality: BTreeMap::from([(Vision, 0.5), (Language, 2.0)]) };
        let method = Arithmetic { lambda, sequential: false };
        let roles = [Role::Base, Role::Expert(Vision), Role::Expert(Language)];
        assert_eq!(run(&method, &roles, &[&[1.0], &[3.0], &[2.0]]), [4.0]);
    }

    #[test]
    fn a_base_with_experts_gives_each_vector_its_own_start() {
        let method = Arithmetic { lambda: Lambda::one(1.0), sequential: false };
        let roles =
            [Role::BaseExpert(Vision), Role::BaseExpert(Language), Role::Expert(Vision), Role::Expert(Language)];
        // mean(2, 4) + (3 − 2) + (4 − 4)
        assert_eq!(run(&method, &roles, &[&[2.0], &[4.0], &[3.0], &[4.0]]), [4.0]);
    }
}
