//! AdamW in place, in the order of PyTorch's operations.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::Adamw;
use super::memory::{contiguous, exclusive, unique, values};
use super::simd::multiversion;

/// Values that one task takes.
const CHUNK: usize = 1 << 14;

/// A step's numbers, rounded from f64 once, where PyTorch rounds them.
#[derive(Clone, Copy)]
struct Constants {
    gradient_scale: f32,
    /// 1 − lr·decay: of the value before the step, and of the one after it. One of both is 1.
    decay: f32,
    last_decay: f32,
    /// 1 − β₁
    first_weight: f32,
    beta_2: f32,
    /// 1 − β₂
    second_weight: f32,
    /// √(1 − β₂ᵗ)
    root: f32,
    epsilon: f32,
    /// lr/(1 − β₁ᵗ)
    size: f32,
}

multiversion! {
    fn step<const FMA: bool>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], constants: &Constants) {
        let Constants { gradient_scale, decay, last_decay, first_weight, beta_2, second_weight, root, epsilon, size } = *constants;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * gradient_scale;
            *m += first_weight * (g - *m);
            *v = *v * beta_2 + second_weight * g * g;
            *p = (*p * decay - size * (*m / (v.sqrt() / root + epsilon))) * last_decay;
        }
    }
}

pub fn adamw(
    parameter: FlexTensor,
    gradient: FlexTensor,
    first: FlexTensor,
    second: FlexTensor,
    options: &Adamw,
) -> [FlexTensor; 3] {
    let t = options.step as f64;
    let decay = (1.0 - options.lr * options.weight_decay) as f32;
    let (decay, last_decay) = if options.decay_last { (1.0, decay) } else { (decay, 1.0) };
    let constants = Constants {
        gradient_scale: options.gradient_scale as f32,
        decay,
        last_decay,
        first_weight: (1.0 - options.beta_1) as f32,
        beta_2: options.beta_2 as f32,
        second_weight: (1.0 - options.beta_2) as f32,
        root: (1.0 - options.beta_2.powf(t)).sqrt() as f32,
        epsilon: options.epsilon as f32,
        size: (options.lr / (1.0 - options.beta_1.powf(t))) as f32,
    };
    let gradient = contiguous(gradient);
    let [mut p, mut m, mut v] = [parameter, first, second].map(exclusive);
    let parts = mutable(&mut p).par_chunks_mut(CHUNK).zip(values(&gradient).par_chunks(CHUNK));
    let parts = parts.zip(mutable(&mut m).par_chunks_mut(CHUNK)).zip(mutable(&mut v).par_chunks_mut(CHUNK));
    parts.for_each(|(((p, g), m), v)| step(p, g, m, v, &constants));
    [p, m, v]
}

fn mutable(tensor: &mut FlexTensor) -> &mut [f32] {
    unique(tensor).expect("exclusive")
}
