//! `vlmerge diff`

use std::path::PathBuf;

use anyhow::Result;
use formats::show_name;
use merge_cli::diff::{Difference, Kind, diff};
use serde_json::json;

use super::{Context, one_standard_input};

use crate::cli::JsonArg;
use crate::{Report, progress, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge diff merged.safetensors merged.ckpt
  vlmerge diff ours.safetensors theirs.ckpt --tolerance 1e-6

Exits 1 when a tensor is missing on one side, has another shape or dtype, or
differs by more than the tolerance. With --quiet the exit status is all it says.")]
pub struct Args {
    pub a: PathBuf,
    pub b: PathBuf,
    /// Largest absolute difference that still counts as equal.
    #[arg(long, value_name = "T", default_value = "0", value_parser = tolerance)]
    pub tolerance: f64,
    /// Where A's tensors are, as in 'inspect --root'.
    #[arg(long, value_name = "KEY.KEY")]
    pub root_a: Option<String>,
    /// Where B's tensors are.
    #[arg(long, value_name = "KEY.KEY")]
    pub root_b: Option<String>,
    /// List every differing tensor, not only the first 20.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    one_standard_input([args.a.as_path(), &args.b])?;
    let a = formats::open_root(&args.a, args.root_a.as_deref())?;
    let b = formats::open_root(&args.b, args.root_b.as_deref())?;
    let bar = progress::bar(context, "comparing", a.tensors().iter().map(|info| info.bytes() as u64).sum());
    let differences = diff(&a, &b, context.threads, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let differences = differences?;
    let beyond = differences.iter().filter(|found| found.is_beyond(args.tolerance)).count();
    let compared = a.tensors().iter().filter(|info| b.get(&info.name).is_some()).count();
    if args.json.json {
        let differences: Vec<_> = differences
            .iter()
            .map(|found| {
                let mut value = serde_json::to_value(found)?;
                value["beyond"] = json!(found.is_beyond(args.tolerance));
                Ok(value)
            })
            .collect::<Result<_>>()?;
        let report = json!({
            "a": args.a.to_string_lossy(),
            "b": args.b.to_string_lossy(),
            "tolerance": args.tolerance,
            "compared": compared,
            "beyond": beyond,
            "differences": differences,
        });
        return Ok(Report { stdout: serde_json::to_string_pretty(&report)? + "\n", success: beyond == 0 });
    }
    let stdout = if context.quiet { String::new() } else { render(args, &differences, compared, beyond) };
    Ok(Report { stdout, success: beyond == 0 })
}

fn render(args: &Args, differences: &[Difference], compared: usize, beyond: usize) -> String {
    const SHOWN: usize = 20;
    let shown = if args.all { differences.len() } else { SHOWN };
    let mut rows = vec![["tensor", "difference", "max abs", "max rel", "differing"].map(String::from).to_vec()];
    for found in differences.iter().take(shown) {
        let mut row = vec![show_name(&found.name)];
        row.extend(describe(&found.kind));
        if !found.is_beyond(args.tolerance) {
            row.push("(within tolerance)".into());
        }
        rows.push(row);
    }
    let mut out = if differences.is_empty() { String::new() } else { text::table(&rows, &[2, 3, 4]) };
    if out.lines().any(|line| line.chars().count() > text::WIDTH) {
        // Names on lines of their own, what is different below.
        let names: Vec<String> = rows.iter_mut().map(|row| row.remove(0)).collect();
        let table = text::table(&rows, &[1, 2, 3]);
        let lines = names.iter().zip(table.lines()).map(|(name, line)| format!("  {name}\n    {line}\n"));
        out = lines.collect();
    }
    if differences.len() > shown {
        out.push_str(&format!("  … and {} more (--all lists them)\n", differences.len() - shown));
    }
    let compared = text::count(compared as u64, "tensor");
    out.push_str(&match (differences.len(), beyond) {
        (0, _) => format!("equal: {compared} with the same names, shapes, dtypes and values\n"),
        (n, 0) => format!("equal within {}: {compared} compared, {n} not identical\n", args.tolerance),
        (_, n) => format!(
            "different: {} beyond tolerance {}, {compared} compared\n",
            text::count(n as u64, "tensor"),
            args.tolerance
        ),
    });
    out
}

/// The cells of a row after the tensor's name.
fn describe(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::OnlyInA => vec!["only in A".into()],
        Kind::OnlyInB => vec!["only in B".into()],
        Kind::Shape { a, b } => vec![format!("shape {} | {}", text::shape(a), text::shape(b))],
        Kind::Bytes { a, b } => vec![format!("bytes of {a} | {b}")],
        Kind::Values(values) => {
            let what = match (&values.dtype_a, &values.dtype_b) {
                (a, b) if a == b => "values".to_string(),
                (a, b) => format!("{a} | {b}"),
            };
            let share = format!("{} of {}", text::thousands(values.differing), text::thousands(values.elements));
            vec![what, format!("{:.3e}", values.max_abs), format!("{:.3e}", values.max_rel), share]
        }
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 => Ok(value),
        _ => Err("it must be a number from 0 up".into()),
    }
}
