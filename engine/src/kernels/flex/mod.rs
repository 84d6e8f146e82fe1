//! The CPU's kernels, in f32; other types take the composed definitions. With bf16 asked for, tensors stay f32 and only
//! the factors of a linear layer's products are rounded.
//!
//! Results don't depend on the number of threads or their timing: work is split in parts of a fixed size, and what
//! several parts contribute to is summed in their order.

mod adamw;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod gelu;
mod linear;
mod matrix;
mod memory;
mod norm;
mod position;
mod residual;
mod simd;

use burn::backend::Autodiff;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_flex::Flex;

use super::{Adamw, Backend, compose, float, prim};
use crate::device::Precision;

/// The gradient registered for a node so far, taken out so that this use's share can be added to it in place.
macro_rules! pending {
    ($grads:expr, $node:expr) => {{
        // Gradients are looked up by tensor; only the node counts, whose type has no public name.
        let tensor = burn::tensor::ops::FloatTensor::<burn::backend::Autodiff<burn_flex::Flex>> {
            primitive: burn_flex::FlexTensor::zeros([0].into(), burn::tensor::DType::F32),
            node: $node.clone(),
            rc: std::sync::Arc::new($node.id),
        };
        $grads.remove::<burn_flex::Flex>(&tensor)
    }};
}
use pending;

macro_rules! register {
    ($grads:expr, $node:expr, $gradient:expr) => {
        $grads.register::<burn_flex::Flex>($node.id, $gradient)
    };
}
use register;

/// Whether these tensors, optional ones included, are all f32.
macro_rules! all_f32 {
    ($($tensor:expr),*; $($optional:expr),*) => {
        $($tensor.dtype() == DType::F32 &&)*
        $($optional.as_ref().is_none_or(|tensor| tensor.dtype() == DType::F32) &&)* true
    };
}

pub fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

impl Backend for Flex {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if all_f32!(x, weight; bias) {
            return linear::forward(x, weight, bias, precision);
        }
        prim(compose::linear::<Self>(float(x), float(weight), bias.map(float), precision))
    }

    fn attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
    ) -> FloatTensor<Self> {
        if all_f32!(qkv, bias; mask) {
            return attention::untracked(qkv, bias, mask, heads);
        }
        prim(compose::attention::<Self>(float(qkv), float(bias), mask.map(float), heads))
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if all_f32!(x, gamma, beta;) {
            return norm::untracked(x, gamma, beta, epsilon);
        }
        prim(compose::layer_norm::<Self>(float(x), float(gamma), float(beta), epsilon))
    }

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if all_f32!(x;) {
            return gelu::forward(x);
        }
        prim(compose::gelu::<Self>(float(x)))
    }

    fn add_scaled(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        keep: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        if all_f32!(x, gamma, branch; keep) {
            return residual::forward(x, &gamma, &branch, keep.as_ref());
        }
        prim(compose::add_scaled::<Self>(float(x), float(gamma), float(branch), keep.map(float)))
    }

    fn position_bias(
        table: FloatTensor<Self>,
        index: IntTensor<Self>,
        tokens: usize,
        first: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        if table.dtype() == DType::F32 && index.dtype() == DType::I64 {
            return position::untracked(table, index, tokens, first, heads);
        }
        let index = Tensor::from_primitive(index);
        prim(compose::position_bias::<Self>(float(table), index, tokens, first, heads))
    }

    fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if x.dtype() == DType::F32 { norm::sum_of_squares(x) } else { compose::sum_of_squares::<Self>(x) }
    }

    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: &Adamw,
    ) -> [FloatTensor<Self>; 3] {
        if all_f32!(parameter, gradient, first, second;) {
            return adamw::adamw(parameter, gradient, first, second, step);
        }
        compose::adamw::<Self>(parameter, gradient, first, second, step)
    }
}

impl<C: CheckpointStrategy> Backend for Autodiff<Flex, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if all_f32!(x, weight; bias) {
            return linear::tracked::<C>(x, weight, bias, precision);
        }
        prim(compose::linear::<Self>(float(x), float(weight), bias.map(float), precision))
    }

    fn attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        heads: usize,
    ) -> FloatTensor<Self> {
        if all_f32!(qkv, bias; mask) {
            return attention::tracked::<C>(qkv, bias, mask.map(|mask| mask.primitive), heads);
        }
        prim(compose::attention::<Self>(float(qkv), float(bias), mask.map(float), heads))
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if all_f32!(x, gamma, beta;) {
            return norm::tracked::<C>(x, gamma, beta, epsilon);
        }
        prim(compose::layer_norm::<Self>(float(x), float(gamma), float(beta), epsilon))
    }

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if all_f32!(x;) {
            return gelu::tracked::<C>(x);
        }
        prim(compose::gelu::<Self>(float(x)))
    }

    fn add_scaled(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        keep: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        if all_f32!(x, gamma, branch; keep) {
            return residual::tracked::<C>(x, gamma, branch, keep.map(|keep| keep.primitive));
        }
        prim(compose::add_scaled::<Self>(float(x), float(gamma), float(branch), keep.map(float)))
    }

    fn position_bias(
        table: FloatTensor<Self>,
        index: IntTensor<Self>,
        tokens: usize,
        first: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        if table.dtype() == DType::F32 && index.dtype() == DType::I64 {
            return position::tracked::<C>(table, index, tokens, first, heads);
        }
        let index = Tensor::from_primitive(index);
        prim(compose::position_bias::<Self>(float(table), index, tokens, first, heads))
    }
}
