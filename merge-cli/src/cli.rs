//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use merge_cli::Task;

/// Merge the vision, language and vision-language experts of a checkpoint into one set of weights.
#[derive(Debug, Parser)]
#[command(name = "vlmerge", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  vlmerge inspect ms.ckpt
  vlmerge interpolate ms.ckpt --ratio 0.5 -o merged.safetensors
  vlmerge diff merged.safetensors other.ckpt --tolerance 1e-6

Exit status: 0 done, 1 failed (or, for diff, beyond the tolerance), 2 wrong usage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say nothing on stderr but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Threads to work with [default: all cores]. The result doesn't depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what is in a checkpoint: format, model, experts, training state, oddities.
    Inspect(InspectArgs),
    /// Rewrite a checkpoint's tensors as safetensors or as a PyTorch file, in another dtype if asked.
    Convert(ConvertArgs),
    /// Merge experts by weighted mean: ratio·v + (1 − ratio)·l, with a third for vl where it exists.
    Interpolate(InterpolateArgs),
    /// Compare two checkpoints tensor by tensor.
    Diff(DiffArgs),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vlmerge inspect ms.ckpt
  vlmerge inspect ms.ckpt --keys --root optimizer_states
  vlmerge inspect merged.safetensors --json | jq .metadata")]
pub struct InspectArgs {
    /// The checkpoint: .ckpt, .pth, .safetensors or .safetensors.index.json; its content decides.
    pub file: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub keys: bool,
    /// Read every value and count NaN and infinite ones.
    #[arg(long)]
    pub scan: bool,
    /// Read every value and print the content digest that recipes record.
    #[arg(long)]
    pub digest: bool,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vlmerge convert ms.ckpt -o ms.safetensors
  vlmerge convert merged.safetensors -o merged.ckpt --dtype f16")]
pub struct ConvertArgs {
    /// The checkpoint to read.
    pub file: PathBuf,
    /// Store floating-point tensors as this; integers stay as they are.
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<FloatDtype>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub json: JsonArg,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vlmerge interpolate ms.ckpt --ratio 0.5 -o merged.safetensors
  vlmerge interpolate ms.ckpt --ratio 0.3 --experts used --task vqa -o merged.ckpt

In layers with three experts the weights are 2/3·ratio for v, 2/3·(1 − ratio) for l and 1/3 for
vl. A ratio outside 0 to 1 extrapolates, which is allowed and warned of.")]
pub struct InterpolateArgs {
    /// The modality-specific checkpoint.
    pub ms: PathBuf,
    /// Weight of the vision experts; the language experts get 1 − ratio.
    #[arg(long, value_name = "R", value_parser = finite, allow_negative_numbers = true)]
    pub ratio: f64,
    #[command(flatten)]
    pub experts: ExpertsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vlmerge diff merged.safetensors merged.ckpt
  vlmerge diff ours.safetensors theirs.ckpt --tolerance 1e-6

Exits 1 when a tensor is missing on one side, has another shape or dtype, or differs by more
than the tolerance.")]
pub struct DiffArgs {
    pub a: PathBuf,
    pub b: PathBuf,
    /// Largest absolute difference that still counts as equal.
    #[arg(long, value_name = "T", default_value = "0", value_parser = tolerance)]
    pub tolerance: f64,
    /// Where A's tensors are, as in 'inspect --root'.
    #[arg(long, value_name = "KEY.KEY")]
    pub root_a: Option<String>,
    /// Where B's tensors are.
    #[arg(long, value_name = "KEY.KEY")]
    pub root_b: Option<String>,
    /// List every differing tensor, not only the first 20.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub json: JsonArg,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatDtype {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Where to write: .safetensors, or .ckpt, .pth, .pt, .bin for a PyTorch file.
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
    /// What the names mean: a built-in layout (vl-merging, vlmo, beit3) or a TOML file [default: found].
    #[arg(long, value_name = "NAME|FILE")]
    pub layout: Option<String>,
}

#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("it must be a finite number".into()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 => Ok(value),
        _ => Err("it must be a number from 0 up".into()),
    }
}
