//! `vlmerge convert`

use anyhow::Result;
use formats::Dtype;
use formats::layout::Layout;
use merge_cli::{Recipe, Run, jobs};
use serde_json::json;

use super::{Context, config_json, kept_metadata, recipe};
use crate::Report;
use crate::cli::{ConvertArgs, FloatDtype};

pub fn run(args: &ConvertArgs, context: &Context) -> Result<Report> {
    let checkpoint = formats::open_root(&args.file, args.root.root.as_deref())?;
    let dtype = args.dtype.map(|dtype| match dtype {
        FloatDtype::F32 => Dtype::F32,
        FloatDtype::F16 => Dtype::F16,
        FloatDtype::Bf16 => Dtype::Bf16,
    });
    let names = checkpoint.tensors().iter().map(|info| info.name.as_str());
    let config = Layout::detect(names).and_then(|found| config_json(&checkpoint, found.layout, false));
    // Converting a merged file keeps the recipe that made it.
    let made_by = Recipe::from_metadata(checkpoint.metadata());
    let mut parameters = json!({"dtype": dtype.map(Dtype::name)});
    if let Some(made_by) = made_by {
        parameters["of"] = serde_json::to_value(made_by)?;
    }
    let run = Run {
        jobs: jobs::copy_all(&checkpoint, dtype),
        method: None,
        recipe: recipe("convert", parameters),
        config,
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    super::write(run, &args.output, args.json.json, context)
}
