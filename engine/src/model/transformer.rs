//! The model: one transformer for texts, images and both, whatever its experts.
//!
//! Pre-norm blocks with layer scale: x += γ₁·attn(norm1(x)); x += γ₂·mlp(norm2(x)). A text runs through the `l` experts, an
//! image through `v`. A joint input is text, then image: below vl start each part keeps to itself or attends to both
//! ([`Attends`]), from there on all tokens go through `vl`. Where a part has no experts its one set of weights
//! does everything.
//!
//! Field names are the checkpoint's names ([`super::names`]).

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::{FloatDType, Int, Tensor, TensorData};

use super::config::{Architecture, Attends};
use super::layers::{
    Attention, Classifier, Embedding, Expert, Experts, LayerNorm, Linear, MlmHead, Mlp, Pooler, Projection,
};
use super::noise::Noise;
use super::position::{image_index, joint_index, text_index};
use crate::device::Precision;
use crate::kernels::{self, Backend};

#[derive(Module, Debug)]
pub struct Block<B: BurnBackend> {
    pub norm1: Experts<B, LayerNorm<B>>,
    pub attn: Experts<B, Attention<B>>,
    pub norm2: Experts<B, LayerNorm<B>>,
    pub mlp: Experts<B, Mlp<B>>,
    /// Layer scale; only where the model has it.
    pub gamma_1: Option<Param<Tensor<B, 1>>>,
    pub gamma_2: Option<Param<Tensor<B, 1>>>,
}

/// Convolution whose windows don't overlap: a linear map of each patch.
#[derive(Module, Debug)]
pub struct Convolution<B: BurnBackend> {
    /// [D, 3, patch, patch]
    pub weight: Param<Tensor<B, 4>>,
    pub bias: Option<Param<Tensor<B, 1>>>,
}

#[derive(Module, Debug)]
pub struct PatchEmbed<B: BurnBackend> {
    pub proj: Convolution<B>,
}

#[derive(Module, Debug)]
pub struct Transformer<B: BurnBackend> {
    pub patch_embed: PatchEmbed<B>,
    /// [1, 1, D]
    pub cls_token: Param<Tensor<B, 3>>,
    pub mask_token: Option<Param<Tensor<B, 3>>>,
    /// Absolute positions, [1, 1 + w², D]; only where there is no relative table.
    pub pos_embed: Option<Param<Tensor<B, 3>>>,
    pub blocks: Vec<Block<B>>,
    pub norm: LayerNorm<B>,
}

#[derive(Module, Debug)]
pub struct TextEmbeddings<B: BurnBackend> {
    pub word_embeddings: Embedding<B>,
    /// Added only where there is no relative table; checkpoints have it all the same.
    pub position_embeddings: Option<Embedding<B>>,
    pub token_type_embeddings: Embedding<B>,
    pub layer_norm: LayerNorm<B>,
}

/// The transformer and the heads of the tasks it was loaded for.
#[derive(Module, Debug)]
pub struct VlModel<B: BurnBackend> {
    pub text_embeddings: TextEmbeddings<B>,
    pub token_type_embeddings: Embedding<B>,
    pub transformer: Transformer<B>,
    /// [rows, layers·heads]; head h of layer i uses column i·heads + h.
    pub relative_position_bias_table: Option<Param<Tensor<B, 2>>>,
    pub pooler: Option<Pooler<B>>,
    pub ifm_text_proj: Option<Projection<B>>,
    pub ifm_image_proj: Option<Projection<B>>,
    pub ifm_vl_text_proj: Option<Projection<B>>,
    pub ifm_vl_image_proj: Option<Projection<B>>,
    pub logit_scale: Option<Param<Tensor<B, 1>>>,
    pub logit_vl_scale: Option<Param<Tensor<B, 1>>>,
    pub itm_score: Option<Projection<B>>,
    pub mlm_score: Option<MlmHead<B>>,
    pub vqa_classifier: Option<Classifier<B>>,
    pub nlvr2_classifier: Option<Classifier<B>>,
    pub img_cls_classifier: Option<Linear<B>>,
}

/// The input of a linear layer, as [`Pass::tap`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Qkv,
    Proj,
    Fc1,
    Fc2,
}

/// Called with layer, expert (`None` where all modalities share the weights), site and the input [batch, tokens, d].
pub type Tap<'a, B> = &'a mut dyn FnMut(usize, Option<Expert>, Site, &Tensor<B, 3>);

