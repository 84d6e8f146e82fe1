//! Images in a folder, and JSONL files that say what is in them.
//!
//! A line is an object; which task it is for follows from its keys:
//! - `{"image": "a.jpg", "caption": "…"}`, or `"captions": ["…", …]`; lines of one image belong together
//! - `{"image": "a.jpg", "question": "…", "answers": ["…", …]}`, or `"answer": "…"`; `"question_id"` and `"image_id"`
//!   where they are known; without answers for questions to be answered
//! - `{"image_0": "a.jpg", "image_1": "b.jpg", "sentence": "…", "label": true}`, and `"identifier"`
//! - `{"image": "a.jpg", "label": 3}`, or a class's name
//!
//! Images are named from the JSONL file's folder on. `answers.json` or `classes.json` beside it lists the labels; else
//! they are those of the training file, the most frequent first (classes: by name).

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::arrow::truth;
use super::records::{At, Builder, Pictures, Question, Texts};
use super::{Error, Result, Target, Task, answers};

/// A JSONL file, read.
pub(super) struct Lines {
    path: PathBuf,
    /// Line numbers from 0; what can't be read is there with its cause.
    lines: Vec<(usize, std::result::Result<Line, String>)>,
    task: Task,
}

#[derive(Debug, Default, Deserialize)]
struct Line {
    image: Option<String>,
    caption: Option<OneOrMany>,
    captions: Option<OneOrMany>,
    question: Option<String>,
    question_id: Option<i64>,
    image_id: Option<Value>,
    answer: Option<String>,
    answers: Option<Vec<Answer>>,
    image_0: Option<String>,
    image_1: Option<String>,
    sentence: Option<String>,
    label: Option<Value>,
    identifier: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// An answer, alone or as the official VQA annotations have it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Plain(String),
    Annotated { answer: String },
}

impl Line {
    fn task(&self) -> Option<Task> {
        match self {
            Line { image_0: Some(_), image_1: Some(_), .. } => Some(Task::Nlvr2),
            Line { image: Some(_), question: Some(_), .. } => Some(Task::Vqa),
            Line { image: Some(_), caption: Some(_), .. } | Line { image: Some(_), captions: Some(_), .. } => {
                Some(Task::Irtr)
            }
            Line { image: Some(_), label: Some(_), .. } => Some(Task::ImgCls),
            _ => None,
        }
    }

    fn captions(&self) -> Vec<&str> {
        let lists = [&self.caption, &self.captions];
        let mut captions = Vec::new();
        for list in lists.into_iter().flatten() {
            match list {
                OneOrMany::One(text) => captions.push(text.as_str()),
                OneOrMany::Many(texts) => captions.extend(texts.iter().map(String::as_str)),
            }
        }
        captions
    }

    /// `None` where the line says nothing about answers.
    fn answers(&self) -> Option<Vec<&str>> {
        if self.answer.is_none() && self.answers.is_none() {
            return None;
        }
        let many = self.answers.iter().flatten().map(|answer| match answer {
            Answer::Plain(text) | Answer::Annotated { answer: text } => text.as_str(),
        });
        Some(self.answer.as_deref().into_iter().chain(many).collect())
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
        let text = String::from_utf8(bytes).map_err(|e| Error::file(path, format!("no UTF-8: {e}")))?;
        let lines: Vec<_> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| {
                (number, serde_json::from_str::<Line>(line).map_err(|e| format!("no such line: {e}")))
            })
            .collect();
        let mut read = lines.iter().filter_map(|(_, line)| line.as_ref().ok());
        let task = read.find_map(Line::task).ok_or_else(|| {
            let first =
                lines.iter().find_map(|(number, line)| Some(format!("line {number}: {}", line.as_ref().err()?)));
            let first = first.unwrap_or_else(|| "image and caption, question, label, …".into());
            Error::file(path, format!("no line of it is an example: {first}"))
        })?;
        Ok(Lines { path: path.into(), lines, task })
    }

    pub fn task(&self) -> Task {
        self.task
    }

    /// Adds the lines to a split.
    ///
    /// # Errors
    /// There are more than can be counted.
    pub fn add(&self, labels: &[String], into: &mut Builder) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        into.file(self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy());
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
            let targets = answers::scores(given.iter().flatten().copied())
                .into_iter()
                .filter_map(|(answer, score)| Some(Target { label: *by_name.get(answer)?, score }))
                .collect();
            Ok(Texts::Questions(vec![Question {
                text: line.question.as_deref().ok_or("no question")?,
                id: line.question_id.unwrap_or(number as i64),
                targets,
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
