//! A folder with one folder of images for each class, as torchvision's and Hugging Face's `ImageFolder` take it.
//!
//! Splits are folders around those, `train/cat/1.jpg`; without any, the folder is one split. Classes are numbered by
//! name, those of the training split for every split.

use std::path::{Path, PathBuf};

use super::broken::Unit;
use super::files::Named;
use super::folder::Paths;
use super::open::{SplitFiles, ending};
use super::records::{At, Builder, Texts};
use super::{Error, Result};

/// Endings of the files in a folder that are taken for images.
const ENDINGS: [&str; 7] = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp"];

pub(super) fn is_image(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// The folders of splits in `folder`; one without a name where the classes lie in `folder` itself. Empty where there are
/// no classes.
///
/// # Errors
/// A folder can't be listed.
pub(super) fn splits_in(folder: &Path) -> Result<Vec<SplitFiles>> {
    let mut splits = Vec::new();
    for inner in folders_in(folder)? {
        let Named { set, split, .. } = Named::parse(&name(&inner));
        if let (Some(split), true) = (split, set.is_empty() && has_classes(&inner)?) {
            splits.push(SplitFiles { split, files: vec![inner] });
        }
    }
    if splits.is_empty() && has_classes(folder)? {
        splits.push(SplitFiles { split: String::new(), files: vec![folder.into()] });
    }
    Ok(splits)
}

fn has_classes(folder: &Path) -> Result<bool> {
    for class in folders_in(folder)? {
        if entries(&class)?.iter().any(|entry| is_image(entry)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The classes of a split, by name: its folders that hold an image, at any depth.
///
/// # Errors
/// A folder can't be listed.
pub(super) fn classes(split: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for class in folders_in(split)? {
        if !images_in(&class)?.is_empty() {
            classes.push(name(&class));
        }
    }
    Ok(classes)
}

/// Adds a split's images, class by class. Those of a class that is none of `labels` are broken rows.
///
/// # Errors
/// A folder can't be listed, or there are more images than can be counted.
pub(super) fn read(split: &Path, labels: &[String], into: &mut Builder) -> Result<()> {
    let by_name: std::collections::HashMap<&str, u32> = labels.iter().map(String::as_str).zip(0..).collect();
    for folder in folders_in(split)? {
        let class = name(&folder);
        let paths = images_in(&folder)?;
        let shown = |path: &Path| path.strip_prefix(split).unwrap_or(path).to_string_lossy().into_owned();
        let source = into.pictures(Box::new(Paths(paths.clone())));
        for (index, path) in (0..).zip(&paths) {
            // Each image is a file of its own, so that messages name it.
            let id = shown(path);
            into.file(&*id, Unit::File);
            match by_name.get(class.as_str()) {
                Some(label) => into.row(0, &[At { source, index }], &id, Texts::Class(*label))?,
                None => into.broken(0, format!("the training split has no class '{class}'")),
            }
        }
    }
    Ok(())
}

/// All images below a folder, by name. Links to folders in it aren't followed: they may lead back to a folder above.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for entry in entries(folder)? {
        match entry.is_dir() {
            true if entry.is_symlink() => {}
            true => images.extend(images_in(&entry)?),
            false if is_image(&entry) => images.push(entry),
            false => {}
        }
    }
    Ok(images)
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|entry| entry.is_dir()).collect())
}

/// What a folder holds, by name, but for hidden files.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "list", e);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
