//! A model on the device that was asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn_cuda::{Cuda, CudaDevice};
use burn_flex::{Flex, FlexDevice};
use formats::layout::Layout;

use super::build::{Heads, LoadReport, ReplacedHead, Start, build};
use super::config::Architecture;
use super::layers::Expert;
use super::probe::{ProbeBatch, probe};
use super::save::{HostTensor, values};
use super::session::Session;
use super::training::{Settings, Training};
use super::transformer::{Pass, Site};
use super::weights::Weights;
use crate::batch::{Images, Texts};
use crate::device::{Choice, Device, Precision};
use crate::kernels::Backend;
use crate::runner::Runner;
use crate::trainer::Trainer;

/// How to open a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub device: Choice,
    pub precision: Precision,
    /// Where in the file the tensors are, as `--root` has it.
    pub root: Option<String>,
    /// Pixels along a side, where another than the checkpoint's is wanted or the checkpoint doesn't say its own.
    pub image_size: Option<usize>,
    /// Tokens of a text, where fewer than the checkpoint's are wanted.
    pub text_len: Option<usize>,
    /// A safetensors file of heads named `task:name`, added to the checkpoint's tensors.
    pub heads_file: Option<PathBuf>,
    /// The one task whose tensors are taken from `heads_file`, even where they replace the checkpoint's; with `None` all
    /// tasks' are that replace nothing.
    pub heads_task: Option<String>,
    /// A head of the checkpoint that isn't to be loaded as it is.
    pub replaced_head: Option<ReplacedHead>,
}

/// What was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    pub device: Device,
    pub architecture: Architecture,
    pub load: LoadReport,
    /// What was changed on the way in, in words.
    pub notes: Vec<String>,
    /// The names that the checkpoint has; `None` for a model from scratch.
    pub layout: Option<&'static Layout>,
    /// The checkpoint's metadata: recipe, configuration, labels.
    pub metadata: std::collections::BTreeMap<String, String>,
}

impl Opened {
    /// Everything to be told about how the checkpoint fits, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.load.lines()).collect()
    }
}

/// A linear layer's input, as gram matrices are made of.
#[derive(Clone, Debug)]
pub struct Seen {
    pub layer: usize,
    /// Whose weights it goes to; `None` where all modalities share them.
    pub expert: Option<Expert>,
    pub site: Site,
    /// [tokens, width], row by row
    pub width: usize,
    pub values: Vec<f32>,
}

/// A [`Runner`] that can be looked into.
pub trait Inspector: Runner {
    /// See [`probe`].
    fn probe(&self, batch: &ProbeBatch) -> Result<Vec<HostTensor>>;
    /// Hands `see` the input of every linear layer in a forward pass of texts and of images alone.
    fn watch_apart(&self, texts: &Texts, images: &Images, see: &mut dyn FnMut(Seen)) -> Result<()>;
    /// The same in a joint pass. `image_type`: 1, or 2 for NLVR2's second image.
    fn watch_joint(&self, texts: &Texts, images: &Images, image_type: usize, see: &mut dyn FnMut(Seen)) -> Result<()>;
}

impl<B: Backend> Inspector for Session<B> {
    fn probe(&self, batch: &ProbeBatch) -> Result<Vec<HostTensor>> {
        probe(self, batch)
    }

    fn watch_apart(&self, texts: &Texts, images: &Images, see: &mut dyn FnMut(Seen)) -> Result<()> {
        let (text, patches) = (self.texts(texts)?, self.patches(images)?);
        let (m, a) = (&self.model, &self.architecture);
        let mut tap = |layer, expert, site, input: &Tensor<B, 3>| see(seen(layer, expert, site, input));
        let mut pass = Pass { tap: Some(&mut tap), ..Pass::evaluation(self.precision) };
        m.text(&text, self.text_bias(), a, &mut pass);
        m.image(patches, self.image_bias(), a, &mut pass);
        Ok(())
    }

    fn watch_joint(&self, texts: &Texts, images: &Images, image_type: usize, see: &mut dyn FnMut(Seen)) -> Result<()> {
        let (text, patches) = (self.texts(texts)?, self.patches(images)?);
        let mut tap = |layer, expert, site, input: &Tensor<B, 3>| see(seen(layer, expert, site, input));
        let mut pass = Pass { tap: Some(&mut tap), ..Pass::evaluation(self.precision) };
        self.model.joint(&text, patches, image_type, self.joint_bias(), &self.architecture, &mut pass);
        Ok(())
    }
}

fn seen<B: Backend>(layer: usize, expert: Option<Expert>, site: Site, input: &Tensor<B, 3>) -> Seen {
    Seen { layer, expert, site, width: input.dims()[2], values: values(input.clone()) }
}

/// Opens a checkpoint for running, with whatever heads it has.
///
/// # Errors
/// The device isn't there; the file can't be read or doesn't fit a model.
pub fn open_runner(path: &Path, options: &Options) -> Result<(Box<dyn Inspector>, Opened)> {
    open_runner_from(&Source::Checkpoint(path), Heads::PRESENT, options)
}

