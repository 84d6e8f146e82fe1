//! `engine probe`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use engine::model::open::{open_runner, read_probe_batch};
use engine::model::save;
use engine::report::terminal::count;
use formats::show_path;
use serde_json::json;

use super::Context;
use super::output::{self, Target};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine probe merged.safetensors --batch batch.safetensors -o out.safetensors
  engine probe model.safetensors --heads heads.safetensors --task nlvr2 \\
      --batch batch.safetensors -o out.safetensors
  vlmerge diff out.safetensors expected.safetensors --tolerance 1e-4

The batch holds image [n, 3, S, S], text_ids and text_masks [n, L], and any of text_ids_mlm, text_labels_mlm, \
image_0, image_1, vqa_targets [n, labels], nlvr2_labels, class_label. The result holds text.* and image.* (one \
modality alone), vl.* (joint), ifm.* (through the vl experts), and the logits.* and loss.* that the batch and the \
checkpoint's heads allow.")]
pub struct Args {
    /// The checkpoint, or the folder of a run.
    pub checkpoint: PathBuf,
    /// The tensors to run on, a safetensors file.
    #[arg(long, value_name = "FILE")]
    pub batch: PathBuf,
    /// A file of heads to add, its tensors named task:name.
    #[arg(long, value_name = "FILE")]
    pub heads: Option<PathBuf>,
    /// Write only this task's logits and loss, and take all tensors of this task from --heads.
    #[arg(long, value_name = "T")]
    pub task: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let output = &args.output.output;
    let checkpoint = &context.checkpoint(&args.checkpoint)?;
    let reads: Vec<&Path> = [checkpoint, &args.batch].into_iter().chain(&args.heads).map(PathBuf::as_path).collect();
    let target = Target::tensors(output, args.output.force, &reads)?;
    let batch = read_probe_batch(&args.batch)?;
    let mut options = args.model.options();
    options.heads_file = args.heads.clone();
    options.heads_task = args.task.clone();
    // The images tell the size where the checkpoint doesn't.
    let size = batch.images.as_ref().or(batch.pair.as_ref().map(|(left, _)| left)).map(|images| images.size);
    options.image_size = options.image_size.or(size);
    let (runner, opened) = open_runner(checkpoint, &options)?;
    context.opened(&opened);
    let mut found = runner.probe(&batch).with_context(|| show_path(&args.batch).to_string())?;
    let every: Vec<String> = found.iter().map(|tensor| tensor.name.clone()).collect();
    if let Some(task) = &args.task {
        found.retain(|tensor| match tensor.name.split_once('.') {
            Some(("logits" | "loss", of)) => of == task,
            _ => true,
        });
    }
    if let Some(task) = &args.task
        && !found.iter().any(|tensor| tensor.name == format!("logits.{task}"))
    {
        let there: Vec<&str> = every.iter().filter_map(|name| name.strip_prefix("logits.")).collect();
        let there = if there.is_empty() { "none".into() } else { there.join(", ") };
        bail!(
            "--task {task}: it has no logits here: neither the checkpoint nor --heads has its head, or the batch lacks what \
             it needs; tasks with logits: {there}"
        );
    }
    let names: Vec<_> = found.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let losses: Vec<_> = found.iter().filter(|tensor| tensor.name.starts_with("loss.")).cloned().collect();
    save::write(target.path(), found, &Default::default())?;
    if args.json.json {
        let tensors: serde_json::Map<_, _> = names.iter().map(|(name, shape)| (name.clone(), json!(shape))).collect();
        let losses: serde_json::Map<_, _> =
            losses.iter().map(|loss| (loss.name.clone(), json!(loss.values.first()))).collect();
        let report =
            json!({ "output": output, "device": opened.device.to_string(), "tensors": tensors, "losses": losses });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let (tensors, written) = (count(names.len(), "tensor", "tensors"), output::shown(output));
    let mut text = format!("{tensors} written to {written}, computed on {}\n", opened.device);
    for loss in &losses {
        text += &format!("{:<14} {:.6}\n", loss.name, loss.values.first().copied().unwrap_or(f32::NAN));
    }
    target.finish(context, text)
}
