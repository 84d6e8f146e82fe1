//! Visual Genome's region descriptions.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::listing::{Images, JPEG, list};
use super::write::{Column, Image, Kind, Row, Value};
use super::{Check, Plan, PlannedFile, folder, read_json, shuffle};
use crate::data::Result;

const COLUMNS: [Column; 7] = [
    ("image", Kind::Image),
    ("caption", Kind::Texts),
    ("width", Kind::Ints),
    ("height", Kind::Ints),
    ("x", Kind::Ints),
    ("y", Kind::Ints),
    ("image_id", Kind::Text),
];

#[derive(Deserialize)]
struct Described {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    image_id: i64,
    phrase: String,
    width: i64,
    height: i64,
    x: i64,
    y: i64,
}

pub(super) fn plan(root: &Path) -> Result<Plan> {
    let described: Vec<Described> = read_json(&root.join("annotations/region_descriptions.json"))?;
    let mut regions: HashMap<i64, Vec<Region>> = HashMap::new();
    for region in described.into_iter().flat_map(|described| described.regions) {
        regions.entry(region.image_id).or_default().push(region);
    }
    let mut images = Images::new();
    for name in ["images/VG_100K", "images/VG_100K_2"] {
        list(&folder(root, name)?, 0, &JPEG, &mut images)?;
    }
    let mut check = Check::new("images");
    let mut rows = Vec::new();
    for path in images.into_values() {
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<i64>().ok());
        let Some((id, regions)) = id.and_then(|id| Some((id, regions.remove(&id)?))) else {
            check.unannotated += 1;
            continue;
        };
        check.matched += 1;
        let ints = |of: fn(&Region) -> i64| Value::Ints(regions.iter().map(of).collect());
        let numbers = [
            ints(|region| region.width),
            ints(|region| region.height),
            ints(|region| region.x),
            ints(|region| region.y),
        ];
        let captions = Value::Texts(regions.into_iter().map(|region| region.phrase).collect());
        let values = std::iter::once(captions).chain(numbers).chain([Value::Text(id.to_string())]).collect();
        rows.push(Row { images: vec![Image::File(path)], values });
    }
    let mut missing: Vec<i64> = regions.into_keys().collect();
    missing.sort_unstable();
    missing.into_iter().for_each(|id| check.miss(format!("{id}.jpg")));
    let files = vec![PlannedFile { name: "vg".into(), columns: &COLUMNS, rows: shuffle(rows) }];
    Ok(Plan { files, labels: None, checks: vec![check], notes: Vec::new() })
}
