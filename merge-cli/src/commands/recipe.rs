//! `vlmerge recipe`

use std::path::PathBuf;

use anyhow::{Result, bail};
use formats::show_path;
use merge_cli::{Recipe, recipe_file};

use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge recipe merged.safetensors
  vlmerge recipe merged.safetensors > again.toml")]
pub struct Args {
    /// A file that vlmerge wrote.
    pub file: PathBuf,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args) -> Result<Report> {
    let checkpoint = formats::open(&args.file)?;
    let Some(mut recipe) = Recipe::from_metadata(checkpoint.metadata()) else {
        bail!("{}: no recipe in it: only files that vlmerge wrote have one", show_path(&args.file));
    };
    // A converted file keeps how it was made before.
    if let Some(original) = recipe.parameters.get("of") {
        recipe = serde_json::from_value(original.clone())?;
    }
    let stdout = match args.json.json {
        true => serde_json::to_string_pretty(&recipe)? + "\n",
        false => recipe_file::write(&recipe),
    };
    Ok(Report { stdout, success: true })
}
