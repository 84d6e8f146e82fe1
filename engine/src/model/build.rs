//! A model from the tensors of a checkpoint, or from scratch.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{DType, Tensor, TensorData};
use formats::show_name;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::Architecture;
use super::layers::{
    Attention, Classifier, Embedding, Expert, Experts, LayerNorm, Linear, MlmHead, Mlp, Pooler, Projection, Transform,
};
use super::save::values;
use super::transformer::{Block, Convolution, PatchEmbed, TextEmbeddings, Transformer, VlModel};
use super::weights::{LoadError, Weights};
use crate::kernels::Backend;

/// What to do about a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// Leave it out, there or not.
    #[default]
    No,
    IfPresent,
    /// Load it, or initialise one with this many labels where there is none.
    Make(usize),
}

/// The heads a model is built with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// `ifm_text_proj`, `ifm_image_proj`, `logit_scale`; the number of labels means nothing.
    pub irtr: Want,
    pub vqa: Want,
    pub nlvr2: Want,
    pub img_cls: Want,
    /// Matching, masked words, and the contrastive branch through `vl`.
    pub pretraining: Want,
}

impl Heads {
    /// Whatever the checkpoint has.
    pub const PRESENT: Heads = Heads {
        irtr: Want::IfPresent,
        vqa: Want::IfPresent,
        nlvr2: Want::IfPresent,
        img_cls: Want::IfPresent,
        pretraining: Want::IfPresent,
    };
}

/// A head that the checkpoint has and that another takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacedHead {
    /// As its tensors' names begin: `vqa_classifier`.
    pub name: &'static str,
    /// For each label of the new head, the row of the checkpoint's last layer that it starts from, or `None` where it
    /// starts anew. Where any row is kept, so are the layers before the last.
    pub rows: Vec<Option<usize>>,
}

impl ReplacedHead {
    /// Whether a tensor is of its last layer, whose rows are the labels.
    pub(super) fn is_last_layer(&self, tensor: &str) -> bool {
        let inner = tensor.strip_prefix(self.name);
        inner.is_some_and(|inner| [".weight", ".bias", ".3.weight", ".3.bias"].contains(&inner))
    }
}

/// How much of a checkpoint a model is built from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    #[default]
    Whole,
    /// One modality's experts, which then stand for all: what a text alone, or an image alone, runs through.
    Only(Expert),
}

/// What came of loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that the checkpoint lacks, newly initialised.
    pub initialised: Vec<String>,
    /// Tensors of the checkpoint that this model has no place for.
    pub unexpected: Vec<String>,
}

impl LoadReport {
    /// Lines for people, names grouped by their first part; empty where everything fits.
    pub fn lines(&self) -> Vec<String> {
        let say = |what: &str, names: &[String]| {
            let mut parts: Vec<(&str, usize)> = Vec::new();
            for name in names {
                let part = name.split('.').next().unwrap_or(name);
                match parts.iter_mut().find(|(known, _)| *known == part) {
                    Some((_, count)) => *count += 1,
                    None => parts.push((part, 1)),
                }
            }
            let parts = parts.iter().map(|(part, count)| match count {
                1 => show_name(part).to_string(),
                _ => format!("{} ({count})", show_name(part)),
            });
            (!names.is_empty()).then(|| format!("{what}: {}", parts.collect::<Vec<_>>().join(", ")))
        };
        let new = say("newly initialised, not in the checkpoint", &self.initialised);
        new.into_iter().chain(say("in the checkpoint, not used", &self.unexpected)).collect()
    }
}

/// How parameters start that no checkpoint gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Start {
    /// Standard deviation of linear weights, embeddings and tokens. The patch projection starts as PyTorch's
    /// convolutions do, norms at 1 and biases at 0.
    pub std: f32,
    /// γ of layer scale.
    pub layer_scale: f32,
}

impl Default for Start {
    /// As BEiT and VLMo begin.
    fn default() -> Start {
        Start { std: 0.02, layer_scale: 0.1 }
    }
}

