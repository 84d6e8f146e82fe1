//! `engine report`

use std::path::PathBuf;

use anyhow::{Result, bail};
use engine::report::report;
use engine::report::run_files::RunFiles;
use engine::train::run_dir::RunDir;
use formats::show_path;

use super::Context;
use super::output::{self, Target};
use crate::Report;
use crate::cli::OutputArgs;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine report runs/vqa -o report.html

The page needs no other file: it holds metrics, curves, samples, how the checkpoint was merged, and the configuration.")]
pub struct Args {
    /// The folder of a run, which may still be training.
    pub run: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let output = &args.output.output;
    let target = Target::text(output, args.output.force, &[])?;
    if RunDir::open(&args.run).is_ok_and(|run| run.would_replace(output)) {
        bail!("{}: this file belongs to the run itself: choose another name", show_path(output));
    }
    let page = report(&RunFiles::read(&args.run)?);
    formats::write::write_file(target.path(), page.as_bytes())?;
    target.finish(context, format!("{} written ({} kB)\n", output::shown(output), page.len().div_ceil(1000)))
}
