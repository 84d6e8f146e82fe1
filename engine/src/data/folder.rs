//! Images in a folder, and JSONL files that say what is in them.
//!
//! A line is an object; which task it is for follows from its keys:
//! - `{"image": "a.jpg", "caption": "…"}`, or `"captions": ["…", …]`; lines of one image belong together
//! - `{"image": "a.jpg", "question": "…", "answers": ["…", …]}`, or `"answer": "…"`; `"question_id"` and `"image_id"`
//!   where they are known; without answers for questions to be answered
//! - `{"image_0": "a.jpg", "image_1": "b.jpg", "sentence": "…", "label": true}`, and `"identifier"`
//! - `{"image": "a.jpg", "label": 3}`, or a class's name
//!
//! Hugging Face's `metadata.jsonl` says `"file_name"` for `"image"` and `"text"` for `"caption"`, which is read as well.
//!
//! Images are named from the JSONL file's folder on. `answers.json` or `classes.json` beside it lists the labels; else
//! they are those of the training file, the most frequent first (classes: by name).

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::arrow::truth;
use super::broken::Unit;
use super::files::unmarked;
use super::records::{At, Builder, Pictures, Question, Texts};
use super::{Error, Result, Target, Task, answers};

/// Hugging Face's name for such a file; its split is its folder's name.
pub(super) const METADATA: &str = "metadata.jsonl";

/// A JSONL file, read.
pub(super) struct Lines {
    path: PathBuf,
    /// Line numbers from 0; what can't be read is there with its cause.
    lines: Vec<(usize, std::result::Result<Line, String>)>,
    task: Task,
}

#[derive(Debug, Default)]
struct Line {
    image: Option<String>,
    captions: Option<Vec<String>>,
    question: Option<String>,
    question_id: Option<i64>,
    image_id: Option<Value>,
    /// `None` where the line says nothing about answers.
    answers: Option<Vec<String>>,
    image_0: Option<String>,
    image_1: Option<String>,
    sentence: Option<String>,
    label: Option<Value>,
    identifier: Option<String>,
    /// Hugging Face's name for a caption.
    text: Option<Vec<String>>,
}

/// The values of a line's object. What is `null` counts as not there.
struct Keys(Map<String, Value>);

impl Keys {
    fn value(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> std::result::Result<Option<String>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(key, &other, "a text")),
        }
    }

    fn texts(&mut self, key: &str) -> std::result::Result<Option<Vec<String>>, String> {
        const EXPECTED: &str = "a text or a list of texts";
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(list)) => {
                let texts = list.into_iter().map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(unexpected(key, &Value::from(vec![other]), EXPECTED)),
                });
                texts.collect::<std::result::Result<_, _>>().map(Some)
            }
            Some(other) => Err(unexpected(key, &other, EXPECTED)),
        }
    }
}

/// `"caption" is 5, expected a text`
fn unexpected(key: &str, found: &Value, expected: &str) -> String {
    const LONGEST: usize = 40;
    let mut shown = found.to_string();
    if let Some((end, _)) = shown.char_indices().nth(LONGEST) {
        shown.truncate(end);
        shown.push('…');
    }
    format!("\"{key}\" is {shown}, expected {expected}")
}

