//! Conceptual Captions and SBU: lists of images with one caption each, downloaded as far as they were still there.

use std::collections::HashMap;
use std::path::Path;

use super::coco::COLUMNS;
use super::listing::{Images, list};
use super::write::{Image, Row, Value};
use super::{Check, Options, Plan, folder, read_json, shards, shuffle};
use crate::data::Result;

pub(super) fn plan_gcc(root: &Path, options: &Options) -> Result<Plan> {
    let mut plan = Plan { files: Vec::new(), labels: None, checks: Vec::new(), notes: Vec::new() };
    for split in ["val", "train"] {
        let (rows, check) = captions(root, &format!("{split}_annot.json"), split)?;
        plan.files.extend(shards(&format!("conceptual_caption_{split}"), &COLUMNS, rows, options.shard_rows));
        plan.checks.push(check);
    }
    Ok(plan)
}

pub(super) fn plan_sbu(root: &Path, options: &Options) -> Result<Plan> {
    let (rows, check) = captions(root, "annot.json", "train")?;
    Ok(Plan {
        files: shards("sbu", &COLUMNS, rows, options.shard_rows),
        labels: None,
        checks: vec![check],
        notes: Vec::new(),
    })
}

fn captions(root: &Path, annotations: &str, split: &str) -> Result<(Vec<Row>, Check)> {
    let pairs: Vec<(String, String)> = read_json(&root.join(annotations))?;
    let name_of = |path: &str| path.rsplit('/').next().unwrap_or(path).to_string();
    // Where a name comes twice, the last counts, as in the Python code.
    let mut captions: HashMap<String, String> =
        pairs.into_iter().map(|(path, caption)| (name_of(&path), caption)).collect();
    let mut images = Images::new();
    let name = format!("images_{split}");
    list(&folder(root, &name)?, 1, &[], &mut images)?;
    let mut check = Check::new(format!("images of {name}"));
    let mut rows = Vec::new();
    for (name, path) in images {
        let Some(caption) = captions.remove(&name) else {
            check.unannotated += 1;
            continue;
        };
        check.matched += 1;
        let values = vec![Value::Texts(vec![caption]), Value::Text(name), Value::Text(split.into())];
        rows.push(Row { images: vec![Image::File(path)], values });
    }
    let mut missing: Vec<String> = captions.into_keys().collect();
    missing.sort();
    missing.into_iter().for_each(|name| check.miss(name));
    Ok((shuffle(rows), check))
}
