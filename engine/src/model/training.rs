//! A model in training on a burn backend: losses, gradients, AdamW.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Tensor, TensorData, TensorMetadata, TensorPrimitive};

use super::config::Architecture;
use super::input::{patches, texts};
use super::names::{self, Path as NamePath, decays, decays_in_reference, is_head};
use super::noise::Noise;
use super::objectives::{binary_cross_entropy, contrastive, cross_entropy, similarities};
use super::recompute::Recompute;
use super::save::{self, HostTensor, to_host};
use super::session::{Session, check_images, check_texts};
use super::transformer::{Pass, PositionIndex, Tape, VlModel};
use crate::batch::{Images, Texts, TrainBatch};
use crate::device::Precision;
use crate::kernels::{Adamw, Backend};
use crate::runner::Runner;
use crate::trainer::{Loss, Trainer, Update};

/// How weights are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    pub beta_1: f64,
    pub beta_2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Heads (`*_classifier`) learn at the learning rate times this.
    pub head_lr_multiplier: f64,
    /// Step and decay as the Python code does: see [`Optimizer::adamw`].
    pub reference: bool,
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer {
            beta_1: 0.9,
            beta_2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.01,
            head_lr_multiplier: 1.0,
            reference: false,
        }
    }
}

impl Optimizer {
    /// What the Python code decays heads at, whatever it is told for the rest.
    const REFERENCE_HEAD_DECAY: f64 = 0.01;

    /// One step for the parameter of a name, at the run's learning rate.
    ///
    /// With [`Optimizer::reference`] it is the step of `transformers.AdamW`: ε is added to √v before the correction of
    /// the second moment, and decay comes last. Norms of experts and heads then decay too ([`decays_in_reference`]).
    fn adamw(&self, name: &str, lr: f64, step: u64, gradient_scale: f64) -> Adamw {
        let weight_decay = match self.reference {
            false if decays(name) => self.weight_decay,
            true if decays_in_reference(name) && is_head(name) => Optimizer::REFERENCE_HEAD_DECAY,
            true if decays_in_reference(name) => self.weight_decay,
            _ => 0.0,
        };
        // √v + ε, all over √(1 − β₂ᵗ), is √(v/(1 − β₂ᵗ)) + ε/√(1 − β₂ᵗ).
        let correction = if self.reference { (1.0 - self.beta_2.powf(step as f64)).sqrt() } else { 1.0 };
        Adamw {
            lr: if is_head(name) { lr * self.head_lr_multiplier } else { lr },
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            epsilon: self.epsilon / correction,
            weight_decay,
            decay_last: self.reference,
            step,
            gradient_scale,
        }
    }
}

/// Everything about training but the data and the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub optimizer: Optimizer,
    /// Of the text embeddings.
    pub dropout: f64,
    /// Stochastic depth's rate in the last layer.
    pub drop_path: f64,
    pub precision: Precision,
    /// Layers are computed again in the backward pass instead of their activations being kept.
    pub activation_checkpointing: bool,
    pub seed: u64,
}

type Inner<B> = <B as AutodiffBackend>::InnerBackend;

/// First and second moment of a parameter's gradient.
type Moments<B> = [FloatTensor<Inner<B>>; 2];

/// [`Trainer`] on a burn backend.
pub struct Training<B: AutodiffBackend + Backend>
where
    Inner<B>: Backend,
{
    /// `None` only while [`Trainer::update`] replaces it: weights that nothing else holds are updated in place.
    model: Option<VlModel<B>>,
    architecture: Architecture,
    settings: Settings,
    index: PositionIndex<B>,
    gradients: HashMap<ParamId, FloatTensor<Inner<B>>>,
    moments: HashMap<ParamId, Moments<B>>,
    step: u64,
}