impl Line {
    /// Reads a line, or says what is wrong with it.
    fn parse(text: &str) -> std::result::Result<Line, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            let reason = e.to_string();
            // It counts lines too, of which there is one.
            let reason = reason.split(" at line ").next().unwrap_or_default();
            format!("not JSON: {reason} at column {}", e.column())
        })?;
        let Value::Object(keys) = value else {
            return Err("not a JSON object, such as {\"image\": \"a.jpg\", \"caption\": \"a dog\"}".into());
        };
        let mut keys = Keys(keys);
        let image = keys.text("image")?;
        let file_name = keys.text("file_name")?;
        let (caption, captions) = (keys.texts("caption")?, keys.texts("captions")?);
        let question_id = match keys.value("question_id") {
            None => None,
            Some(Value::String(id)) if id.parse::<i64>().is_ok() => id.parse().ok(),
            Some(id) => Some(id.as_i64().ok_or_else(|| unexpected("question_id", &id, "a whole number"))?),
        };
        let answer = keys.text("answer")?;
        let listed = match keys.value("answers") {
            None => None,
            Some(Value::String(answer)) => Some(vec![answer]),
            Some(Value::Array(list)) => {
                let answers = list.into_iter().map(|item| match item {
                    Value::String(answer) => Ok(answer),
                    // As the official annotations have it.
                    Value::Object(mut item) if item.get("answer").is_some_and(Value::is_string) => {
                        match item.remove("answer") {
                            Some(Value::String(answer)) => Ok(answer),
                            _ => Ok(String::new()),
                        }
                    }
                    other => Err(unexpected("answers", &Value::from(vec![other]), "a list of texts")),
                });
                Some(answers.collect::<std::result::Result<Vec<_>, _>>()?)
            }
            Some(other) => return Err(unexpected("answers", &other, "a list of texts")),
        };
        Ok(Line {
            image: image.or(file_name),
            captions: joined(caption, captions),
            question: keys.text("question")?,
            question_id,
            image_id: keys.value("image_id"),
            answers: joined(answer.map(|answer| vec![answer]), listed),
            image_0: keys.text("image_0")?,
            image_1: keys.text("image_1")?,
            sentence: keys.text("sentence")?,
            label: keys.value("label"),
            identifier: keys.text("identifier")?,
            // Other data may keep anything under this name.
            text: keys.texts("text").unwrap_or_default(),
        })
    }

    fn task(&self) -> Option<Task> {
        match self {
            Line { image_0: Some(_), image_1: Some(_), .. } => Some(Task::Nlvr2),
            Line { image: Some(_), question: Some(_), .. } => Some(Task::Vqa),
            Line { image: Some(_), captions: Some(_), .. } => Some(Task::Irtr),
            Line { image: Some(_), label: Some(_), .. } => Some(Task::ImgCls),
            Line { image: Some(_), text: Some(_), .. } => Some(Task::Irtr),
            _ => None,
        }
    }

    fn captions(&self) -> Vec<&str> {
        self.captions.iter().chain(&self.text).next().into_iter().flatten().map(String::as_str).collect()
    }

    fn answers(&self) -> Option<Vec<&str>> {
        self.answers.as_ref().map(|answers| answers.iter().map(String::as_str).collect())
    }

    fn class(&self) -> std::result::Result<Class<'_>, String> {
        match &self.label {
            Some(Value::String(name)) => Ok(Class::Name(name)),
            Some(Value::Number(number)) => {
                number.as_u64().map(Class::Number).ok_or_else(|| format!("label {number} is no class"))
            }
            Some(other) => Err(format!("label {other} is no class")),
            None => Err("no label".into()),
        }
    }

    fn truth(&self) -> std::result::Result<Option<bool>, String> {
        match &self.label {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(label)) => Ok(Some(*label)),
            Some(Value::String(label)) => truth(label),
            Some(other) => truth(&other.to_string()),
        }
    }

    fn image_id(&self) -> Option<String> {
        match &self.image_id {
            Some(Value::String(id)) => Some(id.clone()),
            Some(Value::Number(id)) => Some(id.to_string()),
            _ => self.image.clone(),
        }
    }
}

fn joined(one: Option<Vec<String>>, other: Option<Vec<String>>) -> Option<Vec<String>> {
    match (one, other) {
        (Some(one), Some(other)) => Some([one, other].concat()),
        (one, other) => one.or(other),
    }
}

enum Class<'a> {
    Name(&'a str),
    Number(u64),
}

