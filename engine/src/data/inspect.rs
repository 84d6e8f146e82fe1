//! What lies at a path: data sets, splits, columns, labels, broken rows.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::arrow::ArrowFile;
use super::open::refuse_copies;
use super::{BrokenRow, Dataset, Example, Found, MAX_BROKEN, Opening, Result, SplitFiles, Task, open_as, survey};

/// A judge of encoded images: says what is wrong with one.
pub type Check<'a> = &'a (dyn Fn(&[u8]) -> std::result::Result<(), String> + Sync);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub path: String,
    pub sets: Vec<Set>,
    pub files: Vec<File>,
}

/// A data set for one task.
#[derive(Clone, Debug, Serialize)]
pub struct Set {
    pub name: String,
    pub task: &'static str,
    pub splits: Vec<Split>,
    /// The answers or classes, in order; empty where the task has none.
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Split {
    pub name: String,
    pub files: Vec<String>,
    /// Captions, questions, sentences or images.
    pub examples: usize,
    pub images: usize,
    pub rows: usize,
    pub broken: usize,
    /// The first of the broken rows.
    pub broken_rows: Vec<BrokenRow>,
    /// Why it can't be used.
    pub error: Option<String>,
}

/// An Arrow file.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    pub rows: usize,
    pub record_batches: usize,
    pub compressed: bool,
    pub columns: Vec<Column>,
    /// Why it can't be read.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// Looks at everything at `path`; with `check`, at every image too.
///
/// # Errors
/// There is nothing, or it can't be listed. What is wrong with a file or a split is in the result.
pub fn inspect(path: &Path, check: Option<Check>) -> Result<Inspection> {
    let sets = survey(path)?.iter().map(|found| set(path, found, check)).collect();
    let mut arrows = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(|e| super::Error::io(path, "list", e))?.flatten() {
            arrows.push(entry.path());
        }
        arrows.sort();
    } else if path.is_file() {
        arrows.push(path.into());
    }
    arrows.retain(|path| path.extension().is_some_and(|ending| ending == "arrow"));
    Ok(Inspection {
        path: path.to_string_lossy().into_owned(),
        sets,
        files: arrows.iter().map(|path| file(path)).collect(),
    })
}

fn set(path: &Path, found: &Found, check: Option<Check>) -> Set {
    let mut labels = Vec::new();
    let splits = found.splits.iter().map(|files| split(path, found.task, files, check, &mut labels)).collect();
    Set { name: found.set.clone(), task: found.task.name(), splits, labels }
}

fn split(path: &Path, task: Task, files: &SplitFiles, check: Option<Check>, labels: &mut Vec<String>) -> Split {
    let mut split = Split {
        name: files.split.clone(),
        files: files.files.iter().map(|file| name(file)).collect(),
        examples: 0,
        images: 0,
        rows: 0,
        broken: 0,
        broken_rows: Vec::new(),
        error: refuse_copies(&files.files).err().map(|e| e.to_string()),
    };
    for file in &files.files {
        // A file of its own is its split; what has several, or stands in a folder named after its split, is asked for it.
        let place = if file.is_file() && file.parent() == Some(path) { file } else { path };
        let opened = open_as(place, task, &files.split, &Opening { max_broken: 1.0, ..Opening::default() });
        let records = match opened {
            Ok(records) => records,
            Err(e) => {
                split.error.get_or_insert(e.to_string());
                continue;
            }
        };
        if let Some(check) = check {
            (0..records.images()).into_par_iter().for_each(|index| {
                if let Err(cause) = images_of(&records, index, check) {
                    // All of them may be broken here: they are counted.
                    let _ = records.skip_image(index, &cause);
                }
            });
        }
        let (broken, rows) = (records.broken().count(), records.broken().rows());
        if broken as f64 > MAX_BROKEN * rows as f64 {
            let most = 100.0 * MAX_BROKEN;
            split.error.get_or_insert(format!("{broken} of {rows} rows are broken, more than {most} %"));
        }
        split.examples += records.len();
        split.images += records.images();
        split.rows += records.broken().rows();
        split.broken += records.broken().count();
        split.broken_rows.extend(records.broken().sample());
        if records.labels().len() > labels.len() {
            *labels = records.labels().to_vec();
        }
    }
    split
}

