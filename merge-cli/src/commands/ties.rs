//! `vlmerge ties`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::methods::Ties;

use super::Context;
use super::several::{self, SeveralArgs};
use crate::Report;
use crate::cli::{density, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge ties base.ckpt a.ckpt b.ckpt --density 0.2 --lambda 1 \\
      -o merged.safetensors
  vlmerge ties seed.ckpt ms.ckpt --experts --density 0.2 -o merged.safetensors

Of each vector (model − base) the top share of magnitudes stays, tensor by
tensor; signs are elected by mass; the mean of what agrees, times λ, is added
to the base.")]
pub struct Args {
    /// What the models were trained from.
    pub base: PathBuf,
    /// The models, or the modality-specific one with --experts.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Share of each vector's elements that stay, above 0 and at most 1.
    #[arg(long, value_name = "D", value_parser = density, default_value = "0.2", allow_negative_numbers = true)]
    pub density: f64,
    /// Scale of the merged vector.
    #[arg(long, value_name = "λ", value_parser = finite, default_value = "1", allow_negative_numbers = true)]
    pub lambda: f64,
    #[command(flatten)]
    pub several: SeveralArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let method = Ties { density: args.density, lambda: args.lambda };
    several::merge(&method, Some(&args.base), &args.files, &args.several, context)
}
