//! Arrow files from the official downloads, as the Python code writes and reads them.
//!
//! Every builder reads annotations and lists images, and comes to a [`Plan`]: which file gets which rows. [`build`]
//! then reads the images on all cores and writes file after file, each under a temporary name until it is whole.
//! Finished files are kept, so that a run that was interrupted goes on where it was; the plan's digest in a file tells
//! whether it is the same one.

mod captions;
mod coco;
mod easy_vqa;
mod imagenet;
mod listing;
mod nlvr2;
#[cfg(test)]
mod tests;
mod vg;
mod vqav2;
mod write;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::unmarked;
use super::{Error, Result};
use write::Row;

/// A data set that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Source {
    /// ROOT/train2014, ROOT/val2014, ROOT/karpathy/dataset_coco.json
    Coco,
    /// ROOT/flickr30k-images, ROOT/karpathy/dataset_flickr30k.json
    F30k,
    /// ROOT/train2014, val2014, test2015; ROOT/v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json
    Vqav2,
    /// ROOT/images/train, ROOT/dev, ROOT/test1; ROOT/nlvr2/data
    Nlvr2,
    /// ROOT/images/VG_100K, VG_100K_2; ROOT/annotations/region_descriptions.json
    Vg,
    /// ROOT/images_train/*/*, ROOT/annot.json
    Sbu,
    /// ROOT/images_train/*/*, images_val/*/*; ROOT/train_annot.json, val_annot.json
    Gcc,
    /// ROOT/train/CLASS/*.JPEG; ROOT/val likewise, or flat with LOC_val_solution.csv
    Imagenet,
    /// The wheel easy_vqa-*.whl, or the package's folder
    EasyVqa,
}

/// How to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// Build again what is there already.
    pub force: bool,
    /// Rows in a file of those data sets that are split into several; the Python code's 100,000.
    pub shard_rows: usize,
    /// Rows of VQAv2's val that make up `rest_val`; the Python code's 1,000.
    pub rest_rows: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { force: false, shard_rows: 100_000, rest_rows: 1000 }
    }
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub files: Vec<BuiltFile>,
    pub checks: Vec<Check>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// A file of the data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuiltFile {
    pub file: String,
    /// Images; pairs for NLVR2. Labels, where it is a list of them.
    pub rows: usize,
    /// Captions, questions or sentences.
    pub texts: usize,
    pub bytes: u64,
    /// It was there already.
    pub kept: bool,
}

/// What was expected on both sides, and what was only on one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Such as `images of train2014`.
    pub what: String,
    pub matched: usize,
    /// In the annotations only: left out.
    pub missing: Vec<String>,
    /// Number of those; `missing` holds the first few.
    pub missing_count: usize,
    /// Not in the annotations: left out.
    pub unannotated: usize,
}

/// Missing things that are named.
const NAMED: usize = 5;

impl Check {
    fn new(what: impl Into<String>) -> Check {
        Check { what: what.into(), ..Check::default() }
    }

    fn miss(&mut self, name: impl Into<String>) {
        self.missing_count += 1;
        if self.missing.len() < NAMED {
            self.missing.push(name.into());
        }
    }
}

/// Files to write, and what was noticed on the way to them.
struct Plan {
    files: Vec<PlannedFile>,
    /// Labels: a JSON file's name and its content.
    labels: Option<(String, Vec<String>)>,
    checks: Vec<Check>,
    notes: Vec<String>,
}

struct PlannedFile {
    /// Without `.arrow`.
    name: String,
    columns: &'static [write::Column],
    rows: Vec<Row>,
}

/// How far it is: the file, rows written and rows to write.
pub type Progress<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// Builds a data set from the download in `root` into the folder `out`, which is made where it isn't there.
///
/// # Errors
/// An annotation file is missing or malformed, there is no image at all, a file can't be written,
/// or one of that name holds something else and `force` is not set.
pub fn build(source: Source, root: &Path, out: &Path, options: &Options, progress: Progress) -> Result<Report> {
    if options.shard_rows == 0 {
        return Err(Error::Argument("a file of 0 rows holds nothing".into()));
    }
    std::fs::metadata(root).map_err(|e| Error::io(root, "open", e))?;
    let plan = match source {
        Source::Coco => coco::plan(root),
        Source::F30k => coco::plan_f30k(root),
        Source::Vqav2 => vqav2::plan(root, options),
        Source::Nlvr2 => nlvr2::plan(root),
        Source::Vg => vg::plan(root),
        Source::Sbu => captions::plan_sbu(root, options),
        Source::Gcc => captions::plan_gcc(root, options),
        Source::Imagenet => imagenet::plan(root, options),
        Source::EasyVqa => easy_vqa::plan(root),
    }?;
    if plan.checks.iter().all(|check| check.matched == 0) {
        let (missing, what) = match plan.checks.first() {
            Some(check) if check.missing_count > 0 => (format!(", such as {}", check.missing[0]), &*check.what),
            Some(check) => (String::new(), &*check.what),
            None => (String::new(), "images"),
        };
        return Err(Error::file(root, format!("none of the annotated {what} is there{missing}")));
    }
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, "make", e))?;
    let Plan { mut files, labels, mut checks, mut notes } = plan;
    files.retain(|file| {
        if file.rows.is_empty() {
            let older = out.join(format!("{}.arrow", file.name)).exists();
            let older = if older { "; the file of that name is from an earlier build" } else { "" };
            let root = formats::show_path(root);
            notes.push(format!("{} is not built: there is nothing of it in {root}{older}", file.name));
        }
        !file.rows.is_empty()
    });
    let mut built = Vec::with_capacity(files.len() + 1);
    let mut unreadable = Check::new("images that can be read");
    for file in &files {
        built.push(write::write(file, out, options.force, progress, &mut unreadable)?);
    }
    if unreadable.missing_count > 0 {
        checks.push(unreadable);
    }
    if let Some((name, labels)) = labels {
        built.push(write::labels(&out.join(name), &labels, options.force)?);
    }
    Ok(Report { files: built, checks, notes })
}

/// Reads a JSON file of a known shape.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(unmarked(&bytes)).map_err(|e| Error::file(path, format!("not as expected: {e}")))
}

/// Reads a file with a JSON value of a known shape on each line.
fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line)
                .map_err(|e| Error::file(path, format!("line {}: not as expected: {e}", number + 1)))
        })
        .collect()
}

/// Puts things into an order that is the same each time but has nothing to do with their names, as the Python code
/// shuffles images before it writes them: neighbours in a data set are alike, and the last rows of VQAv2's val are to
/// stand for all of it.
fn shuffle<T>(things: Vec<T>) -> Vec<T> {
    let order = super::order::permutation(things.len(), 0, 0);
    let mut things: Vec<Option<T>> = things.into_iter().map(Some).collect();
    order.into_iter().filter_map(|index| things.get_mut(index as usize)?.take()).collect()
}

/// Splits rows into files of at most `shard_rows`, the first numbered 0.
fn shards(name: &str, columns: &'static [write::Column], rows: Vec<Row>, shard_rows: usize) -> Vec<PlannedFile> {
    let mut files = Vec::new();
    let mut rows = rows.into_iter();
    loop {
        let shard: Vec<Row> = rows.by_ref().take(shard_rows).collect();
        if shard.is_empty() && !files.is_empty() {
            return files;
        }
        files.push(PlannedFile { name: format!("{name}_{}", files.len()), columns, rows: shard });
    }
}

/// A folder that has to be there.
fn folder(root: &Path, name: &str) -> Result<PathBuf> {
    let folder = root.join(name);
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(Error::file(root, format!("there is no folder {name} in it"))),
    }
}
