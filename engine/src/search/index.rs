//! The index file: safetensors with one tensor, `embeddings` [readable images, d], and the rest as JSON in its metadata.

use std::collections::BTreeMap;
use std::path::Path;

use formats::write::Metadata;
use formats::{Checkpoint, show_name};
use serde::{Deserialize, Serialize};

use crate::batch::Matrix;
use crate::embed::{Embedded, ImageFile, modified};
use crate::model::save::{HostTensor, write};

/// The metadata's key.
const KEY: &str = "engine.search";
/// Of the file's layout; another one is made anew.
const VERSION: u32 = 1;
const EMBEDDINGS: &str = "embeddings";

/// A folder's images and their embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    pub made: MadeWith,
    /// By name.
    pub entries: Vec<Entry>,
    /// A row for each entry that could be read, in the same order; each of length 1.
    pub embeddings: Matrix,
}

/// What embeddings depend on beside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    /// The checkpoint's content digest ([`formats::content_digest`]).
    pub digest: String,
    /// Its files when the digest was taken.
    pub stamp: Stamp,
    /// `--image-size`, where it was given.
    pub image_size: Option<usize>,
    pub precision: String,
    /// Whether orientation marks of photographs were applied; earlier versions ignored them.
    #[serde(default)]
    pub upright: bool,
}

/// Sizes and times of change of a checkpoint's files, and where its tensors are: while these stay, so do its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    root: String,
    files: Vec<(u64, i64)>,
}

impl Stamp {
    /// # Errors
    /// A file of the checkpoint is gone.
    pub fn of(checkpoint: &Checkpoint) -> formats::Result<Stamp> {
        let stamp = |path: &Path| {
            let about = std::fs::metadata(path).map_err(|e| formats::Error::io(path, "read", e))?;
            Ok((about.len(), modified(&about)))
        };
        Ok(Stamp {
            root: checkpoint.root().to_owned(),
            files: checkpoint.paths().map(stamp).collect::<Result<_, _>>()?,
        })
    }
}

/// An image of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Within the folder.
    pub name: String,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// Why it couldn't be read, if it couldn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl Entry {
    /// What is wrong with it; empty if nothing is.
    pub fn problem(&self) -> &str {
        self.cause.as_deref().unwrap_or_default()
    }

    /// It was made of this file as it is.
    fn is_of(&self, file: &ImageFile) -> bool {
        self.name == file.name && self.bytes == file.bytes && self.modified == file.modified
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    made: MadeWith,
    entries: Vec<Entry>,
}

/// Why a file can't be used as an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    Missing,
    /// An index, but a damaged one.
    Damaged(String),
    /// Something else, not to be overwritten.
    Other(String),
}

impl Index {
    /// Of no images.
    pub fn new(made: MadeWith) -> Index {
        Index { made, entries: Vec::new(), embeddings: Matrix::default() }
    }

