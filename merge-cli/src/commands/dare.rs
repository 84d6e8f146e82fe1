//! `vlmerge dare`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::methods::Dare;

use super::Context;
use super::several::{self, SeveralArgs};
use crate::Report;
use crate::cli::{density, finite};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge dare base.ckpt a.ckpt b.ckpt --density 0.5 --seed 1 \\
      -o merged.safetensors
  vlmerge dare base.ckpt a.ckpt b.ckpt --density 0.1 --ties \\
      -o merged.safetensors
  vlmerge dare seed.ckpt ms.ckpt --experts --density 0.5 --lambda 0.5 \\
      -o merged.safetensors

Each element of a vector (model − base) stays with the probability --density
and is divided by it. The vectors' sum, or with --ties the mean of those that
have the elected sign, times λ, is added to the base. One seed gives one file,
on any machine and any number of threads.")]
pub struct Args {
    /// What the models were trained from.
    pub base: PathBuf,
    /// The models, or the modality-specific one with --experts.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Probability of each element to stay, above 0 and at most 1.
    #[arg(long, value_name = "D", value_parser = density, allow_negative_numbers = true)]
    pub density: f64,
    /// Scale of the merged vector.
    #[arg(long, value_name = "λ", value_parser = finite, default_value = "1", allow_negative_numbers = true)]
    pub lambda: f64,
    /// Seed of the random choice.
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Elect signs as TIES does, and take the mean of what agrees.
    #[arg(long)]
    pub ties: bool,
    #[command(flatten)]
    pub several: SeveralArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let method = Dare { density: args.density, lambda: args.lambda, seed: args.seed, ties: args.ties };
    several::merge(&method, Some(&args.base), &args.files, &args.several, context)
}