/// Builds the model. `seed` is for what has to be initialised; with `scratch` that may be everything.
///
/// # Errors
/// A tensor that the model can't do without is missing, or one is of another shape: every such name is listed.
pub fn build<B: Backend>(
    weights: &Weights,
    a: &Architecture,
    heads: Heads,
    seed: u64,
    scratch: Option<Start>,
    device: &B::Device,
) -> Result<(VlModel<B>, LoadReport), LoadError> {
    build_extent(weights, a, heads, Extent::Whole, seed, scratch, device)
}

/// As [`build`], of as much of the checkpoint as `extent` says.
///
/// # Errors
/// As [`build`].
pub(super) fn build_extent<B: Backend>(
    weights: &Weights,
    a: &Architecture,
    heads: Heads,
    extent: Extent,
    seed: u64,
    scratch: Option<Start>,
    device: &B::Device,
) -> Result<(VlModel<B>, LoadReport), LoadError> {
    let mut builder = Builder::<B> {
        weights,
        device,
        extent,
        seed,
        scratch: scratch.is_some(),
        begin: scratch.unwrap_or_default(),
        used: Default::default(),
        initialised: Vec::new(),
        missing: Vec::new(),
        misshapen: Vec::new(),
    };
    let model = builder.model(a, heads)?;
    builder.finish(model)
}

/// How a parameter starts that no checkpoint gives.
#[derive(Clone, Copy)]
enum Init {
    Constant(f32),
    /// Normal, with the deviation of [`Start`]: heads and embeddings.
    Normal,
    /// The same, drawn again beyond ±2: the transformer itself.
    Truncated,
    /// Truncated, then divided by √(2(i + 1)) for layer i: the MLP and what the attention adds to its input.
    Scaled(usize),
    /// Uniform within ±1/√n for n inputs: PyTorch's convolutions, their biases too.
    Convolution(usize),
}

struct Builder<'a, B: BurnBackend> {
    weights: &'a Weights,
    device: &'a B::Device,
    extent: Extent,
    seed: u64,
    /// Whether all of the model may be missing.
    scratch: bool,
    begin: Start,
    used: std::collections::HashSet<String>,
    initialised: Vec<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
}

