//! Dropout and stochastic depth, drawn on the host so that every device and every resumed run sees the same.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The random part of one forward pass.
#[derive(Clone, Debug)]
pub struct Noise {
    rng: ChaCha8Rng,
    /// Of the text embeddings.
    dropout: f64,
    /// Rate of the last layer's branches; the others' fall linearly to 0 at the first.
    drop_path: f64,
}

impl Noise {
    /// The same `seed` and `stream` give the same noise.
    pub fn new(seed: u64, stream: u64, dropout: f64, drop_path: f64) -> Noise {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Noise { rng, dropout, drop_path }
    }

    /// For each sample of a batch 0 where this layer's branch is dropped, else 1/(1 − rate); `None` where none can be.
    pub fn keep(&mut self, layer: usize, layers: usize, batch: usize) -> Option<Vec<f32>> {
        let rate = self.drop_path * layer as f64 / (layers.max(2) - 1) as f64;
        if rate <= 0.0 {
            return None;
        }
        Some(
            (0..batch)
                .map(|_| if self.rng.random::<f64>() < rate { 0.0 } else { (1.0 / (1.0 - rate)) as f32 })
                .collect(),
        )
    }

    /// A factor for each of `elements`: 0 or 1/(1 − rate).
    pub fn dropout(&mut self, elements: usize) -> Option<Vec<f32>> {
        if self.dropout <= 0.0 {
            return None;
        }
        let limit = (self.dropout * 2f64.powi(32)) as u32;
        let kept = (1.0 / (1.0 - self.dropout)) as f32;
        Some((0..elements).map(|_| if self.rng.next_u32() < limit { 0.0 } else { kept }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_and_differs_from_the_next() {
        let draw = |stream| Noise::new(1, stream, 0.1, 0.5).dropout(64);
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn the_first_layer_keeps_all_and_the_mean_is_one() {
        let mut noise = Noise::new(1, 0, 0.25, 0.5);
        assert_eq!(noise.keep(0, 12, 4), None);
        let mean = |values: Vec<f32>| values.iter().sum::<f32>() / values.len() as f32;
        let keep = noise.keep(11, 12, 10_000);
        assert!(keep.is_some_and(|keep| keep.iter().all(|&k| k == 0.0 || k == 2.0) && (mean(keep) - 1.0).abs() < 0.05));
        assert!(noise.dropout(100_000).is_some_and(|mask| (mean(mask) - 1.0).abs() < 0.02));
    }
}