impl<B: AutodiffBackend + Backend> Training<B>
where
    Inner<B>: Backend,
{
    pub fn new(model: VlModel<B>, architecture: Architecture, settings: Settings) -> Training<B> {
        let index = PositionIndex::new(&architecture, &model.device());
        Training {
            model: Some(model),
            architecture,
            settings,
            index,
            gradients: HashMap::new(),
            moments: HashMap::new(),
            step: 0,
        }
    }

    fn model(&self) -> &VlModel<B> {
        self.model.as_ref().expect("a model between updates")
    }

    /// The mean loss of a batch, [1].
    fn loss(&self, batch: &TrainBatch, pass: &mut Pass<B>) -> Result<Tensor<B, 1>> {
        let (m, a) = (self.model(), &self.architecture);
        let device = m.device();
        let ids = |labels: &[i32]| Tensor::from_data(TensorData::new(labels.to_vec(), [labels.len()]), &device);
        match batch {
            TrainBatch::Irtr { texts: text, images } => {
                let (Some(text_head), Some(image_head), Some(scale)) =
                    (&m.ifm_text_proj, &m.ifm_image_proj, &m.logit_scale)
                else {
                    bail!("the model was built without retrieval heads");
                };
                let (text, patches) = self.inputs(text, images)?;
                let image = m.image(patches, &m.image_bias(&self.index, a), a, pass);
                let words = m.text(&text, &m.text_bias(&self.index, a), a, pass);
                let image = m.embedding(image.last, image_head);
                let words = m.embedding(words.last, text_head);
                Ok(contrastive(similarities(image, words, scale.val())))
            }
            TrainBatch::Vqa { texts, images, targets } => {
                let (Some(head), Some(pooler)) = (&m.vqa_classifier, &m.pooler) else {
                    bail!("the model was built without a VQA head");
                };
                let labels = head._3.weight.val().dims()[0];
                if targets.columns != labels || targets.rows != images.count {
                    bail!("targets for {} answers, the head has {labels}", targets.columns);
                }
                let (text, patches) = self.inputs(texts, images)?;
                let hidden = m.joint(&text, patches, 1, &m.joint_bias(&self.index, a), a, pass);
                let logits = head.forward(m.pooled(hidden, pooler));
                let targets = TensorData::new(targets.values.clone(), [targets.rows, targets.columns]);
                Ok(binary_cross_entropy(logits, Tensor::from_data(targets, &device)))
            }
            TrainBatch::Nlvr2 { texts, left, right, labels } => {
                let (Some(head), Some(pooler)) = (&m.nlvr2_classifier, &m.pooler) else {
                    bail!("the model was built without an NLVR2 head");
                };
                check_labels(labels, 2)?;
                let alone = pass.tape.is_some();
                let shared = (!alone).then(|| m.joint_bias(&self.index, a));
                let mut pooled = |image, image_type| {
                    let (text, patches) = self.inputs(texts, image)?;
                    // A tape goes back through each layer on its own, its bias included.
                    let bias = shared.clone().unwrap_or_else(|| m.joint_bias(&self.index, a));
                    anyhow::Ok(m.pooled(m.joint(&text, patches, image_type, &bias, a, pass), pooler))
                };
                let both = Tensor::cat(vec![pooled(left, 1)?, pooled(right, 2)?], 1);
                Ok(cross_entropy(head.forward(both), ids(labels)))
            }
            TrainBatch::ImgCls { images, labels } => {
                let Some(head) = &m.img_cls_classifier else { bail!("the model was built without a classifier") };
                check_labels(labels, head.weight.val().dims()[0])?;
                check_images(images, a)?;
                let patches = patches(images, a.patch_size, &device);
                let hidden = m.image(patches, &m.image_bias(&self.index, a), a, pass);
                let logits = head.forward(m.mean_token(hidden.last), Precision::F32);
                Ok(cross_entropy(logits, ids(labels)))
            }
        }
    }

    fn inputs(&self, text: &Texts, image: &Images) -> Result<(super::transformer::TextInput<B>, Tensor<B, 3>)> {
        check_texts(text, &self.architecture)?;
        check_images(image, &self.architecture)?;
        if text.count != image.count {
            bail!("{} texts for {} images", text.count, image.count);
        }
        let device = self.model().device();
        Ok((texts(text, &device), patches(image, self.architecture.patch_size, &device)))
    }

    fn names(&self) -> Vec<names::Named> {
        names::parameters(self.model())
    }
}

