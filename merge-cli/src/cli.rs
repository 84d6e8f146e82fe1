//! What can be typed.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use formats::layout::Layout;
use merge_cli::{Emit, Task};

use crate::commands::{
    arithmetic, convert, dare, diff, distance, init, inspect, interpolate, merge, recipe, regmean, resize, slerp, soup,
    ties,
};

/// Merge the vision, language and vision-language experts of a checkpoint into one set of weights.
#[derive(Debug, Parser)]
#[command(name = "vlmerge", version, arg_required_else_help = true, max_term_width = 80)]
#[command(after_help = "\
Examples:
  vlmerge inspect ms.ckpt
  vlmerge interpolate ms.ckpt --ratio 0.5 -o merged.safetensors
  vlmerge diff merged.safetensors other.ckpt --tolerance 1e-6

'-' as a file is standard input, or with -o standard output as safetensors.

Exit status: 0 done, 1 failed (or, for diff, beyond the tolerance), 2 wrong
usage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say nothing but errors: no summary, warning or progress. What a command is for, such as
    /// 'inspect' or --json, is printed all the same.
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Threads to work with [default: all cores]. The result doesn't depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what is in a checkpoint: format, model, experts, training state, oddities.
    Inspect(inspect::Args),
    /// Rewrite a checkpoint's tensors as safetensors or as a PyTorch file, in another dtype if asked.
    Convert(convert::Args),
    /// Merge experts by weighted mean: ratio·v + (1 − ratio)·l, with a third for vl where it exists.
    Interpolate(interpolate::Args),
    /// Merge experts by modality arithmetic: base + λ·Σ(expert − base).
    Arithmetic(arithmetic::Args),
    /// Merge experts by RegMean: linear layers by least squares on the inputs they saw, the rest by mean.
    Regmean(regmean::Args),
    /// Average checkpoints, or experts: a model soup.
    Soup(soup::Args),
    /// Interpolate between two checkpoints, or experts, along the arc.
    Slerp(slerp::Args),
    /// Merge checkpoints, or experts, by TIES: trim their vectors from a base, elect signs, average.
    Ties(ties::Args),
    /// Merge checkpoints, or experts, by DARE: drop elements of their vectors at random, rescale, add.
    Dare(dare::Args),
    /// Merge by a recipe file, with other parameters for some layers, parts or names.
    Merge(merge::Args),
    /// Print the recipe a file was made with, ready to run again.
    Recipe(recipe::Args),
    /// Make a vision-language checkpoint of a BEiT, or a modality-specific one of a seed.
    Init(init::Args),
    /// Fit a checkpoint to images of another size: its position tables, bicubic.
    Resize(resize::Args),
    /// Measure how far the experts of each layer are apart: L2, cosine, SSD, TSSD.
    Distance(distance::Args),
    /// Compare two checkpoints tensor by tensor.
    Diff(diff::Args),
    /// Print a shell's completion script.
    #[command(after_help = "\
Examples:
  vlmerge completions bash \\
      > ~/.local/share/bash-completion/completions/vlmerge
  vlmerge completions zsh > ~/.zfunc/_vlmerge
  vlmerge completions fish > ~/.config/fish/completions/vlmerge.fish")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct ExpertsArgs {
    /// Experts to merge: all there are, or those that a task's forward pass uses.
    #[arg(long, value_name = "WHICH", default_value = "all", requires_if("used", "task"))]
    pub experts: ExpertsChoice,
    /// The task, for --experts used.
    #[arg(long, value_name = "T")]
    pub task: Option<Task>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpertsChoice {
    All,
    Used,
}

#[derive(Debug, Args)]
pub struct EmitArgs {
    /// Names of the merged tensors: one set, or every expert's name, for code that expects experts.
    #[arg(long, value_name = "NAMES", default_value = "merged")]
    pub emit: Emit,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Where to write: .safetensors, or .ckpt, .pth, .pt, .bin for a PyTorch file; '-' for standard
    /// output.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct RootArg {
    /// Where in the file the tensors are, e.g. model.ema; '.' for the whole file [default: found].
    #[arg(long, value_name = "KEY.KEY")]
    pub root: Option<String>,
}

#[derive(Debug, Args)]
pub struct LayoutArg {
    /// What the names mean: a built-in layout (vl-merging, vlmo, beit3, beit) or a TOML file [default: found].
    #[arg(long, value_name = "NAME|FILE")]
    pub layout: Option<String>,
}

impl LayoutArg {
    /// The file that is named, unless it is a built-in layout's name or rules in full.
    pub fn path(&self) -> Option<&Path> {
        let named = self.layout.as_deref().filter(|wish| Layout::by_name(wish).is_none() && !wish.contains('\n'));
        named.map(Path::new)
    }
}

#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

/// A number that is neither NaN nor infinite.
pub fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("it must be a finite number".into()),
    }
}

/// A share above 0 and at most 1.
pub fn density(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("it must be more than 0 and at most 1".into()),
    }
}