/// What a block is applied to.
#[derive(Clone, Debug)]
pub struct BlockInput<B: BurnBackend> {
    /// [batch, tokens, D]
    x: Tensor<B, 3>,
    /// [heads, tokens, tokens], added to the scores
    bias: Tensor<B, 3>,
    /// [batch, tokens], 1 for a key to attend to
    mask: Option<Tensor<B, 2>>,
    layer: usize,
    keep: Option<Keep<B>>,
    through: Through,
}

/// Which samples a layer's branches are applied to in training, as drawn for one pass.
#[derive(Clone, Debug)]
struct Keep<B: BurnBackend> {
    /// [batch], 0 where the attention branch is dropped, else 1/(1 − rate).
    attention: Tensor<B, 1>,
    /// The same of the MLP branch.
    mlp: Tensor<B, 1>,
}

/// Whose weights process the tokens of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    One(Expert),
    /// A text of so many tokens and an image attend to each other; norms and MLPs are each modality's own. Where attention
    /// has experts, each modality's runs over all tokens, for the outputs of its own.
    Each(usize),
}

impl<B: AutodiffBackend> BlockInput<B> {
    /// The same, cut off from what gradients are computed of.
    pub fn inner(&self) -> BlockInput<B::InnerBackend> {
        BlockInput {
            x: self.x.clone().inner(),
            bias: self.bias.clone().inner(),
            mask: self.mask.clone().map(Tensor::inner),
            layer: self.layer,
            keep: self.keep.clone().map(|keep| Keep { attention: keep.attention.inner(), mlp: keep.mlp.inner() }),
            through: self.through,
        }
    }
}

/// Runs blocks in another way than [`Block::forward`] does, with the same result.
pub trait Tape<B: BurnBackend> {
    fn apply(&mut self, block: &Block<B>, input: BlockInput<B>, precision: Precision) -> Tensor<B, 3>;
}

/// How a forward pass is run.
pub struct Pass<'a, B: BurnBackend> {
    pub precision: Precision,
    /// Dropout and stochastic depth; `None` in evaluation.
    pub noise: Option<&'a mut Noise>,
    pub tap: Option<Tap<'a, B>>,
    pub tape: Option<&'a mut dyn Tape<B>>,
}

impl<B: BurnBackend> Pass<'_, B> {
    pub fn evaluation(precision: Precision) -> Self {
        Pass { precision, noise: None, tap: None, tape: None }
    }

    fn see(&mut self, layer: usize, expert: Option<Expert>, site: Site, input: &Tensor<B, 3>) {
        if let Some(tap) = &mut self.tap {
            tap(layer, expert, site, input);
        }
    }

    /// Draws which samples keep a layer's branches. A joint pass draws once for text and image, also where they go
    /// through the layer apart, as the Python code does: its blocks take both at once.
    fn keep(&mut self, layer: usize, layers: usize, x: &Tensor<B, 3>) -> Option<Keep<B>> {
        let (batch, device) = (x.dims()[0], x.device());
        let noise = self.noise.as_mut()?;
        let mut draw = || {
            let keep = noise.keep(layer, layers, batch)?;
            Some(Tensor::from_data(TensorData::new(keep, [batch]), &device))
        };
        Some(Keep { attention: draw()?, mlp: draw()? })
    }
}

impl<B: Backend> Pass<'_, B> {
    fn apply(&mut self, block: &Block<B>, input: BlockInput<B>) -> Tensor<B, 3> {
        match &mut self.tape {
            Some(tape) => tape.apply(block, input, self.precision),
            None => block.forward(input, self),
        }
    }
}

/// Texts on the device.
#[derive(Clone, Debug)]
pub struct TextInput<B: BurnBackend> {
    /// [batch, tokens]
    pub ids: Tensor<B, 2, Int>,
    /// [batch, tokens], 1 for a token, 0 for padding
    pub mask: Tensor<B, 2>,
}

/// Rows of the position table for every pair of tokens, on the device.
#[derive(Clone, Debug)]
pub struct PositionIndex<B: BurnBackend> {
    text: Tensor<B, 1, Int>,
    image: Tensor<B, 1, Int>,
    joint: Tensor<B, 1, Int>,
}