impl Lines {
    /// Reads a file. Lines that can't be read are kept as broken.
    ///
    /// # Errors
    /// It can't be read, is no UTF-8, or no line tells a task.
    pub fn read(path: &Path) -> Result<Lines> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let bytes = unmarked(&bytes);
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            Error::file(path, format!("line {line} is no UTF-8 text"))
        })?;
        let lines: Vec<_> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| (number, Line::parse(line)))
            .collect();
        let mut read = lines.iter().filter_map(|(_, line)| line.as_ref().ok());
        let task = read.find_map(Line::task).ok_or_else(|| {
            let first =
                lines.iter().find_map(|(number, line)| Some(format!("line {}: {}", number + 1, line.as_ref().err()?)));
            let first = first.unwrap_or_else(|| "it needs image and caption, or question, or label".into());
            Error::file(path, format!("no line of it is an example: {first}"))
        })?;
        Ok(Lines { path: path.into(), lines, task })
    }

    pub fn task(&self) -> Task {
        self.task
    }

    /// For messages; a `metadata.jsonl`, of which each split has one, with its folder.
    fn name(&self) -> String {
        let name =
            |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let own = name(Some(&self.path));
        let folder = name(self.path.parent());
        if own == METADATA && !folder.is_empty() { format!("{folder}/{own}") } else { own }
    }

    /// Whether its classes are numbers.
    pub fn numbered(&self) -> bool {
        let mut lines = self.lines.iter().filter_map(|(_, line)| line.as_ref().ok());
        self.task == Task::ImgCls && lines.all(|line| matches!(line.class(), Ok(Class::Number(_)) | Err(_)))
    }

    /// Adds the lines to a split.
    ///
    /// # Errors
    /// There are more than can be counted.
    pub fn add(&self, labels: &[String], into: &mut Builder) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        into.file(self.name(), Unit::Line);
        into.source(&self.path);
        let by_name: HashMap<&str, u32> = labels.iter().map(String::as_str).zip(0..).collect();
        let mut files = Files::default();
        let mut rows = Vec::new();
        let mut grouped: IndexMap<&str, (usize, Vec<&str>)> = IndexMap::new();
        for (number, line) in &self.lines {
            let number = *number;
            let row = line.as_ref().map_err(String::clone).and_then(|line| {
                if line.task() != Some(self.task) {
                    return Err(format!("no {} example as the others are", self.task));
                }
                if let (Task::Irtr, Some(image)) = (self.task, &line.image) {
                    let (_, captions) = grouped.entry(image).or_insert((number, Vec::new()));
                    for caption in line.captions() {
                        if !captions.contains(&caption) {
                            captions.push(caption);
                        }
                    }
                    return Ok(None);
                }
                row(line, number, self.task, labels, &by_name).map(|texts| Some((line, texts)))
            });
            match row {
                Err(cause) => into.broken(number, cause),
                Ok(None) => {}
                Ok(Some((line, texts))) => {
                    let names = [line.image.as_deref(), line.image_0.as_deref(), line.image_1.as_deref()];
                    let names: Vec<&str> = match self.task {
                        Task::Nlvr2 => names[1..].iter().flatten().copied().collect(),
                        _ => names[..1].iter().flatten().copied().collect(),
                    };
                    let id = match (self.task, &line.identifier) {
                        (Task::Nlvr2, Some(identifier)) => identifier.clone(),
                        (Task::Nlvr2, None) => number.to_string(),
                        _ => line.image_id().unwrap_or_default(),
                    };
                    rows.push((number, names, id, texts));
                }
            }
        }
        for (image, (number, captions)) in grouped {
            rows.push((number, vec![image], image.to_string(), Texts::Captions(captions)));
        }
        let mut placed = Vec::with_capacity(rows.len());
        for (number, names, id, texts) in rows {
            match names.into_iter().map(|name| files.find(folder, name)).collect::<std::result::Result<Vec<_>, _>>() {
                Ok(indices) => placed.push((number, indices, id, texts)),
                Err(cause) => into.broken(number, cause),
            }
        }
        let source = into.pictures(Box::new(files.paths));
        for (number, indices, id, texts) in placed {
            let images: Vec<At> = indices.into_iter().map(|index| At { source, index }).collect();
            into.row(number, &images, &id, texts)?;
        }
        Ok(())
    }

    /// The labels that the lines themselves give: answers, the most frequent first, or classes.
    pub fn labels(&self) -> Vec<String> {
        let lines = || self.lines.iter().filter_map(|(_, line)| line.as_ref().ok());
        match self.task {
            Task::Vqa => {
                let mut counts = answers::counts(lines().flat_map(|line| line.answers().unwrap_or_default()));
                counts.sort_by(|(a, more), (b, fewer)| fewer.cmp(more).then(a.cmp(b)));
                counts.into_iter().map(|(answer, _)| answer.to_string()).collect()
            }
            Task::ImgCls => {
                let mut names: Vec<&str> = Vec::new();
                let mut highest = None;
                for class in lines().filter_map(|line| line.class().ok()) {
                    match class {
                        Class::Name(name) => names.push(name),
                        Class::Number(number) => highest = highest.max(Some(number.min(1_000_000))),
                    }
                }
                names.sort_unstable();
                names.dedup();
                match highest {
                    Some(highest) if names.is_empty() => (0..=highest).map(|class| class.to_string()).collect(),
                    _ => names.into_iter().map(String::from).collect(),
                }
            }
            _ => Vec::new(),
        }
    }
}

