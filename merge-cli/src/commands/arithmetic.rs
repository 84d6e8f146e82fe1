//! `vlmerge arithmetic`

use std::path::PathBuf;

use anyhow::Result;
use formats::layout::Modality;
use merge_cli::Recipe;
use merge_cli::methods::{Arithmetic, Lambda, Method};

use super::merge::{InputFile, Merging};
use super::{Context, selection};
use crate::Report;
use crate::cli::{EmitArgs, ExpertsArgs, JsonArg, LayoutArg, OutputArgs, RootArg, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 \\
      -o merged.safetensors
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda v=0.5,l=0.75,vl=0.3 \\
      -o merged.safetensors
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 --sequential \\
      -o as_python.ckpt

The published formula is base + λ·Σ(expert − base). The Python code updates
the base while it loops, θ ← θ + λ(expert − θ): --sequential reproduces that.")]
pub struct Args {
    /// The modality-specific checkpoint.
    pub ms: PathBuf,
    /// The checkpoint it was initialised from: modality-agnostic (the seed), or modality-specific.
    #[arg(long, value_name = "SEED")]
    pub base: PathBuf,
    /// Where in the base file the tensors are.
    #[arg(long, value_name = "KEY.KEY")]
    pub base_root: Option<String>,
    /// Scale of the modality vectors: one number, or one for each modality as v=0.5,l=0.75,vl=0.3.
    #[arg(long, value_name = "λ", value_parser = lambda, allow_hyphen_values = true)]
    pub lambda: Lambda,
    /// Apply the vectors one after another, as the published Python code does.
    #[arg(long)]
    pub sequential: bool,
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
    let mut parameters = Arithmetic { lambda: args.lambda.clone(), sequential: args.sequential }.parameters();
    parameters.extend(selection(&args.experts)?.parameters());
    parameters.extend(args.emit.emit.parameters());
    let merging = Merging {
        recipe: Recipe::new("arithmetic", parameters),
        inputs: vec![
            InputFile::new("checkpoint", &args.ms, &args.root.root),
            InputFile::new("base", &args.base, &args.base_root),
        ],
        layout: &args.layout,
        output: &args.output,
        json: args.json.json,
    };
    merging.execute(context).map(|(report, _)| report)
}

/// `0.75`, or `v=0.5,l=0.75,vl=0.3`.
fn lambda(text: &str) -> Result<Lambda, String> {
    if !text.contains('=') {
        return finite(text).map(Lambda::one);
    }
    let mut lambda = Lambda::one(0.0);
    for part in text.split(',') {
        let (modality, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is not like v=0.5"))?;
        let modality: Modality = modality.trim().parse()?;
        if lambda.by_modality.insert(modality, finite(value.trim())?).is_some() {
            return Err(format!("{modality} is given twice"));
        }
    }
    Ok(lambda)
}
