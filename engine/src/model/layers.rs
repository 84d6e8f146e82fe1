//! The pieces of a transformer block. Field names are the checkpoint's names.

use std::marker::PhantomData;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{FloatDType, Tensor};

use crate::device::Precision;
use crate::kernels::{self, Backend};

/// x · weightᵀ + bias
#[derive(Module, Debug)]
pub struct Linear<B: BurnBackend> {
    /// [d_output, d_input]
    pub weight: Param<Tensor<B, 2>>,
    /// [d_output]
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// Master weights are f32; the product is taken in the precision asked for.
    ///
    /// - x: [..., d_input]
    /// - output: [..., d_output], in f32, or bf16 where the device computes in it
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>, precision: Precision) -> Tensor<B, D> {
        kernels::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val), precision)
    }
}

/// Normalises the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm<B: BurnBackend> {
    pub weight: Param<Tensor<B, 1>>,
    pub bias: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    pub fn new(weight: Param<Tensor<B, 1>>, bias: Param<Tensor<B, 1>>, epsilon: f64) -> LayerNorm<B> {
        LayerNorm { weight, bias, epsilon }
    }

    /// - x, output: [..., d]
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}

/// Self-attention; keys have no bias.
#[derive(Module, Debug)]
pub struct Attention<B: BurnBackend> {
    pub qkv: Linear<B>,
    pub q_bias: Option<Param<Tensor<B, 1>>>,
    pub v_bias: Option<Param<Tensor<B, 1>>>,
    pub proj: Linear<B>,
    heads: usize,
}

impl<B: Backend> Attention<B> {
    pub fn new(
        qkv: Linear<B>,
        q_bias: Option<Param<Tensor<B, 1>>>,
        v_bias: Option<Param<Tensor<B, 1>>>,
        proj: Linear<B>,
        heads: usize,
    ) -> Attention<B> {
        Attention { qkv, q_bias, v_bias, proj, heads }
    }

    /// The heads' outputs, before `proj`.
    ///
    /// - x, output: [batch, tokens, D]
    /// - bias: [heads, tokens, tokens]; mask: [batch, tokens], 1 for a key to attend to
    pub fn heads(
        &self,
        x: Tensor<B, 3>,
        bias: Tensor<B, 3>,
        mask: Option<Tensor<B, 2>>,
        precision: Precision,
    ) -> Tensor<B, 3> {
        let qkv_bias = match (&self.q_bias, &self.v_bias) {
            (Some(q), Some(v)) => {
                let (q, v) = (q.val(), v.val());
                let k = Tensor::zeros(q.dims(), &q.device());
                Some(Tensor::cat(vec![q, k, v], 0))
            }
            _ => self.qkv.bias.as_ref().map(Param::val),
        };
        let qkv = kernels::linear(x, self.qkv.weight.val(), qkv_bias, precision);
        kernels::attention(qkv, bias, mask, self.heads)
    }
}

#[derive(Module, Debug)]
pub struct Mlp<B: BurnBackend> {
    pub fc1: Linear<B>,
    pub fc2: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    /// What `fc2` takes: [batch, tokens, hidden].
    pub fn hidden(&self, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
        kernels::gelu(self.fc1.forward(x, precision))
    }
}

/// A part of a block, once for all modalities or once for each.
#[derive(Module, Debug)]
pub struct Experts<B: BurnBackend, M: Module<B>> {
    pub shared: Option<M>,
    pub v: Option<M>,
    pub l: Option<M>,
    pub vl: Option<M>,
    _backend: PhantomData<B>,
}

/// Whose weights process a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expert {
    V,
    L,
    Vl,
}

impl Expert {
    /// As checkpoints spell it.
    pub fn name(self) -> &'static str {
        match self {
            Expert::V => "v",
            Expert::L => "l",
            Expert::Vl => "vl",
        }
    }
}

impl<B: BurnBackend, M: Module<B>> Experts<B, M> {
    pub fn shared(module: M) -> Experts<B, M> {
        Experts { shared: Some(module), v: None, l: None, vl: None, _backend: PhantomData }
    }

    pub fn of(v: M, l: M, vl: Option<M>) -> Experts<B, M> {
        Experts { shared: None, v: Some(v), l: Some(l), vl, _backend: PhantomData }
    }

    pub fn has_experts(&self) -> bool {
        self.shared.is_none()
    }

    /// The weights for a modality: its own, or everyone's.
    pub fn get(&self, expert: Expert) -> &M {
        let own = match expert {
            Expert::V => &self.v,
            Expert::L => &self.l,
            Expert::Vl => &self.vl,
        };
        // Built by `shared` or `of`; `vl` is asked for only in layers that have it.
        own.as_ref().or(self.shared.as_ref()).expect("an expert of this layer")
    }
}

/// Two layers with a norm between: the head of VQA and NLVR2. Numbers are `nn.Sequential`'s.
#[derive(Module, Debug)]
pub struct Classifier<B: BurnBackend> {
    pub _0: Linear<B>,
    pub _1: LayerNorm<B>,
    pub _3: Linear<B>,
}

impl<B: Backend> Classifier<B> {
    /// In f32.
    ///
    /// - x: [batch, d_input]
    /// - output: [batch, labels]
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = self._1.forward(self._0.forward(x, Precision::F32));
        self._3.forward(kernels::gelu(hidden), Precision::F32)
    }
}

/// A linear layer that checkpoints call `fc`.
#[derive(Module, Debug)]
pub struct Projection<B: BurnBackend> {
    pub fc: Linear<B>,
}

/// A linear layer that checkpoints call `dense`, and tanh.
#[derive(Module, Debug)]
pub struct Pooler<B: BurnBackend> {
    pub dense: Linear<B>,
}

/// BERT's head for masked words.
#[derive(Module, Debug)]
pub struct Transform<B: BurnBackend> {
    pub dense: Linear<B>,
    pub layer_norm: LayerNorm<B>,
}

#[derive(Module, Debug)]
pub struct MlmHead<B: BurnBackend> {
    pub transform: Transform<B>,
    pub decoder: Linear<B>,
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> MlmHead<B> {
    /// - x: [batch, tokens, D]
    /// - output: [batch, tokens, vocabulary]
    pub fn forward(&self, x: Tensor<B, 3>, precision: Precision) -> Tensor<B, 3> {
        let hidden = kernels::gelu(self.transform.dense.forward(x, precision)).cast(FloatDType::F32);
        let hidden = self.transform.layer_norm.forward(hidden);
        self.decoder.forward(hidden, precision).cast(FloatDType::F32) + self.bias.val().unsqueeze()
    }
}

/// A table of vectors, one for each id.
#[derive(Module, Debug)]
pub struct Embedding<B: BurnBackend> {
    /// [ids, D]
    pub weight: Param<Tensor<B, 2>>,
}
