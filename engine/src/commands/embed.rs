//! `engine embed`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use engine::batch::Matrix;
use engine::embed::{self, Embedded};
use engine::model::save::{self, HostTensor};
use engine::model::tower::{ImageEncoder, TextEncoder};
use engine::report::terminal::count;
use engine::text::Tokenizer;
use formats::write::Metadata;
use formats::{show_name, show_path};
use serde_json::json;

use super::Context;
use super::output::{self, Target};
use crate::Report;
use crate::cli::{JsonArg, ModelArgs, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine embed irtr.safetensors --images photos --texts captions.txt \\
      -o embeddings.safetensors
  engine embed irtr.safetensors --images a.jpg b.png -o embeddings.safetensors
  echo \"a dog\" | engine embed irtr.safetensors --texts - -o - > e.safetensors

The result holds images [n, d] and texts [m, d], each row of length 1: texts · imagesᵀ are the similarities. Its \
metadata has the paths and texts of the rows as JSON arrays. Files that can't be read as images are named and left \
out; if they are more than 1 %, the command fails.")]
pub struct Args {
    /// The checkpoint, with a retrieval head; or the folder of a run.
    pub checkpoint: PathBuf,
    /// Images, and folders of images.
    #[arg(long, value_name = "DIR|FILE", num_args = 1.., required_unless_present = "texts")]
    pub images: Vec<PathBuf>,
    /// A file with one text per line, or a JSON array of texts; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Images or texts per batch.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let output = &args.output.output;
    let path = &context.checkpoint(&args.checkpoint)?;
    let checkpoint = formats::open_root(path, args.model.root.as_deref())?;
    let reads: Vec<&Path> =
        std::iter::once(path).chain(&args.images).chain(&args.texts).map(PathBuf::as_path).collect();
    let target = Target::tensors(output, args.output.force, &reads)?;
    let files = files(&args.images)?;
    let texts = args.texts.as_deref().map(embed::read_texts).transpose()?;
    let mut tensors = Vec::new();
    let mut metadata = Metadata::new();
    let mut tensor = |name: &str, rows: Matrix| {
        tensors.push(HostTensor { name: name.into(), shape: vec![rows.rows, rows.columns], values: rows.values });
    };
    let (mut images, mut device, mut unreadable) = (0, String::new(), Vec::new());
    if !files.is_empty() {
        let (encoder, opened) = ImageEncoder::open(path, &args.model.options())?;
        opened.notes.iter().for_each(|note| context.note(note));
        device = opened.device.to_string();
        let bar = context.bar("images", files.len());
        let found = embed::images(
            &files,
            encoder.image_size(),
            args.batch_size.into(),
            &mut |images| encoder.embed(images),
            &mut |done| bar.set_position(done as u64),
        );
        bar.finish_and_clear();
        let found = found?;
        unreadable = report_unreadable(&files, &found, context)?;
        let paths: Vec<_> = found.files.iter().map(|&file| files[file].to_string_lossy()).collect();
        metadata.insert("paths".into(), serde_json::to_string(&paths)?);
        images = paths.len();
        tensor("images", found.embeddings);
    }
    if let Some(texts) = &texts {
        let encoder = TextEncoder::open(path, &args.model.options())?;
        device = encoder.opened().device.to_string();
        let (encoded, cut) = embed::encode(&Tokenizer::bert(), texts, encoder.text_len())?;
        if cut > 0 {
            let len = encoder.text_len();
            let (of, were) = (count(texts.len(), "text", "texts"), if cut == 1 { "was" } else { "were" });
            context.note(format_args!("{cut} of {of} {were} longer than {len} tokens and cut"));
        }
        metadata.insert("texts".into(), serde_json::to_string(texts)?);
        tensor("texts", encoder.embed(&encoded, args.batch_size.into())?);
    }
    let from = json!({
        "file": path.file_name().map(|name| name.to_string_lossy()),
        "content_digest": formats::content_digest(&checkpoint, super::threads())?,
    });
    metadata.insert("engine.checkpoint".into(), from.to_string());
    save::write(target.path(), tensors, &metadata)?;
    let texts = texts.map_or(0, |texts| texts.len());
    if args.json.json {
        let unreadable: Vec<_> = unreadable.iter().map(|(path, cause)| json!({"path": path, "cause": cause})).collect();
        let report = json!({
            "output": output, "images": images, "texts": texts, "unreadable": unreadable, "device": device,
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let (images, texts) = (count(images, "image", "images"), count(texts, "text", "texts"));
    let written = output::shown(output);
    target.finish(context, format!("embeddings of {images} and {texts} written to {written}, computed on {device}\n"))
}

/// Folders become the images in them.
fn files(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        let about = std::fs::metadata(path).map_err(|e| formats::Error::io(path, "read", e))?;
        if !about.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = embed::list_images(path)?;
        if found.is_empty() {
            bail!("{}: there are no images (JPEG, PNG, WebP, GIF or BMP) in this folder", show_path(path));
        }
        files.extend(found.into_iter().map(|file| file.path));
    }
    Ok(files)
}

/// Names the files that can't be read as images, with the reason.
fn report_unreadable(files: &[PathBuf], found: &Embedded, context: &Context) -> Result<Vec<(String, String)>> {
    let named: Vec<(String, String)> = found
        .unreadable
        .iter()
        .map(|file| (files[file.file].to_string_lossy().into_owned(), file.cause.clone()))
        .collect();
    if embed::too_many_unreadable(named.len(), files.len()) {
        let (path, cause) = &named[0];
        let first = format!("{}: {}", show_name(path), show_name(cause));
        let of = files.len();
        match named.len() {
            1 if of == 1 => bail!("{first}"),
            count if count == of => bail!("none of the {of} images can be read; the first is {first}"),
            count => bail!("{count} of {of} images can't be read, which is more than 1 %; the first is {first}"),
        }
    }
    for (path, cause) in &named {
        context.note(format_args!("left out: {}: {}", show_name(path), show_name(cause)));
    }
    Ok(named)
}
