//! x + keep·gamma·branch

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexTensor};

use super::memory::{contiguous, tensor, total, update, values};
use super::register;
use super::simd::{mul_add, multiversion};

/// Rows that one task takes.
const ROWS: usize = 32;

multiversion! {
    /// `x` ← x + factor(row)·gamma·branch; `first` is the index of the first row.
    fn add<const FMA: bool>(x: &mut [f32], branch: &[f32], gamma: &[f32], keep: Option<&[f32]>, tokens: usize, first: usize) {
        let d = gamma.len();
        for (i, (x, branch)) in x.chunks_exact_mut(d).zip(branch.chunks_exact(d)).enumerate() {
            let factor = keep.map_or(1.0, |keep| keep[(first + i) / tokens]);
            for ((x, branch), gamma) in x.iter_mut().zip(branch).zip(gamma) {
                *x = mul_add::<FMA>(branch * gamma, factor, *x);
            }
        }
    }
}

multiversion! {
    /// `gradient` ← factor(row)·gamma·gradient, and Σ factor(row)·gradient·branch is added to `sums`.
    fn gradients<const FMA: bool>(
        gradient: &mut [f32],
        branch: Option<&[f32]>,
        gamma: &[f32],
        keep: Option<&[f32]>,
        tokens: usize,
        first: usize,
        sums: &mut [f32],
    ) {
        let d = gamma.len();
        for (i, gradient) in gradient.chunks_exact_mut(d).enumerate() {
            let factor = keep.map_or(1.0, |keep| keep[(first + i) / tokens]);
            if let Some(branch) = branch {
                let branch = &branch[i * d..(i + 1) * d];
                for ((sum, gradient), branch) in sums.iter_mut().zip(&*gradient).zip(branch) {
                    *sum = mul_add::<FMA>(gradient * branch, factor, *sum);
                }
            }
            for (gradient, gamma) in gradient.iter_mut().zip(gamma) {
                *gradient *= factor * gamma;
            }
        }
    }
}

pub fn forward(x: FlexTensor, gamma: &FlexTensor, branch: &FlexTensor, keep: Option<&FlexTensor>) -> FlexTensor {
    let tokens = x.layout().shape()[1];
    let (gamma, branch, keep) = (contiguous(gamma.clone()), contiguous(branch.clone()), keep.cloned().map(contiguous));
    let (gamma, branch, keep) = (values(&gamma), values(&branch), keep.as_ref().map(values));
    let d = gamma.len();
    let kernel = |start: usize, x: &mut [f32]| {
        add(x, &branch[start..start + x.len()], gamma, keep, tokens, start / d);
    };
    update(x, (ROWS * d).max(1), kernel).0
}

/// Gradients of the branch and, given the branch, of gamma.
fn backward(
    gradient: FlexTensor,
    gamma: FlexTensor,
    branch: Option<FlexTensor>,
    keep: Option<FlexTensor>,
) -> (FlexTensor, Option<FlexTensor>) {
    let tokens = gradient.layout().shape()[1];
    let (gamma, branch, keep) = (contiguous(gamma), branch.map(contiguous), keep.map(contiguous));
    let (gamma, branch, keep) = (values(&gamma), branch.as_ref().map(values), keep.as_ref().map(values));
    let d = gamma.len();
    let (out, sums) = update(gradient, (ROWS * d).max(1), |start, part| {
        let mut sums = vec![0.0; if branch.is_some() { d } else { 0 }];
        let branch = branch.map(|branch| &branch[start..start + part.len()]);
        gradients(part, branch, gamma, keep, tokens, start / d, &mut sums);
        sums
    });
    (out, branch.map(|_| tensor(total(sums, d), [d])))
}

#[derive(Debug)]
struct AddScaled;

#[derive(Clone, Debug)]
struct Saved {
    gamma: NodeId,
    /// Where gamma is tracked.
    branch: Option<NodeId>,
    keep: Option<FlexTensor>,
}

impl Backward<Flex, 3> for AddScaled {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gamma = checkpointer.retrieve_node_output::<FlexTensor>(ops.state.gamma);
        let branch = ops.state.branch.map(|id| checkpointer.retrieve_node_output::<FlexTensor>(id));
        let gradient = grads.consume::<Flex>(&ops.node);
        let [x_node, gamma_node, branch_node] = ops.parents;
        if gamma_node.is_some() || branch_node.is_some() {
            let (branch_gradient, gamma_gradient) = backward(gradient.clone(), gamma, branch, ops.state.keep);
            if let (Some(node), Some(gradient)) = (gamma_node, gamma_gradient) {
                register!(grads, node, gradient);
            }
            if let Some(node) = branch_node {
                register!(grads, node, branch_gradient);
            }
        }
        if let Some(node) = x_node {
            register!(grads, node, gradient);
        }
    }
}

/// `keep` counts as a constant: nothing learns which samples drop a branch.
pub fn tracked<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    gamma: FloatTensor<Autodiff<Flex, C>>,
    branch: FloatTensor<Autodiff<Flex, C>>,
    keep: Option<FlexTensor>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let gamma_tracked = gamma.is_tracked();
    let nodes = [x.node.clone(), gamma.node.clone(), branch.node.clone()];
    match AddScaled.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let gamma_id = prepared.checkpoint(&gamma);
            let branch_id = gamma_tracked.then(|| prepared.checkpoint(&branch));
            let out = forward(x.primitive, &gamma.primitive, &branch.primitive, keep.as_ref());
            prepared.finish(Saved { gamma: gamma_id, branch: branch_id, keep }, out)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(forward(x.primitive, &gamma.primitive, &branch.primitive, keep.as_ref()))
        }
    }
}
