//! `vlmerge distance`

mod figure;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use formats::layout::Layout;
use formats::show_path;
use formats::write::{check_file_target, write_file};
use merge_cli::distance::{Distance, Measurement, Metrics, Pair, Scope, Space};
use merge_cli::{Selection, jobs};
use serde_json::json;

use super::{Context, layout_for, one_standard_input};
use crate::cli::{JsonArg, LayoutArg, RootArg};
use crate::{Report, progress, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge distance ms.ckpt
  vlmerge distance ms.ckpt --base seed.ckpt --plot distance.svg
  vlmerge distance ms.ckpt --base seed.ckpt --top-k 10 --json

For every pair of modalities, layer and part, with x and y one modality's
values each:
  L2      ‖x − y‖
  cosine  x·y / (‖x‖‖y‖), a similarity: 1 is closest
  SSD     soft sign dissimilarity: the mean of 1 − |x+y| / (|x|+|y|), 0 where
          both are 0
  TSSD    SSD after zeroing, in x and in y, all but the largest magnitudes
          (--top-k)
The closer the experts, the better a merge is expected to be (Sung et al.,
2023).")]
pub struct Args {
    /// The modality-specific checkpoint.
    pub ms: PathBuf,
    /// The checkpoint it was initialised from, to measure modality vectors (expert − base) too:
    /// modality-agnostic (the seed), or modality-specific.
    #[arg(long, value_name = "SEED")]
    pub base: Option<PathBuf>,
    /// Where in the base file the tensors are.
    #[arg(long, value_name = "KEY.KEY", requires = "base")]
    pub base_root: Option<String>,
    /// Percent of the elements that TSSD keeps.
    #[arg(long, value_name = "PERCENT", default_value = "20", value_parser = percent, allow_negative_numbers = true)]
    pub top_k: f64,
    /// Draw heat maps of layers × parts for every pair, as .svg or .png.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Replace the plot if it exists.
    #[arg(long, requires = "plot")]
    pub force: bool,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let plot = args.plot.as_deref().map(|path| Picture::for_path(path).map(|picture| (path, picture))).transpose()?;
    one_standard_input([Some(args.ms.as_path()), args.base.as_deref(), args.layout.path()].into_iter().flatten())?;
    let checkpoint = formats::open_root(&args.ms, args.root.root.as_deref())?;
    let base = args.base.as_ref().map(|path| formats::open_root(path, args.base_root.as_deref())).transpose()?;
    let checkpoints: Vec<_> = [Some(&checkpoint), base.as_ref()].into_iter().flatten().collect();
    if let Some((path, _)) = plot {
        check_file_target(path, args.force, &checkpoints)?;
    }
    let layout = layout_for(&args.layout, &checkpoint, context)?;
    checkpoint.settled_config(&layout)?;
    if let Some((base, layout)) = base.as_ref().and_then(|base| Some((base, base.layout()?))) {
        base.settled_config(layout)?;
    }
    let mut jobs = jobs::merge_experts(&checkpoint, &layout, Selection::All)?;
    if let Some(base) = &base {
        jobs::add_base(&mut jobs, &layout, base, 1)?;
    }
    let measurement = Measurement::new(&jobs, checkpoints, args.top_k);
    let bar = progress::bar(context, "measuring", measurement.bytes());
    let distances = measurement.measure(context.threads, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let distances = distances?;
    if let Some((path, picture)) = plot {
        let scene = figure::figure(args, &distances).draw();
        let bytes = match picture {
            Picture::Svg => scene.svg().into_bytes(),
            Picture::Png => match scene.png() {
                Ok(bytes) => bytes,
                Err(oversized) => bail!("{}: {oversized}", show_path(path)),
            },
        };
        write_file(path, &bytes)?;
    }
    let stdout =
        if args.json.json { json(args, &layout, &distances)? } else { table::render(args, &layout, &distances) };
    Ok(Report { stdout, success: true })
}

fn json(args: &Args, layout: &Layout, distances: &[Distance]) -> Result<String> {
    let report = json!({
        "checkpoint": args.ms.to_string_lossy(),
        "base": args.base.as_ref().map(|path| path.to_string_lossy()),
        "layout": layout.name(),
        "top_k": args.top_k,
        "plot": args.plot.as_ref().map(|path| path.to_string_lossy()),
        "distances": distances,
    });
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

/// A plot's format, by its name's ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Picture {
    Svg,
    Png,
}

impl Picture {
    fn for_path(path: &Path) -> Result<Picture> {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Picture::Svg),
            Some("png") => Ok(Picture::Png),
            _ => bail!("{}: which format? name the plot .svg or .png", show_path(path)),
        }
    }
}

/// One of the four distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    L2,
    Cosine,
    Ssd,
    Tssd,
}

impl Metric {
    const ALL: [Metric; 4] = [Metric::L2, Metric::Cosine, Metric::Ssd, Metric::Tssd];

    fn of(self, metrics: &Metrics) -> Option<f64> {
        match self {
            Metric::L2 => Some(metrics.l2),
            Metric::Cosine => metrics.cosine,
            Metric::Ssd => Some(metrics.ssd),
            Metric::Tssd => Some(metrics.tssd),
        }
    }

    /// A value of this distance in at most six characters.
    fn shown(self, value: f64) -> String {
        match self {
            // Its place between −1 and 1 is what matters, not the digits of one that is nearly 0.
            Metric::Cosine if value.is_nan() => value.to_string(),
            Metric::Cosine if value > -0.0005 => format!("{:.4}", value.max(0.0)),
            Metric::Cosine => format!("{value:.3}"),
            _ => text::short(value),
        }
    }

    /// Its name and what its numbers mean.
    fn title(self, space: Space, top_k: f64) -> String {
        let space = space_name(space);
        match self {
            Metric::L2 => format!("L2 distance of {space} (0 closest)"),
            Metric::Cosine => format!("Cosine similarity of {space} (1 closest, −1 opposite)"),
            Metric::Ssd => format!("SSD of {space} (0 closest, 1 opposite)"),
            Metric::Tssd => {
                format!("TSSD of {space}, top {top_k}% (0 closest, {} opposite)", text::trimmed(self.range(top_k)[1]))
            }
        }
    }

    /// From the least to the most it can be, where there is a most.
    fn range(self, top_k: f64) -> [f64; 2] {
        match self {
            Metric::L2 => [0.0, f64::INFINITY],
            Metric::Cosine => [-1.0, 1.0],
            Metric::Ssd => [0.0, 1.0],
            // Elements that only one side keeps count as alike.
            Metric::Tssd => [0.0, top_k / 100.0],
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Metric::L2 => "L2",
            Metric::Cosine => "cosine",
            Metric::Ssd => "SSD",
            Metric::Tssd => "TSSD",
        })
    }
}

/// Distances by what they are of.
type Index<'a> = HashMap<(Space, Pair, Scope), &'a Distance>;

fn index(distances: &[Distance]) -> Index<'_> {
    distances.iter().map(|found| ((found.space, found.pair, found.scope), found)).collect()
}

/// `weights`, or `modality vectors`.
fn space_name(space: Space) -> &'static str {
    match space {
        Space::Weights => "weights",
        Space::ModalityVectors => "modality vectors",
    }
}

/// A layer's number, or the name for what stands outside the layers.
fn layer_name(layer: Option<usize>) -> String {
    layer.map_or_else(|| "other".into(), |layer| layer.to_string())
}

/// A file's name without its folder.
fn file_name(path: &Path) -> String {
    show_path(Path::new(path.file_name().unwrap_or(path.as_os_str())))
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => Err("it must be more than 0 and at most 100".into()),
    }
}