/// As [`open_runner`], from scratch too, with the heads asked for.
///
/// # Errors
/// As [`open_runner`].
pub fn open_runner_from(source: &Source, heads: Heads, options: &Options) -> Result<(Box<dyn Inspector>, Opened)> {
    let (weights, opened) = prepare(source, options)?;
    let scratch = source.start();
    match opened.device {
        Device::Cpu => session::<Flex>(weights, opened, heads, scratch, options, FlexDevice),
        Device::Cuda(index) => session::<Cuda>(weights, opened, heads, scratch, options, CudaDevice::new(index)),
    }
}

/// Where a model in training comes from.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    Checkpoint(&'a Path),
    /// From scratch.
    New(Architecture, Start),
}

impl Source<'_> {
    fn start(&self) -> Option<Start> {
        match self {
            Source::Checkpoint(_) => None,
            Source::New(_, start) => Some(*start),
        }
    }
}

/// Opens a model for training. Heads that are wanted and not there are initialised; the report says so.
///
/// # Errors
/// As [`open_runner`].
pub fn open_trainer(
    source: &Source,
    heads: Heads,
    settings: Settings,
    options: &Options,
) -> Result<(Box<dyn Trainer>, Opened)> {
    let (weights, opened) = prepare(source, options)?;
    let scratch = source.start();
    let new = (weights, heads, settings, scratch);
    match opened.device {
        Device::Cpu => training::<Autodiff<Flex>>(new, opened, FlexDevice),
        Device::Cuda(index) => training::<Autodiff<Cuda>>(new, opened, CudaDevice::new(index)),
    }
}

pub(super) fn prepare(source: &Source, options: &Options) -> Result<(Weights, Opened)> {
    let device = options.device.resolve().map_err(anyhow::Error::msg)?;
    let (mut weights, mut architecture) = match source {
        Source::Checkpoint(path) => Weights::open(path, options.root.as_deref(), options.image_size)?,
        Source::New(architecture, _) => (Weights::none(), architecture.clone()),
    };
    if let Some(path) = &options.heads_file {
        add_heads(&mut weights, &mut architecture, path, options.heads_task.as_deref())?;
    }
    if let Some(head) = &options.replaced_head {
        weights.replace_head(head.clone());
    }
    let mut notes = weights.fit(&mut architecture, options.image_size, options.text_len)?;
    if options.device == Choice::Auto && device == Device::Cpu {
        notes.extend(crate::device::passed_over());
    }
    notes.extend(device.warning(options.precision).map(str::to_owned));
    let metadata = weights.metadata().clone();
    let layout = weights.layout();
    Ok((weights, Opened { device, architecture, load: LoadReport::default(), notes, layout, metadata }))
}

fn add_heads(weights: &mut Weights, a: &mut Architecture, path: &Path, task: Option<&str>) -> Result<()> {
    let file = formats::open(path)?;
    let mut named = 0;
    for (at, info) in file.tensors().iter().enumerate() {
        let Some((of, name)) = info.name.split_once(':') else { continue };
        if task.is_some_and(|task| task != of) {
            continue;
        }
        named += 1;
        if task.is_none() && weights.shape(name).is_some() {
            continue;
        }
        let mut values = Vec::new();
        file.read_f32(at, 0..info.elements(), &mut values)?;
        if name == "token_type_embeddings.weight" {
            a.token_types = info.shape.first().copied().unwrap_or(a.token_types);
        }
        weights.put(name, info.shape.clone(), values);
    }
    match (named, task) {
        (0, Some(task)) => anyhow::bail!("{}: no tensor in it is named '{task}:…'", formats::show_path(path)),
        (0, None) => anyhow::bail!("{}: no head in it: tensors are named 'task:name'", formats::show_path(path)),
        _ => Ok(()),
    }
}

fn session<B: Backend>(
    weights: Weights,
    mut opened: Opened,
    heads: Heads,
    scratch: Option<Start>,
    options: &Options,
    device: B::Device,
) -> Result<(Box<dyn Inspector>, Opened)> {
    let (model, load) = build::<B>(&weights, &opened.architecture, heads, 0, scratch, &device)?;
    opened.load = load;
    let session = Session::new(model, opened.architecture.clone(), options.precision);
    Ok((Box::new(session), opened))
}

fn training<B>(
    (weights, heads, settings, scratch): (Weights, Heads, Settings, Option<Start>),
    mut opened: Opened,
    device: B::Device,
) -> Result<(Box<dyn Trainer>, Opened)>
where
    B: burn::tensor::backend::AutodiffBackend + Backend,
    B::InnerBackend: Backend,
{
    let a = &mut opened.architecture;
    let (model, load) = build::<B>(&weights, a, heads, settings.seed, scratch, &device)?;
    a.token_types = model.token_type_embeddings.weight.val().dims()[0];
    opened.load = load;
    // The checkpoint had one: that it is new was asked for.
    opened.load.initialised.retain(|name| !weights.is_replaced(name));
    let trainer = Training::new(model, a.clone(), settings);
    Ok((Box::new(trainer), opened))
}