impl<B: Backend> Builder<'_, B> {
    fn model(&mut self, a: &Architecture, heads: Heads) -> Result<VlModel<B>, LoadError> {
        let d = a.hidden_size;
        let text_embeddings = TextEmbeddings {
            word_embeddings: self.embedding("text_embeddings.word_embeddings", [a.vocab_size, d])?,
            position_embeddings: match self.has("text_embeddings.position_embeddings.weight")
                || self.scratch
                || !a.relative_positions
            {
                true => Some(self.embedding("text_embeddings.position_embeddings", [a.text_len, d])?),
                false => None,
            },
            token_type_embeddings: {
                let rows = self.rows("text_embeddings.token_type_embeddings.weight").unwrap_or(2);
                self.embedding("text_embeddings.token_type_embeddings", [rows, d])?
            },
            layer_norm: self.norm("text_embeddings.LayerNorm", d, 1e-12)?,
        };
        let token_types =
            if heads.nlvr2 == Want::No || a.token_types > 2 { a.token_types } else { self.nlvr2_types(heads, a) };
        let token_type_embeddings = self.token_types([token_types, d])?;
        let transformer = Transformer {
            patch_embed: PatchEmbed {
                proj: Convolution {
                    weight: self.param(
                        "transformer.patch_embed.proj.weight",
                        [d, 3, a.patch_size, a.patch_size],
                        Init::Convolution(3 * a.patch_size * a.patch_size),
                    )?,
                    bias: self.optional(
                        "transformer.patch_embed.proj.bias",
                        [d],
                        Init::Convolution(3 * a.patch_size * a.patch_size),
                    )?,
                },
            },
            cls_token: self.param("transformer.cls_token", [1, 1, d], Init::Truncated)?,
            mask_token: self.optional("transformer.mask_token", [1, 1, d], Init::Truncated)?,
            pos_embed: match a.relative_positions {
                true => None,
                false => Some(self.param("transformer.pos_embed", [1, a.image_tokens(), d], Init::Truncated)?),
            },
            blocks: (0..a.layers).map(|layer| self.block(a, layer)).collect::<Result<_, _>>()?,
            norm: self.norm("transformer.norm", d, 1e-6)?,
        };
        let table = match a.relative_positions {
            true => {
                let shape = [a.table_rows(), a.layers * a.heads];
                Some(self.param("relative_position_bias_table", shape, Init::Constant(0.0))?)
            }
            false => None,
        };
        let joint = heads.vqa != Want::No || heads.nlvr2 != Want::No || heads.pretraining != Want::No;
        let pooler = if joint { Want::IfPresent } else { Want::No };
        let pooler = if matches!((heads.vqa, heads.nlvr2), (Want::Make(_), _) | (_, Want::Make(_))) {
            Want::Make(0)
        } else {
            pooler
        };
        let scale = (1f32 / 0.07).ln();
        let model = VlModel {
            text_embeddings,
            token_type_embeddings,
            transformer,
            relative_position_bias_table: table,
            pooler: match self.wants("pooler.dense.weight", pooler) {
                true => Some(Pooler { dense: self.head_linear("pooler.dense", [d, d], true)? }),
                false => None,
            },
            ifm_text_proj: self.projection("ifm_text_proj", heads.irtr, d)?,
            ifm_image_proj: self.projection("ifm_image_proj", heads.irtr, d)?,
            ifm_vl_text_proj: self.projection("ifm_vl_text_proj", heads.pretraining, d)?,
            ifm_vl_image_proj: self.projection("ifm_vl_image_proj", heads.pretraining, d)?,
            logit_scale: match self.wants("logit_scale", heads.irtr) {
                true => Some(self.head_param("logit_scale", [1], Init::Constant(scale))?),
                false => None,
            },
            logit_vl_scale: match self.wants("logit_vl_scale", heads.pretraining) {
                true => Some(self.head_param("logit_vl_scale", [1], Init::Constant(scale))?),
                false => None,
            },
            itm_score: match self.wants("itm_score.fc.weight", heads.pretraining) {
                true => Some(Projection { fc: self.head_linear("itm_score.fc", [2, d], true)? }),
                false => None,
            },
            mlm_score: self.mlm(heads.pretraining, a)?,
            vqa_classifier: self.classifier("vqa_classifier", heads.vqa, d, 2 * d)?,
            nlvr2_classifier: self.classifier("nlvr2_classifier", heads.nlvr2, 2 * d, 2 * d)?,
            img_cls_classifier: match self.wants("img_cls_classifier.weight", heads.img_cls) {
                true => {
                    let labels = self.labels("img_cls_classifier.weight", heads.img_cls);
                    Some(self.head_linear("img_cls_classifier", [labels, d], true)?)
                }
                false => None,
            },
        };
        Ok(model)
    }

    fn block(&mut self, a: &Architecture, layer: usize) -> Result<Block<B>, LoadError> {
        let (d, base) = (a.hidden_size, format!("transformer.blocks.{layer}"));
        let vl = layer >= a.vl_start;
        Ok(Block {
            norm1: self.experts(&format!("{base}.norm1"), a.norm1_experts, vl, |b, name| b.norm(name, d, 1e-6))?,
            attn: self
                .experts(&format!("{base}.attn"), a.attention_experts, vl, |b, name| b.attention(name, a, layer))?,
            norm2: self.experts(&format!("{base}.norm2"), a.norm2_experts, vl, |b, name| b.norm(name, d, 1e-6))?,
            mlp: self.experts(&format!("{base}.mlp"), a.mlp_experts, vl, |b, name| {
                Ok(Mlp {
                    fc1: b.linear(&format!("{name}.fc1"), [a.mlp_hidden, d], Init::Scaled(layer))?,
                    fc2: b.linear(&format!("{name}.fc2"), [d, a.mlp_hidden], Init::Scaled(layer))?,
                })
            })?,
            gamma_1: self.gamma(a, &format!("{base}.gamma_1"))?,
            gamma_2: self.gamma(a, &format!("{base}.gamma_2"))?,
        })
    }

    fn gamma(&mut self, a: &Architecture, name: &str) -> Result<Option<Param<Tensor<B, 1>>>, LoadError> {
        match a.layer_scale {
            true => self.param(name, [a.hidden_size], Init::Constant(self.begin.layer_scale)).map(Some),
            false => Ok(None),
        }
    }

    fn experts<M: Module<B>>(
        &mut self,
        name: &str,
        separate: bool,
        vl: bool,
        mut part: impl FnMut(&mut Self, &str) -> Result<M, LoadError>,
    ) -> Result<Experts<B, M>, LoadError> {
        if !separate {
            return Ok(Experts::shared(part(self, name)?));
        }
        if let Extent::Only(expert) = self.extent {
            return Ok(Experts::shared(part(self, &format!("{name}.{}", expert.name()))?));
        }
        let mut of = |modality: &str| part(self, &format!("{name}.{modality}"));
        Ok(Experts::of(of("v")?, of("l")?, if vl { Some(of("vl")?) } else { None }))
    }

    fn attention(&mut self, name: &str, a: &Architecture, layer: usize) -> Result<Attention<B>, LoadError> {
        let d = a.hidden_size;
        let qkv = Linear {
            weight: self.param(&format!("{name}.qkv.weight"), [3 * d, d], Init::Truncated)?,
            bias: match self.has(&format!("{name}.qkv.bias")) {
                true => Some(self.param(&format!("{name}.qkv.bias"), [3 * d], Init::Constant(0.0))?),
                false => None,
            },
        };
        let q_bias = self.optional(&format!("{name}.q_bias"), [d], Init::Constant(0.0))?;
        let v_bias = self.optional(&format!("{name}.v_bias"), [d], Init::Constant(0.0))?;
        let proj = self.linear(&format!("{name}.proj"), [d, d], Init::Scaled(layer))?;
        Ok(Attention::new(qkv, q_bias, v_bias, proj, a.heads))
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], init: Init) -> Result<Linear<B>, LoadError> {
        Ok(Linear {
            weight: self.param(&format!("{name}.weight"), shape, init)?,
            bias: Some(self.param(&format!("{name}.bias"), [shape[0]], Init::Constant(0.0))?),
        })
    }

    fn norm(&mut self, name: &str, d: usize, epsilon: f64) -> Result<LayerNorm<B>, LoadError> {
        let weight = self.param(&format!("{name}.weight"), [d], Init::Constant(1.0))?;
        let bias = self.param(&format!("{name}.bias"), [d], Init::Constant(0.0))?;
        Ok(LayerNorm::new(weight, bias, epsilon))
    }

    fn embedding(&mut self, name: &str, shape: [usize; 2]) -> Result<Embedding<B>, LoadError> {
        Ok(Embedding { weight: self.param(&format!("{name}.weight"), shape, Init::Normal)? })
    }

    /// NLVR2's second image has a type of its own, which starts as the first's.
    fn token_types(&mut self, shape: [usize; 2]) -> Result<Embedding<B>, LoadError> {
        let name = "token_type_embeddings.weight";
        let [rows, d] = shape;
        match self.weights.shape(name) {
            Some(&[had, width]) if had == 2 && rows == 3 && width == d => {
                let mut values = self.weights.read(name)?.unwrap_or_default();
                values.extend_from_within(d..2 * d);
                self.used.insert(name.into());
                Ok(Embedding { weight: self.tensor(values, shape) })
            }
            _ => self.embedding("token_type_embeddings", shape),
        }
    }

    fn nlvr2_types(&self, heads: Heads, a: &Architecture) -> usize {
        if matches!(heads.nlvr2, Want::Make(_)) || self.has("nlvr2_classifier.3.weight") { 3 } else { a.token_types }
    }

    fn projection(&mut self, name: &str, want: Want, d: usize) -> Result<Option<Projection<B>>, LoadError> {
        let weight = format!("{name}.fc.weight");
        if !self.wants(&weight, want) {
            return Ok(None);
        }
        Ok(Some(Projection { fc: self.head_linear(&format!("{name}.fc"), [d, d], false)? }))
    }

    fn classifier(
        &mut self,
        name: &str,
        want: Want,
        input: usize,
        hidden: usize,
    ) -> Result<Option<Classifier<B>>, LoadError> {
        let last = format!("{name}.3.weight");
        if !self.wants(&last, want) {
            return Ok(None);
        }
        let labels = self.labels(&last, want);
        Ok(Some(Classifier {
            _0: self.head_linear(&format!("{name}.0"), [hidden, input], true)?,
            _1: LayerNorm::new(
                self.head_param(&format!("{name}.1.weight"), [hidden], Init::Constant(1.0))?,
                self.head_param(&format!("{name}.1.bias"), [hidden], Init::Constant(0.0))?,
                1e-5,
            ),
            _3: self.head_linear(&format!("{name}.3"), [labels, hidden], true)?,
        }))
    }

    fn mlm(&mut self, want: Want, a: &Architecture) -> Result<Option<MlmHead<B>>, LoadError> {
        if !self.wants("mlm_score.bias", want) {
            return Ok(None);
        }
        let d = a.hidden_size;
        Ok(Some(MlmHead {
            transform: Transform {
                dense: self.head_linear("mlm_score.transform.dense", [d, d], true)?,
                layer_norm: LayerNorm::new(
                    self.head_param("mlm_score.transform.LayerNorm.weight", [d], Init::Constant(1.0))?,
                    self.head_param("mlm_score.transform.LayerNorm.bias", [d], Init::Constant(0.0))?,
                    1e-12,
                ),
            },
            decoder: self.head_linear("mlm_score.decoder", [a.vocab_size, d], false)?,
            bias: self.head_param("mlm_score.bias", [a.vocab_size], Init::Constant(0.0))?,
        }))
    }

    fn head_linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Result<Linear<B>, LoadError> {
        Ok(Linear {
            weight: self.head_param(&format!("{name}.weight"), shape, Init::Normal)?,
            bias: match bias {
                true => Some(self.head_param(&format!("{name}.bias"), [shape[0]], Init::Constant(0.0))?),
                false => None,
            },
        })
    }

    fn wants(&self, name: &str, want: Want) -> bool {
        match want {
            Want::No => false,
            Want::IfPresent => self.has(name),
            Want::Make(_) => true,
        }
    }

    /// As many as asked for, else as many as there are.
    fn labels(&self, weight: &str, want: Want) -> usize {
        match want {
            Want::Make(labels) if labels > 0 => labels,
            _ => self.rows(weight).unwrap_or(1),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.weights.shape(name).is_some()
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.weights.shape(name)?.first().copied()
    }

    fn optional<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Option<Param<Tensor<B, D>>>, LoadError> {
        if self.has(name) || self.scratch { self.param(name, shape, init).map(Some) } else { Ok(None) }
    }

    /// A parameter of a head: what is missing is initialised.
    fn head_param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Param<Tensor<B, D>>, LoadError> {
        if let Some(rows) = self.weights.kept_rows(name) {
            return self.some_rows(name, rows, shape, init);
        }
        if self.has(name) { self.param(name, shape, init) } else { Ok(self.start(name, shape, init)) }
    }

    /// A parameter of which some rows are the checkpoint's and the others start anew.
    fn some_rows<const D: usize>(
        &mut self,
        name: &str,
        rows: &[Option<usize>],
        shape: [usize; D],
        init: Init,
    ) -> Result<Param<Tensor<B, D>>, LoadError> {
        let had = self.weights.shape(name).unwrap_or_default().to_vec();
        self.used.insert(name.to_owned());
        let beyond = rows.iter().flatten().any(|&row| had.first().is_none_or(|&count| row >= count));
        if had.get(1..) != Some(&shape[1..]) || rows.len() != shape[0] || beyond {
            self.misshapen.push(format!("{name} is {had:?}, the model takes rows for {shape:?} from it"));
            return Ok(self.tensor(vec![0.0; shape.iter().product()], shape));
        }
        let kept = self.weights.read(name)?.unwrap_or_default();
        let mut values = values(self.start(name, shape, init).val());
        // It isn't new as a whole, and what is new of it is told elsewhere.
        self.initialised.pop();
        let width: usize = shape[1..].iter().product();
        for (label, row) in rows.iter().enumerate() {
            if let Some(row) = row {
                values[label * width..][..width].copy_from_slice(&kept[row * width..][..width]);
            }
        }
        Ok(self.tensor(values, shape))
    }

    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Param<Tensor<B, D>>, LoadError> {
        self.used.insert(name.to_owned());
        match self.weights.shape(name) {
            // Rank 0 in PyTorch is one element here.
            Some(found) if found == shape || (found.is_empty() && shape.iter().product::<usize>() == 1) => {
                if let Some(bytes) = self.weights.mapped(name) {
                    let data = TensorData::from_bytes(bytes, shape, DType::F32);
                    return Ok(Param::from_tensor(Tensor::from_data(data, self.device)));
                }
                let values = self.weights.read(name)?.unwrap_or_default();
                Ok(self.tensor(values, shape))
            }
            Some(found) => {
                self.misshapen.push(format!("{name} is {found:?}, the model needs {shape:?}"));
                Ok(self.tensor(vec![0.0; shape.iter().product()], shape))
            }
            None if self.scratch => Ok(self.start(name, shape, init)),
            None => {
                self.missing.push(name.to_owned());
                Ok(self.tensor(vec![0.0; shape.iter().product()], shape))
            }
        }
    }

    /// A parameter that no checkpoint gives; its values depend on the seed and its name only.
    fn start<const D: usize>(&mut self, name: &str, shape: [usize; D], init: Init) -> Param<Tensor<B, D>> {
        self.initialised.push(name.to_owned());
        let elements = shape.iter().product();
        let mut key = blake3::Hasher::new();
        key.update(&self.seed.to_le_bytes()).update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*key.finalize().as_bytes());
        let std = self.begin.std;
        let values = match init {
            Init::Constant(value) => vec![value; elements],
            Init::Normal => (0..elements).map(|_| normal(&mut rng) * std).collect(),
            Init::Truncated => (0..elements).map(|_| truncated(&mut rng, std)).collect(),
            Init::Scaled(layer) => {
                let divisor = (2.0 * (layer + 1) as f32).sqrt();
                (0..elements).map(|_| truncated(&mut rng, std) / divisor).collect()
            }
            Init::Convolution(inputs) => {
                let bound = 1.0 / (inputs as f32).sqrt();
                (0..elements).map(|_| rng.random_range(-bound..bound)).collect()
            }
        };
        self.tensor(values, shape)
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    fn finish(self, model: VlModel<B>) -> Result<(VlModel<B>, LoadReport), LoadError> {
        let unfit = |reason: String| Err(LoadError::Unfit { path: self.weights.path().to_owned(), reason });
        if !self.misshapen.is_empty() {
            return unfit(self.misshapen.join("; "));
        }
        if !self.missing.is_empty() {
            let report = LoadReport { initialised: self.missing.clone(), unexpected: Vec::new() };
            let parts = report.lines().join("");
            let parts = parts.split_once(": ").map_or("", |(_, parts)| parts);
            let first = &self.missing[0];
            return unfit(format!("{} of the model's tensors are missing, {first} first: {parts}", self.missing.len()));
        }
        let unexpected = self
            .weights
            .names()
            .filter(|name| !self.used.contains(*name) && !derived(name))
            .map(str::to_owned)
            .collect();
        Ok((model, LoadReport { initialised: self.initialised, unexpected }))
    }
}

