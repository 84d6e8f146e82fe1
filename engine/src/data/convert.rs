//! Data that this program doesn't read, and the command that turns it into what it does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use formats::shell_path;

use super::Error;
use super::files::Named;
use super::images::is_image;
use super::open::ending;

/// Why a file isn't read and what converts it, where it is of a known kind.
pub(super) fn file(path: &Path) -> Option<Error> {
    let found = |what: &'static str, command: String| {
        Some(Error::Convert { path: path.into(), what: what.into(), command, note: String::new() })
    };
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    match ending(path).as_str() {
        "parquet" | "pq" => {
            found("a Parquet file isn't read", parquet(&path.with_extension("arrow"), &shell_path(path)))
        }
        "csv" => found("a CSV file isn't read", table(path, "")).map(|error| with_columns(error, path, ',')),
        "tsv" | "tab" => found("a TSV file isn't read", table(path, ", delimiter='\\t'"))
            .map(|error| with_columns(error, path, '\t')),
        "tar" => found("a webdataset tar isn't read", archive(path, &path.with_extension(""))),
        _ if name.ends_with(".tar.gz") || name.ends_with(".tgz") => {
            let folder = path.with_extension("").with_extension("");
            found("a webdataset tar isn't read", archive(path, &folder))
        }
        _ => None,
    }
}

/// As [`file`], for an Arrow file in the stream format.
pub(super) fn stream(path: &Path) -> Error {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let output = path.with_file_name(format!("file_{stem}.arrow"));
    Error::Convert {
        path: path.into(),
        what: "an Arrow stream isn't read, but the Arrow file format is".into(),
        command: streams(&output, &shell_path(path)),
        note: String::new(),
    }
}

/// As [`file`], for a folder: one that `datasets.save_to_disk` wrote, or with files of a known kind in it or in its
/// folder `data`.
pub(super) fn folder(path: &Path, entries: &[PathBuf]) -> Option<Error> {
    if let Some(error) = saved_to_disk(path, entries) {
        return Some(error);
    }
    let inner = path.join("data");
    let mut all: Vec<PathBuf> = entries.to_vec();
    if let Ok(found) = std::fs::read_dir(&inner) {
        let mut found: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
        found.sort();
        all.extend(found);
    }
    let first =
        |endings: &[&str]| all.iter().find(|entry| endings.contains(&ending(entry).as_str()) && entry.is_file());
    if let Some(one) = first(&["parquet"]) {
        let stem = one.file_stem().unwrap_or_default().to_string_lossy();
        let split = Named::parse(&stem).split.unwrap_or_else(|| "train".into());
        let inputs = match one.file_name().unwrap_or_default().to_string_lossy().starts_with(&split) {
            true => format!("{}/{split}*.parquet", shell_path(one.parent().unwrap_or(path))),
            false => shell_path(one),
        };
        return Some(Error::Convert {
            path: path.into(),
            what: "Parquet files aren't read".into(),
            command: parquet(&path.join(format!("{split}.arrow")), &inputs),
            note: "; the other splits likewise".into(),
        });
    }
    if let Some(one) = first(&["tar"]) {
        let what = "webdataset tars aren't read".into();
        let command = archive(one, &one.with_extension(""));
        return Some(Error::Convert { path: path.into(), what, command, note: "; the other tars likewise".into() });
    }
    first(&["csv", "tsv"]).and_then(|one| file(one))
}

/// `dataset_info.json` and `state.json` beside the shards; in a `DatasetDict` a folder like that for each split.
fn saved_to_disk(path: &Path, entries: &[PathBuf]) -> Option<Error> {
    let is_one = |folder: &Path| folder.join("state.json").is_file() && folder.join("dataset_info.json").is_file();
    let (from, split, note) = match is_one(path) {
        true => {
            let own = path.file_name().unwrap_or_default().to_string_lossy();
            (path.to_owned(), Named::parse(&own).split.unwrap_or_else(|| "train".into()), "")
        }
        false => {
            let inner = entries.iter().find(|entry| entry.is_dir() && is_one(entry))?;
            let name = inner.file_name()?.to_string_lossy().into_owned();
            (inner.clone(), name, "; the other splits likewise")
        }
    };
    // Beside the folder, as in it the file would be taken for one of the shards.
    let place = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let output = place.join(format!("{name}_arrow")).join(format!("{split}.arrow"));
    let command = format!(
        "mkdir -p {} && {}",
        shell_path(output.parent().unwrap_or(place)),
        streams(&output, &format!("{}/data-*.arrow", shell_path(&from)))
    );
    let what = "a folder that datasets.save_to_disk wrote isn't read".into();
    Some(Error::Convert { path: path.into(), what, command, note: note.into() })
}