fn check_labels(labels: &[i32], classes: usize) -> Result<()> {
    match labels.iter().find(|&&label| usize::try_from(label).map_or(true, |label| label >= classes)) {
        Some(label) => bail!("label {label} is beyond the head's {classes} classes"),
        None => Ok(()),
    }
}

impl<B: AutodiffBackend + Backend> Trainer for Training<B>
where
    Inner<B>: Backend,
{
    fn accumulate(&mut self, batch: &TrainBatch, weight: f64, stream: u64) -> Result<Loss> {
        let s = &self.settings;
        let mut noise = Noise::new(s.seed, stream, s.dropout, s.drop_path);
        let mut layers = s.activation_checkpointing.then(Recompute::new);
        let tape = layers.as_mut().map(|layers| layers as &mut dyn Tape<B>);
        let mut pass = Pass { noise: Some(&mut noise), tape, ..Pass::evaluation(s.precision) };
        let loss = self.loss(batch, &mut pass)?;
        let value = f64::from(save::values(loss.clone().inner()).first().copied().unwrap_or(f32::NAN));
        let loss = loss.mul_scalar(weight);
        let mut collect = |from: &mut B::Gradients| {
            if let Some(model) = &self.model {
                model.visit(&mut Collect::<B> { from, into: &mut self.gradients });
            }
        };
        match layers {
            Some(layers) => layers.backward(loss, collect),
            None => collect(&mut loss.backward()),
        }
        Ok(Loss { value })
    }

    fn update(&mut self, lr: f64, max_norm: Option<f64>) -> Result<Update> {
        let gradients = std::mem::take(&mut self.gradients);
        let gradient_norm = norm::<Inner<B>>(gradients.values());
        if !gradient_norm.is_finite() {
            return Ok(Update { gradient_norm });
        }
        self.step += 1;
        let scale = match max_norm {
            // As torch.nn.utils.clip_grad_norm_ does it.
            Some(max) => (max / (gradient_norm + 1e-6)).min(1.0),
            None => 1.0,
        };
        let mut step = Step::<B> {
            path: NamePath::default(),
            optimizer: self.settings.optimizer,
            lr,
            step: self.step,
            gradient_scale: scale,
            gradients,
            moments: &mut self.moments,
        };
        self.model = self.model.take().map(|model| model.map(&mut step));
        Ok(Update { gradient_norm })
    }

    fn save_weights(&self, path: &Path, metadata: &[(String, String)]) -> Result<()> {
        let tensors = to_host(&self.model().valid());
        Ok(save::write_durably(path, tensors, &save::metadata(&self.architecture, metadata))?)
    }

    fn save_optimizer(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for named in self.names() {
            let Some(moments) = self.moments.get(&named.id) else { continue };
            for (moment, suffix) in moments.iter().zip(["exp_avg", "exp_avg_sq"]) {
                let n = moment.shape().num_elements();
                let flat: Tensor<Inner<B>, 1> = Tensor::from_primitive(TensorPrimitive::Float(
                    Inner::<B>::float_reshape(moment.clone(), [n].into()),
                ));
                let name = format!("{}.{suffix}", named.name);
                tensors.push(HostTensor { name, shape: named.shape.clone(), values: save::values(flat) });
            }
        }
        let metadata = [("engine.step".to_owned(), self.step.to_string())].into_iter().collect();
        Ok(save::write_durably(path, tensors, &metadata)?)
    }

    fn restore_optimizer(&mut self, path: &Path) -> Result<()> {
        let device = self.model().device();
        let state = formats::open(path)?;
        let shown = formats::show_path(path).to_string();
        let step = state.metadata().get("engine.step").and_then(|step| step.parse().ok());
        let step = step.with_context(|| format!("{shown}: it is no optimizer's state: it has no 'engine.step'"))?;
        let mut moments = HashMap::new();
        for named in self.names() {
            let read = |suffix: &str| -> Result<Option<FloatTensor<Inner<B>>>> {
                let name = format!("{}.{suffix}", named.name);
                let Some(at) = state.position(&name) else { return Ok(None) };
                if state.tensors()[at].shape != named.shape {
                    bail!("{shown}: {name} is {:?}, its parameter {:?}", state.tensors()[at].shape, named.shape);
                }
                let mut values = Vec::new();
                state.read_f32(at, 0..state.tensors()[at].elements(), &mut values)?;
                let shape = if named.shape.is_empty() { vec![1] } else { named.shape.clone() };
                Ok(Some(Inner::<B>::float_from_data(TensorData::new(values, shape), &device)))
            };
            if let (Some(first), Some(second)) = (read("exp_avg")?, read("exp_avg_sq")?) {
                moments.insert(named.id, [first, second]);
            }
        }
        self.moments = moments;
        self.step = step;
        self.gradients.clear();
        Ok(())
    }

    fn runner(&self) -> Box<dyn Runner> {
        Box::new(Session::new(self.model().valid(), self.architecture.clone(), self.settings.precision))
    }

    fn parameters(&self) -> usize {
        self.model().num_params()
    }
}

