//! easy-VQA: its questions, and captions made from them.

use std::collections::HashMap;
use std::path::Path;

use super::super::easy_vqa::{EasyVqa, SPLITS, captions};
use super::vqav2::COLUMNS;
use super::write::{Image, Row, Value};
use super::{Check, Plan, PlannedFile, coco};
use crate::data::Result;

pub(super) fn plan(root: &Path) -> Result<Plan> {
    let set = EasyVqa::open(root)?;
    let labels: HashMap<&str, i64> = set.answers().iter().map(String::as_str).zip(0..).collect();
    let mut plan = Plan {
        files: Vec::new(),
        labels: Some(("easy_vqa_answers.json".into(), set.answers().to_vec())),
        checks: Vec::new(),
        notes: vec!["val is every tenth image of the training part".into()],
    };
    let (mut untold, mut unknown) = (0, 0);
    for split in SPLITS {
        let mut check = Check::new(format!("images of {split}"));
        let (mut questions, mut described) = (Vec::new(), Vec::new());
        for asked in set.asked(split)? {
            let Ok(image) = set.image(split, asked.image_id) else {
                check.miss(format!("image {}", asked.image_id));
                continue;
            };
            check.matched += 1;
            let captions = captions(&asked);
            match captions.is_empty() {
                true => untold += 1,
                false => described.push(Row {
                    images: vec![Image::Bytes(image.clone())],
                    values: vec![
                        Value::Texts(captions),
                        Value::Text(asked.image_id.to_string()),
                        Value::Text(split.into()),
                    ],
                }),
            }
            let (mut ids, mut texts) = (Vec::new(), Vec::new());
            let (mut answers, mut numbers, mut scores) = (Vec::new(), Vec::new(), Vec::new());
            for (id, question, answer) in asked.questions {
                let Some(label) = labels.get(answer.as_str()) else {
                    unknown += 1;
                    continue;
                };
                ids.push(id);
                texts.push(question);
                answers.push(vec![answer]);
                numbers.push(vec![*label]);
                scores.push(vec![1.0]);
            }
            if ids.is_empty() {
                continue;
            }
            let values = vec![
                Value::Texts(texts),
                Value::TextLists(answers),
                Value::IntLists(numbers),
                Value::FloatLists(scores),
                Value::Int(asked.image_id),
                Value::Ints(ids),
                Value::Text(split.into()),
            ];
            questions.push(Row { images: vec![Image::Bytes(image)], values });
        }
        plan.checks.push(check);
        // A few images of distinct things are for retrieval alone.
        if split != "distinct" {
            plan.files.push(PlannedFile { name: format!("easy_vqa_{split}"), columns: &COLUMNS, rows: questions });
        }
        plan.files.push(PlannedFile {
            name: format!("easy_vqa_caption_{split}"),
            columns: &coco::COLUMNS,
            rows: described,
        });
    }
    if untold > 0 {
        plan.notes.push(format!("{untold} images have no caption: too little is asked about them"));
    }
    if unknown > 0 {
        plan.notes.push(format!("{unknown} answers are not in answers.txt: their questions are left out"));
    }
    Ok(plan)
}
