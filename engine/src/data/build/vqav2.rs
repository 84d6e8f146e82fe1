//! VQAv2: questions about COCO images, with ten people's answers each.

use std::collections::HashMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;

use super::super::answers;
use super::listing::{Images, JPEG, list};
use super::write::{Column, Image, Kind, Row, Value};
use super::{Check, Options, Plan, PlannedFile, folder, read_json, shuffle};
use crate::data::Result;
use crate::metrics::vqa::{normalise_label, soft_score};

pub(super) const COLUMNS: [Column; 8] = [
    ("image", Kind::Image),
    ("questions", Kind::Texts),
    ("answers", Kind::TextLists),
    ("answer_labels", Kind::IntLists),
    ("answer_scores", Kind::FloatLists),
    ("image_id", Kind::Int),
    ("question_id", Kind::Ints),
    ("split", Kind::Text),
];

/// An answer becomes a label when it is the most frequent one of at least so many questions.
const OFTEN: usize = 9;

/// Labels of the whole data set.
const LABELS: usize = 3129;

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    image_id: i64,
    question_id: i64,
    question: String,
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: i64,
    multiple_choice_answer: String,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
}

pub(super) fn plan(root: &Path, options: &Options) -> Result<Plan> {
    let mut plan = Plan { files: Vec::new(), labels: None, checks: Vec::new(), notes: Vec::new() };
    let annotations = |year: &str| -> Result<Vec<Annotation>> {
        read_json::<Annotations>(&root.join(format!("v2_mscoco_{year}_annotations.json"))).map(|read| read.annotations)
    };
    let answered = [("train", annotations("train2014")?), ("val", annotations("val2014")?)];
    let vocabulary = vocabulary(answered.iter().flat_map(|(_, annotations)| annotations));
    if vocabulary.len() != LABELS {
        plan.notes.push(format!("{} answers are labels; of the whole data set {LABELS} are", vocabulary.len()));
    }
    let labels: HashMap<&str, i64> = vocabulary.iter().map(String::as_str).zip(0..).collect();
    for (split, annotations) in &answered {
        let images = format!("{split}2014");
        let questions = questions(root, &images)?;
        let mut check = Check::new(format!("questions of {split} with answers"));
        let mut by_id: HashMap<i64, &Annotation> =
            annotations.iter().map(|annotation| (annotation.question_id, annotation)).collect();
        let mut rated: IndexMap<i64, Vec<Rated>> = IndexMap::new();
        let mut without_label = 0;
        for question in questions {
            let Some(annotation) = by_id.remove(&question.question_id) else {
                check.miss(format!("question {}", question.question_id));
                continue;
            };
            check.matched += 1;
            let rated_question = Rated::of(question.question, question.question_id, annotation, &labels);
            match rated_question.labels.is_empty() {
                true => without_label += 1,
                false => rated.entry(question.image_id).or_default().push(rated_question),
            }
        }
        check.unannotated = by_id.len();
        plan.checks.push(check);
        if without_label > 0 {
            plan.notes.push(format!("{without_label} questions of {split} have no answer that is a label: left out"));
        }
        let rows = rows(root, &images, split, rated, &mut plan.checks)?;
        plan.files.push(PlannedFile { name: format!("vqav2_{split}"), columns: &COLUMNS, rows });
        if *split == "val" {
            // Most of val is trained on; the rest tells how well that goes.
            plan.files.extend(halves(&plan.files[plan.files.len() - 1].rows, options.rest_rows));
        }
    }
    for split in ["test", "test-dev"] {
        let year = format!("{split}2015");
        let file = format!("v2_OpenEnded_mscoco_{year}_questions.json");
        if !root.join(&file).exists() {
            plan.notes.push(format!("there is no {file}: {split} is not built"));
            continue;
        }
        let mut asked: IndexMap<i64, Vec<Rated>> = IndexMap::new();
        for question in questions(root, &year)? {
            let rated = Rated { question: question.question, id: question.question_id, ..Rated::default() };
            asked.entry(question.image_id).or_default().push(rated);
        }
        let rows = rows(root, "test2015", split, asked, &mut plan.checks)?;
        plan.files.push(PlannedFile { name: format!("vqav2_{split}"), columns: &COLUMNS, rows });
    }
    plan.labels = Some(("vqav2_answers.json".into(), vocabulary));
    Ok(plan)
}

