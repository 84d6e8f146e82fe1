//! Text-to-image retrieval over a folder, with an index that is kept beside the images.
//!
//! The index holds the embedding of every image, its size and its time of change, and which checkpoint it was made
//! with. [`plan`] compares it with the folder, [`Plan::carry_out`] embeds what is new or changed and forgets what is
//! gone, [`Index::nearest`] answers a query.

mod index;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::{Checkpoint, show_path};

pub use index::{Entry, Index, MadeWith, Stamp, Unusable};

use crate::batch::Matrix;
use crate::embed::{self, ImageFile};
use crate::model::open::Options;
use crate::model::tower::ImageEncoder;

/// The index's name in a folder of images, hidden as tools' files are.
pub const FILE: &str = ".engine-search.safetensors";

/// Files that are embedded between two writings of the index: what an interrupted run keeps.
const STEP: usize = 1024;

/// What to search in, and by what.
pub struct Search<'a> {
    pub checkpoint: &'a Path,
    pub options: &'a Options,
    pub folder: &'a Path,
    /// Where the index is.
    pub index: &'a Path,
    pub batch_size: usize,
}

/// What bringing an index up to date came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that were embedded (or found unreadable) now.
    pub read: usize,
    /// Files that are gone.
    pub forgotten: usize,
    /// Why the index that was there couldn't be used.
    pub rebuilt: Option<String>,
    /// Why the index couldn't be written, though it is right.
    pub unsaved: Option<String>,
}

/// An index compared with its folder.
pub struct Plan {
    index: Index,
    files: Vec<ImageFile>,
    /// Positions of the files to embed.
    todo: Vec<usize>,
    changes: Changes,
    /// Whether the file differs from `index`.
    stale: bool,
}

/// Lists the folder, reads the index and finds out what there is to do. Reads no image; the checkpoint is read only to
/// see whether it is still the same one.
///
/// # Errors
/// The folder can't be listed or has no images, the checkpoint can't be read, or the index's place holds another kind
/// of file.
pub fn plan(search: &Search) -> Result<Plan> {
    let files = embed::list_images(search.folder)?;
    if files.is_empty() {
        bail!("{}: there are no images (JPEG, PNG, WebP, GIF or BMP) in this folder", show_path(search.folder));
    }
    let mut changes = Changes::default();
    let checkpoint = formats::open_root(search.checkpoint, search.options.root.as_deref())?;
    let (index, had) = previous(search, &checkpoint, &mut changes)?;
    let (index, todo, forgotten) = index.compared(&files);
    changes.forgotten = forgotten;
    changes.read = todo.len();
    let stale = forgotten > 0 || had.as_ref() != Some(&index.made);
    Ok(Plan { index, files, todo, changes, stale })
}

impl Plan {
    /// Does what there is to do and writes the index where anything changed. `progress` hears how many of how many files
    /// are embedded.
    ///
    /// # Errors
    /// The checkpoint has no head for retrieval, the index's place can't be written to while there is something to embed,
    /// or no image can be read.
    pub fn carry_out(self, search: &Search, progress: &mut dyn FnMut(usize, usize)) -> Result<(Index, Changes)> {
        let Plan { mut index, files, todo, mut changes, stale } = self;
        if !todo.is_empty() {
            writable(search.index)?;
            embed_into(&mut index, &files, &todo, search, progress)?;
        } else if stale {
            // The answer is right without it, only slower the next time.
            changes.unsaved = index.write(search.index).err().map(|e| e.to_string());
        }
        if index.readable() == 0 {
            let first = index.unreadable().next().map(|entry| format!("{}: {}", entry.name, entry.problem()));
            let first = formats::show_name(&first.unwrap_or_default());
            bail!("{}: none of its {} images can be read, such as {first}", show_path(search.folder), files.len());
        }
        Ok((index, changes))
    }
}

