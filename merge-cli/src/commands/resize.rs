//! `vlmerge resize`

use std::path::PathBuf;

use anyhow::Result;
use formats::show_name;
use merge_cli::Run;
use merge_cli::resize::{Resized, resize};
use serde_json::json;

use super::{Context, Note, derived_recipe, kept_metadata, layout_for, one_standard_input, write_noting};
use crate::cli::{JsonArg, LayoutArg, OutputArgs, RootArg};
use crate::{Report, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge resize merged.safetensors --image-size 384 -o merged_384.safetensors
  vlmerge resize beit3_base_patch16_224.pth --image-size 480 -o beit3_480.pth

The grid in each position table is resized as PyTorch's bicubic interpolation
does it; rows for the class token and for text stay. Index buffers, which
loading code computes, are left out. At the file's own size everything is
copied.")]
pub struct Args {
    /// The checkpoint.
    pub file: PathBuf,
    /// Side of the new images in pixels, a multiple of the patch size.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub image_size: u32,
    /// The longest text that the file's relative position table has distances for [default: found].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub max_text_len_of_initckpt: Option<u32>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    one_standard_input([Some(args.file.as_path()), args.layout.path()].into_iter().flatten())?;
    let checkpoint = formats::open_root(&args.file, args.root.root.as_deref())?;
    let layout = layout_for(&args.layout, &checkpoint, context)?;
    let text_len = args.max_text_len_of_initckpt.map(|tokens| tokens as usize);
    let resized = resize(&checkpoint, &layout, args.image_size as usize, text_len)?;
    let detected = checkpoint.config(&layout);
    let grid = detected.evidence.iter().find(|evidence| evidence.field == "image_grid" && evidence.assumed);
    if let (Some(grid), None) = (grid, text_len) {
        context.warn(format!("took it for a checkpoint of {0} × {0} patches: {1}", grid.value, grid.from));
    }
    let mut parameters = json!({ "image_size": args.image_size });
    if let Some(text_len) = text_len {
        parameters["max_text_len_of_initckpt"] = json!(text_len);
    }
    let notes = notes(&resized, args.image_size);
    let run = Run {
        jobs: resized.jobs,
        method: None,
        recipe: derived_recipe("resize", parameters, &checkpoint)?,
        config: serde_json::to_string(&resized.config).ok(),
        metadata: kept_metadata(&checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    let root = run.usual_root();
    write_noting(run, root, || notes, &args.output, args.json.json, context).map(|(report, _)| report)
}

fn notes(resized: &Resized, image_size: u32) -> Vec<Note> {
    let tables = resized.tables.iter().map(|table| {
        let ((from, to), (before, after)) = (table.patches, &table.shape);
        json!({"name": table.name, "patches": {"from": from, "to": to}, "shape": {"from": before, "to": after}})
    });
    let tables = tables.collect();
    let changed: Vec<_> = resized.tables.iter().filter(|table| table.patches.0 != table.patches.1).collect();
    let text = match changed.first() {
        None => {
            let w = resized.config.image_grid.unwrap_or(0);
            format!("for images of {image_size} pixels already ({w} × {w} patches): a plain copy")
        }
        Some(first) => {
            let ((from, to), (before, after)) = (first.patches, &first.shape);
            let others = match changed.len() - 1 {
                0 => String::new(),
                n => format!(" and {}", text::count(n as u64, "table") + " like it"),
            };
            format!(
                "{}{others}:\n    {from} × {from} patches → {to} × {to}, {before:?} → {after:?}",
                show_name(&first.name)
            )
        }
    };
    let resized_tables = Note { key: "tables", value: tables, text };
    vec![resized_tables, left_out("dropped", &resized.dropped, "index buffer", "")]
}

/// What of a checkpoint isn't in the result: so many of `what`, and why.
pub(super) fn left_out(key: &'static str, names: &[String], what: &str, why: &str) -> Note {
    const SHOWN: usize = 2;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| show_name(name)).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    let text = match names.len() {
        0 => String::new(),
        n => format!("left out: {}{why} ({}{more})", text::count(n as u64, what), shown.join(", ")),
    };
    Note { key, value: json!(names), text }
}