impl<B: BurnBackend> PositionIndex<B> {
    pub fn new(architecture: &Architecture, device: &B::Device) -> PositionIndex<B> {
        let (w, length, t0) = (architecture.grid(), architecture.text_len, architecture.table_text_len);
        let tensor = |index: Vec<i32>| {
            let n = index.len();
            Tensor::from_data(TensorData::new(index, [n]), device)
        };
        PositionIndex {
            text: tensor(text_index(length, w, t0)),
            image: tensor(image_index(w)),
            joint: tensor(joint_index(length, w, t0)),
        }
    }
}

/// What is added to attention scores: for each layer of a range [heads, tokens, tokens].
#[derive(Clone, Debug)]
pub struct Bias<B: BurnBackend> {
    first: usize,
    layers: Vec<Tensor<B, 3>>,
}

impl<B: BurnBackend> Bias<B> {
    fn layer(&self, layer: usize) -> Tensor<B, 3> {
        self.layers[layer - self.first].clone()
    }
}

/// The biases that a joint pass needs.
#[derive(Clone, Debug)]
pub struct JointBias<B: BurnBackend> {
    /// Layers below vl start, where text and image keep to themselves.
    towers: Option<(Bias<B>, Bias<B>)>,
    joint: Bias<B>,
}

/// Hidden states after all layers, before the final norm.
#[derive(Clone, Debug)]
pub struct Hidden<B: BurnBackend> {
    /// [batch, tokens, D]
    pub last: Tensor<B, 3>,
    /// What enters the first layer with a `vl` expert: [batch, tokens, D].
    pub at_vl_start: Tensor<B, 3>,
}

impl<B: Backend> VlModel<B> {
    pub fn device(&self) -> B::Device {
        self.transformer.cls_token.val().device()
    }

    /// Biases for texts alone, in all layers.
    pub fn text_bias(&self, index: &PositionIndex<B>, a: &Architecture) -> Bias<B> {
        self.bias(&index.text, a.text_len, 0..a.layers, a.heads)
    }

    /// Biases for images alone, in all layers.
    pub fn image_bias(&self, index: &PositionIndex<B>, a: &Architecture) -> Bias<B> {
        self.bias(&index.image, a.image_tokens(), 0..a.layers, a.heads)
    }

    pub fn joint_bias(&self, index: &PositionIndex<B>, a: &Architecture) -> JointBias<B> {
        let n = a.text_len + a.image_tokens();
        match a.attends {
            Attends::ToAll => JointBias { towers: None, joint: self.bias(&index.joint, n, 0..a.layers, a.heads) },
            Attends::WithinModality => {
                let below = 0..a.vl_start;
                let text = self.bias(&index.text, a.text_len, below.clone(), a.heads);
                let image = self.bias(&index.image, a.image_tokens(), below, a.heads);
                let joint = self.bias(&index.joint, n, a.vl_start..a.layers, a.heads);
                JointBias { towers: Some((text, image)), joint }
            }
        }
    }

    fn bias(&self, index: &Tensor<B, 1, Int>, tokens: usize, layers: Range<usize>, heads: usize) -> Bias<B> {
        let first = layers.start;
        let layers = match &self.relative_position_bias_table {
            Some(table) => {
                let table = table.val();
                layers
                    .map(|layer| kernels::position_bias(table.clone(), index.clone(), tokens, layer * heads, heads))
                    .collect()
            }
            None => vec![Tensor::zeros([heads, tokens, tokens], &self.device()); layers.len()],
        };
        Bias { first, layers }
    }

    /// A text through the `l` experts.
    pub fn text(&self, input: &TextInput<B>, bias: &Bias<B>, a: &Architecture, pass: &mut Pass<B>) -> Hidden<B> {
        let x = self.embed_text(input, pass);
        self.tower(x, Some(input.mask.clone()), bias, a, Expert::L, pass)
    }

    /// An image through the `v` experts.
    ///
    /// - patches: [batch, w², 3·patch²], see [`super::input::patches`]
    pub fn image(&self, patches: Tensor<B, 3>, bias: &Bias<B>, a: &Architecture, pass: &mut Pass<B>) -> Hidden<B> {
        let x = self.embed_image(patches, 1, pass);
        self.tower(x, None, bias, a, Expert::V, pass)
    }