    /// # Errors
    /// [`Unusable`]
    pub fn read(path: &Path) -> Result<Index, Unusable> {
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Unusable::Missing),
            Ok(about) if about.is_dir() => return Err(Unusable::Other("a folder".into())),
            _ => {}
        }
        // What can't be read may be a damaged index; but not under a name that indexes don't have.
        let named = path.extension().is_some_and(|ending| ending == "safetensors");
        let file = match formats::open(path) {
            Ok(file) => file,
            Err(e) if named => return Err(Unusable::Damaged(reason(&e))),
            Err(e) => return Err(Unusable::Other(reason(&e))),
        };
        let Some(text) = file.metadata().get(KEY) else {
            return Err(Unusable::Other("it holds something else".into()));
        };
        let damaged = |reason: String| Unusable::Damaged(show_name(&reason));
        let record: Record = serde_json::from_str(text).map_err(|e| damaged(format!("its record: {e}")))?;
        if record.version != VERSION {
            return Err(damaged(format!("it is of version {}, this program's are {VERSION}", record.version)));
        }
        if !record.entries.is_sorted_by(|a, b| a.name < b.name) {
            return Err(damaged("its names are out of order".into()));
        }
        let rows = record.entries.iter().filter(|entry| entry.cause.is_none()).count();
        let at = file.position(EMBEDDINGS).ok_or_else(|| damaged("its embeddings are missing".into()))?;
        let info = &file.tensors()[at];
        let [found, columns] = info.shape[..] else {
            return Err(damaged(format!("its embeddings are {:?}", info.shape)));
        };
        if found != rows {
            return Err(damaged(format!("it has {found} embeddings of {rows} images")));
        }
        let mut values = Vec::new();
        file.read_f32(at, 0..info.elements(), &mut values).map_err(|e| damaged(reason(&e)))?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(damaged("its embeddings are not numbers".into()));
        }
        Ok(Index { made: record.made, entries: record.entries, embeddings: Matrix { rows, columns, values } })
    }

    /// Writes it under a temporary name first.
    ///
    /// # Errors
    /// The folder can't be written to or the disk is full; what stood there before is still there.
    pub fn write(&self, path: &Path) -> formats::Result<()> {
        let record = Record { version: VERSION, made: self.made.clone(), entries: self.entries.clone() };
        let record = serde_json::to_string(&record).map_err(|e| formats::Error::file(path, e.to_string()))?;
        let Matrix { rows, columns, values } = &self.embeddings;
        let tensor = HostTensor { name: EMBEDDINGS.into(), shape: vec![*rows, *columns], values: values.clone() };
        write(path, vec![tensor], &Metadata::from([(KEY.to_owned(), record)]))
    }

    /// Entries of files that are as they were are kept. Returns the rest too: positions of the files to read, and how
    /// many files of the index are gone.
    pub fn compared(self, files: &[ImageFile]) -> (Index, Vec<usize>, usize) {
        let by_name: BTreeMap<&str, usize> =
            files.iter().enumerate().map(|(at, file)| (file.name.as_str(), at)).collect();
        let columns = self.embeddings.columns;
        let mut kept =
            Index { entries: Vec::new(), embeddings: Matrix { rows: 0, columns, values: Vec::new() }, ..self };
        let mut todo: Vec<bool> = vec![true; files.len()];
        let (mut row, mut gone) = (0, 0);
        for entry in self.entries {
            let own = entry.cause.is_none().then_some(row);
            row += usize::from(own.is_some());
            match by_name.get(entry.name.as_str()) {
                Some(&at) if entry.is_of(&files[at]) => {
                    todo[at] = false;
                    if let Some(own) = own {
                        kept.embeddings.rows += 1;
                        kept.embeddings.values.extend_from_slice(&self.embeddings.values[own * columns..][..columns]);
                    }
                    kept.entries.push(entry);
                }
                Some(_) => {}
                None => gone += 1,
            }
        }
        (kept, (0..files.len()).filter(|&at| todo[at]).collect(), gone)
    }

    /// Takes in files that were embedded; none of them may be there already.
    pub fn add(&mut self, files: &[&ImageFile], found: Embedded) {
        let columns = found.embeddings.columns.max(self.embeddings.columns);
        let mut all: Vec<(Entry, Option<Vec<f32>>)> = Vec::with_capacity(self.entries.len() + files.len());
        let mut rows = self.embeddings.values.chunks_exact(columns.max(1)).map(<[f32]>::to_vec);
        for entry in self.entries.drain(..) {
            let row = if entry.cause.is_none() { rows.next() } else { None };
            all.push((entry, row));
        }
        drop(rows);
        let entry = |file: usize, cause: Option<String>| Entry {
            name: files[file].name.clone(),
            bytes: files[file].bytes,
            modified: files[file].modified,
            cause,
        };
        for (row, &file) in found.files.iter().enumerate() {
            all.push((entry(file, None), Some(found.embeddings.row(row).to_vec())));
        }
        all.extend(found.unreadable.into_iter().map(|file| (entry(file.file, Some(file.cause)), None)));
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        self.embeddings = Matrix { rows: 0, columns, values: Vec::with_capacity(all.len() * columns) };
        for (entry, row) in all {
            if let Some(row) = row {
                self.embeddings.rows += 1;
                self.embeddings.values.extend(row);
            }
            self.entries.push(entry);
        }
    }

    /// Images that could be read.
    pub fn readable(&self) -> usize {
        self.embeddings.rows
    }

    /// Images that couldn't be.
    pub fn unreadable(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.cause.is_some())
    }
}

