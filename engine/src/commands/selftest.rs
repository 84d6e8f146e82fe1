//! `engine selftest`

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use engine::device::{Device, Precision, cards};
use engine::model::config::Size;
use engine::selftest::{Measure, parity, throughput};
use serde_json::json;

use super::Context;
use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine selftest --device cuda
  engine selftest --device cpu --size tiny --batch-size 2 --json

Compares forward passes with values of the Python code, in f32 and bf16, then measures a model with random weights. \
The exit status is 1 if the device isn't there or a value differs too much.")]
pub struct Args {
    /// The device to test: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: engine::device::Choice,
    /// The size of the model to measure.
    #[arg(long, default_value = "base")]
    pub size: Size,
    /// Image sizes to measure, in pixels a side.
    #[arg(long, value_name = "PIXELS", value_delimiter = ',', default_values_t = [224usize, 384])]
    pub image_sizes: Vec<usize>,
    /// Images per batch [default: 128 on CUDA, 8 on the CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: Option<u16>,
    /// Measure each pass for about this many seconds.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,
    /// Measure in these precisions [default: both on CUDA, f32 on the CPU].
    #[arg(long, value_delimiter = ',')]
    pub precision: Vec<Precision>,
    /// Compare with golden values only.
    #[arg(long)]
    pub no_throughput: bool,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let device = args.device.resolve().map_err(anyhow::Error::msg)?;
    let on_cuda = matches!(device, Device::Cuda(_));
    let name = match device {
        Device::Cuda(index) => cards().ok().and_then(|cards| cards.into_iter().nth(index)).map(|card| card.name),
        Device::Cpu => None,
    };
    let mut parities = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        context.note(format_args!("comparing with golden values on {device} in {precision} …"));
        parities.extend(parity(args.device, precision)?);
    }
    let passed = parities.iter().all(|parity| parity.passed);
    let precisions = match &args.precision[..] {
        [] if on_cuda => vec![Precision::F32, Precision::Bf16],
        [] => vec![Precision::F32],
        chosen => chosen.to_vec(),
    };
    let batch = args.batch_size.map_or(if on_cuda { 128 } else { 8 }, usize::from);
    let mut speeds = Vec::new();
    for &image_size in &args.image_sizes {
        for &precision in &precisions {
            if args.no_throughput {
                continue;
            }
            context.note(format_args!("measuring size {} at {image_size} pixels in {precision} …", args.size));
            let (device, size, seconds) = (args.device, args.size, args.seconds);
            speeds.extend(throughput(&Measure { device, precision, size, image_size, batch, seconds })?);
        }
    }
    if args.json.json {
        let report = json!({
            "device": device.to_string(), "name": name, "passed": passed, "parity": parities, "throughput": speeds,
        });
        return Ok(Report { stdout: format!("{report:#}\n"), success: passed });
    }
    let mut table = table(&["model", "precision", "tensors", "difference", "in", "allowed", ""]);
    for p in &parities {
        let verdict = if p.passed { "ok" } else { "OFF" };
        table.add_row([
            p.variant.clone(),
            p.precision.into(),
            p.tensors.to_string(),
            format!("{:.1e}", p.worst),
            p.worst_tensor.clone(),
            format!("{:.0e}", p.tolerance),
            verdict.into(),
        ]);
    }
    let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!("{device}{name}: {}\n{}\n", if passed { "passed" } else { "FAILED" }, table.trim_fmt());
    if !speeds.is_empty() {
        let mut table = self::table(&["pass", "pixels", "precision", "batch", "s/batch", "images/s", "TFLOP/s"]);
        for s in &speeds {
            table.add_row([
                s.pass.into(),
                s.image_size.to_string(),
                s.precision.into(),
                s.batch.to_string(),
                format!("{:.4}", s.seconds_per_batch),
                format!("{:.1}", s.images_per_second),
                format!("{:.2}", s.tflops),
            ]);
        }
        text += &format!("\n{}\n", table.trim_fmt());
    }
    Ok(Report { stdout: text, success: passed })
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in 2..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
