//! Layer normalisation, and the norm of gradients.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::retro_forward::RetroForward;
use burn_autodiff::checkpoint::state::BackwardStates;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::memory::{contiguous, tensor, total, update, values};
use super::simd::{LANES, mul_add, multiversion, sum};
use super::{pending, register};

/// Rows that one task takes.
const ROWS: usize = 32;

/// Mean and 1/√(variance + ε) of a row.
type Moments = [f32; 2];

/// Σ f(i) over a row of n values, in lanes.
#[inline(always)]
fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(n - whole) {
        *sum += f(whole + lane);
    }
    sum(lanes)
}

multiversion! {
    fn normalise<const FMA: bool>(rows: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32, moments: &mut [Moments]) {
        let d = gamma.len();
        let beta = &beta[..d];
        for (row, moments) in rows.chunks_exact_mut(d).zip(moments) {
            let mean = sum_by(d, |i| row[i]) / d as f32;
            let variance = sum_by(d, |i| (row[i] - mean) * (row[i] - mean)) / d as f32;
            let scale = 1.0 / (variance + epsilon).sqrt();
            for i in 0..d {
                row[i] = mul_add::<FMA>((row[i] - mean) * scale, gamma[i], beta[i]);
            }
            *moments = [mean, scale];
        }
    }
}

multiversion! {
    /// Per row, with g = gradient·gamma and n = (x − mean)·scale: scale·(g − mean(g) − n·mean(g·n)), added to `to`.
    /// Sums over the rows of gradient·n and of gradient go to the halves of `sums`.
    fn gradients<const FMA: bool>(
        to: &mut [f32],
        x: &[f32],
        gradient: &[f32],
        gamma: &[f32],
        moments: &[Moments],
        sums: &mut [f32],
    ) {
        let d = gamma.len();
        let (gamma_sums, beta_sums) = sums.split_at_mut(d);
        let beta_sums = &mut beta_sums[..d];
        let rows = to.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(gradient.chunks_exact(d)).zip(moments);
        for (((to, x), gradient), [mean, scale]) in rows {
            let normal = |i: usize| (x[i] - mean) * scale;
            for i in 0..d {
                gamma_sums[i] = mul_add::<FMA>(gradient[i], normal(i), gamma_sums[i]);
                beta_sums[i] += gradient[i];
            }
            let constant = sum_by(d, |i| gradient[i] * gamma[i]) / d as f32;
            let slope = sum_by(d, |i| gradient[i] * gamma[i] * normal(i)) / d as f32;
            for i in 0..d {
                to[i] += scale * (gradient[i] * gamma[i] - constant - normal(i) * slope);
            }
        }
    }
}

multiversion! {
    fn add_squares<const FMA: bool>(values: &[f32], to: &mut f32) {
        *to += sum_by(values.len(), |i| values[i] * values[i]);
    }
}

/// Σx², [1]; parts are summed in f64, in their order.
pub fn sum_of_squares(x: FlexTensor) -> FlexTensor {
    let x = contiguous(x);
    let sums = values(&x).par_chunks(1 << 14).map(|part| {
        let mut sum = 0.0;
        add_squares(part, &mut sum);
        sum
    });
    let sums = sums.collect::<Vec<f32>>();
    tensor(vec![sums.into_iter().map(f64::from).sum::<f64>() as f32], [1])
}

fn forward(x: FlexTensor, gamma: &FlexTensor, beta: &FlexTensor, epsilon: f64) -> (FlexTensor, Vec<Moments>) {
    let (gamma, beta) = (contiguous(gamma.clone()), contiguous(beta.clone()));
    let (gamma, beta) = (values(&gamma), values(&beta));
    let d = gamma.len();
    let (out, moments) = update(x, (ROWS * d).max(1), |_, part| {
        let mut moments = vec![[0.0; 2]; part.len() / d];
        normalise(part, gamma, beta, epsilon as f32, &mut moments);
        moments
    });
    (out, moments.concat())
}

pub fn untracked(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f64) -> FlexTensor {
    forward(x, &gamma, &beta, epsilon).0
}

/// The gradient of x, added to `sum` in place where that is possible, and those of gamma and beta.
fn backward(
    x: FlexTensor,
    gamma: &FlexTensor,
    moments: &[Moments],
    gradient: FlexTensor,
    sum: Option<FlexTensor>,
) -> [FlexTensor; 3] {
    let (x, gamma, gradient) = (contiguous(x), contiguous(gamma.clone()), contiguous(gradient));
    let d = values(&gamma).len();
    let sum = sum.unwrap_or_else(|| FlexTensor::zeros(x.layout().shape().clone(), x.dtype()));
    let (x, gamma, gradient) = (values(&x), values(&gamma), values(&gradient));
    let (to, sums) = update(sum, (ROWS * d).max(1), |start, to| {
        let part = start..start + to.len();
        let mut sums = vec![0.0; 2 * d];
        let moments = &moments[start / d..part.end / d];
        gradients(to, &x[part.clone()], &gradient[part], gamma, moments, &mut sums);
        sums
    });
    let mut gammas = total(sums, 2 * d);
    let betas = gammas.split_off(d);
    [to, tensor(gammas, [d]), tensor(betas, [d])]
}

#[derive(Debug)]
struct LayerNorm;

#[derive(Clone, Debug)]
struct Saved {
    x: NodeId,
    gamma: NodeId,
    moments: Arc<[Moments]>,
}

impl Backward<Flex, 3> for LayerNorm {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let x = checkpointer.retrieve_node_output::<FlexTensor>(ops.state.x);
        let gamma = checkpointer.retrieve_node_output::<FlexTensor>(ops.state.gamma);
        let gradient = grads.consume::<Flex>(&ops.node);
        let parents = ops.parents;
        let sum = match &parents[0] {
            Some(node) => pending!(grads, node),
            None => None,
        };
        let gradients = backward(x, &gamma, &ops.state.moments, gradient, sum);
        for (node, gradient) in parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                register!(grads, node, gradient);
            }
        }
    }
}

/// The normalisation again, where the checkpointing strategy didn't keep its result.
#[derive(Debug)]
struct Again {
    x: NodeId,
    gamma: NodeId,
    beta: NodeId,
    epsilon: f64,
}

impl RetroForward for Again {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let [x, gamma, beta] = [self.x, self.gamma, self.beta].map(|id| states.get_state::<FlexTensor>(&id));
        states.save(node, forward(x, &gamma, &beta, self.epsilon).0);
    }
}

pub fn tracked<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    gamma: FloatTensor<Autodiff<Flex, C>>,
    beta: FloatTensor<Autodiff<Flex, C>>,
    epsilon: f64,
) -> FloatTensor<Autodiff<Flex, C>> {
    let again = Again { x: x.node.id, gamma: gamma.node.id, beta: beta.node.id, epsilon };
    let prepared = LayerNorm.prepare::<C>([x.node.clone(), gamma.node.clone(), beta.node.clone()]).memory_bound();
    match prepared.retro_forward(again).parents([&x, &gamma, &beta]).stateful() {
        OpsKind::Tracked(mut prepared) => {
            let (x_id, gamma_id) = (prepared.checkpoint(&x), prepared.checkpoint(&gamma));
            let (out, moments) = forward(x.primitive, &gamma.primitive, &beta.primitive, epsilon);
            prepared.finish(Saved { x: x_id, gamma: gamma_id, moments: moments.into() }, out)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(untracked(x.primitive, gamma.primitive, beta.primitive, epsilon))
        }
    }
}