/// Takes each parameter's gradient out of a backward pass and adds it to those held.
struct Collect<'a, B: AutodiffBackend> {
    from: &'a mut B::Gradients,
    into: &'a mut HashMap<ParamId, FloatTensor<Inner<B>>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(gradient) = param.val().grad_remove(self.from) else { return };
        let gradient = gradient.into_primitive().tensor();
        let sum = match self.into.remove(&param.id) {
            Some(held) => Inner::<B>::float_add(held, gradient),
            None => gradient,
        };
        self.into.insert(param.id, sum);
    }
}

fn norm<'a, B: Backend>(gradients: impl Iterator<Item = &'a FloatTensor<B>>) -> f64
where
    FloatTensor<B>: 'a,
{
    let squares: Vec<Tensor<B, 1>> =
        gradients.map(|gradient| crate::kernels::sum_of_squares::<B>(gradient.clone())).collect();
    if squares.is_empty() {
        return 0.0;
    }
    // One transfer for all; added up on the host in f64, and in an order of their own: that of a hash map, and so the last
    // bits of the norm, differs from run to run.
    let mut squares: Vec<f64> = save::values(Tensor::cat(squares, 0)).into_iter().map(f64::from).collect();
    squares.sort_by(f64::total_cmp);
    squares.into_iter().sum::<f64>().sqrt()
}

/// One step of AdamW over the parameters that have a gradient.
struct Step<'a, B: AutodiffBackend> {
    path: NamePath,
    optimizer: Optimizer,
    lr: f64,
    step: u64,
    gradient_scale: f64,
    gradients: HashMap<ParamId, FloatTensor<Inner<B>>>,
    moments: &'a mut HashMap<ParamId, Moments<B>>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Step<'_, B>
where
    Inner<B>: Backend,
{
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(gradient) = self.gradients.remove(&id) else { return Param::from_mapped_value(id, tensor, mapper) };
        let step = self.optimizer.adamw(&self.path.name(), self.lr, self.step, self.gradient_scale);
        let weight = tensor.inner();
        let zeros = || {
            let zeros = Tensor::<Inner<B>, D>::zeros(weight.dims(), &weight.device());
            zeros.into_primitive().tensor()
        };
        let [first, second] = self.moments.remove(&id).unwrap_or_else(|| [zeros(), zeros()]);
        let weight = weight.into_primitive().tensor();
        let [weight, first, second] = Inner::<B>::adamw(weight, gradient, first, second, &step);
        self.moments.insert(id, [first, second]);
        let weight = Tensor::from_inner(Tensor::from_primitive(TensorPrimitive::Float(weight))).require_grad();
        Param::from_mapped_value(id, weight, mapper)
    }
}