fn parquet(output: &Path, inputs: &str) -> String {
    format!(
        "python3 -c \"import sys, pyarrow as pa, pyarrow.parquet as p, pyarrow.feather as f; \
         f.write_feather(pa.concat_tables(map(p.read_table, sys.argv[2:])), sys.argv[1], 'uncompressed')\" {} {inputs}",
        shell_path(output)
    )
}

fn streams(output: &Path, inputs: &str) -> String {
    format!(
        "python3 -c \"import sys, pyarrow as pa, pyarrow.feather as f; \
         f.write_feather(pa.concat_tables(pa.ipc.open_stream(x).read_all() for x in sys.argv[2:]), sys.argv[1], \
         'uncompressed')\" {} {inputs}",
        shell_path(output)
    )
}

fn table(path: &Path, options: &str) -> String {
    format!(
        "python3 -c \"import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(open(sys.argv[1], \
         newline='', encoding='utf-8-sig'){options})]\" {} > {}",
        shell_path(path),
        shell_path(&path.with_extension("jsonl"))
    )
}

/// Says which columns a table needs, where its header lacks them.
fn with_columns(error: Error, path: &Path, separator: char) -> Error {
    let Error::Convert { path: at, what, command, .. } = error else { return error };
    let mut header = String::new();
    let read = File::open(path).and_then(|file| BufReader::new(file.take(1 << 16)).read_line(&mut header));
    let columns: Vec<&str> =
        header.trim_start_matches('\u{feff}').trim().split(separator).map(|name| name.trim_matches('"')).collect();
    let named = read.is_ok() && columns.iter().any(|column| matches!(*column, "image" | "file_name" | "image_0"));
    let note = match named {
        true => String::new(),
        false => "; its first line must name the columns: image, and caption, or question and answer, or label".into(),
    };
    Error::Convert { path: at, what, command, note }
}

/// Unpacks a tar and lists its images with what lies beside each.
fn archive(path: &Path, folder: &Path) -> String {
    let endings = endings_in(path).unwrap_or_default();
    let has = |ending: &str| endings.contains(ending);
    let image = ["jpg", "jpeg", "png", "webp"].into_iter().find(|image| has(image)).unwrap_or("jpg");
    let beside = |ending: &str| format!("open(p.rsplit('.', 1)[0] + '.{ending}').read().strip()");
    let line = match () {
        () if has("cls") && !has("txt") => format!("{{'image': p, 'label': int({})}}", beside("cls")),
        () if has("json") && !has("txt") => format!("{{**json.loads({}), 'image': p}}", beside("json")),
        () => format!("{{'image': p, 'caption': {}}}", beside("txt")),
    };
    let (tar, folder) = (shell_path(path), shell_path(folder));
    format!(
        "mkdir -p {folder} && tar -xf {tar} -C {folder} && (cd {folder} && python3 -c \"import glob, json; \
         [print(json.dumps({line})) for p in sorted(glob.glob('**/*.{image}', recursive=True))]\" > train.jsonl)"
    )
}

/// The endings of the first files in an uncompressed tar.
fn endings_in(path: &Path) -> std::io::Result<BTreeSet<String>> {
    const FILES: usize = 64;
    let mut file = File::open(path)?;
    let mut found = BTreeSet::new();
    let mut header = [0u8; 512];
    for _ in 0..FILES {
        if file.read_exact(&mut header).is_err() || header[0] == 0 {
            break;
        }
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some((_, ending)) = String::from_utf8_lossy(name).rsplit_once('.') {
            found.insert(ending.to_ascii_lowercase());
        }
        let size =
            std::str::from_utf8(&header[124..135]).ok().and_then(|size| i64::from_str_radix(size.trim(), 8).ok());
        let Some(size) = size else { break };
        file.seek(SeekFrom::Current((size.max(0) + 511) / 512 * 512))?;
    }
    Ok(found)
}

/// Images without anything that says what they show.
pub(super) fn only_images(path: &Path, entries: &[PathBuf]) -> Option<Error> {
    let image = entries.iter().find(|entry| is_image(entry))?;
    let name = image.file_name()?.to_string_lossy();
    Some(Error::Convert {
        path: path.into(),
        what: format!("it has images, such as {}, but nothing says what they show", formats::show_name(&name)),
        command: "one folder of images for each class, or a file train.jsonl beside them with lines as \
                  {\"image\": \"a.jpg\", \"caption\": \"a dog\"}"
            .into(),
        note: String::new(),
    })
}
