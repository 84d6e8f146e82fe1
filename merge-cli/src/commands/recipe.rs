//! `vlmerge recipe`

use std::path::PathBuf;

use anyhow::{Result, bail};
use formats::{show_name, show_path};
use merge_cli::{Recipe, recipe_file};

use crate::cli::JsonArg;
use crate::{Report, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge recipe merged.safetensors
  vlmerge recipe merged.safetensors > again.toml

A file that was trained, resized, rounded to another dtype or initialised
after the merge, or without one, has no recipe that makes it again. Then every
step is printed as comments, the newest first, and the exit status is 1.")]
pub struct Args {
    /// A file that vlmerge wrote, or one trained from it.
    pub file: PathBuf,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args) -> Result<Report> {
    let checkpoint = formats::open(&args.file)?;
    let Some(recipe) = Recipe::history(checkpoint.metadata()) else {
        bail!("{}: no recipe in it: only files that vlmerge wrote have one", show_path(&args.file));
    };
    let chain = recipe.chain();
    // A file that was only put into another container is still what the merge made.
    let maker = chain.iter().find(|step| !step.is_copy()).unwrap_or(&chain[0]);
    if maker.is_merge() {
        let stdout = match args.json.json {
            true => serde_json::to_string_pretty(maker)? + "\n",
            false => recipe_file::write(maker),
        };
        return Ok(Report { stdout, success: true });
    }
    let stdout = match args.json.json {
        true => serde_json::to_string_pretty(&chain[0])? + "\n",
        false => recipe_file::write_history(&chain),
    };
    let what = match maker.is_training() {
        true => "trained".to_owned(),
        false => format!("last changed by 'vlmerge {}'", show_name(&maker.method)),
    };
    say(format_args!("{}: it was {what}, which no recipe repeats: its history is printed", show_path(&args.file)));
    Ok(Report { stdout, success: false })
}
