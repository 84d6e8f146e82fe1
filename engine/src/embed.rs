//! Images and texts of any number, on their way to a model in batches.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use formats::{show_name, show_path};

use crate::batch::{Images, Matrix, Texts};
use crate::data::{Loader, LoaderOptions};
use crate::image;
use crate::text::{self, Tokenizer};

/// A file that is no image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Position among the files.
    pub file: usize,
    pub cause: String,
}

/// What came of embedding files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// Positions of the files that could be read.
    pub files: Vec<usize>,
    /// A row for each of those.
    pub embeddings: Matrix,
    pub unreadable: Vec<Unreadable>,
}

/// Decodes files on worker threads ahead of `embed`, which is called with a batch of at most `batch_size` images of
/// `size` pixels at a time. Memory holds three batches, whatever the number of files. `progress` hears how many files
/// are done.
///
/// # Errors
/// Those of `embed`, embeddings that aren't numbers, a batch size of 0. Files that can't be read are no error.
pub fn images(
    files: &[PathBuf],
    size: usize,
    batch_size: usize,
    embed: &mut dyn FnMut(&Images) -> Result<Matrix>,
    progress: &mut dyn FnMut(usize),
) -> Result<Embedded> {
    let mut found = Embedded::default();
    if files.is_empty() {
        return Ok(found);
    }
    let options = LoaderOptions { batch_size, ..LoaderOptions::default() };
    let paths: Arc<[PathBuf]> = files.into();
    let loader = Loader::start(files.len(), options, move |index, _| Ok(Some((index, pixels(&paths[index], size)))))?;
    let mut done = 0;
    for batch in loader {
        let batch = batch?;
        done += batch.items.len();
        let mut images = Images { count: 0, size, pixels: Vec::with_capacity(batch.items.len() * 3 * size * size) };
        for (file, pixels) in batch.items {
            match pixels {
                Ok(pixels) => {
                    images.count += 1;
                    images.pixels.extend(pixels);
                    found.files.push(file);
                }
                Err(cause) => found.unreadable.push(Unreadable { file, cause }),
            }
        }
        if images.count > 0 {
            let rows = checked(embed(&images)?, images.count)?;
            found.embeddings.columns = rows.columns;
            found.embeddings.rows += rows.rows;
            found.embeddings.values.extend(rows.values);
        }
        progress(done);
    }
    Ok(found)
}

/// The image in a file as the model takes it, [3, size, size], or what is wrong with it.
fn pixels(path: &Path, size: usize) -> Result<Vec<f32>, String> {
    let image = image::open(path).map_err(|error| cause(&error))?;
    let mut pixels = vec![0.0; 3 * size * size];
    image::evaluation(&image, size, &mut pixels);
    Ok(pixels)
}

/// What is wrong with a file, without its name.
fn cause(error: &image::Error) -> String {
    match error {
        image::Error::Read(formats::Error::Io { error, .. }) => format!("cannot read: {error}"),
        image::Error::File { error, .. } => error.to_string(),
        other => other.to_string(),
    }
}

/// Refuses embeddings that aren't a row of numbers for each example.
pub(crate) fn checked(values: Matrix, count: usize) -> Result<Matrix> {
    if values.rows != count || values.values.len() != count * values.columns {
        bail!("the model gave {} embeddings for {count} examples", values.rows);
    }
    if values.values.iter().any(|value| !value.is_finite()) {
        bail!(
            "the model's embeddings are not numbers (NaN or infinite): its weights may be damaged; try --precision f32"
        );
    }
    Ok(values)
}

/// Word pieces of texts for a model that takes `len` of them, and how many texts were longer than that and are cut.
///
/// # Errors
/// `len` is below 2.
pub fn encode(tokenizer: &Tokenizer, texts: &[impl AsRef<str> + Sync], len: usize) -> text::Result<(Texts, usize)> {
    if len < 2 {
        return Err(text::Error::TooShort { len });
    }
    // One more piece than fits shows which are longer; BERT's [SEP] ends each in any case.
    let longer = tokenizer.encode(texts, len + 1)?;
    let mut out = Texts { count: texts.len(), len, ids: Vec::new(), mask: Vec::new() };
    let mut cut = 0;
    for (ids, mask) in longer.ids.chunks_exact(len + 1).zip(longer.mask.chunks_exact(len + 1)) {
        let start = out.ids.len();
        out.ids.extend_from_slice(&ids[..len]);
        out.mask.extend_from_slice(&mask[..len]);
        if mask[len] != 0 {
            cut += 1;
            out.ids[start + len - 1] = ids[len];
        }
    }
    Ok((out, cut))
}

/// One text per line, blank ones too: row i belongs to line i. A JSON array of texts is read as one. `-` is standard
/// input.
///
/// # Errors
/// The file can't be read, isn't UTF-8, is longer than 1 GiB, or has no text.
pub fn read_texts(path: &Path) -> Result<Vec<String>> {
    let shown = show_path(path);
    let text = read_text(path)?;
    let texts: Vec<String> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{shown}: no JSON array of texts: {}", show_name(&e.to_string())))?,
        false => text.lines().map(str::to_owned).collect(),
    };
    if texts.is_empty() {
        bail!("{shown}: it has no text; one per line is expected");
    }
    Ok(texts)
}

