//! `engine probe`

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use engine::model::open::{open_runner, read_probe_batch};
use engine::model::save;
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
    /// The checkpoint.
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
    formats::write::check_target(output, args.output.force, &[])?;
    let batch = read_probe_batch(&args.batch)?;
    let mut options = args.model.options();
    options.heads_file = args.heads.clone();
    options.heads_task = args.task.clone();
    // The images tell the size where the checkpoint doesn't.
    let size = batch.images.as_ref().or(batch.pair.as_ref().map(|(left, _)| left)).map(|images| images.size);
    options.image_size = options.image_size.or(size);
    let (runner, opened) = open_runner(&args.checkpoint, &options)?;
    context.opened(&opened);
    let mut found = runner.probe(&batch).with_context(|| args.batch.display().to_string())?;
    if let Some(task) = &args.task {
        found.retain(|tensor| match tensor.name.split_once('.') {
            Some(("logits" | "loss", of)) => of == task,
            _ => true,
        });
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