/// What is wrong, without the file's name, which the message has already.
fn reason(error: &formats::Error) -> String {
    match error {
        // On one line, whatever the library that read it says.
        formats::Error::File { reason, .. } => show_name(&reason.split_whitespace().collect::<Vec<_>>().join(" ")),
        formats::Error::Io { action, error, .. } => format!("cannot {action}: {}", error.kind()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::Unreadable;

    fn made() -> MadeWith {
        let stamp = Stamp { root: ".".into(), files: vec![(3, 4)] };
        MadeWith { digest: "ab".into(), stamp, image_size: None, precision: "f32".into(), upright: true }
    }

    fn file(name: &str, modified: i64) -> ImageFile {
        ImageFile { name: name.into(), path: name.into(), bytes: 5, modified }
    }

    fn found(files: &[usize], values: &[f32], unreadable: &[usize]) -> Embedded {
        let unreadable = unreadable.iter().map(|&file| Unreadable { file, cause: "broken".into() }).collect();
        let embeddings = Matrix { rows: files.len(), columns: 2, values: values.to_vec() };
        Embedded { files: files.to_vec(), embeddings, unreadable }
    }

    fn names(index: &Index) -> Vec<&str> {
        index.entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn new_changed_and_deleted_files() {
        let (a, b, c, d) = (file("a", 1), file("b", 1), file("c", 1), file("d", 1));
        let mut index = Index::new(made());
        index.add(&[&d, &b, &c], found(&[0, 1], &[4.0, 4.5, 2.0, 2.5], &[2]));
        assert_eq!((names(&index), index.readable()), (vec!["b", "c", "d"], 2));
        assert_eq!(index.embeddings.values, [2.0, 2.5, 4.0, 4.5]);
        // c has been repaired, a is new, d is gone.
        let files = [a, b, file("c", 2)];
        let (mut index, todo, gone) = index.compared(&files);
        assert_eq!((names(&index), &index.embeddings.values[..]), (vec!["b"], &[2.0, 2.5][..]));
        assert_eq!((todo, gone), (vec![0, 2], 1));
        index.add(&[&files[0], &files[2]], found(&[0, 1], &[1.0, 1.5, 3.0, 3.5], &[]));
        assert_eq!(names(&index), ["a", "b", "c"]);
        assert_eq!(index.embeddings.values, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        let (same, todo, gone) = index.clone().compared(&files);
        assert_eq!((same, todo, gone), (index, vec![], 0));
    }

    #[test]
    fn written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i.safetensors");
        assert_eq!(Index::read(&path), Err(Unusable::Missing));
        let mut index = Index::new(made());
        index.write(&path).unwrap();
        index.add(&[&file("a\n\"é", 1), &file("b", -1)], found(&[0], &[0.5, -0.5], &[1]));
        index.write(&path).unwrap();
        assert_eq!(Index::read(&path).unwrap(), index);
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(matches!(Index::read(&path), Err(Unusable::Damaged(_))), "{cut}");
        }
        // Another number in place of a finite one.
        let mut nan = bytes.clone();
        let end = nan.len();
        nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, &nan).unwrap();
        assert!(matches!(Index::read(&path), Err(Unusable::Damaged(_))));
    }

    #[test]
    fn other_files_are_not_taken_for_damaged_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let tensor = HostTensor { name: "w".into(), shape: vec![1], values: vec![1.0] };
        write(&path, vec![tensor], &Metadata::default()).unwrap();
        assert!(matches!(Index::read(&path), Err(Unusable::Other(_))));
        let photo = folder.path().join("photo.jpg");
        std::fs::write(&photo, b"\xff\xd8\xff").unwrap();
        assert!(matches!(Index::read(&photo), Err(Unusable::Other(_))));
        assert!(matches!(Index::read(folder.path()), Err(Unusable::Other(_))));
    }

    #[test]
    fn the_nearest_come_first() {
        let mut index = Index::new(made());
        let files = [file("a", 1), file("b", 1), file("c", 1), file("d", 1)];
        let files: Vec<&ImageFile> = files.iter().collect();
        index.add(&files, found(&[0, 2, 3], &[1.0, 0.0, 0.0, 1.0, 0.6, 0.8], &[1]));
        let hits = index.nearest(&[0.6, 0.8], 2).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.name).collect::<Vec<_>>(), ["d", "c"]);
        assert!((hits[0].score - 1.0).abs() < 1e-6 && (hits[1].score - 0.8).abs() < 1e-6);
        assert!(index.nearest(&[1.0], 2).is_err());
    }
}
