//! `engine report`

use std::path::PathBuf;

use anyhow::{Result, bail};
use engine::report::report;
use engine::report::run_files::RunFiles;
use engine::train::run_dir::RunDir;
use formats::show_path;

use crate::Report;
use crate::cli::OutputArgs;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine report runs/vqa -o report.html

One page without outside parts: curves, configuration, the merged input's recipe, metrics, samples.")]
pub struct Args {
    /// A run's folder, of a run that is still going on too.
    pub run: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub fn run(args: &Args) -> Result<Report> {
    let output = &args.output.output;
    super::check_output(output, args.output.force, &[])?;
    if RunDir::open(&args.run).is_ok_and(|run| run.would_replace(output)) {
        bail!("{}: this file is of the run itself: choose another name", show_path(output));
    }
    let page = report(&RunFiles::read(&args.run)?);
    formats::write::write_file(output, page.as_bytes())?;
    Ok(Report::done(format!("{} written ({} kB)\n", output.display(), page.len().div_ceil(1000))))
}
