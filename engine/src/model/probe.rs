//! Every forward pass on ready-made tensors: what to compare with another implementation.

use anyhow::{Result, bail};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::objectives::{binary_cross_entropy, contrastive, cross_entropy, similarities};
use super::save::{HostTensor, stored, values};
use super::session::Session;
use super::transformer::Pass;
use crate::batch::{Images, Matrix, Texts};
use crate::device::Precision;
use crate::kernels::Backend;

/// The tensors to run on. What isn't there is left out of the results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeBatch {
    pub texts: Option<Texts>,
    pub images: Option<Images>,
    /// NLVR2's two images.
    pub pair: Option<(Images, Images)>,
    /// Texts with masked words, and for each token the word to guess or −100.
    pub masked: Option<(Texts, Vec<i32>)>,
    pub vqa_targets: Option<Matrix>,
    pub nlvr2_labels: Option<Vec<i32>>,
    pub class_labels: Option<Vec<i32>>,
}

/// Features, logits and losses of every forward pass that the batch and the checkpoint's heads allow:
///
/// - `text.*`, `image.*`: one modality alone; `raw_cls_feats` is the first token before the final norm, `cls_feats` the
///   retrieval embedding, `text_feats` and `image_feats` all tokens after the final norm
/// - `vl.*`: the joint pass; `raw_cls_feats` is the first token after the final norm, `cls_feats` the same pooled
/// - `ifm.*`: one modality through the last layers' `vl` experts
/// - `logits.*`, `loss.*`: by task
///
/// # Errors
/// Tensors that don't fit the model.
pub fn probe<B: Backend>(s: &Session<B>, batch: &ProbeBatch) -> Result<Vec<HostTensor>> {
    let mut out = Vec::new();
    let (m, a, precision) = (&s.model, &s.architecture, s.precision);
    let device = m.device();
    let pass = || Pass::evaluation(precision);
    let mut put = |name: &str, tensor: HostTensor| out.push(HostTensor { name: name.into(), ..tensor });

    let text = batch.texts.as_ref().map(|texts| s.texts(texts)).transpose()?;
    let image = batch.images.as_ref().map(|images| s.patches(images)).transpose()?;
    let mut text_embedding = None;
    let mut image_embedding = None;
    let mut vl_embeddings = (None, None);

    if let Some(text) = &text {
        let hidden = m.text(text, s.text_bias(), a, &mut pass());
        put("text.raw_cls_feats", stored(super::objectives::first(hidden.last.clone())));
        put("text.text_feats", stored(m.norm(hidden.last.clone())));
        if let Some(head) = &m.ifm_text_proj {
            let embedding = m.embedding(hidden.last, head);
            put("text.cls_feats", stored(embedding.clone()));
            text_embedding = Some(embedding);
        }
        if let Some(head) = &m.ifm_vl_text_proj {
            let mask = Some(text.mask.clone());
            let hidden = m.through_vl(hidden.at_vl_start, mask, s.text_bias(), a, &mut pass());
            let embedding = m.embedding(hidden, head);
            put("ifm.text.cls_vlffn_feats", stored(embedding.clone()));
            vl_embeddings.0 = Some(embedding);
        }
    }
    if let Some(image) = &image {
        let hidden = m.image(image.clone(), s.image_bias(), a, &mut pass());
        put("image.raw_cls_feats", stored(super::objectives::first(hidden.last.clone())));
        put("image.image_feats", stored(m.norm(hidden.last.clone())));
        if let Some(head) = &m.ifm_image_proj {
            let embedding = m.embedding(hidden.last.clone(), head);
            put("image.cls_feats", stored(embedding.clone()));
            image_embedding = Some(embedding);
        }
        if let Some(head) = &m.ifm_vl_image_proj {
            let hidden = m.through_vl(hidden.at_vl_start, None, s.image_bias(), a, &mut pass());
            let embedding = m.embedding(hidden, head);
            put("ifm.image.cls_vlffn_feats", stored(embedding.clone()));
            vl_embeddings.1 = Some(embedding);
        }
        if let Some(head) = &m.img_cls_classifier {
            let logits = head.forward(m.mean_token(hidden.last), Precision::F32);
            put("logits.img_cls", stored(logits.clone()));
            if let Some(labels) = &batch.class_labels {
                check_labels("class_label", labels, logits.dims()[1])?;
                put("loss.img_cls", scalar(cross_entropy(logits, ids(labels, &device))));
            }
        }
    }
    let mut retrieval = None;
    if let (Some(text), Some(image), Some(scale)) = (text_embedding, image_embedding, &m.logit_scale) {
        let scores = similarities(image, text, scale.val());
        put("logits.irtr", stored(scores.clone()));
        let loss = contrastive(scores);
        put("loss.irtr", scalar(loss.clone()));
        retrieval = Some(loss);
    }
    if let (Some(loss), (Some(text), Some(image)), Some(scale)) = (retrieval, vl_embeddings, &m.logit_vl_scale) {
        let vl = contrastive(similarities(image, text, scale.val()));
        put("loss.ifm", scalar((loss + vl) * 0.5));
    }

    if let (Some(text), Some(image)) = (&text, &image) {
        let hidden = m.joint(text, image.clone(), 1, s.joint_bias(), a, &mut pass());
        let normal = m.norm(hidden.clone());
        let (length, tokens) = (a.text_len, normal.dims()[1]);
        put("vl.raw_cls_feats", stored(super::objectives::first(normal.clone())));
        put("vl.text_feats", stored(normal.clone().narrow(1, 0, length)));
        put("vl.image_feats", stored(normal.narrow(1, length, tokens - length)));
        if let Some(pooler) = &m.pooler {
            let pooled = m.pooled(hidden, pooler);
            put("vl.cls_feats", stored(pooled.clone()));
            if let Some(head) = &m.itm_score {
                put("logits.itm", stored(head.fc.forward(pooled.clone(), Precision::F32)));
            }
            if let Some(head) = &m.vqa_classifier {
                let logits = head.forward(pooled);
                put("logits.vqa", stored(logits.clone()));
                if let Some(targets) = &batch.vqa_targets {
                    let shape = [targets.rows, targets.columns];
                    if shape != logits.dims() {
                        bail!("VQA targets are {shape:?}, the logits {:?}", logits.dims());
                    }
                    let targets = Tensor::from_data(TensorData::new(targets.values.clone(), shape), &device);
                    put("loss.vqa", scalar(binary_cross_entropy(logits, targets)));
                }
            }
        }
        if let (Some(head), Some((texts, labels))) = (&m.mlm_score, &batch.masked) {
            let hidden = m.joint(&s.texts(texts)?, image.clone(), 1, s.joint_bias(), a, &mut pass());
            let logits = head.forward(m.norm(hidden).narrow(1, 0, length), precision);
            put("logits.mlm", stored(logits.clone()));
            let [count, length, words] = logits.dims();
            let at: Vec<i32> = (0..labels.len()).filter(|&i| labels[i] != -100).map(|i| i as i32).collect();
            let right: Vec<i32> = labels.iter().copied().filter(|&label| label != -100).collect();
            check_labels("text_labels_mlm", &right, words)?;
            if !at.is_empty() && labels.len() == count * length {
                let logits = logits.reshape([count * length, words]).select(0, ids(&at, &device));
                put("loss.mlm", scalar(cross_entropy(logits, ids(&right, &device))));
            }
        }
    }
    if let (Some(text), Some((left, right)), Some(head), Some(pooler)) =
        (&text, &batch.pair, &m.nlvr2_classifier, &m.pooler)
    {
        let pooled = |images, image_type| -> Result<Tensor<B, 2>> {
            let hidden = m.joint(text, s.patches(images)?, image_type, s.joint_bias(), a, &mut pass());
            Ok(m.pooled(hidden, pooler))
        };
        let both = Tensor::cat(vec![pooled(left, 1)?, pooled(right, 2)?], 1);
        let logits = head.forward(both);
        put("logits.nlvr2", stored(logits.clone()));
        if let Some(labels) = &batch.nlvr2_labels {
            check_labels("nlvr2_labels", labels, 2)?;
            put("loss.nlvr2", scalar(cross_entropy(logits, ids(labels, &device))));
        }
    }
    Ok(out)
}

fn check_labels(name: &str, labels: &[i32], classes: usize) -> Result<()> {
    match labels.iter().find(|&&label| usize::try_from(label).map_or(true, |label| label >= classes)) {
        Some(label) => bail!("{name}: {label} is beyond the {classes} that the head tells apart"),
        None => Ok(()),
    }
}

fn scalar<B: BurnBackend>(tensor: Tensor<B, 1>) -> HostTensor {
    HostTensor { name: String::new(), shape: Vec::new(), values: values(tensor) }
}

fn ids<B: BurnBackend>(values: &[i32], device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
