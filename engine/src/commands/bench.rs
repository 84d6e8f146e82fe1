//! `engine bench`

use anyhow::Result;
use clap::Subcommand;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use engine::bench::{Measure, training};
use engine::device::{Choice, Device, Precision};
use engine::model::config::Size;
use engine::report::terminal::count;
use engine::train::resolve::Layers;

use super::{Context, usage};
use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  engine bench train --device cuda --preset irtr-coco-base-384 \\
      --preset vqa-base-480")]
pub enum Command {
    /// Measure fine-tuning steps: images/s, TFLOP/s, memory.
    Train(TrainArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine bench train --device cuda --preset irtr-coco-base-384
  engine bench train --device cuda --preset vqa-base-480 --batch-size 32 \\
      --precision bf16 --json
  engine bench train --device cpu --preset irtr-coco-base-384 --image-size 224 \\
      --activation-checkpointing

A model with random weights takes steps (forward, backward, AdamW) on one random batch. \
engine/benches/pytorch_cuda.py and pytorch_cpu.py measure the same shapes in PyTorch.")]
pub struct TrainArgs {
    /// Take task, image size and optimizer from this preset; may be given more than once.
    #[arg(long, value_name = "NAME", default_value = "irtr-coco-base-384")]
    pub preset: Vec<String>,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Choice,
    /// Measure in these precisions [default: f32 and bf16 on CUDA, f32 on the CPU].
    #[arg(long, value_delimiter = ',')]
    pub precision: Vec<Precision>,
    /// The size of the model.
    #[arg(long, default_value = "base")]
    pub size: Size,
    /// Pixels along an image's side [default: the preset's].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Examples per step [default: 64 on CUDA, 8 on the CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: Option<u16>,
    /// How many steps to time [default: 20 on CUDA, 3 on the CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: Option<u16>,
    /// Recompute layers in the backward pass instead of keeping their activations.
    #[arg(long)]
    pub activation_checkpointing: bool,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(command: &Command, context: &Context) -> Result<Report> {
    let Command::Train(args) = command;
    let device = args.device.resolve().map_err(anyhow::Error::msg)?;
    let on_cuda = matches!(device, Device::Cuda(_));
    let precisions = match &args.precision[..] {
        [] if on_cuda => vec![Precision::F32, Precision::Bf16],
        [] => vec![Precision::F32],
        chosen => chosen.to_vec(),
    };
    let batch = args.batch_size.map_or(if on_cuda { 64 } else { 8 }, usize::from);
    let steps = args.steps.map_or(if on_cuda { 20 } else { 3 }, usize::from);
    precisions.iter().filter_map(|&precision| device.warning(precision)).for_each(|warning| context.note(warning));
    let mut found = Vec::new();
    for preset in &args.preset {
        for &precision in &precisions {
            let mut layers = Layers::default();
            layers.preset(preset).or_else(|e| usage(&e.to_string()))?;
            let mut config = layers.config()?;
            config.device = args.device;
            config.precision = precision;
            config.activation_checkpointing |= args.activation_checkpointing;
            config.image_size = args.image_size.or(config.image_size);
            context.note(format_args!("measuring {preset} in {precision} on {device} …"));
            found.push((preset.clone(), training(&Measure { config, size: args.size, batch, steps })?));
        }
    }
    if args.json.json {
        let report: Vec<_> = found
            .iter()
            .map(|(preset, training)| {
                let mut value = serde_json::to_value(training)?;
                value["preset"] = preset.as_str().into();
                Ok(value)
            })
            .collect::<Result<_>>()?;
        return Ok(Report::done(format!("{}\n", serde_json::to_string_pretty(&report)?)));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // At most 80 columns: what is the same in every row stands above the table.
    table.set_header(["preset", "dtype", "pixels", "s/step", "images/s", "TFLOP/s", "of peak", "memory"]);
    for column in 2..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (preset, t) in &found {
        let gigabytes = |value: Option<f64>| value.map_or("?".into(), |value| format!("{value:.1} GB"));
        table.add_row([
            preset.clone(),
            t.precision.into(),
            t.image_size.to_string(),
            format!("{:.3}", t.step_s),
            format!("{:.1}", t.images_per_s),
            format!("{:.2}", t.tflop_per_s),
            t.share_of_peak.map_or("?".into(), |share| format!("{:.0} %", 100.0 * share)),
            gigabytes(if on_cuda { t.card_memory_gb } else { t.peak_host_memory_gb }),
        ]);
    }
    let card = found.iter().find_map(|(_, t)| t.card.clone()).map(|card| format!(" ({card})")).unwrap_or_default();
    let parameters = found.first().map_or(0, |(_, t)| t.parameters);
    let parameters = parameters as f64 / 1e6;
    let batch = count(batch, "example", "examples");
    Ok(Report::done(format!("{device}{card}, {parameters:.1} M parameters, {batch} per step\n{}\n", table.trim_fmt())))
}
