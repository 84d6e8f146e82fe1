//! A model on a device, ready to run.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use burn::tensor::Tensor;

use super::config::Architecture;
use super::input::{patches, texts};
use super::save::values;
use super::transformer::{Bias, JointBias, Pass, PositionIndex, TextInput, VlModel};
use crate::batch::{Images, Matrix, Texts};
use crate::device::Precision;
use crate::kernels::Backend;
use crate::runner::Runner;

/// [`Runner`] on a burn backend. Position biases are gathered once.
pub struct Session<B: Backend> {
    pub model: VlModel<B>,
    pub architecture: Architecture,
    pub precision: Precision,
    index: PositionIndex<B>,
    text: OnceLock<Bias<B>>,
    image: OnceLock<Bias<B>>,
    joint: OnceLock<JointBias<B>>,
}

impl<B: Backend> Session<B> {
    pub fn new(model: VlModel<B>, architecture: Architecture, precision: Precision) -> Session<B> {
        let index = PositionIndex::new(&architecture, &model.device());
        Session {
            model,
            architecture,
            precision,
            index,
            text: OnceLock::new(),
            image: OnceLock::new(),
            joint: OnceLock::new(),
        }
    }

    pub fn text_bias(&self) -> &Bias<B> {
        self.text.get_or_init(|| self.model.text_bias(&self.index, &self.architecture))
    }

    pub fn image_bias(&self) -> &Bias<B> {
        self.image.get_or_init(|| self.model.image_bias(&self.index, &self.architecture))
    }

    pub fn joint_bias(&self) -> &JointBias<B> {
        self.joint.get_or_init(|| self.model.joint_bias(&self.index, &self.architecture))
    }

    /// Texts on the device.
    ///
    /// # Errors
    /// They are of another length than the model's, or have words beyond its vocabulary.
    pub fn texts(&self, batch: &Texts) -> Result<TextInput<B>> {
        check_texts(batch, &self.architecture)?;
        Ok(texts(batch, &self.model.device()))
    }

    /// Patches of images on the device.
    ///
    /// # Errors
    /// They are of another size than the model's.
    pub fn patches(&self, batch: &Images) -> Result<Tensor<B, 3>> {
        check_images(batch, &self.architecture)?;
        Ok(patches(batch, self.architecture.patch_size, &self.model.device()))
    }

    fn pass(&self) -> Pass<'static, B> {
        Pass::evaluation(self.precision)
    }

    /// The pooled first token of joint inputs, [batch, D].
    fn pooled(&self, text: &Texts, image: &Images, image_type: usize) -> Result<Tensor<B, 2>> {
        let Some(pooler) = &self.model.pooler else { bail!("this checkpoint has no pooler (pooler.dense.weight)") };
        let (text, patches) = (self.texts(text)?, self.patches(image)?);
        let a = &self.architecture;
        let hidden = self.model.joint(&text, patches, image_type, self.joint_bias(), a, &mut self.pass());
        Ok(self.model.pooled(hidden, pooler))
    }
}

/// # Errors
/// Texts of another length than the model's, or with words beyond its vocabulary.
pub fn check_texts(batch: &Texts, a: &Architecture) -> Result<()> {
    if batch.len != a.text_len || batch.ids.len() != batch.count * batch.len || batch.mask.len() != batch.ids.len() {
        bail!("texts of {} tokens for a model of {}", batch.len, a.text_len);
    }
    if let Some(id) = batch.ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= a.vocab_size)) {
        bail!("word piece {id} is beyond the model's vocabulary of {}", a.vocab_size);
    }
    Ok(())
}

/// # Errors
/// Images of another size than the model's.
pub fn check_images(batch: &Images, a: &Architecture) -> Result<()> {
    if batch.size != a.image_size || batch.pixels.len() != batch.count * 3 * batch.size * batch.size {
        bail!("images of {} pixels for a model of {}", batch.size, a.image_size);
    }
    Ok(())
}

fn matrix<B: Backend>(tensor: Tensor<B, 2>) -> Matrix {
    let [rows, columns] = tensor.dims();
    Matrix { rows, columns, values: values(tensor) }
}

/// The head is missing: the same words everywhere.
pub(super) fn no_head(task: &str, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "this checkpoint has no head for {task} ({name}): fine-tune it first, 'engine finetune --task {task}'"
    )
}

impl<B: Backend> Runner for Session<B> {
    fn image_size(&self) -> usize {
        self.architecture.image_size
    }

    fn text_len(&self) -> usize {
        self.architecture.text_len
    }

    fn embedding_size(&self) -> usize {
        self.architecture.hidden_size
    }

    fn labels(&self, task: &str) -> Option<usize> {
        let m = &self.model;
        match task {
            "irtr" => (m.ifm_text_proj.is_some() && m.ifm_image_proj.is_some()).then_some(0),
            "vqa" => m.vqa_classifier.as_ref().map(|head| head._3.weight.val().dims()[0]),
            "nlvr2" => m.nlvr2_classifier.as_ref().map(|_| 2),
            "img_cls" => m.img_cls_classifier.as_ref().map(|head| head.weight.val().dims()[0]),
            _ => None,
        }
    }

    fn embed_texts(&self, batch: &Texts) -> Result<Matrix> {
        let head = self.model.ifm_text_proj.as_ref().ok_or_else(|| no_head("irtr", "ifm_text_proj.fc.weight"))?;
        let hidden = self.model.text(&self.texts(batch)?, self.text_bias(), &self.architecture, &mut self.pass());
        Ok(matrix(self.model.embedding(hidden.last, head)))
    }

    fn embed_images(&self, batch: &Images) -> Result<Matrix> {
        let head = self.model.ifm_image_proj.as_ref().ok_or_else(|| no_head("irtr", "ifm_image_proj.fc.weight"))?;
        let hidden = self.model.image(self.patches(batch)?, self.image_bias(), &self.architecture, &mut self.pass());
        Ok(matrix(self.model.embedding(hidden.last, head)))
    }

    fn vqa_logits(&self, texts: &Texts, images: &Images) -> Result<Matrix> {
        let head = self.model.vqa_classifier.as_ref().ok_or_else(|| no_head("vqa", "vqa_classifier.3.weight"))?;
        Ok(matrix(head.forward(self.pooled(texts, images, 1)?)))
    }

    fn nlvr2_logits(&self, texts: &Texts, left: &Images, right: &Images) -> Result<Matrix> {
        let head = self.model.nlvr2_classifier.as_ref().ok_or_else(|| no_head("nlvr2", "nlvr2_classifier.3.weight"))?;
        let both = Tensor::cat(vec![self.pooled(texts, left, 1)?, self.pooled(texts, right, 2)?], 1);
        Ok(matrix(head.forward(both)))
    }

    fn class_logits(&self, images: &Images) -> Result<Matrix> {
        let head =
            self.model.img_cls_classifier.as_ref().ok_or_else(|| no_head("img_cls", "img_cls_classifier.weight"))?;
        let hidden = self.model.image(self.patches(images)?, self.image_bias(), &self.architecture, &mut self.pass());
        let logits = head.forward(self.model.mean_token(hidden.last), Precision::F32);
        Ok(matrix(logits))
    }
}
