//! What TIES and DARE share: vectors from a base to the models, thinned out, combined, and added
//! to the base again.

use super::Element;
use crate::jobs::{Merge, Role};

/// Where a merge's base and models stand among its inputs.
#[derive(Debug)]
pub(super) struct Vectors {
    bases: Vec<usize>,
    vectors: Vec<Vector>,
}

/// One model's vector: model − base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vector {
    base: usize,
    model: usize,
    /// The model's number or, for an expert, its modality's: 0 v, 1 l, 2 vl.
    pub id: u64,
}

/// How the vectors' elements become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combine {
    Sum,
    /// The sign of their sum is elected, positive if that is 0; the mean of those that have it.
    /// Zeros have no sign and aren't counted.
    Elect,
}

impl Vectors {
    /// Where the base has experts itself, each vector starts from its own expert of the base.
    ///
    /// # Errors
    /// There is no model, or no base for one.
    pub fn of(merge: &Merge) -> Result<Vectors, String> {
        let position = |wanted: Role| merge.inputs.iter().position(|input| input.role == wanted);
        let shared = position(Role::Base);
        let mut vectors = Vec::new();
        for (model, input) in merge.inputs.iter().enumerate() {
            let (id, own) = match input.role {
                Role::Model(number) => (number as u64, None),
                Role::Expert(modality) => (modality as u64, position(Role::BaseExpert(modality))),
                Role::Base | Role::BaseExpert(_) => continue,
            };
            let base = own.or(shared).ok_or("there is no base to measure from")?;
            vectors.push(Vector { base, model, id });
        }
        let is_base = |role| matches!(role, Role::Base | Role::BaseExpert(_));
        let bases: Vec<usize> = (0..merge.inputs.len()).filter(|&at| is_base(merge.inputs[at].role)).collect();
        match vectors.is_empty() {
            true => Err("there is nothing to merge with the base".into()),
            false => Ok(Vectors { bases, vectors }),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Vector> {
        self.vectors.iter().copied()
    }

    /// out = base + λ · combined vectors, computed in f64 and rounded once. Where there are several
    /// bases, their mean stands for the base.
    ///
    /// `thin` says what is left of an element, given its vector's position, its position in
    /// the inputs and its value. NaN stays NaN, whatever it says.
    pub fn merge<T: Element>(
        &self,
        inputs: &[&[T]],
        out: &mut [T],
        lambda: f64,
        combine: Combine,
        thin: impl Fn(usize, usize, f64) -> f64,
    ) {
        let bases: Vec<&[T]> = self.bases.iter().map(|&base| inputs[base]).collect();
        let mut votes = Votes::default();
        for (number, out) in out.chunks_mut(BLOCK).enumerate() {
            let start = number * BLOCK;
            votes.clear();
            for (which, vector) in self.vectors.iter().enumerate() {
                let pairs = inputs[vector.model][start..].iter().zip(&inputs[vector.base][start..]);
                for ((at, (&x, &base)), left) in pairs.enumerate().zip(&mut votes.left) {
                    let value = x.into() - base.into();
                    let thinned = thin(which, start + at, value);
                    *left = if value.is_nan() { value } else { thinned };
                }
                match combine {
                    Combine::Sum => votes.add(),
                    Combine::Elect => votes.count(),
                }
            }
            if combine == Combine::Elect {
                votes.elect();
            }
            match bases.as_slice() {
                [base] => {
                    for ((out, base), sum) in out.iter_mut().zip(&base[start..]).zip(&votes.sum) {
                        *out = T::round((*base).into() + lambda * sum);
                    }
                }
                bases => {
                    for ((at, out), sum) in out.iter_mut().enumerate().zip(&votes.sum) {
                        let mean = bases.iter().map(|base| base[start + at].into()).sum::<f64>() / bases.len() as f64;
                        *out = T::round(mean + lambda * sum);
                    }
                }
            }
        }
    }
}

impl Vector {
    /// The vector's elements in f64.
    pub fn values<'v>(&self, inputs: &[&'v [f64]]) -> impl Iterator<Item = f64> + use<'v> {
        inputs[self.model].iter().zip(inputs[self.base]).map(|(x, base)| x - base)
    }
}

/// Elements that are combined together, few enough to stay in cache.
const BLOCK: usize = 512;

