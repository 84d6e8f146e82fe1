//! `vlmerge arithmetic`

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use formats::layout::Modality;
use formats::show_path;
use merge_cli::methods::{Arithmetic, Lambda, Method};
use merge_cli::{Emit, Recipe, Role, Run, jobs};

use super::{Context, config_json, kept_metadata, layout_for, selection};
use crate::Report;
use crate::cli::{EmitArgs, ExpertsArgs, JsonArg, LayoutArg, OutputArgs, RootArg, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 -o merged.safetensors
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda v=0.5,l=0.75,vl=0.3 -o merged.safetensors
  vlmerge arithmetic ms.ckpt --base seed.ckpt --lambda 0.75 --sequential -o as_python.ckpt

The published formula is base + λ·Σ(expert − base). The Python code updates the base while it
loops, θ ← θ + λ(expert − θ): --sequential reproduces that.")]
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
    let selection = selection(&args.experts)?;
    let emit = args.emit.emit;
    let checkpoint = formats::open_root(&args.ms, args.root.root.as_deref())?;
    let base = formats::open_root(&args.base, args.base_root.as_deref())?;
    let layout = layout_for(&args.layout, &checkpoint)?;
    let mut jobs = jobs::merge_experts(&checkpoint, &layout, selection)?;
    jobs::add_base(&mut jobs, &layout, &base, 1)?;
    let roles: BTreeSet<Role> = jobs.iter().flat_map(|job| job.source.inputs()).map(|input| input.role).collect();
    if args.sequential && roles.iter().any(|role| matches!(role, Role::BaseExpert(_))) {
        bail!("{}: --sequential starts from one set of weights, and this base has experts", show_path(&args.base));
    }
    let given = &args.lambda.by_modality;
    for role in roles {
        let Role::Expert(modality) = role else { continue };
        if !given.is_empty() && !given.contains_key(&modality) {
            bail!("{}: it has {modality} experts, and --lambda gives no {modality}=…", show_path(&args.ms));
        }
        let lambda = args.lambda.of(modality);
        if !(0.0..=2.0).contains(&lambda) {
            context.warn(format!("λ {lambda} for {modality} is far from the usual 0 to 1"));
        }
    }
    let method = Arithmetic { lambda: args.lambda.clone(), sequential: args.sequential };
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
        checkpoints: vec![("checkpoint", &checkpoint), ("base", &base)],
    };
    super::write(run, &args.output, args.json.json, context)
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
