//! `engine search`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use engine::device::Choice;
use engine::embed;
use engine::image;
use engine::model::open::Options;
use engine::model::tower::TextEncoder;
use engine::report::{self, terminal::count};
use engine::search::{self, Changes, Hit, Index, Search};
use engine::text::Tokenizer;
use formats::{show_name, show_path};
use serde_json::json;

use super::Context;
use super::output::Target;
use crate::Report;
use crate::cli::{JsonArg, ModelArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine search irtr.safetensors --images photos --query \"a dog on a beach\"
  engine search irtr.safetensors --images photos --query \"a dog on a beach\" \\
      --top 50 --html found.html

The first search embeds every image and keeps the embeddings beside the images, in DIR/.engine-search.safetensors; \
later searches read only images that are new or have changed. Another checkpoint rebuilds this index.")]
pub struct Args {
    /// The checkpoint, with a retrieval head; or the folder of a run.
    pub checkpoint: PathBuf,
    /// The folder of images, searched with all folders below it.
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// What to look for.
    #[arg(long, value_name = "TEXT")]
    pub query: String,
    /// How many images to show, the most similar first.
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// Also write an HTML page with thumbnails and scores; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Replace that page if it exists.
    #[arg(long, requires = "html")]
    pub force: bool,
    /// The index file [default: .engine-search.safetensors in the folder of images].
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// Images per batch while embedding.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub json: JsonArg,
}

/// Pixels along the longer side of a thumbnail.
const THUMBNAIL: usize = 320;

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let place = args.index.clone().unwrap_or_else(|| args.images.join(search::FILE));
    if place.extension().is_none_or(|ending| ending != "safetensors") {
        bail!("--index {}: an index is a safetensors file; let its name end in .safetensors", show_path(&place));
    }
    if args.query.trim().is_empty() {
        bail!("--query is empty: say what to look for");
    }
    let checkpoint = &context.checkpoint(&args.checkpoint)?;
    let reads: [&Path; 3] = [checkpoint, &args.images, &place];
    let page = args.html.as_deref().map(|html| Target::text(html, args.force, &reads)).transpose()?;
    let options = args.model.options();
    let search = Search {
        checkpoint,
        options: &options,
        folder: &args.images,
        index: &place,
        batch_size: args.batch_size.into(),
    };
    // Neither waits for the other: reading the text's part of a checkpoint takes longest, once there is an index.
    let (query, plan) = std::thread::scope(|scope| {
        let query = scope.spawn(|| embed_query(checkpoint, args, &options, context));
        let plan = search::plan(&search);
        (query.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), plan)
    });
    // Before hours of work on images, for which both must be right.
    let (plan, query) = (plan?, query?);
    let mut bar = None;
    let found = plan.carry_out(&search, &mut |done, of| {
        bar.get_or_insert_with(|| context.bar("images", of)).set_position(done as u64);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let (index, changes) = found?;
    say(&index, &changes, &place, context);
    let hits = index.nearest(&query, args.top as usize)?;
    let mut sent = false;
    if let Some(page) = &page {
        write_page(page.path(), args, &hits)?;
        sent = page.send()?;
    }
    if args.json.json {
        let found: Vec<_> = hits
            .iter()
            .map(|hit| json!({"path": args.images.join(hit.name), "score": super::rounded(hit.score)}))
            .collect();
        let unreadable: Vec<_> = index
            .unreadable()
            .map(|entry| json!({"path": args.images.join(&entry.name), "cause": entry.problem()}))
            .collect();
        let report = json!({
            "query": args.query, "results": found, "html": args.html,
            "index": {
                "file": place, "images": index.readable(), "read_now": changes.read, "forgotten": changes.forgotten,
                "rebuilt": changes.rebuilt, "unreadable": unreadable,
            },
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let mut text = String::new();
    for hit in &hits {
        text += &format!("{:>7.4}  {}\n", hit.score, show_path(&args.images.join(hit.name)));
    }
    if sent {
        // Standard output is the page.
        text.lines().for_each(|line| context.note(line));
        return Ok(Report::done(""));
    }
    if let Some(html) = args.html.as_deref().filter(|_| !context.quiet) {
        text += &format!("the page is {}\n", show_path(html));
    }
    Ok(Report::done(text))
}

/// The query's embedding. One text isn't worth waking a card for.
fn embed_query(checkpoint: &Path, args: &Args, options: &Options, context: &Context) -> Result<Vec<f32>> {
    let device = if options.device == Choice::Auto { Choice::Cpu } else { options.device };
    let encoder = TextEncoder::open(checkpoint, &Options { device, ..options.clone() })?;
    encoder.opened().device.warning(options.precision).into_iter().for_each(|warning| context.note(warning));
    let (texts, cut) = embed::encode(&Tokenizer::bert(), &[&args.query], encoder.text_len())?;
    if cut > 0 {
        context.note(format_args!("the query is longer than {} tokens and is cut", encoder.text_len()));
    }
    Ok(encoder.embed(&texts, 1)?.values)
}

fn say(index: &Index, changes: &Changes, place: &Path, context: &Context) {
    if let Some(reason) = &changes.rebuilt {
        context.note(format_args!("{}: the index was rebuilt: {reason}", show_path(place)));
    }
    if let Some(reason) = &changes.unsaved {
        context.note(format_args!("the index could not be brought up to date: {reason}"));
    }
    if changes.read > 0 || changes.forgotten > 0 {
        let (gone, all) = (changes.forgotten, index.readable());
        let read = count(changes.read, "image", "images");
        let removed = if gone > 0 { format!(", {gone} removed that no longer exist") } else { String::new() };
        context.note(format_args!("{read} read{removed}; the index has {all}"));
    }
    let mut unreadable = index.unreadable();
    if let Some(first) = unreadable.next() {
        let more = match unreadable.count() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        context.note(format_args!("cannot read {}: {}{more}", show_name(&first.name), show_name(first.problem())));
    }
}

fn write_page(path: &Path, args: &Args, hits: &[Hit]) -> Result<()> {
    let pictures: Vec<Vec<u8>> = hits
        .iter()
        .map(|hit| {
            let image = image::open(args.images.join(hit.name)).ok();
            // One that has gone meanwhile is shown as such.
            image.and_then(|image| image::thumbnail(&image, THUMBNAIL)).unwrap_or_default()
        })
        .collect();
    let shown = hits.iter().zip(&pictures).map(|(hit, image)| report::Hit { title: hit.name, score: hit.score, image });
    let page = report::gallery(&args.query, &shown.collect::<Vec<_>>());
    formats::write::write_file(path, page.as_bytes()).context("the page")
}
