//! `vlmerge distance`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::distance::Measurement;
use merge_cli::{Selection, jobs};

use super::{Context, layout_for};
use crate::cli::{JsonArg, LayoutArg, RootArg};
use crate::{Report, progress};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The modality-specific checkpoint.
    pub ms: PathBuf,
    #[arg(long, value_name = "SEED")]
    pub base: Option<PathBuf>,
    /// Where in the base file the tensors are.
    #[arg(long, value_name = "KEY.KEY", requires = "base")]
    pub base_root: Option<String>,
    #[arg(long, value_name = "K", default_value = "20")]
    pub top_k: f64,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let checkpoint = formats::open_root(&args.ms, args.root.root.as_deref())?;
    let base = args.base.as_ref().map(|path| formats::open_root(path, args.base_root.as_deref())).transpose()?;
    let layout = layout_for(&args.layout, &checkpoint)?;
    let mut jobs = jobs::merge_experts(&checkpoint, &layout, Selection::All)?;
    if let Some(base) = &base {
        jobs::add_base(&mut jobs, &layout, base, 1)?;
    }
    let checkpoints = [Some(&checkpoint), base.as_ref()].into_iter().flatten().collect();
    let measurement = Measurement::new(&jobs, checkpoints, args.top_k);
    let bar = progress::bar(context, "measuring", measurement.bytes());
    let distances = measurement.measure(context.threads, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let distances = distances?;
    Ok(Report { stdout: serde_json::to_string_pretty(&distances)? + "\n", success: true })
}
