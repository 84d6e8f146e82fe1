//! `vlmerge interpolate`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::methods::{Interpolate, Method};
use merge_cli::{Emit, Recipe, Run, jobs};

use super::{Context, config_json, kept_metadata, layout_for, selection};
use crate::Report;
use crate::cli::{EmitArgs, ExpertsArgs, JsonArg, LayoutArg, OutputArgs, RootArg, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge interpolate ms.ckpt --ratio 0.5 -o merged.safetensors
  vlmerge interpolate ms.ckpt --ratio 0.3 --experts used --task vqa -o merged.ckpt

In layers with three experts the weights are 2/3·ratio for v, 2/3·(1 − ratio) for l and 1/3 for
vl. A ratio outside 0 to 1 extrapolates, which is allowed and warned of.")]
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
    let selection = selection(&args.experts)?;
    let emit = args.emit.emit;
    let checkpoint = formats::open_root(&args.ms, args.root.root.as_deref())?;
    let layout = layout_for(&args.layout, &checkpoint)?;
    let jobs = jobs::merge_experts(&checkpoint, &layout, selection)?;
    if !(0.0..=1.0).contains(&args.ratio) {
        context.warn(format!("ratio {} is outside 0 to 1: this extrapolates", args.ratio));
    }
    let method = Interpolate { ratio: args.ratio };
    let mut parameters = method.parameters();
    parameters.extend(selection.parameters());
    parameters.extend(emit.parameters());
    let run = Run {
        jobs: emit.apply(jobs, &checkpoint, &layout)?,
        method: Some(&method),
        recipe: Recipe::new(method.name(), parameters),
        config: config_json(&checkpoint, &layout, emit == Emit::Merged),
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    super::write(run, &args.output, args.json.json, context)
}
