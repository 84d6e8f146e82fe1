//! ImageNet-1k: images in a folder for each class.
//!
//! The Python code reads ImageNet from another format; columns and file names here follow its other data sets. Classes
//! are numbered in the order of their ids (`n01440764`, …), as everywhere.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::listing::{Images, JPEG, list};
use super::write::{Column, Image, Kind, Row, Value};
use super::{Check, Options, Plan, shards, shuffle};
use crate::data::{Error, Result};

const COLUMNS: [Column; 4] =
    [("image", Kind::Image), ("label", Kind::Int), ("image_id", Kind::Text), ("split", Kind::Text)];

/// Classes of the whole data set.
const CLASSES: usize = 1000;

pub(super) fn plan(root: &Path, options: &Options) -> Result<Plan> {
    // Kaggle's archive has the images deeper down.
    let images = match root.join("ILSVRC/Data/CLS-LOC").is_dir() {
        true => root.join("ILSVRC/Data/CLS-LOC"),
        false => root.into(),
    };
    let train = super::folder(&images, "train")?;
    let classes = folders(&train)?;
    if classes.is_empty() {
        return Err(Error::file(train, "there is no class folder in it"));
    }
    let labels: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(0..).collect();
    let mut plan = Plan { files: Vec::new(), labels: None, checks: Vec::new(), notes: Vec::new() };
    let (rows, check) = from_folders(&train, "train", &labels)?;
    plan.files.extend(shards("imagenet_train", &COLUMNS, rows, options.shard_rows));
    plan.checks.push(check);
    match images.join("val") {
        val if !val.is_dir() => plan.notes.push("there is no folder val: val is not built".into()),
        val => {
            let (rows, check) = match folders(&val)?.iter().any(|name| labels.contains_key(name.as_str())) {
                true => from_folders(&val, "val", &labels)?,
                false => from_list(root, &val, &labels)?,
            };
            plan.files.extend(shards("imagenet_val", &COLUMNS, rows, options.shard_rows));
            plan.checks.push(check);
        }
    }
    if classes.len() != CLASSES {
        plan.notes.push(format!("{} classes; the whole data set has {CLASSES}", classes.len()));
    }
    let names = names(root)?;
    // A crane is a bird or a machine: such names are told apart by their ids.
    let shared = |name: &String| classes.iter().filter(|class| names.get(*class) == Some(name)).count() > 1;
    let named = classes.iter().map(|class| match names.get(class) {
        Some(name) if shared(name) => format!("{name} ({class})"),
        Some(name) => name.clone(),
        None => class.clone(),
    });
    plan.labels = Some(("imagenet_classes.json".into(), named.collect()));
    Ok(plan)
}

fn folders(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, "list", e))?.path();
        if let (true, Some(name)) = (path.is_dir(), path.file_name().and_then(|name| name.to_str())) {
            names.push(name.to_string());
        }
    }
    names.sort();
    Ok(names)
}

fn from_folders(folder: &Path, split: &str, labels: &HashMap<&str, i64>) -> Result<(Vec<Row>, Check)> {
    let mut check = Check::new(format!("images of {split}"));
    let mut rows = Vec::new();
    for class in folders(folder)? {
        let mut images = Images::new();
        list(&folder.join(&class), 0, &JPEG, &mut images)?;
        let Some(label) = labels.get(class.as_str()) else {
            check.unannotated += images.len();
            continue;
        };
        check.matched += images.len();
        rows.extend(images.into_iter().map(|(name, path)| row(name, path, *label, split)));
    }
    Ok((shuffle(rows), check))
}

/// A validation part that is not sorted into folders: a list says each image's class.
fn from_list(root: &Path, folder: &Path, labels: &HashMap<&str, i64>) -> Result<(Vec<Row>, Check)> {
    let list_path = root.join("LOC_val_solution.csv");
    let text = std::fs::read_to_string(&list_path).map_err(|e| {
        let error = Error::io(&list_path, "read", e);
        Error::file(folder, format!("it has no class folders, and there is no list of its classes: {error}"))
    })?;
    let mut images = Images::new();
    list(folder, 0, &JPEG, &mut images)?;
    let by_stem: HashMap<String, (String, PathBuf)> = images
        .into_iter()
        .map(|(name, path)| (name.rsplit_once('.').map_or(&*name, |(stem, _)| stem).to_string(), (name, path)))
        .collect();
    let mut left = by_stem;
    let mut check = Check::new("images of val");
    let mut rows = Vec::new();
    // ILSVRC2012_val_00048981,n03995372 85 1 499 272
    for line in text.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let (stem, class) =
            line.split_once(',').and_then(|(stem, rest)| Some((stem, rest.split_whitespace().next()?))).ok_or_else(
                || Error::file(&list_path, format!("line '{line}' is not as in ILSVRC2012_val_1,n01440764 …")),
            )?;
        let label = labels
            .get(class)
            .ok_or_else(|| Error::file(&list_path, format!("class {class} of {stem} is none of the training part")))?;
        match left.remove(stem) {
            Some((name, path)) => {
                check.matched += 1;
                rows.push(row(name, path, *label, "val"));
            }
            None => check.miss(stem),
        }
    }
    check.unannotated = left.len();
    Ok((shuffle(rows), check))
}

fn row(name: String, path: PathBuf, label: i64, split: &str) -> Row {
    Row {
        images: vec![Image::File(path)],
        values: vec![Value::Int(label), Value::Text(name), Value::Text(split.into())],
    }
}

/// Names of classes by id, where the archive's list of them is there.
fn names(root: &Path) -> Result<HashMap<String, String>> {
    let path = root.join("LOC_synset_mapping.txt");
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    // n01440764 tench, Tinca tinca
    let pairs = text.trim_start_matches('\u{feff}').lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(id, name)| (id.to_string(), name.trim().to_string())).collect())
}
