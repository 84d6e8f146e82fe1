//! `engine probe`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use engine::model::open::{open_runner, read_probe_batch};
use engine::model::save;
use formats::show_path;
use serde_json::json;

use super::Context;
use crate::Report;
use crate::cli::{JsonArg, ModelArgs, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine probe merged.safetensors --batch batch.safetensors -o out.safetensors
  engine probe model.safetensors --heads heads.safetensors --task nlvr2 --batch batch.safetensors -o out.safetensors
  vlmerge diff out.safetensors expected.safetensors --tolerance 1e-4

The batch holds image [n, 3, S, S], text_ids and text_masks [n, L], and what else there is of text_ids_mlm,
text_labels_mlm, image_0, image_1, vqa_targets [n, labels], nlvr2_labels, class_label. The result holds
text.*, image.* (one modality alone), vl.* (joint), ifm.* (through the vl experts), logits.* and loss.*,
as far as the batch and the checkpoint's heads go.")]
pub struct Args {
    /// The checkpoint, or the folder of a run.
    pub checkpoint: PathBuf,
    /// The tensors to run on, safetensors.
    #[arg(long, value_name = "FILE")]
    pub batch: PathBuf,
    /// Heads to add, a file of tensors named 'task:name'.
    #[arg(long, value_name = "FILE")]
    pub heads: Option<PathBuf>,
    /// Write this task's logits and loss only, and take all its tensors from --heads.
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
    formats::write::Container::for_path(output)?;
    let checkpoint = &context.checkpoint(&args.checkpoint)?;
    let reads: Vec<&Path> = [checkpoint, &args.batch].into_iter().chain(&args.heads).map(PathBuf::as_path).collect();
    super::check_output(output, args.output.force, &reads)?;
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
            "--task {task}: there are no logits of it: the checkpoint or --heads has no such head, or the batch not what it \
             needs; tasks with logits: {there}"
        );
    }
    let names: Vec<_> = found.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let losses: Vec<_> = found.iter().filter(|tensor| tensor.name.starts_with("loss.")).cloned().collect();
    save::write(output, found, &Default::default())?;
    if args.json.json {
        let tensors: serde_json::Map<_, _> = names.iter().map(|(name, shape)| (name.clone(), json!(shape))).collect();
        let losses: serde_json::Map<_, _> =
            losses.iter().map(|loss| (loss.name.clone(), json!(loss.values.first()))).collect();
        let report =
            json!({ "output": output, "device": opened.device.to_string(), "tensors": tensors, "losses": losses });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let mut text = format!("{} tensors written to {}, computed on {}\n", names.len(), output.display(), opened.device);
    for loss in &losses {
        text += &format!("{:<14} {:.6}\n", loss.name, loss.values.first().copied().unwrap_or(f32::NAN));
    }
    Ok(Report::done(text))
}
