//! One modality's part of a checkpoint: what embedding texts alone, or images alone, takes of it.
//!
//! A modality-specific checkpoint has two or three experts of which a text alone needs one, and of the 30,522 word
//! vectors a query needs a few. To read no more is most of what makes a search quick, and it halves the memory.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Result, bail};
use burn_cuda::{Cuda, CudaDevice};
use burn_flex::{Flex, FlexDevice};

use super::build::{Extent, Heads, Want, build_extent};
use super::config::Architecture;
use super::layers::Expert;
use super::open::{Opened, Options, Source, prepare};
use super::session::{Session, no_head};
use super::weights::Weights;
use crate::batch::{Images, Matrix, Texts};
use crate::device::Device;
use crate::kernels::Backend;
use crate::runner::Runner;

const HEADS: Heads =
    Heads { irtr: Want::IfPresent, vqa: Want::No, nlvr2: Want::No, img_cls: Want::No, pretraining: Want::No };

const WORDS: &str = "text_embeddings.word_embeddings.weight";

/// Texts for which weights are used where they lie in the file.
const FEW: usize = 4;

/// Embeds images, with the `v` experts of a checkpoint.
pub struct ImageEncoder(Box<dyn Runner>);

impl ImageEncoder {
    /// # Errors
    /// The file can't be read or doesn't fit a model, has no head for retrieval, or the device isn't there.
    pub fn open(path: &Path, options: &Options) -> Result<(ImageEncoder, Opened)> {
        let (mut weights, mut opened) = prepare(&Source::Checkpoint(path), options)?;
        require(&weights, "ifm_image_proj.fc.weight")?;
        keep_words(&mut weights, &mut opened.architecture, &BTreeSet::new())?;
        let runner = session_on(weights, &opened, options, Expert::V)?;
        Ok((ImageEncoder(runner), opened))
    }

    /// Pixels along the side of the images that it takes.
    pub fn image_size(&self) -> usize {
        self.0.image_size()
    }

    /// [`Runner::embed_images`]
    ///
    /// # Errors
    /// The images are of another size, or the device runs out of memory.
    pub fn embed(&self, images: &Images) -> Result<Matrix> {
        self.0.embed_images(images)
    }
}

/// A checkpoint from which texts are to be embedded. Its weights are read once the texts are known.
pub struct TextEncoder {
    weights: Weights,
    opened: Opened,
    options: Options,
}

impl TextEncoder {
    /// # Errors
    /// As [`ImageEncoder::open`].
    pub fn open(path: &Path, options: &Options) -> Result<TextEncoder> {
        // Texts don't mind the size of images: no position table need be resized. It is asked for only where the
        // checkpoint doesn't say its own.
        let source = Source::Checkpoint(path);
        let own = Options { image_size: None, ..options.clone() };
        let (weights, opened) = prepare(&source, &own).or_else(|_| prepare(&source, options))?;
        require(&weights, "ifm_text_proj.fc.weight")?;
        Ok(TextEncoder { weights, opened, options: options.clone() })
    }

    /// What was opened.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Tokens of a text, padding included.
    pub fn text_len(&self) -> usize {
        self.opened.architecture.text_len
    }

    /// Length of an embedding.
    pub fn embedding_size(&self) -> usize {
        self.opened.architecture.hidden_size
    }

    /// Embeddings of all texts, computed `batch_size` at a time; as [`Runner::embed_texts`], save for roundings.
    ///
    /// # Errors
    /// The texts are of another length, hold words beyond the model's vocabulary, or the device runs out of memory.
    pub fn embed(self, texts: &Texts, batch_size: usize) -> Result<Matrix> {
        let TextEncoder { mut weights, mut opened, options } = self;
        let a = &mut opened.architecture;
        super::session::check_texts(texts, a)?;
        // Padding is seen by nobody.
        let longest = texts.mask.chunks(texts.len.max(1)).map(|row| row.iter().filter(|&&m| m != 0).count()).max();
        let len = longest.unwrap_or(0).clamp(2, a.text_len.max(2));
        weights.fit(a, None, Some(len))?;
        let known: BTreeSet<usize> = texts.ids.iter().map(|&id| id as usize).collect();
        keep_words(&mut weights, a, &known)?;
        let places: HashMap<i32, i32> = known.iter().map(|&id| id as i32).zip(0..).collect();
        let mut ids = Vec::with_capacity(texts.count * len);
        let mut mask = Vec::with_capacity(texts.count * len);
        for (row, marks) in texts.ids.chunks_exact(texts.len).zip(texts.mask.chunks_exact(texts.len)) {
            ids.extend(row[..len].iter().map(|id| places.get(id).copied().unwrap_or(0)));
            mask.extend_from_slice(&marks[..len]);
        }
        let columns = a.hidden_size;
        // Few texts touch each weight once or twice: a copy of all of them would take longer than the rest.
        if texts.count <= FEW && opened.device == Device::Cpu {
            weights.map();
        }
        let runner = session_on(weights, &opened, &options, Expert::L)?;
        let mut out = Matrix { rows: 0, columns, values: Vec::with_capacity(texts.count * columns) };
        for (ids, mask) in ids.chunks(batch_size.max(1) * len).zip(mask.chunks(batch_size.max(1) * len)) {
            let batch = Texts { count: ids.len() / len, len, ids: ids.to_vec(), mask: mask.to_vec() };
            let found = runner.embed_texts(&batch)?;
            out.rows += found.rows;
            out.values.extend(found.values);
        }
        Ok(out)
    }
}

fn require(weights: &Weights, head: &str) -> Result<()> {
    match weights.shape(head) {
        Some(_) => Ok(()),
        None => Err(no_head("irtr", head)),
    }
}

