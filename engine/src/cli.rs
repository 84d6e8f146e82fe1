//! What can be typed.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use engine::device::{Choice, Precision};
use engine::model::open::Options;

use crate::commands::{
    bench, data, embed, eval, finetune, grams, info, output, predict, presets, probe, report, search, selftest,
};

/// Fine-tune, evaluate and run merged vision-language models, on CUDA or on the CPU.
#[derive(Debug, Parser)]
#[command(name = "engine", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  engine finetune merged.safetensors --preset vqa-base-480 --data arrows/ \\
      -o runs/vqa
  engine eval runs/vqa/best.safetensors --task vqa --data arrows/
  engine predict vqa runs/vqa/best.safetensors --image cat.jpg \\
      --question \"what colour is the cat?\"
  engine search merged.safetensors --images photos/ --query \"a dog on a beach\"
  engine grams ms.ckpt --task irtr --data arrows/ --samples 1000 \\
      -o grams.safetensors

Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Print nothing but errors and what was asked for: no progress, notes or summaries.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Reads the command line; ends the program where it is wrong or asks for help.
pub fn parse() -> Cli {
    let mut command = Cli::command();
    command.build();
    let matches = command.clone().get_matches();
    output::check_standard(&mut command, &matches)
        .and_then(|()| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|error| error.exit())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write retrieval embeddings of images and texts.
    Embed(embed::Args),
    /// Train a checkpoint for a task: retrieval, VQA, NLVR2, image classification.
    Finetune(finetune::Args),
    /// Measure a fine-tuned checkpoint on a data set.
    Eval(eval::Args),
    /// List the presets of finetune, or print one.
    Presets(presets::Args),
    /// Record the gram matrices that vlmerge regmean merges by.
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
    /// Run every forward pass on given tensors and write features, logits and losses.
    Probe(probe::Args),
    /// Find the images of a folder that a text describes.
    Search(search::Args),
    /// Measure how fast training is.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Compare what a device computes with golden values and measure its speed.
    Selftest(selftest::Args),
    /// Print a shell's completion script.
    #[command(after_help = "\
Examples:
  engine completions bash > ~/.local/share/bash-completion/completions/engine
  engine completions zsh > ~/.zfunc/_engine
  engine completions fish > ~/.config/fish/completions/engine.fish")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to run: auto (CUDA if there is a driver and a card), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Choice,
    /// Precision of the matrix products; weights, softmax, norms and losses are always f32.
    #[arg(long, value_name = "P", default_value = "f32")]
    pub precision: Precision,
}

/// How a checkpoint is opened.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Resize images to this many pixels a side, and the position tables to match [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Cut texts to this many tokens, at most the checkpoint's [default: the checkpoint's].
    #[arg(long, value_name = "TOKENS")]
    pub text_len: Option<usize>,
    /// Where in the file the tensors are, e.g. model.ema [default: detected].
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
    /// The file to write, - for standard output.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
}