/// A text file of any sensible length, or standard input for `-`, without a byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    const LONGEST: u64 = 1 << 30;
    let shown = show_path(path);
    let bytes = formats::standard::read_bytes(path, LONGEST + 1)?;
    if bytes.len() as u64 > LONGEST {
        bail!("{shown}: longer than 1 GiB");
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        anyhow::anyhow!("{shown}: line {line} is not UTF-8 text")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Endings of the files in a folder that are taken for images.
const ENDINGS: [&str; 7] = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp"];

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageFile {
    /// Within the folder, `/` between its parts.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: i64,
}

/// All images in a folder and in those below it, by name; hidden ones, and folders that are links, are passed over.
///
/// # Errors
/// A folder can't be listed. No images are no error.
pub fn list_images(folder: &Path) -> Result<Vec<ImageFile>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((at, prefix)) = folders.pop() {
        let failed = |e| formats::Error::io(&at, "list", e);
        for entry in std::fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(own) = entry.file_name().into_string() else {
                bail!("{}: its name is no UTF-8; rename it", show_path(&entry.path()));
            };
            let Ok(kind) = entry.file_type() else { continue };
            if own.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{own}");
            if kind.is_dir() {
                folders.push((entry.path(), format!("{name}/")));
                continue;
            }
            let ending = own.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
            if !ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
                continue;
            }
            // Follows links; a file that has just gone isn't there.
            let Ok(about) = std::fs::metadata(entry.path()) else { continue };
            if about.is_file() {
                found.push(ImageFile { name, path: entry.path(), bytes: about.len(), modified: modified(&about) });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// When a file was changed, in nanoseconds since 1970; 0 where the system doesn't tell.
pub(crate) fn modified(about: &std::fs::Metadata) -> i64 {
    let since = about.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// More than one in a hundred can't be read, or none can: so many that something is wrong.
pub fn too_many_unreadable(unreadable: usize, files: usize) -> bool {
    unreadable.saturating_mul(100) > files || (unreadable == files && files > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(folder: &Path, name: &str, grey: u8) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        ::image::RgbImage::from_pixel(3, 2, ::image::Rgb([grey; 3])).save(&path).unwrap();
        path
    }

    #[test]
    fn batches_keep_the_order_and_broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut files: Vec<PathBuf> =
            (0..7u8).map(|grey| png(folder.path(), &format!("{grey}.png"), grey * 30)).collect();
        std::fs::write(&files[2], b"\x89PNG\r\n\x1a\nbroken").unwrap();
        files.push(folder.path().join("none.png"));
        let mut sizes = Vec::new();
        let mut mean = |images: &Images| {
            sizes.push(images.count);
            let values = images.pixels.chunks(3 * 16).map(|image| (image[0] + 1.0) * 127.5).collect();
            Ok(Matrix { rows: images.count, columns: 1, values })
        };
        let mut heard = Vec::new();
        let found = images(&files, 4, 3, &mut mean, &mut |done| heard.push(done)).unwrap();
        assert_eq!(found.files, [0, 1, 3, 4, 5, 6]);
        let values: Vec<i32> = found.embeddings.values.iter().map(|value| value.round() as i32).collect();
        assert_eq!(values, [0, 30, 90, 120, 150, 180]);
        assert_eq!((sizes, heard), (vec![2, 3, 1], vec![3, 6, 8]));
        let broken: Vec<usize> = found.unreadable.iter().map(|file| file.file).collect();
        assert_eq!(broken, [2, 7]);
        assert!(found.unreadable[0].cause.starts_with("broken PNG image"), "{:?}", found.unreadable);
        assert!(found.unreadable[1].cause.starts_with("cannot read"), "{:?}", found.unreadable);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = [png(folder.path(), "a.png", 1)];
        let mut nan = |_: &Images| Ok(Matrix { rows: 1, columns: 2, values: vec![0.0, f32::NAN] });
        assert!(images(&files, 2, 1, &mut nan, &mut |_| ()).unwrap_err().to_string().contains("NaN"));
    }

    #[test]
    fn texts_are_cut_as_the_tokenizer_cuts_them() {
        let tokenizer = Tokenizer::bert();
        let texts = ["a dog", "a dog on a beach", "a dog on a beach in the sun", ""];
        let (cut, count) = encode(&tokenizer, &texts, 7).unwrap();
        assert_eq!((&cut, count), (&tokenizer.encode(&texts, 7).unwrap(), 1));
        assert!(encode(&tokenizer, &texts, 1).is_err());
    }

    #[test]
    fn folders_are_listed_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a/z.png", "a/b/c.png", ".hidden.png", ".cache/d.png", "é ü.png"] {
            png(folder.path(), name, 0);
        }
        std::fs::write(folder.path().join("notes.txt"), "x").unwrap();
        let names: Vec<String> = list_images(folder.path()).unwrap().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["a/b/c.png", "a/z.png", "b.PNG", "é ü.png"]);
        assert!(list_images(&folder.path().join("none")).is_err());
    }

    #[test]
    fn texts_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_texts(&path)
        };
        assert_eq!(read(b"a dog\r\n\nb").unwrap(), ["a dog", "", "b"]);
        assert_eq!(read(b"\xef\xbb\xbf[\"a\\nb\", \"c\"]").unwrap(), ["a\nb", "c"]);
        assert!(read(b"a\nb\xff").unwrap_err().to_string().contains("line 2 is not UTF-8"));
        assert!(read(b"").unwrap_err().to_string().contains("no text"));
        assert!(read(b"[1]").unwrap_err().to_string().contains("no JSON array of texts"));
    }

    #[test]
    fn one_in_a_hundred() {
        let cases = [(0, 0), (0, 5), (1, 100), (1, 99), (2, 200), (3, 200), (1, 1)];
        let verdicts = cases.map(|(broken, files)| too_many_unreadable(broken, files));
        assert_eq!(verdicts, [false, false, false, true, false, true, true]);
    }
}
