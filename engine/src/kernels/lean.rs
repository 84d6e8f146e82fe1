//! Attention and layer norm for backends without kernels of their own: written in burn's operations, with gradients
//! by hand.
//!
//! Automatic differentiation would keep several tensors of [batch, heads, tokens, tokens] a layer for the backward pass.
//! Here the inputs alone are kept, and the rest is computed again. (burn 0.21's
//! fused attention takes no bias that is added to the scores, which every layer of this model has.)

use burn::backend::Autodiff;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{compose, float, prim};

#[derive(Debug)]
struct Attention;

#[derive(Clone, Debug)]
struct AttentionInputs<B: BurnBackend> {
    qkv: FloatTensor<B>,
    bias: FloatTensor<B>,
    mask: Option<FloatTensor<B>>,
    heads: usize,
}

impl<B: BurnBackend> Backward<B, 2> for Attention {
    type State = AttentionInputs<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad: Tensor<B, 3> = float(grads.consume::<B>(&ops.node));
        let AttentionInputs { qkv, bias, mask, heads } = ops.state;
        let (qkv, bias): (Tensor<B, 3>, Tensor<B, 3>) = (float(qkv), float(bias));
        let [batch, tokens, width] = grad.dims();
        let d = width / heads;
        let (dtype, bias_dtype) = (qkv.dtype(), bias.dtype());
        let split = |x: Tensor<B, 3>| x.reshape([batch, tokens, heads, d]).swap_dims(1, 2);
        let join = |x: Tensor<B, 4>| x.swap_dims(1, 2).reshape([batch, tokens, width]);
        let part = |i: usize| split(qkv.clone().narrow(2, i * width, width));
        let scale = (d as f64).powf(-0.5);
        let (q, k, v) = (part(0) * scale, part(1), part(2));
        let scores = compose::scores(q.clone(), k.clone(), bias, mask.map(float));
        let weights = softmax(scores, 3);
        let grad = split(grad);
        let grad_v = weights.clone().cast(dtype).transpose().matmul(grad.clone());
        let grad_weights = grad.matmul(v.transpose()).cast(FloatDType::F32);
        let mean = (grad_weights.clone() * weights.clone()).sum_dim(3);
        let grad_scores = weights * (grad_weights - mean);
        let [qkv_node, bias_node] = ops.parents;
        if let Some(node) = bias_node {
            let sum: Tensor<B, 3> = grad_scores.clone().sum_dim(0).squeeze_dim(0);
            grads.register::<B>(node.id, prim(sum.cast(bias_dtype)));
        }
        if let Some(node) = qkv_node {
            let grad_scores = grad_scores.cast(dtype);
            let grad_q = grad_scores.clone().matmul(k) * scale;
            let grad_k = grad_scores.transpose().matmul(q);
            grads.register::<B>(node.id, prim(Tensor::cat(vec![join(grad_q), join(grad_k), join(grad_v)], 2)));
        }
    }
}

/// As [`super::attention`].
pub fn attention<B: BurnBackend, C: CheckpointStrategy>(
    qkv: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
    mask: Option<FloatTensor<B>>,
    heads: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let out = |i: &AttentionInputs<B>| {
        let (qkv, bias, mask) = (float(i.qkv.clone()), float(i.bias.clone()), i.mask.clone().map(float));
        prim(compose::attention::<B>(qkv, bias, mask, i.heads))
    };
    let inputs = AttentionInputs { qkv: qkv.primitive, bias: bias.primitive, mask, heads };
    match Backward::<B, 2>::prepare::<C>(Attention, [qkv.node, bias.node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let out = out(&inputs);
            prepared.finish(inputs, out)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(out(&inputs)),
    }
}

#[derive(Debug)]
struct LayerNorm;

#[derive(Clone, Debug)]
struct LayerNormInputs<B: BurnBackend> {
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    epsilon: f64,
}

impl<B: BurnBackend> Backward<B, 3> for LayerNorm {
    type State = LayerNormInputs<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let LayerNormInputs { x, gamma, epsilon, .. } = ops.state;
        let (x, gamma): (Tensor<B, 2>, Tensor<B, 1>) = (float(x), float(gamma));
        let (dtype, gamma_dtype) = (x.dtype(), gamma.dtype());
        let (normal, deviation) = compose::normal(x.cast(FloatDType::F32), epsilon);
        let grad = grad.cast(FloatDType::F32);
        let [x_node, gamma_node, beta_node] = ops.parents;
        if let Some(node) = gamma_node {
            let sum: Tensor<B, 1> = (grad.clone() * normal.clone()).sum_dim(0).squeeze_dim(0);
            grads.register::<B>(node.id, prim(sum.cast(gamma_dtype)));
        }
        if let Some(node) = beta_node {
            let sum: Tensor<B, 1> = grad.clone().sum_dim(0).squeeze_dim(0);
            grads.register::<B>(node.id, prim(sum.cast(gamma_dtype)));
        }
        if let Some(node) = x_node {
            let grad = grad * gamma.cast(FloatDType::F32).unsqueeze();
            let along = (grad.clone() * normal.clone()).mean_dim(1);
            let grad = (grad.clone() - grad.mean_dim(1) - normal * along) / deviation;
            grads.register::<B>(node.id, prim(grad.cast(dtype)));
        }
    }
}

/// As [`super::layer_norm`].
pub fn layer_norm<B: BurnBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    epsilon: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let out = |i: &LayerNormInputs<B>| {
        let (x, gamma, beta) = (float(i.x.clone()), float(i.gamma.clone()), float(i.beta.clone()));
        prim(compose::layer_norm::<B>(x, gamma, beta, i.epsilon))
    };
    let inputs = LayerNormInputs { x: x.primitive, gamma: gamma.primitive, beta: beta.primitive, epsilon };
    match Backward::<B, 3>::prepare::<C>(LayerNorm, [x.node, gamma.node, beta.node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let out = out(&inputs);
            prepared.finish(inputs, out)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(out(&inputs)),
    }
}
