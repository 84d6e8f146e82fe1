//! `engine data`: building data sets from downloads, and looking into them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use comfy_table::{CellAlignment, Table, presets};
use engine::data::build::{self, Check, Options, Report, Source};
use engine::data::inspect::{self, Inspection, Set};
use engine::report::terminal::{MESSAGE, bar_style, count, end_of, wrapped};
use formats::{show_name, show_path};
use indicatif::ProgressBar;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  engine data build coco downloads/coco -o arrows
  engine data inspect arrows")]
pub enum Command {
    /// Turn an official download into Arrow files that this program and the Python code read.
    Build(BuildArgs),
    /// Show data sets, splits, columns, labels and broken rows.
    Inspect(InspectArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine data build coco downloads/coco -o arrows
  engine data build vqav2 downloads/vqav2 -o arrows
  engine data build easy-vqa easy_vqa-1.0-py3-none-any.whl -o arrows

An interrupted build continues where it was when it is started again.")]
pub struct BuildArgs {
    /// The data set to build.
    #[arg(value_enum)]
    pub source: Source,
    /// The folder that the download was unpacked in.
    pub root: PathBuf,
    /// The folder to write to.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Build files again that are there already.
    #[arg(long)]
    pub force: bool,
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine data inspect arrows
  engine data inspect arrows --images
  engine data inspect photos/train.jsonl --json
  engine data inspect toy")]
pub struct InspectArgs {
    /// A folder of Arrow or JSONL files or of one folder of images for each class, a single Arrow or JSONL file, easy-VQA's
    /// wheel, or toy for the built-in data set.
    pub path: PathBuf,
    /// Decode every image.
    #[arg(long)]
    pub images: bool,
    /// Print JSON for machines.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command and returns the text for stdout. `decode` says what is wrong with an encoded image; with `quiet`
/// there is no progress bar and no summary of what was built.
pub fn run(command: &Command, decode: inspect::Check, quiet: bool) -> Result<String> {
    match command {
        Command::Build(args) => {
            let bar = Bar::new(quiet);
            let options = Options { force: args.force, ..Options::default() };
            let progress = |file: &str, done: usize, of: usize| bar.show(file, done, of);
            let report = build::build(args.source, &args.root, &args.output, &options, &progress);
            bar.bar.finish_and_clear();
            let report = report?;
            Ok(match args.json {
                true => serde_json::to_string_pretty(&report)? + "\n",
                false if quiet => String::new(),
                false => built(&report),
            })
        }
        Command::Inspect(args) => {
            let found = inspect::inspect(&args.path, args.images.then_some(decode))?;
            Ok(match args.json {
                true => serde_json::to_string_pretty(&found)? + "\n",
                false => inspected(&found),
            })
        }
    }
}

/// Columns of a terminal that most people have.
const WIDTH: usize = 80;

/// Rows written, file by file.
struct Bar {
    bar: ProgressBar,
    file: Mutex<String>,
}

impl Bar {
    fn new(quiet: bool) -> Bar {
        // indicatif draws nothing by itself where stderr is no terminal.
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0).with_style(bar_style("rows")) };
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar { bar, file: Mutex::default() }
    }

    fn show(&self, file: &str, done: usize, of: usize) {
        let mut shown = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != file {
            *shown = file.into();
            self.bar.reset();
            self.bar.set_message(end_of(file, MESSAGE));
        }
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }
}

fn built(report: &Report) -> String {
    let mut table = table(&["file", "rows", "texts", "size", ""], &[1, 2, 3]);
    for file in &report.files {
        let state = if file.kept { "was there" } else { "built" };
        let texts = if file.texts == 0 { String::new() } else { file.texts.to_string() };
        table.add_row([show_name(&file.file), file.rows.to_string(), texts, size(file.bytes), state.into()]);
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    for check in &report.checks {
        text += &checked(check);
    }
    for note in &report.notes {
        text += &format!("note: {}\n", show_name(note));
    }
    text
}

fn checked(check: &Check) -> String {
    let Check { what, matched, missing, missing_count, unannotated } = check;
    let mut text = format!("{what}: {matched} matched");
    if *missing_count > 0 {
        let named: Vec<String> = missing.iter().map(|name| show_name(name)).collect();
        let more = if missing.len() < *missing_count { ", …" } else { "" };
        text += &format!("; {missing_count} missing ({}{more})", named.join(", "));
    }
    if *unannotated > 0 {
        text += &format!("; {unannotated} without annotation");
    }
    text + "\n"
}

fn inspected(found: &Inspection) -> String {
    let mut text = format!("{}\n", show_path(found.path.as_ref()));
    for set in &found.sets {
        text += &inspected_set(set);
    }
    for file in &found.files {
        text += &format!("\n{}, {}", show_name(&file.name), size(file.bytes));
        match &file.error {
            Some(error) => text += &format!("\n  can't be read: {}\n", show_name(error)),
            None => {
                let compressed = if file.compressed { ", compressed" } else { "" };
                let rows = count(file.rows, "row", "rows");
                let batches = count(file.record_batches, "record batch", "record batches");
                text += &format!(", {rows} in {batches}{compressed}\n");
                for column in &file.columns {
                    text += &format!("  {}  {}\n", show_name(&column.name), show_name(&column.kind));
                }
            }
        }
    }
    text
}

fn inspected_set(set: &Set) -> String {
    let name = if set.name.is_empty() { String::new() } else { format!("{}, ", show_name(&set.name)) };
    let mut text = format!("\n{name}for {}\n", set.task);
    let mut table = table(&["split", "examples", "images", "broken", "files"], &[1, 2, 3]);
    for split in &set.splits {
        let counts = [split.examples, split.images, split.broken].map(|count| count.to_string());
        let mut files = split.files.iter().map(|file| show_name(file));
        // A file a line: there may be many, with long names.
        table.add_row([show_name(&split.name)].into_iter().chain(counts).chain([files.next().unwrap_or_default()]));
        for file in files {
            table.add_row([const { String::new() }; 4].into_iter().chain([file]));
        }
    }
    text += &format!("{}\n", table.trim_fmt());
    if !set.labels.is_empty() {
        let first: Vec<String> = set.labels.iter().take(8).map(|label| show_name(label)).collect();
        let more = if set.labels.len() > first.len() { ", …" } else { "" };
        let labels = count(set.labels.len(), "label", "labels");
        text += &format!("{}\n", wrapped(&format!("{labels}: {}{more}", first.join(", ")), 2, WIDTH));
    }
    for split in &set.splits {
        if let Some(error) = &split.error {
            text += &format!("{} can't be used: {}\n", show_name(&split.name), show_name(error));
        }
        for row in split.broken_rows.iter().take(5) {
            text += &format!("broken: {row}\n");
        }
    }
    text
}

fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let shown = [0, 999, 1000, 1_460_000, 13_000_000_000].map(size);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "1.5 MB", "13.0 GB"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = vec!["a".to_string()];
        let check = Check { what: "images".into(), matched: 3, missing, missing_count: 2, unannotated: 1 };
        assert_eq!(checked(&check), "images: 3 matched; 2 missing (a, …); 1 without annotation\n");
    }
}
