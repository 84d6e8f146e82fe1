//! `vlmerge soup`

use std::path::PathBuf;

use anyhow::Result;
use formats::layout::Modality;
use merge_cli::methods::Soup;

use super::several::{self, SeveralArgs};
use super::{Context, usage};
use crate::cli::finite;
use crate::{Report, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge soup a.ckpt b.ckpt c.ckpt -o soup.safetensors
  vlmerge soup a.ckpt b.ckpt --weights 3,1 -o soup.safetensors
  vlmerge soup ms.ckpt --experts -o merged.safetensors
  vlmerge soup ms.ckpt --experts --weights v=0.4,l=0.4,vl=0.2 \\
      -o merged.safetensors

Weights are divided by their sum: 3,1 is 0.75,0.25. With --experts that is
done in each layer, so that v and l share what vl would have where there is
none. --no-normalize takes them as they are.")]
pub struct Args {
    /// The checkpoints, or the modality-specific one with --experts.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A weight for each checkpoint or, with --experts, for v, l and vl [default: all equal].
    #[arg(long, value_name = "W,W…", value_parser = weights, allow_hyphen_values = true)]
    pub weights: Option<Weights>,
    /// Take the weights as they are.
    #[arg(long, requires = "weights")]
    pub no_normalize: bool,
    #[command(flatten)]
    pub several: SeveralArgs,
}

/// `0.5,0.3,0.2`, or `v=0.5,l=0.3,vl=0.2`.
#[derive(Clone, Debug)]
pub struct Weights {
    values: Vec<f64>,
    named: bool,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let in_one = args.several.experts.is_some();
    if let Some(weights) = &args.weights {
        let count = weights.values.len();
        let numbers = text::count(count as u64, "number");
        match (in_one, weights.named) {
            (false, true) => usage("--weights v=… is for --experts: give a number for each checkpoint")?,
            (false, false) if count != args.files.len() => {
                usage(&format!("--weights has {numbers} for {}", text::count(args.files.len() as u64, "checkpoint")))?
            }
            (true, _) if !(2..=3).contains(&count) => {
                usage(&format!("--weights has {numbers}; experts are v, l and vl"))?
            }
            _ => {}
        }
        let sum: f64 = weights.values.iter().sum();
        if !args.no_normalize && (sum == 0.0 || !sum.is_finite()) {
            usage(&format!(
                "--weights add up to {sum}, so they can't be normalised (--no-normalize takes them as they are)"
            ))?
        }
    }
    let method =
        Soup { weights: args.weights.as_ref().map(|weights| weights.values.clone()), normalize: !args.no_normalize };
    several::merge(&method, None, &args.files, &args.several, context)
}

fn weights(text: &str) -> Result<Weights, String> {
    if !text.contains('=') {
        let values: Result<_, _> = text.split(',').map(|part| finite(part.trim())).collect();
        return Ok(Weights { values: values?, named: false });
    }
    let mut given = [None; 3];
    for part in text.split(',') {
        let (modality, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is not like v=0.5"))?;
        let modality: Modality = modality.trim().parse()?;
        if given[modality as usize].replace(finite(value.trim())?).is_some() {
            return Err(format!("{modality} is given twice"));
        }
    }
    let values = match given {
        [Some(v), Some(l), Some(vl)] => vec![v, l, vl],
        [Some(v), Some(l), None] => vec![v, l],
        _ => return Err("it must say both v=… and l=…".into()),
    };
    Ok(Weights { values, named: true })
}