fn questions(root: &Path, year: &str) -> Result<Vec<Question>> {
    let path = root.join(format!("v2_OpenEnded_mscoco_{year}_questions.json"));
    read_json::<Questions>(&path).map(|read| read.questions)
}

/// Labels, in order of first appearance: the most frequent answers of enough questions, normalised.
fn vocabulary<'a>(annotations: impl Iterator<Item = &'a Annotation>) -> Vec<String> {
    let answers: Vec<String> =
        annotations.map(|annotation| normalise_label(&annotation.multiple_choice_answer)).collect();
    let counts = answers::counts(answers.iter().map(String::as_str));
    counts.into_iter().filter(|(_, count)| *count >= OFTEN).map(|(answer, _)| answer.to_string()).collect()
}

/// A question with the labels that people's answers are.
#[derive(Debug, Default)]
struct Rated {
    question: String,
    id: i64,
    answers: Vec<String>,
    labels: Vec<i64>,
    scores: Vec<f64>,
}

impl Rated {
    /// Answers are taken as they are, not normalised, as the Python code does: those of the data set are already.
    fn of(question: String, id: i64, annotation: &Annotation, labels: &HashMap<&str, i64>) -> Rated {
        let mut rated = Rated { question, id, ..Rated::default() };
        for (answer, count) in answers::counts(annotation.answers.iter().map(|answer| answer.answer.as_str())) {
            if let Some(label) = labels.get(answer) {
                rated.answers.push(answer.to_string());
                rated.labels.push(*label);
                // Through text: 0.3 in f64, not the f32 nearest to it.
                rated.scores.push(soft_score(count).to_string().parse().unwrap_or_default());
            }
        }
        rated
    }
}

fn rows(
    root: &Path,
    images_folder: &str,
    split: &str,
    mut rated: IndexMap<i64, Vec<Rated>>,
    checks: &mut Vec<Check>,
) -> Result<Vec<Row>> {
    let mut images = Images::new();
    list(&folder(root, images_folder)?, 0, &JPEG, &mut images)?;
    let mut check = Check::new(format!("images of {split}"));
    let mut rows = Vec::new();
    for path in images.into_values() {
        // COCO_train2014_000000000009.jpg is image 9.
        let id = path.file_stem().and_then(|stem| stem.to_str()?.rsplit('_').next()?.parse::<i64>().ok());
        let Some((id, questions)) = id.and_then(|id| Some((id, rated.swap_remove(&id)?))) else {
            check.unannotated += 1;
            continue;
        };
        check.matched += 1;
        rows.push(row(path, id, questions, split));
    }
    let mut missing: Vec<i64> = rated.into_keys().collect();
    missing.sort_unstable();
    missing.into_iter().for_each(|id| check.miss(format!("image {id}")));
    checks.push(check);
    Ok(shuffle(rows))
}

fn row(path: std::path::PathBuf, id: i64, questions: Vec<Rated>, split: &str) -> Row {
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    let (mut names, mut labels, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for question in questions {
        texts.push(question.question);
        ids.push(question.id);
        // A row of a test split has empty lists, not a list of empty ones.
        if !split.starts_with("test") {
            names.push(question.answers);
            labels.push(question.labels);
            scores.push(question.scores);
        }
    }
    let values = vec![
        Value::Texts(texts),
        Value::TextLists(names),
        Value::IntLists(labels),
        Value::FloatLists(scores),
        Value::Int(id),
        Value::Ints(ids),
        Value::Text(split.into()),
    ];
    Row { images: vec![Image::File(path)], values }
}

fn halves(rows: &[Row], rest: usize) -> [PlannedFile; 2] {
    let (most, rest) = rows.split_at(rows.len().saturating_sub(rest));
    let file = |name: &str, rows: &[Row]| PlannedFile { name: name.into(), columns: &COLUMNS, rows: rows.to_vec() };
    [file("vqav2_trainable_val", most), file("vqav2_rest_val", rest)]
}