/// Saved by the Python code, of no use to a model of images.
fn derived(name: &str) -> bool {
    name.starts_with("temporal_") || name.ends_with("position_ids") || name == "mask_for_combining_temporal"
}

/// Standard normal (Box–Muller).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Normal with a deviation, drawn again beyond ±2. The bounds are absolute, as timm's `trunc_normal_` has them by
/// default: with BEiT's deviation of 0.02 they cut off nothing.
fn truncated(rng: &mut ChaCha8Rng, std: f32) -> f32 {
    loop {
        let value = normal(rng) * std;
        if value.abs() <= 2.0 {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use burn_flex::Flex;
    use formats::config::Variant;

    use super::super::config::Size;
    use super::super::save::to_host;
    use super::*;

    /// The tensors of a small model from scratch, with every head there is.
    fn start(std: f32) -> HashMap<String, Vec<f32>> {
        let architecture = Architecture {
            layers: 4,
            vl_start: 2,
            hidden_size: 64,
            heads: 2,
            mlp_hidden: 256,
            vocab_size: 300,
            ..Architecture::sized(Size::Tiny, Variant::AllMoe, 32)
        };
        let make = Want::Make(10);
        let heads = Heads { irtr: make, vqa: make, nlvr2: make, img_cls: make, pretraining: make };
        let start = Some(Start { std, layer_scale: 0.1 });
        let (model, _) = build::<Flex>(&Weights::none(), &architecture, heads, 5, start, &Default::default()).unwrap();
        to_host(&model).into_iter().map(|tensor| (tensor.name, tensor.values)).collect()
    }

    fn deviation(values: &[f32]) -> f64 {
        (values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    fn largest(values: &[f32]) -> f32 {
        values.iter().fold(0.0, |most, value| if value.abs() > most { value.abs() } else { most })
    }

    /// N(0, 0.02) everywhere, and no value cut off at two deviations.
    #[test]
    fn weights_are_not_cut_at_two_deviations() {
        let tensors = start(0.02);
        for name in [
            "vqa_classifier.0.weight",
            "nlvr2_classifier.0.weight",
            "ifm_text_proj.fc.weight",
            "pooler.dense.weight",
            "mlm_score.decoder.weight",
            "text_embeddings.word_embeddings.weight",
            "transformer.blocks.0.attn.v.qkv.weight",
            "transformer.blocks.3.attn.vl.qkv.weight",
        ] {
            let values = &tensors[name];
            assert!((deviation(values) / 0.02 - 1.0).abs() < 0.05, "{name}: {}", deviation(values));
            // Of n > 4,000 normal values some lie beyond 3 deviations.
            assert!(largest(values) > 0.06, "{name}: {}", largest(values));
        }
        for (name, value) in
            [("vqa_classifier.0.bias", 0.0), ("vqa_classifier.1.weight", 1.0), ("pooler.dense.bias", 0.0)]
        {
            assert!(tensors[name].iter().all(|&found| found == value), "{name}");
        }
    }

    #[test]
    fn blocks_are_cut_at_an_absolute_two_and_heads_are_not() {
        let tensors = start(1.5);
        let block = &tensors["transformer.blocks.1.attn.l.qkv.weight"];
        assert!(largest(block) <= 2.0 && largest(block) > 1.95, "{}", largest(block));
        let mlp = &tensors["transformer.blocks.1.mlp.v.fc1.weight"];
        assert!(largest(mlp) <= 1.0 && largest(mlp) > 0.97, "cut, then halved: {}", largest(mlp));
        assert!(largest(&tensors["transformer.cls_token"]) <= 2.0);
        assert!(largest(&tensors["vqa_classifier.0.weight"]) > 4.0);
    }

    #[test]
    fn deeper_layers_start_smaller() {
        let tensors = start(0.02);
        for layer in 0..4 {
            for part in ["attn.v.proj", "mlp.v.fc1", "mlp.l.fc2"] {
                let values = &tensors[&format!("transformer.blocks.{layer}.{part}.weight")];
                let expected = 0.02 / (2.0 * f64::from(layer + 1)).sqrt();
                assert!((deviation(values) / expected - 1.0).abs() < 0.05, "{layer}, {part}: {}", deviation(values));
            }
        }
    }

    /// `torch.nn.Conv2d`: uniform within ±1/√(3·16²) = ±1/√768, whatever the deviation of the other weights.
    #[test]
    fn the_patch_projection_starts_as_pytorchs_convolution() {
        for std in [0.02, 0.5] {
            let tensors = start(std);
            for part in ["weight", "bias"] {
                let values = &tensors[&format!("transformer.patch_embed.proj.{part}")];
                let bound = 1.0 / 768f32.sqrt();
                assert!(largest(values) <= bound && largest(values) > 0.9 * bound, "{part}: {}", largest(values));
                let expected = f64::from(bound) / 3f64.sqrt();
                assert!((deviation(values) / expected - 1.0).abs() < 0.15, "{part}: {}", deviation(values));
            }
        }
    }
}