    /// A text and an image together; the result's tokens are the text's, then the image's.
    ///
    /// - image_type: 1, or 2 for NLVR2's second image
    pub fn joint(
        &self,
        text: &TextInput<B>,
        patches: Tensor<B, 3>,
        image_type: usize,
        bias: &JointBias<B>,
        a: &Architecture,
        pass: &mut Pass<B>,
    ) -> Tensor<B, 3> {
        let mut words = self.embed_text(text, pass);
        let mut image = self.embed_image(patches, image_type, pass);
        let device = words.device();
        let mask = Tensor::cat(vec![text.mask.clone(), Tensor::ones([image.dims()[0], image.dims()[1]], &device)], 1);
        let length = words.dims()[1];
        let blocks = &self.transformer.blocks;
        let mut x = match &bias.towers {
            Some((text_bias, image_bias)) => {
                for (i, block) in blocks[..a.vl_start].iter().enumerate() {
                    let keep = pass.keep(i, a.layers, &words);
                    let (mask, through) = (Some(text.mask.clone()), Through::One(Expert::L));
                    let (bias, kept) = (text_bias.layer(i), keep.clone());
                    words = pass.apply(block, BlockInput { x: words, bias, mask, layer: i, keep: kept, through });
                    let (mask, through) = (None, Through::One(Expert::V));
                    let bias = image_bias.layer(i);
                    image = pass.apply(block, BlockInput { x: image, bias, mask, layer: i, keep, through });
                }
                Tensor::cat(vec![words, image], 1)
            }
            None => {
                let mut x = Tensor::cat(vec![words, image], 1);
                for (i, block) in blocks[..a.vl_start].iter().enumerate() {
                    let (bias, mask) = (bias.joint.layer(i), Some(mask.clone()));
                    let (keep, through) = (pass.keep(i, a.layers, &x), Through::Each(length));
                    x = pass.apply(block, BlockInput { x, bias, mask, layer: i, keep, through });
                }
                x
            }
        };
        for (i, block) in blocks.iter().enumerate().skip(a.vl_start) {
            let (bias, mask) = (bias.joint.layer(i), Some(mask.clone()));
            let (keep, through) = (pass.keep(i, a.layers, &x), Through::One(Expert::Vl));
            x = pass.apply(block, BlockInput { x, bias, mask, layer: i, keep, through });
        }
        x
    }

    /// A single modality's hidden states through the last layers once more, with their `vl` experts.
    pub fn through_vl(
        &self,
        hidden: Tensor<B, 3>,
        mask: Option<Tensor<B, 2>>,
        bias: &Bias<B>,
        a: &Architecture,
        pass: &mut Pass<B>,
    ) -> Tensor<B, 3> {
        self.transformer.blocks.iter().enumerate().skip(a.vl_start).fold(hidden, |x, (i, block)| {
            let (bias, mask) = (bias.layer(i), mask.clone());
            let (keep, through) = (pass.keep(i, a.layers, &x), Through::One(Expert::Vl));
            pass.apply(block, BlockInput { x, bias, mask, layer: i, keep, through })
        })
    }

