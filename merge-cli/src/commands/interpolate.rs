//! `vlmerge interpolate`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::Recipe;
use merge_cli::methods::{Interpolate, Method};

use super::merge::{InputFile, Merging};
use super::{Context, selection};
use crate::Report;
use crate::cli::{EmitArgs, ExpertsArgs, JsonArg, LayoutArg, OutputArgs, RootArg, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge interpolate ms.ckpt --ratio 0.5 -o merged.safetensors
  vlmerge interpolate ms.ckpt --ratio 0.3 --experts used --task vqa \\
      -o merged.ckpt

In layers with three experts the weights are 2/3·ratio for v, 2/3·(1 − ratio)
for l and 1/3 for vl. A ratio outside 0 to 1 extrapolates, which is allowed
and warned of.")]
pub struct Args {
    /// The modality-specific checkpoint.
    pub ms: PathBuf,
    /// Weight of the vision experts; the language experts get 1 − ratio.
    #[arg(long, value_name = "R", value_parser = finite, allow_negative_numbers = true)]
    pub ratio: f64,
    #[command(flatten)]
    pub experts: ExpertsArgs,
    #[command(flatten)]
    pub emit: EmitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let mut parameters = Interpolate { ratio: args.ratio }.parameters();
    parameters.extend(selection(&args.experts)?.parameters());
    parameters.extend(args.emit.emit.parameters());
    let merging = Merging {
        recipe: Recipe::new("interpolate", parameters),
        inputs: vec![InputFile::new("checkpoint", &args.ms, &args.root.root)],
        layout: &args.layout,
        output: &args.output,
        json: args.json.json,
    };
    merging.execute(context).map(|(report, _)| report)
}
