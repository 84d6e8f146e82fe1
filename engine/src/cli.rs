//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use engine::device::{Choice, Precision};
use engine::model::open::Options;

use crate::commands::{
    bench, data, embed, eval, finetune, grams, info, predict, presets, probe, report, search, selftest,
};

/// Fine-tune, evaluate and run merged vision-language models, on CUDA or on the CPU.
#[derive(Debug, Parser)]
#[command(name = "engine", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  engine finetune merged.safetensors --preset vqa-base-480 --data arrows/ -o runs/vqa
  engine eval runs/vqa/best.safetensors --task vqa --data arrows/
  engine predict vqa runs/vqa/best.safetensors --image cat.jpg --question \"what colour is the cat?\"
  engine search merged.safetensors --images photos/ --query \"a dog on a beach\"
  engine grams ms.ckpt --task irtr --data arrows/ --samples 1000 -o grams.safetensors

Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say nothing on stderr but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write retrieval embeddings of images and texts.
    Embed(embed::Args),
    /// Train a checkpoint for a task: retrieval, VQA, NLVR2, image classification.
    Finetune(finetune::Args),
    /// Measure a fine-tuned checkpoint on a data set.
    Eval(eval::Args),
    /// List the ready configurations of finetune, or print one.
    Presets(presets::Args),
    /// Record gram matrices of a modality-specific checkpoint, for vlmerge regmean.
    Grams(grams::Args),
    /// Build data sets from official downloads, and look into them.
    #[command(subcommand)]
    Data(data::Command),
    /// Show a run as one page: curves, configuration, metrics, samples.
    Report(report::Args),
    /// Show devices, memory, precisions and versions.
    Info(info::Args),
    /// Answer questions about images, judge sentences about pairs of images, classify images.
    Predict(predict::Args),
    /// Run every forward pass on ready-made tensors and write features, logits and losses.
    Probe(probe::Args),
    /// Find the images of a folder that a text describes.
    Search(search::Args),
    /// Measure how fast training is.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Compare a device with golden values and measure its speed.
    Selftest(selftest::Args),
}

#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to run: auto (CUDA where a driver and a card are there), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Choice,
    /// Of the matrix products; weights, softmax, norms and losses are f32 in any case.
    #[arg(long, value_name = "P", default_value = "f32")]
    pub precision: Precision,
}

/// How a checkpoint is opened.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Pixels along an image's side; position tables are resized [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Tokens of a text, at most the checkpoint's [default: the checkpoint's].
    #[arg(long, value_name = "TOKENS")]
    pub text_len: Option<usize>,
    /// Where in the file the tensors are, e.g. model.ema [default: found].
    #[arg(long, value_name = "KEY.KEY")]
    pub root: Option<String>,
}

impl ModelArgs {
    pub fn options(&self) -> Options {
        Options {
            device: self.device.device,
            precision: self.device.precision,
            root: self.root.clone(),
            image_size: self.image_size,
            text_len: self.text_len,
            ..Options::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Where to write.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
}
