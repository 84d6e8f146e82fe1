//! x·Φ(x)

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

use super::memory::{contiguous, update, values};
use super::register;
use super::simd::{multiversion, normal};

/// Values that one task takes: they fit the first-level cache.
const CHUNK: usize = 4096;

multiversion! {
    fn gelu<const FMA: bool>(x: &mut [f32]) {
        for x in x {
            *x *= normal::<FMA>(*x).0;
        }
    }
}

multiversion! {
    /// `gradient` ← gradient·(Φ(x) + x·φ(x))
    fn gelu_backward<const FMA: bool>(gradient: &mut [f32], x: &[f32]) {
        for (gradient, x) in gradient.iter_mut().zip(x) {
            let (distribution, density) = normal::<FMA>(*x);
            *gradient *= distribution + x * density;
        }
    }
}

pub fn forward(x: FlexTensor) -> FlexTensor {
    update(x, CHUNK, |_, part| gelu(part)).0
}

fn backward(x: FlexTensor, gradient: FlexTensor) -> FlexTensor {
    let x = contiguous(x);
    let x = values(&x);
    update(gradient, CHUNK, |start, part| gelu_backward(part, &x[start..start + part.len()])).0
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    type State = NodeId;

    fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let x = checkpointer.retrieve_node_output::<FlexTensor>(ops.state);
        let gradient = grads.consume::<Flex>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            register!(grads, node, backward(x, gradient));
        }
    }
}

/// GELU again, where the checkpointing strategy didn't keep its result.
#[derive(Debug)]
struct Again {
    x: NodeId,
}

impl RetroForward for Again {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let x = states.get_state::<FlexTensor>(&self.x);
        states.save(node, forward(x));
    }
}

pub fn tracked<C: CheckpointStrategy>(x: FloatTensor<Autodiff<Flex, C>>) -> FloatTensor<Autodiff<Flex, C>> {
    let prepared = Gelu.prepare::<C>([x.node.clone()]).memory_bound();
    match prepared.retro_forward(Again { x: x.node.id }).parents([&x]).stateful() {
        OpsKind::Tracked(mut prepared) => {
            let id = prepared.checkpoint(&x);
            prepared.finish(id, forward(x.primitive))
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(x.primitive)),
    }
}