/// Tensors of a probe batch by their names in the file: `image` [n, 3, S, S], `text_ids` and `text_masks` [n, L],
/// `text_ids_mlm`, `text_labels_mlm`, `image_0`, `image_1`, `vqa_targets` [n, labels], `nlvr2_labels`, `class_label`.
///
/// # Errors
/// The file can't be read, or a tensor has a shape that its name doesn't allow.
pub fn read_probe_batch(path: &Path) -> Result<ProbeBatch> {
    let file = formats::open(path)?;
    let shown = formats::show_path(path).to_string();
    let read = |name: &str, rank: usize| -> Result<Option<(Vec<usize>, Vec<f64>)>> {
        let Some(at) = file.position(name) else { return Ok(None) };
        let shape = file.tensors()[at].shape.clone();
        anyhow::ensure!(shape.len() == rank, "{shown}: {name} is {shape:?}, it must have {rank} axes");
        let mut values = Vec::new();
        file.read_f64(at, 0..file.tensors()[at].elements(), &mut values)?;
        Ok(Some((shape, values)))
    };
    let images = |name: &str| -> Result<Option<Images>> {
        let Some((shape, values)) = read(name, 4)? else { return Ok(None) };
        anyhow::ensure!(shape[1] == 3 && shape[2] == shape[3], "{shown}: {name} is {shape:?}, it must be [n, 3, S, S]");
        let pixels = values.into_iter().map(|value| value as f32).collect();
        Ok(Some(Images { count: shape[0], size: shape[2], pixels }))
    };
    let integers = |name: &str, rank: usize| -> Result<Option<Vec<i32>>> {
        Ok(read(name, rank)?.map(|(_, values)| values.into_iter().map(|value| value as i32).collect()))
    };
    let texts = |name: &str| -> Result<Option<Texts>> {
        let Some((shape, ids)) = read(name, 2)? else { return Ok(None) };
        let mask = match read("text_masks", 2)? {
            Some((of, mask)) if of == shape => mask.into_iter().map(|value| u8::from(value != 0.0)).collect(),
            Some((of, _)) => anyhow::bail!("{shown}: text_masks is {of:?}, {name} {shape:?}"),
            None => vec![1; ids.len()],
        };
        let ids = ids.into_iter().map(|value| value as i32).collect();
        Ok(Some(Texts { count: shape[0], len: shape[1], ids, mask }))
    };
    let pair = images("image_0")?.zip(images("image_1")?);
    let masked = texts("text_ids_mlm")?.zip(integers("text_labels_mlm", 2)?);
    let vqa_targets = read("vqa_targets", 2)?.map(|(shape, values)| crate::batch::Matrix {
        rows: shape[0],
        columns: shape[1],
        values: values.into_iter().map(|value| value as f32).collect(),
    });
    let batch = ProbeBatch {
        texts: texts("text_ids")?,
        images: images("image")?,
        pair,
        masked,
        vqa_targets,
        nlvr2_labels: integers("nlvr2_labels", 1)?,
        class_labels: integers("class_label", 1)?,
    };
    if let Some((_, labels)) = &batch.masked
        && let Some((texts, _)) = &batch.masked
        && labels.len() != texts.ids.len()
    {
        anyhow::bail!("{shown}: text_labels_mlm has {} values, text_ids_mlm {}", labels.len(), texts.ids.len());
    }
    let counts = [
        ("text_ids", batch.texts.as_ref().map(|texts| texts.count)),
        ("image", batch.images.as_ref().map(|images| images.count)),
        ("image_0", batch.pair.as_ref().map(|(left, _)| left.count)),
        ("image_1", batch.pair.as_ref().map(|(_, right)| right.count)),
        ("text_ids_mlm", batch.masked.as_ref().map(|(texts, _)| texts.count)),
        ("vqa_targets", batch.vqa_targets.as_ref().map(|targets| targets.rows)),
        ("nlvr2_labels", batch.nlvr2_labels.as_ref().map(Vec::len)),
        ("class_label", batch.class_labels.as_ref().map(Vec::len)),
    ];
    let mut there = counts.iter().filter_map(|&(name, count)| Some((name, count?)));
    if let Some((first, rows)) = there.next() {
        anyhow::ensure!(rows > 0, "{shown}: {first} has no rows");
        if let Some((other, count)) = there.find(|&(_, count)| count != rows) {
            anyhow::bail!("{shown}: {first} has {rows} rows, {other} {count}");
        }
    }
    if batch == ProbeBatch::default() {
        return Err(anyhow::anyhow!("it has none of the tensors image, text_ids, image_0")).context(shown);
    }
    Ok(batch)
}
