//! NLVR2: pairs of images with sentences that are true or false of them.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value as Json;

use super::write::{Column, Image, Kind, Row, Value};
use super::{Check, Plan, PlannedFile, read_lines};
use crate::data::{Error, Result};

const COLUMNS: [Column; 5] = [
    ("image_0", Kind::Image),
    ("image_1", Kind::Image),
    ("questions", Kind::Texts),
    ("answers", Kind::Texts),
    ("identifier", Kind::Text),
];

/// Splits with their annotation files.
const SPLITS: [(&str, &str); 7] = [
    ("train", "train.json"),
    ("dev", "dev.json"),
    ("test1", "test1.json"),
    ("balanced_dev", "balanced/balanced_dev.json"),
    ("balanced_test1", "balanced/balanced_test1.json"),
    ("unbalanced_dev", "unbalanced/unbalanced_dev.json"),
    ("unbalanced_test1", "unbalanced/unbalanced_test1.json"),
];

#[derive(Deserialize)]
struct Claim {
    sentence: String,
    label: String,
    identifier: String,
    /// Where a training image lies: a number, as text or not.
    #[serde(default)]
    directory: Json,
}

pub(super) fn plan(root: &Path) -> Result<Plan> {
    let mut plan = Plan { files: Vec::new(), labels: None, checks: Vec::new(), notes: Vec::new() };
    for (split, file) in SPLITS {
        let path = root.join("nlvr2/data").join(file);
        if file.contains('/') && !path.exists() {
            plan.notes.push(format!("there is no nlvr2/data/{file}: {split} is not built"));
            continue;
        }
        let claims: Vec<Claim> = read_lines(&path)?;
        // train-10108-0-1 is the second sentence about the pair train-10108-0.
        let mut pairs: IndexMap<String, Vec<Claim>> = IndexMap::new();
        for claim in claims {
            let (pair, _) = claim.identifier.rsplit_once('-').ok_or_else(|| {
                Error::file(&path, format!("identifier '{}' is not as in train-10108-0-1", claim.identifier))
            })?;
            pairs.entry(pair.to_string()).or_default().push(claim);
        }
        let mut check = Check::new(format!("pairs of {split}"));
        let mut rows = Vec::with_capacity(pairs.len());
        for (pair, claims) in pairs {
            let Some(images) = images_of(root, &pair, &claims[0].directory) else {
                check.miss(pair);
                continue;
            };
            check.matched += 1;
            let (sentences, labels) = claims.into_iter().map(|claim| (claim.sentence, claim.label)).unzip();
            let values = vec![Value::Texts(sentences), Value::Texts(labels), Value::Text(pair)];
            rows.push(Row { images: images.map(Image::File).into(), values });
        }
        plan.files.push(PlannedFile { name: format!("nlvr2_{split}"), columns: &COLUMNS, rows });
        plan.checks.push(check);
    }
    Ok(plan)
}

/// Both images of a pair; `None` where one is missing.
fn images_of(root: &Path, pair: &str, directory: &Json) -> Option<[PathBuf; 2]> {
    let split = pair.split('-').next()?;
    let folder = match (split, directory) {
        ("train", Json::Number(number)) => root.join("images/train").join(number.to_string()),
        ("train", Json::String(name)) => root.join("images/train").join(name),
        ("train", _) => return None,
        (split, _) => root.join(split),
    };
    let images = ["img0", "img1"].map(|image| folder.join(format!("{pair}-{image}.png")));
    images.iter().all(|image| image.is_file()).then_some(images)
}