/// The index that is there, or an empty one, and what it says that it was made with.
fn previous(search: &Search, checkpoint: &Checkpoint, changes: &mut Changes) -> Result<(Index, Option<MadeWith>)> {
    let stamp = Stamp::of(checkpoint)?;
    let made = |digest: String| MadeWith {
        digest,
        stamp: stamp.clone(),
        image_size: search.options.image_size,
        precision: search.options.precision.to_string(),
        upright: true,
    };
    let digest = || -> Result<String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(formats::content_digest(checkpoint, threads)?)
    };
    let old = match Index::read(search.index) {
        Ok(old) => old,
        Err(Unusable::Missing) => return Ok((Index::new(made(digest()?)), None)),
        Err(Unusable::Other(reason)) => {
            bail!("{}: this is no search index ({reason}); name another file with --index", show_path(search.index));
        }
        Err(Unusable::Damaged(reason)) => {
            changes.rebuilt = Some(format!("it is damaged ({reason})"));
            return Ok((Index::new(made(digest()?)), None));
        }
    };
    let had = old.made.clone();
    // The same files, untouched: no need to read a gigabyte.
    let now = if had.stamp == stamp { made(had.digest.clone()) } else { made(digest()?) };
    changes.rebuilt = if had.digest != now.digest {
        Some("it was made with another checkpoint".into())
    } else if had.image_size != now.image_size {
        Some("it was made with another --image-size".into())
    } else if had.precision != now.precision {
        Some(format!("it was made in {}", formats::show_name(&had.precision)))
    } else if had.upright != now.upright {
        Some("it was made without turning photographs upright".into())
    } else {
        return Ok((Index { made: now, ..old }, Some(had)));
    };
    Ok((Index::new(now), None))
}

/// Fails before hours of work would be lost, not after.
fn writable(index: &Path) -> Result<()> {
    let folder = index.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) => {
            bail!("{}: the index can't be written here: {}; --index FILE puts it elsewhere", show_path(index), e.kind())
        }
    }
}

fn embed_into(
    index: &mut Index,
    files: &[ImageFile],
    todo: &[usize],
    search: &Search,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let (encoder, _) = ImageEncoder::open(search.checkpoint, search.options)?;
    for (step, chosen) in todo.chunks(STEP).enumerate() {
        let paths: Vec<PathBuf> = chosen.iter().map(|&file| files[file].path.clone()).collect();
        let mut done = |done: usize| progress(step * STEP + done, todo.len());
        let found = embed::images(
            &paths,
            encoder.image_size(),
            search.batch_size,
            &mut |images| encoder.embed(images),
            &mut done,
        )?;
        let names: Vec<&ImageFile> = chosen.iter().map(|&file| &files[file]).collect();
        index.add(&names, found);
        index.write(search.index).with_context(|| "the index")?;
    }
    Ok(())
}

/// An image that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit<'a> {
    pub name: &'a str,
    /// The cosine of the angle between its embedding and the query's, −1 to 1.
    pub score: f32,
}

impl Index {
    /// The `top` images nearest to a query's embedding, the nearest first.
    ///
    /// # Errors
    /// The query is of another length than the images' embeddings.
    pub fn nearest(&self, query: &[f32], top: usize) -> Result<Vec<Hit<'_>>> {
        let Matrix { rows, columns, values } = &self.embeddings;
        if query.len() != *columns {
            bail!("the query's embedding has {} numbers, the index's have {columns}", query.len());
        }
        let scores: Vec<f32> =
            values.chunks_exact((*columns).max(1)).map(|row| row.iter().zip(query).map(|(a, b)| a * b).sum()).collect();
        debug_assert_eq!(scores.len(), *rows);
        let names: Vec<&str> =
            self.entries.iter().filter(|entry| entry.cause.is_none()).map(|entry| entry.name.as_str()).collect();
        let best = crate::metrics::top_k::largest(&scores, top);
        Ok(best.into_iter().map(|place| Hit { name: names[place], score: scores[place] }).collect())
    }
}
