//! `vlmerge slerp`

use std::path::PathBuf;

use anyhow::Result;
use merge_cli::methods::Slerp;

use super::several::{self, SeveralArgs};
use super::{Context, usage};
use crate::Report;
use crate::cli::finite;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge slerp a.ckpt b.ckpt --t 0.5 -o between.safetensors
  vlmerge slerp ms.ckpt --experts --t 0.5 -o merged.safetensors

Tensor by tensor along the arc from A to B; linearly where they are parallel
(|cos| > 0.9995) or one is zero. With --experts from v to l, and in layers
with a vl expert from there a third of the way to it, so that vl weighs a
third as in interpolate. A t outside 0 to 1 extrapolates, which is allowed and
warned of.")]
pub struct Args {
    /// Two checkpoints, or the modality-specific one with --experts.
    #[arg(required = true, value_name = "FILE", num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// How far to go: 0 is A (or v), 1 is B (or l).
    #[arg(long, value_name = "T", value_parser = finite, allow_negative_numbers = true)]
    pub t: f64,
    #[command(flatten)]
    pub several: SeveralArgs,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    if args.files.len() > 2 {
        usage(&format!("slerp goes from one checkpoint to another, and here are {}", args.files.len()))?
    }
    several::merge(&Slerp { t: args.t }, None, &args.files, &args.several, context)
}
