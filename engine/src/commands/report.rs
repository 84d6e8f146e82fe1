//! `engine report`

use std::path::PathBuf;

use anyhow::Result;
use engine::report::report;
use engine::report::run_files::RunFiles;

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
    formats::write::check_file_target(output, args.output.force, &[])?;
    let page = report(&RunFiles::read(&args.run)?);
    formats::write::write_file(output, page.as_bytes())?;
    Ok(Report::done(format!("{} written ({} kB)\n", output.display(), page.len().div_ceil(1000))))
}