/// Checks a row's image, or both of a pair.
fn images_of(records: &dyn Dataset, index: usize, check: Check) -> std::result::Result<(), String> {
    let image = records.image(index).map_err(|e| e.cause())?;
    check(&image.image)?;
    if records.task() == Task::Nlvr2
        && let Example::Nlvr2 { right, .. } = records.example(image.first).map_err(|e| e.cause())?
    {
        check(&right)?;
    }
    Ok(())
}

fn file(path: &Path) -> File {
    let mut file = File {
        name: name(path),
        bytes: std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
        rows: 0,
        record_batches: 0,
        compressed: false,
        columns: Vec::new(),
        error: None,
    };
    match ArrowFile::open(path) {
        Ok(arrow) => {
            file.rows = arrow.rows();
            file.record_batches = arrow.batches();
            file.compressed = arrow.compressed();
            let fields = arrow.schema().fields().iter();
            file.columns = fields
                .map(|field| Column { name: field.name().clone(), kind: field.data_type().to_string() })
                .collect();
        }
        Err(e) => file.error = Some(e.to_string()),
    }
    file
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VQA: &[u8] = include_bytes!("../../tests/fixtures/data/vqav2_train.arrow");
    const NLVR2: &[u8] = include_bytes!("../../tests/fixtures/data/nlvr2_dev.arrow");

    #[test]
    fn a_folder_with_a_damaged_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vqav2_train.arrow"), VQA).unwrap();
        std::fs::write(folder.path().join("vqav2_val.arrow"), &VQA[..3000]).unwrap();
        std::fs::write(folder.path().join("nlvr2_dev.arrow"), NLVR2).unwrap();
        let found = inspect(folder.path(), None).unwrap();
        let sets: Vec<_> = found.sets.iter().map(|set| (&*set.name, set.task, set.labels.len())).collect();
        assert_eq!(sets, [("nlvr2", "nlvr2", 0), ("vqav2", "vqa", 4)]);
        let split = &found.sets[1].splits[0];
        assert_eq!((&*split.name, split.examples, split.images, split.rows, split.broken), ("train", 3, 2, 2, 0));
        let files: Vec<_> = found.files.iter().map(|file| (&*file.name, file.rows, file.error.is_some())).collect();
        assert_eq!(
            files,
            [("nlvr2_dev.arrow", 1, false), ("vqav2_train.arrow", 2, false), ("vqav2_val.arrow", 0, true)]
        );
        assert_eq!(found.files[1].columns[3].kind, "List(List(Int64))");
    }

    #[test]
    fn a_copy_of_a_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["code224_nlvr2_dev.arrow", "nlvr2_dev.arrow"] {
            std::fs::write(folder.path().join(name), NLVR2).unwrap();
        }
        let found = inspect(folder.path(), None).unwrap();
        let error = found.sets[0].splits[0].error.as_ref().unwrap();
        assert!(error.contains("code224_nlvr2_dev.arrow and ") && error.contains("both are split 'dev'"), "{error}");
    }

    #[test]
    fn images_are_checked_where_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nlvr2_dev.arrow"), NLVR2).unwrap();
        let blue = |image: &[u8]| match image::load_from_memory(image).unwrap().into_rgb8().get_pixel(0, 0).0 {
            [0, 0, 255] => Err("too blue".to_string()),
            _ => Ok(()),
        };
        let found = inspect(folder.path(), Some(&blue)).unwrap();
        let split = &found.sets[0].splits[0];
        assert_eq!((split.broken, &*split.broken_rows[0].cause), (1, "too blue"), "the right image is");
        assert!(split.error.as_ref().unwrap().contains("1 of 1 rows are broken"));
    }
}