/// A block of elements, each loop over it simple enough for the compiler to do several at a time.
struct Votes {
    /// What is left of the vector that votes now.
    left: [f64; BLOCK],
    sum: [f64; BLOCK],
    /// Sum and number of the elements above 0, then of those below.
    above: [f64; BLOCK],
    count_above: [f64; BLOCK],
    below: [f64; BLOCK],
    count_below: [f64; BLOCK],
}

impl Default for Votes {
    fn default() -> Votes {
        let zeros = [0.0; BLOCK];
        Votes { left: zeros, sum: zeros, above: zeros, count_above: zeros, below: zeros, count_below: zeros }
    }
}

impl Votes {
    fn clear(&mut self) {
        *self = Votes::default();
    }

    fn add(&mut self) {
        for (sum, &left) in self.sum.iter_mut().zip(&self.left) {
            *sum += left;
        }
    }

    fn count(&mut self) {
        self.add();
        for ((sum, count), &left) in self.above.iter_mut().zip(&mut self.count_above).zip(&self.left) {
            *sum += if left > 0.0 { left } else { 0.0 };
            *count += if left > 0.0 { 1.0 } else { 0.0 };
        }
        for ((sum, count), &left) in self.below.iter_mut().zip(&mut self.count_below).zip(&self.left) {
            *sum += if left < 0.0 { left } else { 0.0 };
            *count += if left < 0.0 { 1.0 } else { 0.0 };
        }
    }

    /// Replaces each sum by the mean of the elements of its sign.
    fn elect(&mut self) {
        let above = self.above.iter().zip(&self.count_above);
        let below = self.below.iter().zip(&self.count_below);
        for ((sum, (&above, &count_above)), (&below, &count_below)) in self.sum.iter_mut().zip(above).zip(below) {
            let (elected, count) = if *sum >= 0.0 { (above, count_above) } else { (below, count_below) };
            let mean = elected / if count > 0.0 { count } else { 1.0 };
            *sum = if sum.is_nan() { *sum } else { mean };
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::layout::Modality::{Language, Vision};

    use super::super::testing::{base_and_models, merge_of, models};
    use super::*;

    fn merged(inputs: &[&[f64]], combine: Combine) -> Vec<f64> {
        let vectors = Vectors::of(&merge_of(&base_and_models(inputs.len() - 1))).unwrap();
        let mut out = vec![0.0; inputs[0].len()];
        vectors.merge(inputs, &mut out, 2.0, combine, |_, _, value| value);
        out
    }

    #[test]
    fn signs_are_elected_by_mass() {
        let base: &[f64] = &[10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        // Vectors, element by element: (1, 3), (1, −3), (−1, −3), (2, −2), (0, 4), (0, 0).
        let a: &[f64] = &[11.0, 11.0, 9.0, 12.0, 10.0, 10.0];
        let b: &[f64] = &[13.0, 7.0, 7.0, 8.0, 14.0, 10.0];
        // λ = 2 times 2, −3, −2, a draw that the positive wins, 4 alone, nothing.
        assert_eq!(merged(&[base, a, b], Combine::Elect), [14.0, 4.0, 6.0, 14.0, 18.0, 10.0]);
        assert_eq!(merged(&[base, a, b], Combine::Sum), [18.0, 6.0, 2.0, 10.0, 18.0, 10.0]);
    }

    #[test]
    fn nan_is_not_voted_down() {
        for combine in [Combine::Elect, Combine::Sum] {
            let out = merged(&[&[0.0, f64::NAN], &[f64::NAN, 1.0], &[5.0, 1.0]], combine);
            assert!(out.iter().all(|x| x.is_nan()), "{out:?}");
        }
    }

    #[test]
    fn each_expert_starts_from_its_own() {
        let roles =
            [Role::BaseExpert(Vision), Role::BaseExpert(Language), Role::Expert(Vision), Role::Expert(Language)];
        let vectors = Vectors::of(&merge_of(&roles)).unwrap();
        let mut out = [0.0];
        // mean(2, 4) + (3 − 2) + (9 − 4)
        vectors.merge(&[&[2.0], &[4.0], &[3.0], &[9.0]], &mut out, 1.0, Combine::Sum, |_, _, value| value);
        assert_eq!(out, [9.0]);
    }

    #[test]
    fn a_base_is_needed() {
        assert_eq!(Vectors::of(&merge_of(&models(2))).unwrap_err(), "there is no base to measure from");
        assert!(Vectors::of(&merge_of(&[Role::Base])).is_err());
        assert!(Vectors::of(&merge_of(&[Role::BaseExpert(Vision), Role::Expert(Language)])).is_err());
    }
}
