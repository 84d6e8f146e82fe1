//! The definitions in burn's own operations.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Int, Tensor};

use super::{Adamw, float, prim};
use crate::device::Precision;

pub fn linear<B: BurnBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    precision: Precision,
) -> Tensor<B, 2> {
    let (x, weight, bias) = match precision {
        Precision::F32 => (x, weight, bias),
        Precision::Bf16 => {
            let to = FloatDType::BF16;
            (x.cast(to), weight.cast(to), bias.map(|bias| bias.cast(to)))
        }
    };
    let product = x.matmul(weight.transpose());
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}

pub fn attention<B: BurnBackend>(
    qkv: Tensor<B, 3>,
    bias: Tensor<B, 3>,
    mask: Option<Tensor<B, 2>>,
    heads: usize,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = qkv.dims();
    let d = width / 3 / heads;
    let dtype = qkv.dtype();
    let part = |i: usize| {
        // [batch, tokens, heads·d] → [batch, heads, tokens, d]
        qkv.clone().narrow(2, i * heads * d, heads * d).reshape([batch, tokens, heads, d]).swap_dims(1, 2)
    };
    let (q, k, v) = (part(0) * (d as f64).powf(-0.5), part(1), part(2));
    let weights = softmax(scores(q, k, bias, mask), 3).cast(dtype);
    weights.matmul(v).swap_dims(1, 2).reshape([batch, tokens, heads * d])
}

/// What goes into softmax, in f32.
///
/// - q, scaled, and k: [batch, heads, tokens, d]; bias and mask as [`super::attention`] has them
/// - output: [batch, heads, tokens, tokens]
pub fn scores<B: BurnBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    bias: Tensor<B, 3>,
    mask: Option<Tensor<B, 2>>,
) -> Tensor<B, 4> {
    let [batch, heads, tokens, _] = q.dims();
    let scores = q.matmul(k.transpose()).cast(FloatDType::F32) + bias.cast(FloatDType::F32).unsqueeze();
    let Some(mask) = mask else { return scores };
    let drop = mask.cast(FloatDType::F32).equal_elem(0.0).reshape([batch, 1, 1, tokens]);
    scores.mask_fill(drop.expand([batch, heads, tokens, tokens]), f32::NEG_INFINITY)
}

pub fn layer_norm<B: BurnBackend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normal, _) = normal(x.cast(FloatDType::F32), epsilon);
    let (gamma, beta) = (gamma.cast(FloatDType::F32), beta.cast(FloatDType::F32));
    (normal * gamma.unsqueeze() + beta.unsqueeze()).cast(dtype)
}

/// (x − mean)/deviation, and √(variance + ε), [rows, 1].
pub fn normal<B: BurnBackend>(x: Tensor<B, 2>, epsilon: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let centred = x.clone() - x.mean_dim(1);
    let deviation = ((centred.clone() * centred.clone()).mean_dim(1) + epsilon).sqrt();
    (centred / deviation.clone(), deviation)
}

pub fn gelu<B: BurnBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    burn::tensor::activation::gelu(x)
}

pub fn add_scaled<B: BurnBackend>(
    x: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    branch: Tensor<B, 3>,
    keep: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    let dtype = x.dtype();
    let branch = branch.cast(dtype) * gamma.cast(dtype).unsqueeze();
    match keep {
        Some(keep) => {
            let batch = keep.dims()[0];
            x + branch * keep.cast(dtype).reshape([batch, 1, 1])
        }
        None => x + branch,
    }
}

pub fn position_bias<B: BurnBackend>(
    table: Tensor<B, 2>,
    index: Tensor<B, 1, Int>,
    tokens: usize,
    first: usize,
    heads: usize,
) -> Tensor<B, 3> {
    table.narrow(1, first, heads).transpose().select(1, index).reshape([heads, tokens, tokens])
}

pub fn sum_of_squares<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = burn::tensor::TensorMetadata::shape(&x).num_elements();
    let x: Tensor<B, 1> = float(B::float_reshape(x, [n].into()));
    prim((x.clone() * x).sum())
}

pub fn adamw<B: BurnBackend>(
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    step: &Adamw,
) -> [FloatTensor<B>; 3] {
    // One axis is enough: everything here goes element by element.
    let flat = |primitive: FloatTensor<B>, n: usize| B::float_reshape(primitive, [n].into());
    let shape = burn::tensor::TensorMetadata::shape(&parameter);
    let n = shape.num_elements();
    let p: Tensor<B, 1> = float(flat(parameter, n));
    let g: Tensor<B, 1> = float::<B, 1>(flat(gradient, n)) * step.gradient_scale;
    let m = float::<B, 1>(flat(first, n)) * step.beta_1 + g.clone() * (1.0 - step.beta_1);
    let v = float::<B, 1>(flat(second, n)) * step.beta_2 + g.clone() * g * (1.0 - step.beta_2);
    let t = step.step as f64;
    let size = step.lr / (1.0 - step.beta_1.powf(t));
    let root = (1.0 - step.beta_2.powf(t)).sqrt();
    let change = m.clone() / (v.clone().sqrt() / root + step.epsilon) * size;
    let kept = 1.0 - step.lr * step.weight_decay;
    let p = if step.decay_last { (p - change) * kept } else { p * kept - change };
    [p, m, v].map(|tensor| B::float_reshape(prim(tensor), shape.clone()))
}
