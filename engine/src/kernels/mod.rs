//! The few operations that a transformer spends its time in.
//!
//! [`Backend`] adds them to burn's backends. Each has a definition in burn's own operations, which CUDA fuses; the CPU
//! has fused kernels of its own, with gradients.

pub mod compose;
mod flex;
mod lean;
#[cfg(test)]
mod tests;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_cuda::Cuda;

use crate::device::Precision;

/// A burn backend with the operations of this module. Shapes as the functions of the same names have them.
pub trait Backend: BurnBackend {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        prim(compose::linear(float::<Self, 2>(x), float(weight), bias.map(float), precision))
    }

    fn attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
    ) -> FloatTensor<Self> {
        prim(compose::attention(float::<Self, 3>(qkv), float(bias), mask.map(float), heads))
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        prim(compose::layer_norm(float::<Self, 2>(x), float(gamma), float(beta), epsilon))
    }

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        prim(compose::gelu(float::<Self, 2>(x)))
    }

    fn add_scaled(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        keep: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        prim(compose::add_scaled(float::<Self, 3>(x), float(gamma), float(branch), keep.map(float)))
    }

    fn position_bias(
        table: FloatTensor<Self>,
        index: IntTensor<Self>,
        tokens: usize,
        first: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        let index = Tensor::from_primitive(index);
        prim(compose::position_bias(float::<Self, 2>(table), index, tokens, first, heads))
    }

    fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        compose::sum_of_squares::<Self>(x)
    }

    /// Parameter, first and second moment after one step of AdamW; see [`Adamw`].
    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: &Adamw,
    ) -> [FloatTensor<Self>; 3] {
        compose::adamw::<Self>(parameter, gradient, first, second, step)
    }
}

/// Whether the CPU multiplies bf16 quicker than f32: with AMX.
pub fn cpu_has_amx() -> bool {
    flex::has_amx()
}

impl Backend for Cuda {}
impl<C: CheckpointStrategy> Backend for Autodiff<Cuda, C> {
    fn attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
    ) -> FloatTensor<Self> {
        lean::attention::<Cuda, C>(qkv, bias, mask.map(|mask| mask.primitive), heads)
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        lean::layer_norm::<Cuda, C>(x, gamma, beta, epsilon)
    }
}

/// One step of AdamW as PyTorch's `AdamW` takes it, for one parameter: p ← p(1 − lr·decay);
/// m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; p ← p − lr/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + ε).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adamw {
    pub lr: f64,
    pub beta_1: f64,
    pub beta_2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// The new value decays instead of the old one, as in `transformers.AdamW`: p ← (p − …)(1 − lr·decay).
    pub decay_last: bool,
    /// t, from 1.
    pub step: u64,
    /// Gradients are multiplied by this first: clipping.
    pub gradient_scale: f64,
}

/// x · weightᵀ + bias, the factors of the product rounded to the precision.
///
/// - x: [..., d_input]
/// - weight: [d_output, d_input], as PyTorch keeps it
/// - bias: [d_output]
/// - output: [..., d_output]; with bf16 asked for, in bf16, or on the CPU in f32
pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    precision: Precision,
) -> Tensor<B, D> {
    let mut shape = x.dims();
    let (rows, input) = (shape[..D - 1].iter().product::<usize>(), shape[D - 1]);
    shape[D - 1] = weight.dims()[0];
    let x = prim(x.reshape([rows, input]));
    float::<B, 2>(<B as Backend>::linear(x, prim(weight), bias.map(prim), precision)).reshape(shape)
}

/// Multi-head self-attention: softmax(q·kᵀ/√d + bias + mask)·v in every head, scores and softmax in f32.
///
/// - qkv: [batch, tokens, 3·heads·d], all queries, then all keys, then all values; a head's d are contiguous
/// - bias: [heads, tokens, tokens], added to the scores
/// - mask: [batch, tokens], 1 for a key to attend to, 0 for one to leave out; every row has a 1
/// - output: [batch, tokens, heads·d]
pub fn attention<B: Backend>(
    qkv: Tensor<B, 3>,
    bias: Tensor<B, 3>,
    mask: Option<Tensor<B, 2>>,
    heads: usize,
) -> Tensor<B, 3> {
    float(<B as Backend>::attention(prim(qkv), prim(bias), mask.map(prim), heads))
}

/// (x − mean)/√(variance + ε) · gamma + beta over the last axis, in f32 whatever x is in.
///
/// - x, output: [..., d]; gamma, beta: [d]
pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    let shape = x.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, shape[D - 1]]);
    float::<B, 2>(<B as Backend>::layer_norm(prim(x), prim(gamma), prim(beta), epsilon)).reshape(shape)
}

/// x·Φ(x), by the error function; any shape.
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let shape = x.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    float::<B, 2>(<B as Backend>::gelu(prim(x.reshape([rows, shape[D - 1]])))).reshape(shape)
}

/// x + keep·gamma·branch: a residual connection with layer scale and stochastic depth.
///
/// - x, branch, output: [batch, tokens, d]; gamma: [d]
/// - keep: [batch], 0 for a sample whose branch is dropped, 1/(1 − rate) for the others
pub fn add_scaled<B: Backend>(
    x: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    branch: Tensor<B, 3>,
    keep: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    float(<B as Backend>::add_scaled(prim(x), prim(gamma), prim(branch), keep.map(prim)))
}

/// What one layer adds to its attention scores, gathered from the relative position table.
///
/// - table: [rows, columns]; head h's values stand in column first + h
/// - index: [tokens·tokens], the row for each pair of query and key
/// - output: [heads, tokens, tokens]
pub fn position_bias<B: Backend>(
    table: Tensor<B, 2>,
    index: Tensor<B, 1, Int>,
    tokens: usize,
    first: usize,
    heads: usize,
) -> Tensor<B, 3> {
    float(<B as Backend>::position_bias(prim(table), index.into_primitive(), tokens, first, heads))
}

/// Σx² over all elements of a tensor of any shape, [1].
pub fn sum_of_squares<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 1> {
    float(<B as Backend>::sum_of_squares(x))
}

fn float<B: BurnBackend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn prim<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
