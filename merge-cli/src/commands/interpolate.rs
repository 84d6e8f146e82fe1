//! `vlmerge interpolate`

use anyhow::Result;
use merge_cli::methods::{Interpolate, Method};
use merge_cli::{Recipe, Run, jobs};

use super::{Context, config_json, kept_metadata, layout_for, selection};
use crate::Report;
use crate::cli::InterpolateArgs;

pub fn run(args: &InterpolateArgs, context: &Context) -> Result<Report> {
    let selection = selection(&args.experts)?;
    let checkpoint = formats::open_root(&args.ms, args.root.root.as_deref())?;
    let layout = layout_for(&args.layout, &checkpoint)?;
    let jobs = jobs::merge_experts(&checkpoint, &layout, selection)?;
    if !(0.0..=1.0).contains(&args.ratio) {
        context.warn(format!("ratio {} is outside 0 to 1: this extrapolates", args.ratio));
    }
    let method = Interpolate { ratio: args.ratio };
    let mut parameters = method.parameters();
    parameters.extend(selection.parameters());
    let run = Run {
        jobs,
        method: Some(&method),
        recipe: Recipe::new(method.name(), parameters),
        config: config_json(&checkpoint, &layout, true),
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    super::write(run, &args.output, args.json.json, context)
}
