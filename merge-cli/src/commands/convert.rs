//! `vlmerge convert`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use formats::Dtype;
use merge_cli::{Run, jobs};
use serde_json::json;

use super::{Context, config_json, derived_recipe, kept_metadata};
use crate::Report;
use crate::cli::{JsonArg, OutputArgs, RootArg};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge convert ms.ckpt -o ms.safetensors
  vlmerge convert merged.safetensors -o merged.ckpt --dtype f16")]
pub struct Args {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatDtype {
    F32,
    F16,
    Bf16,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let checkpoint = formats::open_root(&args.file, args.root.root.as_deref())?;
    let dtype = args.dtype.map(|dtype| match dtype {
        FloatDtype::F32 => Dtype::F32,
        FloatDtype::F16 => Dtype::F16,
        FloatDtype::Bf16 => Dtype::Bf16,
    });
    let config = checkpoint.layout().map(|layout| config_json(&checkpoint, layout, false, Vec::new())).transpose()?;
    let parameters = json!({"dtype": dtype.map(Dtype::name)});
    let run = Run {
        jobs: jobs::copy_all(&checkpoint, dtype),
        method: None,
        recipe: derived_recipe("convert", parameters, &checkpoint)?,
        config,
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    super::write(run, &args.output, args.json.json, context)
}