/// Leaves of the word vectors those that are wanted, in order; at least one, since a model has some.
fn keep_words(weights: &mut Weights, a: &mut Architecture, wanted: &BTreeSet<usize>) -> Result<()> {
    let rows: Vec<usize> = if wanted.is_empty() { vec![0] } else { wanted.iter().copied().collect() };
    let width = match weights.shape(WORDS) {
        Some(&[_, width]) => width,
        _ => bail!("{}: {WORDS} is missing or no matrix", weights.path()),
    };
    let values = weights.rows(WORDS, &rows)?;
    a.vocab_size = rows.len();
    weights.put(WORDS, vec![rows.len(), width], values);
    Ok(())
}

fn session_on(weights: Weights, opened: &Opened, options: &Options, expert: Expert) -> Result<Box<dyn Runner>> {
    weights.preload(|name| concerns(name, expert) && weights.mapped(name).is_none())?;
    match opened.device {
        Device::Cpu => session::<Flex>(&weights, opened, options, expert, FlexDevice),
        Device::Cuda(index) => session::<Cuda>(&weights, opened, options, expert, CudaDevice::new(index)),
    }
}

fn session<B: Backend>(
    weights: &Weights,
    opened: &Opened,
    options: &Options,
    expert: Expert,
    device: B::Device,
) -> Result<Box<dyn Runner>> {
    let a = &opened.architecture;
    let (model, _) = build_extent::<B>(weights, a, HEADS, Extent::Only(expert), 0, None, &device)?;
    Ok(Box::new(Session::new(model, a.clone(), options.precision)))
}

/// Whether a model of one modality has this tensor of the transformer's blocks.
fn concerns(name: &str, expert: Expert) -> bool {
    let others = [Expert::V, Expert::L, Expert::Vl].into_iter().filter(|other| *other != expert);
    let of_other = |other: Expert| name.split('.').any(|piece| piece == other.name());
    name.starts_with("transformer.blocks.") && !others.into_iter().any(of_other)
}

#[cfg(test)]
mod tests {
    use fixtures::compare::assert_close;

    use super::super::open::{open_runner, read_probe_batch};
    use super::*;
    use crate::device::Choice;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden").join(name)
    }

    /// A part of a checkpoint gives what the whole gives, whatever has experts.
    #[test]
    fn a_modality_alone_embeds_as_the_whole_model() {
        let batch = read_probe_batch(&golden("batch.safetensors")).unwrap();
        let (mut texts, images) = (batch.texts.unwrap(), batch.images.unwrap());
        // A short text among longer ones, and all of them shorter than the model's.
        for row in 0..texts.count {
            let words = if row == 0 { 3 } else { 6 };
            texts.mask[row * texts.len..(row + 1) * texts.len].fill(0);
            texts.mask[row * texts.len..row * texts.len + words].fill(1);
        }
        for variant in ["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"] {
            let options = Options {
                device: Choice::Cpu,
                image_size: Some(images.size),
                heads_file: Some(golden(&format!("heads_{variant}.safetensors"))),
                ..Options::default()
            };
            let path = golden(&format!("model_{variant}.safetensors"));
            let (whole, _) = open_runner(&path, &options).unwrap();
            let close = |found: Matrix, expected: Matrix, what: &str| {
                assert_eq!((found.rows, found.columns), (expected.rows, expected.columns), "{variant}: {what}");
                assert_close(format!("{variant}: {what}"), &expected.values, &found.values, 1e-5);
            };
            let (encoder, _) = ImageEncoder::open(&path, &options).unwrap();
            close(encoder.embed(&images).unwrap(), whole.embed_images(&images).unwrap(), "images");
            for batch_size in [1, 3, 100] {
                let encoder = TextEncoder::open(&path, &options).unwrap();
                assert_eq!(encoder.text_len(), texts.len);
                close(encoder.embed(&texts, batch_size).unwrap(), whole.embed_texts(&texts).unwrap(), "texts");
            }
        }
    }

    #[test]
    fn a_checkpoint_without_the_head_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headless.safetensors");
        let whole = formats::open(golden("model_ufo.safetensors")).unwrap();
        let kept: Vec<_> = whole.tensors().iter().filter(|info| !info.name.contains("ifm_")).collect();
        let tensors = kept.iter().map(|info| {
            let mut values = Vec::new();
            whole.read_f32(whole.position(&info.name).unwrap(), 0..info.elements(), &mut values).unwrap();
            super::super::save::HostTensor { name: info.name.clone(), shape: info.shape.clone(), values }
        });
        super::super::save::write(&path, tensors.collect(), &Default::default()).unwrap();
        let options = Options { device: Choice::Cpu, image_size: Some(48), ..Options::default() };
        let text = TextEncoder::open(&path, &options).err().unwrap().to_string();
        let image = ImageEncoder::open(&path, &options).err().unwrap().to_string();
        assert!(text.contains("no head for irtr (ifm_text_proj.fc.weight)"), "{text}");
        assert!(image.contains("no head for irtr (ifm_image_proj.fc.weight)"), "{image}");
    }

    #[test]
    fn what_a_modality_needs() {
        assert!(concerns("transformer.blocks.3.attn.l.qkv.weight", Expert::L));
        assert!(concerns("transformer.blocks.3.mlp.fc1.weight", Expert::L));
        assert!(concerns("transformer.blocks.3.gamma_1", Expert::V));
        for name in ["transformer.blocks.11.attn.vl.qkv.weight", "transformer.blocks.3.norm1.v.bias", "mlm_score.bias"]
        {
            assert!(!concerns(name, Expert::L), "{name}");
        }
    }
}
