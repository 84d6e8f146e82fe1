//! From a run's setup to a trainer on a device.

use anyhow::Result;
use formats::config::Variant;
use formats::layout::Part;

use super::config::{Config, ModelShape};
use super::finetune::{Ready, Setup, Source};
use crate::device::{Device, Precision, cards};
use crate::model::config::Attends;
use crate::model::open::{self, Options, open_trainer};
use crate::model::training::{Optimizer, Settings};
use crate::model::{Architecture, Heads, Start, Want};
use crate::tasks::Task;

/// Opens what a run trains: a checkpoint, or random weights.
///
/// # Errors
/// The device isn't there, the checkpoint can't be read or doesn't fit, the sizes make no model.
pub fn trainer(setup: &Setup) -> Result<Ready> {
    let config = &setup.config;
    let options = Options {
        device: config.device,
        precision: config.precision,
        image_size: setup.image_size,
        text_len: setup.text_len,
        replaced_head: setup.replaced_head.clone(),
        root: match &setup.source {
            Source::Checkpoint { root, .. } => root.clone(),
            Source::Scratch { .. } => None,
        },
        ..Options::default()
    };
    let source = match &setup.source {
        Source::Checkpoint { path, .. } => open::Source::Checkpoint(path),
        Source::Scratch { shape, vocab_size } => {
            let start = Start { std: shape.init_std as f32, layer_scale: shape.layer_scale as f32 };
            open::Source::New(architecture(shape, *vocab_size), start)
        }
    };
    let (trainer, opened) = open_trainer(&source, heads(setup.task, setup.labels), settings(config), &options)?;
    let mut notes = opened.lines();
    if matches!(source, open::Source::New(..)) {
        // That all of it is new needs no list.
        notes = opened.notes.clone();
    }
    Ok(Ready { trainer, device: in_words(opened.device, config.precision), notes })
}

/// `cuda:0 (NVIDIA H100), bf16`
fn in_words(device: Device, precision: Precision) -> String {
    let card = match device {
        Device::Cuda(index) => cards().ok().and_then(|cards| cards.into_iter().nth(index)),
        Device::Cpu => None,
    };
    let name = card.map(|card| format!(" ({})", card.name)).unwrap_or_default();
    let precision = if precision == Precision::Bf16 { "bf16" } else { "f32" };
    format!("{device}{name}, {precision}")
}

/// The heads that a task trains; what is missing is initialised.
pub fn heads(task: Task, labels: usize) -> Heads {
    let none = Heads::default();
    match task {
        Task::Irtr => Heads { irtr: Want::Make(0), ..none },
        Task::Vqa => Heads { vqa: Want::Make(labels), ..none },
        Task::Nlvr2 => Heads { nlvr2: Want::Make(2), ..none },
        Task::ImgCls => Heads { img_cls: Want::Make(labels), ..none },
    }
}

pub fn settings(config: &Config) -> Settings {
    Settings {
        optimizer: Optimizer {
            beta_1: config.beta1,
            beta_2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            head_lr_multiplier: config.lr_mult,
            reference: config.reference,
        },
        dropout: config.text_dropout(),
        drop_path: config.drop_rate,
        precision: config.precision,
        activation_checkpointing: config.activation_checkpointing,
        seed: config.seed,
    }
}

/// Distances for texts as long as published models have them.
const TABLE_TEXT_LEN: usize = 196;

fn architecture(shape: &ModelShape, vocab_size: usize) -> Architecture {
    let has = |part| shape.variant.has_experts(part);
    Architecture {
        attention_experts: has(Part::Attention),
        mlp_experts: has(Part::Mlp),
        norm1_experts: has(Part::Norm1),
        norm2_experts: has(Part::Norm2),
        attends: if shape.variant == Variant::LnMoe { Attends::ToAll } else { Attends::WithinModality },
        layers: shape.layers,
        vl_start: shape.vl_start,
        hidden_size: shape.hidden_size,
        heads: shape.heads,
        mlp_hidden: shape.mlp_ratio * shape.hidden_size,
        image_size: shape.image_size,
        patch_size: shape.patch_size,
        vocab_size,
        text_len: shape.text_len,
        table_text_len: TABLE_TEXT_LEN.max(shape.text_len),
        token_types: 2,
        relative_positions: true,
        layer_scale: true,
    }
}
