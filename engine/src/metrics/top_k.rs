//! Top-1 and top-5 accuracy.

use serde::{Deserialize, Serialize};

/// Examples so far, and how many had their class first or among the first five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopK {
    pub examples: u64,
    pub in_top_1: u64,
    pub in_top_5: u64,
}

impl TopK {
    /// Counts one example and returns its class's rank from 0; equal scores rank as [`super::rank`] has it.
    ///
    /// # Errors
    /// The label is no class, or a score is NaN.
    pub fn add(&mut self, scores: &[f32], label: usize) -> Result<usize, Error> {
        if label >= scores.len() {
            return Err(Error::Label { label, classes: scores.len() });
        }
        if scores.iter().any(|score| score.is_nan()) {
            return Err(Error::Nan);
        }
        let rank = super::rank(scores, label);
        self.examples += 1;
        self.in_top_1 += u64::from(rank < 1);
        self.in_top_5 += u64::from(rank < 5);
        Ok(rank)
    }

    /// 0 to 1; 0 of no examples.
    pub fn top_1(&self) -> f64 {
        self.in_top_1 as f64 / self.examples.max(1) as f64
    }

    /// See [`TopK::top_1`].
    pub fn top_5(&self) -> f64 {
        self.in_top_5 as f64 / self.examples.max(1) as f64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the label is {label}, but there are {classes} classes")]
    Label { label: usize, classes: usize },
    #[error("the model's scores are not numbers (NaN)")]
    Nan,
}

/// The places of the `k` largest scores, best first, equal ones in their order. NaN comes last.
pub fn largest(scores: &[f32], k: usize) -> Vec<usize> {
    let k = k.min(scores.len());
    let key = |place: usize| if scores[place].is_nan() { f32::NEG_INFINITY } else { scores[place] };
    let order = |&a: &usize, &b: &usize| {
        let nan = scores[a].is_nan().cmp(&scores[b].is_nan());
        nan.then(key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)).then(a.cmp(&b))
    };
    let mut places: Vec<usize> = (0..scores.len()).collect();
    if k < places.len() && k > 0 {
        places.select_nth_unstable_by(k - 1, order);
    }
    places.truncate(k);
    places.sort_unstable_by(order);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut counts = TopK::default();
        let scores = [0.1, 0.9, 0.3, 0.3, -1.0, 0.2, 0.8];
        // Best first: 1, 6, 2, 3, 5, 0, 4.
        let ranks: Vec<usize> = (0..7).map(|label| counts.add(&scores, label).unwrap()).collect();
        assert_eq!(ranks, [5, 0, 2, 3, 6, 4, 1]);
        assert_eq!(counts, TopK { examples: 7, in_top_1: 1, in_top_5: 5 });
        assert_eq!((counts.top_1(), counts.top_5()), (1.0 / 7.0, 5.0 / 7.0));
        assert_eq!(largest(&scores, 4), [1, 6, 2, 3]);
        assert_eq!(largest(&scores, 9), [1, 6, 2, 3, 5, 0, 4]);
        assert!(largest(&scores, 0).is_empty());
    }

    #[test]
    fn what_cannot_be_ranked() {
        let mut counts = TopK::default();
        assert_eq!(counts.add(&[1.0, 2.0], 2), Err(Error::Label { label: 2, classes: 2 }));
        assert_eq!(counts.add(&[1.0, f32::NAN], 0), Err(Error::Nan));
        assert_eq!(counts, TopK::default());
        assert_eq!((counts.top_1(), counts.top_5()), (0.0, 0.0));
        assert_eq!(largest(&[f32::NAN, 1.0, f32::NEG_INFINITY, 2.0], 4), [3, 1, 2, 0]);
    }
}