    /// The final norm.
    pub fn norm<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.transformer.norm.forward(x)
    }

    fn tower(
        &self,
        mut x: Tensor<B, 3>,
        mask: Option<Tensor<B, 2>>,
        bias: &Bias<B>,
        a: &Architecture,
        expert: Expert,
        pass: &mut Pass<B>,
    ) -> Hidden<B> {
        let mut at_vl_start = x.clone();
        for (i, block) in self.transformer.blocks.iter().enumerate() {
            let (bias, mask) = (bias.layer(i), mask.clone());
            let (keep, through) = (pass.keep(i, a.layers, &x), Through::One(expert));
            x = pass.apply(block, BlockInput { x, bias, mask, layer: i, keep, through });
            if i + 1 == a.vl_start {
                at_vl_start = x.clone();
            }
        }
        Hidden { last: x, at_vl_start }
    }

    /// Word and token types, normalised; positions only where the model has absolute ones.
    fn embed_text(&self, input: &TextInput<B>, pass: &mut Pass<B>) -> Tensor<B, 3> {
        let e = &self.text_embeddings;
        let [batch, tokens] = input.ids.dims();
        let row = |table: &Embedding<B>, row: usize| table.weight.val().narrow(0, row, 1).unsqueeze::<3>();
        let mut x = burn::tensor::module::embedding(e.word_embeddings.weight.val(), input.ids.clone());
        x = x + row(&e.token_type_embeddings, 0);
        if let (None, Some(positions)) = (&self.relative_position_bias_table, &e.position_embeddings) {
            x = x + positions.weight.val().narrow(0, 0, tokens).unsqueeze::<3>();
        }
        x = e.layer_norm.forward(x);
        let width = x.dims()[2];
        if let Some(mask) = pass.noise.as_mut().and_then(|noise| noise.dropout(batch * tokens * width)) {
            x = x.clone() * Tensor::<B, 3>::from_data(TensorData::new(mask, [batch, tokens, width]), &x.device());
        }
        x + row(&self.token_type_embeddings, 0)
    }

    fn embed_image(&self, patches: Tensor<B, 3>, image_type: usize, pass: &mut Pass<B>) -> Tensor<B, 3> {
        let t = &self.transformer;
        let weight = t.patch_embed.proj.weight.val();
        let [width, c, h, w] = weight.dims();
        let projection = kernels::linear(
            patches,
            weight.reshape([width, c * h * w]),
            t.patch_embed.proj.bias.as_ref().map(Param::val),
            pass.precision,
        )
        .cast(FloatDType::F32);
        let batch = projection.dims()[0];
        let mut x = Tensor::cat(vec![t.cls_token.val().expand([batch, 1, width]), projection], 1);
        if let Some(positions) = &t.pos_embed {
            x = x + positions.val();
        }
        x + self.token_type_embeddings.weight.val().narrow(0, image_type, 1).unsqueeze::<3>()
    }
}

impl<B: Backend> Block<B> {
    pub fn forward(&self, input: BlockInput<B>, pass: &mut Pass<B>) -> Tensor<B, 3> {
        let BlockInput { x, bias, mask, layer, keep, through } = input;
        let (keep_attention, keep_mlp) = keep.map(|keep| (keep.attention, keep.mlp)).unzip();
        let normal = normalise(&self.norm1, x.clone(), through);
        let expert = match through {
            Through::One(expert) => expert,
            Through::Each(_) => Expert::Vl,
        };
        let branch = match through {
            Through::Each(length) if self.attn.has_experts() => {
                let text = self.attend(normal.clone(), bias.clone(), mask.clone(), layer, Expert::L, pass);
                let image = self.attend(normal, bias, mask, layer, Expert::V, pass);
                Tensor::cat(vec![split(text, length).0, split(image, length).1], 1)
            }
            _ => self.attend(normal, bias, mask, layer, expert, pass),
        };
        let x = add_branch(x, branch, &self.gamma_1, keep_attention);
        let normal = normalise(&self.norm2, x.clone(), through);
        let branch = match through {
            Through::Each(length) if self.mlp.has_experts() => {
                let (text, image) = split(normal, length);
                let text = self.feed_forward(text, layer, Expert::L, pass);
                Tensor::cat(vec![text, self.feed_forward(image, layer, Expert::V, pass)], 1)
            }
            _ => self.feed_forward(normal, layer, expert, pass),
        };
        add_branch(x, branch, &self.gamma_2, keep_mlp)
    }

    fn attend(
        &self,
        x: Tensor<B, 3>,
        bias: Tensor<B, 3>,
        mask: Option<Tensor<B, 2>>,
        layer: usize,
        expert: Expert,
        pass: &mut Pass<B>,
    ) -> Tensor<B, 3> {
        let attention = self.attn.get(expert);
        let seen_by = self.attn.has_experts().then_some(expert);
        pass.see(layer, seen_by, Site::Qkv, &x);
        let heads = attention.heads(x, bias, mask, pass.precision);
        pass.see(layer, seen_by, Site::Proj, &heads);
        attention.proj.forward(heads, pass.precision)
    }

    fn feed_forward(&self, x: Tensor<B, 3>, layer: usize, expert: Expert, pass: &mut Pass<B>) -> Tensor<B, 3> {
        let mlp = self.mlp.get(expert);
        let seen_by = self.mlp.has_experts().then_some(expert);
        pass.see(layer, seen_by, Site::Fc1, &x);
        let hidden = mlp.hidden(x, pass.precision);
        pass.see(layer, seen_by, Site::Fc2, &hidden);
        mlp.fc2.forward(hidden, pass.precision)
    }
}