/// A line's texts.
fn row<'a>(
    line: &'a Line,
    number: usize,
    task: Task,
    labels: &[String],
    by_name: &HashMap<&str, u32>,
) -> std::result::Result<Texts<'a>, String> {
    match task {
        Task::Irtr => Ok(Texts::Captions(line.captions())),
        Task::Vqa => {
            let given = line.answers();
            let scores = answers::scores(given.iter().flatten().copied());
            let different = scores.len();
            let targets: Vec<Target> = scores
                .into_iter()
                .filter_map(|(answer, score)| Some(Target { label: *by_name.get(answer)?, score }))
                .collect();
            let outside = different - targets.len();
            Ok(Texts::Questions(vec![Question {
                text: line.question.as_deref().ok_or("no question")?,
                id: line.question_id.unwrap_or(number as i64),
                targets,
                outside,
                answered: given.is_some(),
            }]))
        }
        Task::Nlvr2 => {
            let sentence = line.sentence.as_deref().or(line.question.as_deref()).ok_or("no sentence")?;
            Ok(Texts::Sentences(vec![(sentence, line.truth()?)]))
        }
        Task::ImgCls => match line.class()? {
            Class::Name(name) => {
                by_name.get(name).copied().map(Texts::Class).ok_or_else(|| format!("class '{name}' is unknown"))
            }
            Class::Number(number) => match usize::try_from(number).ok().filter(|number| *number < labels.len()) {
                Some(number) => Ok(Texts::Class(number as u32)),
                None => Err(format!("label {number} is beyond the {} classes", labels.len())),
            },
        },
    }
}

/// Image files by position; each once.
#[derive(Default)]
struct Files {
    paths: Paths,
    known: HashMap<PathBuf, u32>,
}

impl Files {
    fn find(&mut self, folder: &Path, name: &str) -> std::result::Result<u32, String> {
        let path = folder.join(name);
        if let Some(index) = self.known.get(&path) {
            return Ok(*index);
        }
        if !path.is_file() {
            return Err(format!("there is no image '{name}'"));
        }
        let index = u32::try_from(self.paths.0.len()).map_err(|_| "too many images".to_string())?;
        self.paths.0.push(path.clone());
        self.known.insert(path, index);
        Ok(index)
    }
}

/// Images that are files.
#[derive(Default)]
pub(super) struct Paths(pub Vec<PathBuf>);

/// No image file is longer.
const LONGEST: u64 = 1 << 30;

impl Pictures for Paths {
    fn get(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, String> {
        let path = self.0.get(index).ok_or("no such image")?;
        let cannot = |e: std::io::Error| format!("cannot read {}: {e}", formats::show_path(path));
        match std::fs::metadata(path).map_err(cannot)?.len() {
            bytes if bytes > LONGEST => Err(format!("{} is too long for an image", formats::show_path(path))),
            _ => std::fs::read(path).map(Cow::Owned).map_err(cannot),
        }
    }
}
