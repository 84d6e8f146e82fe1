//! COCO and Flickr30k captions in Karpathy's splits.

use std::path::Path;

use serde::Deserialize;

use super::listing::{Images, JPEG, list};
use super::write::{Column, Image, Kind, Row, Value};
use super::{Check, Plan, PlannedFile, folder, read_json, shuffle};
use crate::data::Result;

pub(super) const COLUMNS: [Column; 4] =
    [("image", Kind::Image), ("caption", Kind::Texts), ("image_id", Kind::Text), ("split", Kind::Text)];

#[derive(Deserialize)]
struct Karpathy {
    images: Vec<Annotated>,
}

#[derive(Deserialize)]
struct Annotated {
    filename: String,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

pub(super) fn plan(root: &Path) -> Result<Plan> {
    let annotated: Karpathy = read_json(&root.join("karpathy/dataset_coco.json"))?;
    let mut images = Images::new();
    for name in ["train2014", "val2014"] {
        list(&folder(root, name)?, 0, &JPEG, &mut images)?;
    }
    Ok(karpathy("coco_caption_karpathy", &["train", "val", "restval", "test"], annotated, images))
}

pub(super) fn plan_f30k(root: &Path) -> Result<Plan> {
    let annotated: Karpathy = read_json(&root.join("karpathy/dataset_flickr30k.json"))?;
    let mut images = Images::new();
    list(&folder(root, "flickr30k-images")?, 0, &JPEG, &mut images)?;
    Ok(karpathy("f30k_caption_karpathy", &["train", "val", "test"], annotated, images))
}

fn karpathy(name: &str, splits: &[&str], annotated: Karpathy, mut images: Images) -> Plan {
    let mut check = Check::new("images");
    let mut rows: Vec<Vec<(String, Row)>> = splits.iter().map(|_| Vec::new()).collect();
    let mut other_splits = 0;
    for Annotated { filename, split, sentences } in annotated.images {
        let Some(rows) = splits.iter().position(|name| *name == split).and_then(|number| rows.get_mut(number)) else {
            other_splits += 1;
            continue;
        };
        let Some(path) = images.swap_remove(&filename) else {
            check.miss(filename);
            continue;
        };
        check.matched += 1;
        let captions = sentences.into_iter().map(|sentence| sentence.raw).collect();
        let values = vec![Value::Texts(captions), Value::Text(filename.clone()), Value::Text(split)];
        rows.push((filename, Row { images: vec![Image::File(path)], values }));
    }
    check.unannotated = images.len();
    let files = splits.iter().zip(rows).map(|(split, mut rows)| {
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        let rows = shuffle(rows).into_iter().map(|(_, row)| row).collect();
        PlannedFile { name: format!("{name}_{split}"), columns: &COLUMNS, rows }
    });
    let notes = match other_splits {
        0 => Vec::new(),
        count => vec![format!("{count} images are of none of the splits {}", splits.join(", "))],
    };
    Plan { files: files.collect(), labels: None, checks: vec![check], notes }
}