/// The first `length` tokens, and the others.
fn split<B: Backend>(x: Tensor<B, 3>, length: usize) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let tokens = x.dims()[1];
    (x.clone().narrow(1, 0, length), x.narrow(1, length, tokens - length))
}

fn normalise<B: Backend>(norm: &Experts<B, LayerNorm<B>>, x: Tensor<B, 3>, through: Through) -> Tensor<B, 3> {
    match through {
        Through::One(expert) => norm.get(expert).forward(x),
        Through::Each(length) if norm.has_experts() => {
            let (text, image) = split(x, length);
            Tensor::cat(vec![norm.get(Expert::L).forward(text), norm.get(Expert::V).forward(image)], 1)
        }
        Through::Each(_) => norm.get(Expert::Vl).forward(x),
    }
}

/// x + keep·γ·branch; γ is 1 in a model without layer scale.
fn add_branch<B: Backend>(
    x: Tensor<B, 3>,
    branch: Tensor<B, 3>,
    gamma: &Option<Param<Tensor<B, 1>>>,
    keep: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    let gamma = gamma.as_ref().map_or_else(|| Tensor::ones([x.dims()[2]], &x.device()), Param::val);
    kernels::add_scaled(x, gamma, branch.cast(FloatDType::F32), keep)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use fixtures::compare::absolute_difference;
    use formats::config::Variant;

    use super::super::build::{Heads, Start, build};
    use super::super::config::Size;
    use super::super::input::{patches, texts};
    use super::super::weights::Weights;
    use super::*;
    use crate::batch::{Images, Texts};

    /// Samples that are all the same are told apart by nothing but what stochastic depth dropped of them.
    #[test]
    fn text_and_image_of_a_joint_pass_never_draw_apart() {
        const SAMPLES: usize = 24;
        for (variant, vl_start) in [(Variant::Ufo, 3), (Variant::AllMoe, 3), (Variant::LnMoe, 3), (Variant::Ufo, 0)] {
            let architecture = Architecture {
                layers: 3,
                vl_start,
                hidden_size: 16,
                heads: 2,
                mlp_hidden: 32,
                vocab_size: 20,
                text_len: 5,
                table_text_len: 5,
                ..Architecture::sized(Size::Tiny, variant, 32)
            };
            let (a, device, start) = (&architecture, Default::default(), Start { std: 0.5, layer_scale: 1.0 });
            let (model, _) = build::<Flex>(&Weights::none(), a, Heads::default(), 1, Some(start), &device).unwrap();
            let words = Texts {
                count: SAMPLES,
                len: 5,
                ids: [1, 5, 7, 2, 0].repeat(SAMPLES),
                mask: [1, 1, 1, 1, 0].repeat(SAMPLES),
            };
            let pixels = (0..3 * 32 * 32).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>();
            let images = Images { count: SAMPLES, size: 32, pixels: pixels.repeat(SAMPLES) };
            let mut noise = Noise::new(1, 0, 0.0, 0.5);
            let mut pass = Pass { noise: Some(&mut noise), ..Pass::evaluation(Precision::F32) };
            let bias = model.joint_bias(&PositionIndex::new(a, &device), a);
            let patches = patches(&images, a.patch_size, &device);
            let out = model.joint(&texts(&words, &device), patches, 1, &bias, a, &mut pass);
            let part = |from: usize, tokens: usize| -> Vec<Vec<f32>> {
                let values: Vec<f32> = out.clone().narrow(1, from, tokens).into_data().to_vec().unwrap();
                values.chunks(tokens * a.hidden_size).map(<[f32]>::to_vec).collect()
            };
            let (text, image) = (part(0, a.text_len), part(a.text_len, a.image_tokens()));
            let same = |a: &[f32], b: &[f32]| absolute_difference(a, b).unwrap() < 1e-4;
            let mut apart = 0;
            for i in 0..SAMPLES {
                for j in 0..i {
                    let (texts, images) = (same(&text[i], &text[j]), same(&image[i], &image[j]));
                    assert_eq!(texts, images, "{variant}, vl start {vl_start}: samples {i} and {j}");
                    apart += usize::from(!texts);
                }
            }
            assert!(apart > SAMPLES, "{variant}: something is dropped of some samples, and not of others: {apart}");
        }
    }
}
