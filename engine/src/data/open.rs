//! Finding out what lies at a path, and opening it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::show_name;

use super::arrow::{self, ArrowFile};
use super::easy_vqa::{self, EasyVqa};
use super::files::{Named, splits_for};
use super::folder::Lines;
use super::records::Builder;
use super::toy::{self, Toy};
use super::{Error, Records, Result, Task, answers};

/// The path that stands for the built-in data set, where there is no such file.
pub const TOY: &str = "toy";

/// A data set that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Such as `coco_caption_karpathy`; empty for a JSONL file named after its split alone.
    pub set: String,
    pub task: Task,
    pub splits: Vec<SplitFiles>,
}

/// A split and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFiles {
    pub split: String,
    /// In order of their numbers, where they are numbered.
    pub files: Vec<PathBuf>,
}

/// Opens a split of what lies at `path` for a task.
///
/// `path` is a folder of Arrow files or of images beside JSONL files, a single such file, easy-VQA's wheel or folder,
/// or [`TOY`]. `split` is `train`, `val` or `test`, or a name as the files have it (`restval`, `test-dev`); `a+b` is both;
/// `SET:split` chooses between several data sets in a folder.
///
/// # Errors
/// There is no such split (the message lists those that there are), a file is damaged or has wrong columns, or more
/// than 1 % of the rows are broken.
pub fn open(path: &Path, task: Task, split: &str) -> Result<Records> {
    open_preferring(path, task, split, None)
}

/// As [`open`]; where `path` has several data sets with such a split, that of the name `preferred`.
///
/// # Errors
/// As [`open`].
pub fn open_preferring(path: &Path, task: Task, split: &str, preferred: Option<&str>) -> Result<Records> {
    if path == Path::new(TOY) && !path.exists() {
        return Toy::default().open(task, split);
    }
    let place = Place::at(path)?;
    match &place {
        Place::EasyVqa(set) => {
            let mut into = Builder::new(format!("easy-VQA {split}"), task);
            for split in split.split('+') {
                set.read(task, split.trim(), &mut into)?;
            }
            let labels = if task == Task::Vqa { set.answers().to_vec() } else { Vec::new() };
            into.finish(labels)
        }
        Place::Files(files) => {
            let single = path.is_file();
            let (found, names) = files.choose(path, task, split, single, preferred)?;
            let asked = split.split_once(':').map_or(split, |(_, split)| split);
            let mut name = format!("{} {asked}", found.set).trim().to_owned();
            let read = names.join("+");
            if !single && read != asked {
                // As VQAv2's val is its rest_val.
                name += &format!(" ({read})");
            }
            let mut into = Builder::new(&name, task);
            let chosen = names.iter().filter_map(|name| found.splits.iter().find(|splits| splits.split == *name));
            let chosen: Vec<&PathBuf> = chosen.flat_map(|splits| &splits.files).collect();
            match files.jsonl {
                true => open_lines(found, &chosen, into),
                false => {
                    let labels = arrow_labels(path, found, &chosen)?;
                    // Without a list of labels any is right.
                    let count = if labels.listed { labels.names.len() } else { usize::MAX };
                    for file in chosen {
                        arrow::read(&ArrowFile::open(file)?, task, count, &mut into)?;
                    }
                    into.finish(labels.names)
                }
            }
        }
    }
}

/// As [`open`], with the labels of a checkpoint's head in place of the data set's own, matched by name.
///
/// # Errors
/// As [`open`]; also where a class is none of `labels`.
pub fn open_with(path: &Path, task: Task, split: &str, labels: Option<&[String]>) -> Result<Records> {
    let records = open(path, task, split)?;
    match labels {
        Some(labels) => records.relabelled(labels),
        None => Ok(records),
    }
}

/// All data sets at `path`, with their splits.
///
/// # Errors
/// There is nothing, or it can't be read.
pub fn survey(path: &Path) -> Result<Vec<Found>> {
    if path == Path::new(TOY) && !path.exists() {
        return Ok(builtin("toy", &Task::ALL, &toy::SPLITS, path));
    }
    match Place::at(path)? {
        Place::EasyVqa(_) => Ok(builtin("easy-VQA", &[Task::Irtr, Task::Vqa], &easy_vqa::SPLITS, path)),
        Place::Files(files) => Ok(files.found),
    }
}

/// The task that the data at `path` are for: those of the data set `preferred`, where it is given.
///
/// # Errors
/// They are for several of the tasks `among`, or for none of them, or can't be read.
pub fn only_task(path: &Path, preferred: Option<&str>, among: &[Task]) -> Result<Task> {
    let (found, why_not) = match Place::at(path) {
        Ok(Place::Files(files)) if path != Path::new(TOY) || path.exists() => {
            let why_not = files.why_not();
            (files.found, why_not)
        }
        _ => (survey(path)?, String::new()),
    };
    let of_set = |found: &&Found| preferred.is_none_or(|set| found.set == set);
    let mut tasks: Vec<Task> = found.iter().filter(of_set).map(|found| found.task).collect();
    tasks.retain(|task| among.contains(task));
    tasks.sort_unstable();
    tasks.dedup();
    match tasks[..] {
        [task] => Ok(task),
        [] => {
            let wanted: Vec<&str> = among.iter().map(|task| task.name()).collect();
            Err(Error::file(path, format!("there are no data for {}{why_not}", wanted.join(", "))))
        }
        _ => Err(Error::SeveralTasks { path: path.into(), tasks }),
    }
}

fn builtin(set: &str, tasks: &[Task], splits: &[&str], path: &Path) -> Vec<Found> {
    let splits: Vec<SplitFiles> =
        splits.iter().map(|split| SplitFiles { split: split.to_string(), files: vec![path.into()] }).collect();
    tasks.iter().map(|task| Found { set: set.into(), task: *task, splits: splits.clone() }).collect()
}

enum Place {
    Files(Files),
    EasyVqa(Box<EasyVqa>),
}

/// Arrow or JSONL files, by data set.
struct Files {
    jsonl: bool,
    found: Vec<Found>,
    /// Files that couldn't be looked into, and why.
    unreadable: Vec<(PathBuf, Error)>,
}

impl Place {
    fn at(path: &Path) -> Result<Place> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if kind.is_file() {
            return match ending(path).as_str() {
                "arrow" | "feather" => Ok(Place::Files(Files::of(&[path.into()], false))),
                "jsonl" | "ndjson" => Ok(Place::Files(Files::of(&[path.into()], true))),
                "whl" | "zip" => EasyVqa::open(path).map(|set| Place::EasyVqa(Box::new(set))),
                _ => Err(Error::file(path, "no data set: expected a folder, an .arrow, .jsonl or .whl file")),
            };
        }
        let mut entries = std::fs::read_dir(path)
            .and_then(|entries| {
                entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()
            })
            .map_err(|e| Error::io(path, "list", e))?;
        entries.sort();
        let with = |wanted: &str| -> Vec<PathBuf> {
            entries.iter().filter(|entry| ending(entry) == wanted && entry.is_file()).cloned().collect()
        };
        let (arrows, lines) = (with("arrow"), with("jsonl"));
        if !arrows.is_empty() {
            return Ok(Place::Files(Files::of(&arrows, false)));
        }
        if !lines.is_empty() {
            return Ok(Place::Files(Files::of(&lines, true)));
        }
        if EasyVqa::is_in(path) {
            return EasyVqa::open(path).map(|set| Place::EasyVqa(Box::new(set)));
        }
        let there: Vec<String> =
            entries.iter().filter_map(|entry| Some(show_name(&entry.file_name()?.to_string_lossy()))).take(5).collect();
        let there = if there.is_empty() { "it is empty".into() } else { format!("it has {}, …", there.join(", ")) };
        Err(Error::file(path, format!("no data set: expected .arrow or .jsonl files, or easy-VQA; {there}")))
    }
}

fn ending(path: &Path) -> String {
    path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase()
}

impl Files {
    fn of(paths: &[PathBuf], jsonl: bool) -> Files {
        type Shards = Vec<(u32, PathBuf)>;
        let mut sets: BTreeMap<(String, Task), BTreeMap<String, Shards>> = BTreeMap::new();
        let mut unreadable = Vec::new();
        for path in paths {
            let task = match jsonl {
                true => Lines::read(path).map(|lines| lines.task()),
                false => ArrowFile::open(path).and_then(|file| {
                    arrow::task_of(&file).ok_or_else(|| {
                        let columns: Vec<&str> =
                            file.schema().fields().iter().map(|field| field.name().as_str()).collect();
                        Error::file(path, format!("no task has its columns: {}", columns.join(", ")))
                    })
                }),
            };
            match task {
                Ok(task) => {
                    let Named { set, split, shard } =
                        Named::parse(&path.file_stem().unwrap_or_default().to_string_lossy());
                    // A JSONL file may say its task before the split, as `vqa_train`.
                    let set = if jsonl && set == task.name() { String::new() } else { set };
                    sets.entry((set, task)).or_default().entry(split).or_default().push((shard, path.clone()));
                }
                Err(e) => unreadable.push((path.clone(), e)),
            }
        }
        let found = sets.into_iter().map(|((set, task), splits)| {
            let splits = splits.into_iter().map(|(split, mut files)| {
                files.sort();
                SplitFiles { split, files: files.into_iter().map(|(_, file)| file).collect() }
            });
            Found { set, task, splits: splits.collect() }
        });
        Files { jsonl, found: found.collect(), unreadable }
    }

    /// The data set and the names of the splits to read. A single file is whatever split is asked for.
    fn choose(
        &self,
        path: &Path,
        task: Task,
        split: &str,
        single: bool,
        preferred: Option<&str>,
    ) -> Result<(&Found, Vec<String>)> {
        let (set, split) = split.split_once(':').map_or((None, split), |(set, split)| (Some(set), split));
        let candidates: Vec<&Found> =
            self.found.iter().filter(|found| found.task == task && set.is_none_or(|set| found.set == set)).collect();
        let missing = |wanted: String| {
            let found = match self.listed(task) {
                listed if listed.is_empty() => {
                    let others: Vec<String> =
                        self.found.iter().map(|found| format!("{} ({})", found.set, found.task)).collect();
                    format!("there is {}", if others.is_empty() { "nothing".into() } else { others.join(", ") })
                }
                listed => format!("there are {}", listed.join(", ")),
            };
            Error::Missing { path: path.into(), wanted, found: found + &self.why_not() }
        };
        let mut matching: Vec<(&Found, Vec<String>)> = candidates
            .iter()
            .map(|found| {
                let have: Vec<&str> = found.splits.iter().map(|splits| splits.split.as_str()).collect();
                let names = match single {
                    true => have.iter().map(|split| split.to_string()).collect(),
                    false => splits_for(split, &have),
                };
                (*found, names)
            })
            .filter(|(_, names)| !names.is_empty())
            .collect();
        if matching.len() > 1 && matching.iter().any(|(found, _)| Some(&*found.set) == preferred) {
            matching.retain(|(found, _)| Some(&*found.set) == preferred);
        }
        match matching.len() {
            1 => Ok(matching.into_iter().next().ok_or_else(|| missing(String::new()))?),
            0 => Err(match self.blame(split) {
                Some(damaged) => Error::Argument(damaged),
                None if candidates.is_empty() && set.is_none() => missing(format!("examples for {task}")),
                None => missing(format!("split '{split}' for {task}")),
            }),
            _ => {
                let sets: Vec<String> = matching.iter().map(|(found, _)| format!("{}:{split}", found.set)).collect();
                let first = &matching[0].0.set;
                let reason = format!(
                    "several data sets for {task}: say which, as split {} (in finetune --set data_set={first})",
                    sets.join(" or ")
                );
                Err(Error::file(path, reason))
            }
        }
    }

    fn listed(&self, task: Task) -> Vec<String> {
        let of_task = self.found.iter().filter(|found| found.task == task);
        let sets = of_task.map(|found| {
            let splits: Vec<&str> = found.splits.iter().map(|splits| splits.split.as_str()).collect();
            format!("{} ({})", if found.set.is_empty() { task.name() } else { &found.set }, splits.join(", "))
        });
        sets.collect()
    }

    /// A file that could have been the split but can't be read.
    fn blame(&self, split: &str) -> Option<String> {
        let mut named = self
            .unreadable
            .iter()
            .map(|(path, error)| (Named::parse(&path.file_stem().unwrap_or_default().to_string_lossy()).split, error));
        let wanted = |name: &str| split.split('+').any(|split| !splits_for(split.trim(), &[name]).is_empty());
        named.find(|(name, _)| wanted(name)).map(|(_, error)| error.to_string())
    }

    fn why_not(&self) -> String {
        match &self.unreadable[..] {
            [] => String::new(),
            [(_, error)] => format!("; {error}"),
            [(_, error), rest @ ..] => format!("; {error} ({} more)", rest.len()),
        }
    }
}

fn open_lines(found: &Found, chosen: &[&PathBuf], mut into: Builder) -> Result<Records> {
    let read = chosen.iter().map(|path| Lines::read(path)).collect::<Result<Vec<_>>>()?;
    let labels = match list_beside(chosen.first().map_or(Path::new(""), |path| path), found)? {
        Some(labels) => labels,
        None => {
            // The training file decides for every split.
            let training = found.splits.iter().find(|splits| splits.split == "train");
            let training: Vec<&PathBuf> = training.iter().flat_map(|splits| &splits.files).collect();
            match training.first() {
                Some(path) if !chosen.contains(path) => Lines::read(path)?.labels(),
                _ => read.first().map(Lines::labels).unwrap_or_default(),
            }
        }
    };
    for lines in &read {
        lines.add(&labels, &mut into)?;
    }
    into.finish(labels)
}

struct Labels {
    names: Vec<String>,
    /// In a file of their own, so that there can't be others.
    listed: bool,
}

fn arrow_labels(path: &Path, found: &Found, chosen: &[&PathBuf]) -> Result<Labels> {
    if !matches!(found.task, Task::Vqa | Task::ImgCls) {
        return Ok(Labels { names: Vec::new(), listed: false });
    }
    if let Some(names) = list_beside(chosen.first().map_or(path, |path| path), found)? {
        return Ok(Labels { names, listed: true });
    }
    // As the Python code does: what the files themselves name.
    let files = found.splits.iter().flat_map(|splits| &splits.files);
    match found.task {
        Task::Vqa => {
            let mut named = Vec::new();
            for file in files {
                arrow::named_answers(&ArrowFile::open(file)?, &mut named)?;
            }
            let count = named.last().map_or(0, |(label, _)| label + 1);
            let mut names = vec!["unknown".to_string(); count];
            for (label, name) in named {
                names[label] = name;
            }
            Ok(Labels { names, listed: false })
        }
        _ => {
            let mut highest = None;
            for file in files {
                highest = highest.max(arrow::highest_label(&ArrowFile::open(file)?)?);
            }
            let names = (0..highest.map_or(0, |highest| highest + 1)).map(|label| label.to_string()).collect();
            Ok(Labels { names, listed: false })
        }
    }
}

/// The list of labels beside a data set's file, where there is one.
fn list_beside(file: &Path, found: &Found) -> Result<Option<Vec<String>>> {
    let what = match found.task {
        Task::Vqa => "answers",
        Task::ImgCls => "classes",
        _ => return Ok(None),
    };
    let folder = file.parent().unwrap_or(Path::new(""));
    let names = [format!("{}_{what}.json", found.set), format!("{what}.json")];
    match names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file()) {
        Some(path) => answers::read(&path).map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Dataset, Example, Target};
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn captions_in_jsonl() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "images/a.png", "A");
        write(folder.path(), "b.png", "B");
        write(
            folder.path(),
            "train.jsonl",
            "{\"image\": \"images/a.png\", \"caption\": \"one\"}\n\n{\"image\": \"b.png\", \"captions\": [\"two\", \"three\"]}\n\
             {\"image\": \"images/a.png\", \"caption\": \"four\"}\n",
        );
        let set = open(folder.path(), Task::Irtr, "train").unwrap();
        assert_eq!((set.len(), set.images()), (4, 2));
        let first = set.image(0).unwrap();
        assert_eq!(
            (&first.image[..], first.image_id, first.captions),
            (&b"A"[..], "images/a.png", vec!["one", "four"])
        );
        assert_eq!(set.image(1).unwrap().captions, ["two", "three"]);
        let error = open(folder.path(), Task::Irtr, "val").unwrap_err().to_string();
        assert!(error.ends_with("no split 'val' for irtr; there are irtr (train)"), "{error}");
    }

    #[test]
    fn questions_in_jsonl() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.png", "A");
        write(
            folder.path(),
            "train.jsonl",
            r#"{"image": "a.png", "question": "what color?", "answers": ["red", "red", "red", "red", "red", "red", "red", "pink", "pink", "blue"], "question_id": 12}
{"image": "a.png", "question": "is it?", "answer": "yes", "image_id": 77}
{"image": "a.png", "question": "how many?", "answers": [{"answer": "2"}, {"answer": "two"}]}"#,
        );
        write(folder.path(), "test.jsonl", r#"{"image": "a.png", "question": "what now?"}"#);
        let set = open(folder.path(), Task::Vqa, "train").unwrap();
        assert_eq!(set.labels(), ["red", "pink", "2", "blue", "two", "yes"]);
        let example = |index| match set.example(index).unwrap() {
            Example::Vqa { question_id, image_id, targets, answered: true, .. } => {
                (question_id, image_id, targets.to_vec())
            }
            _ => panic!(),
        };
        let target = |label, score| Target { label, score };
        assert_eq!(example(0), (12, "a.png", vec![target(0, 1.0), target(1, 0.6), target(3, 0.3)]));
        assert_eq!(example(1), (1, "77", vec![target(5, 1.0)]));
        assert_eq!(example(2), (2, "a.png", vec![target(2, 1.0), target(4, 1.0)]));
        // The test split has the training split's labels, and no answers.
        let test = open(folder.path(), Task::Vqa, "test").unwrap();
        assert_eq!(test.labels(), set.labels());
        assert!(matches!(test.example(0).unwrap(), Example::Vqa { answered: false, targets: [], .. }));
        // Labels of a checkpoint, in another order.
        let labels = ["two".to_string(), "pink".to_string()];
        let set = open_with(folder.path(), Task::Vqa, "train", Some(&labels)).unwrap();
        assert!(matches!(set.example(0).unwrap(), Example::Vqa { targets: [Target { label: 1, .. }], .. }));
        assert!(matches!(set.example(1).unwrap(), Example::Vqa { targets: [], answered: true, .. }));
    }

    #[test]
    fn pairs_and_classes_in_jsonl() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            write(folder.path(), name, name);
        }
        let pairs = r#"{"image_0": "a", "image_1": "b", "sentence": "s", "label": true, "identifier": "dev-0-0-0"}
{"image_0": "b", "image_1": "a", "sentence": "s", "label": "False"}
{"image_0": "b", "image_1": "a", "sentence": "hidden"}"#;
        write(folder.path(), "nlvr2_dev.jsonl", pairs);
        write(
            folder.path(),
            "train.jsonl",
            "{\"image\": \"a\", \"label\": \"dog\"}\n{\"image\": \"b\", \"label\": \"cat\"}",
        );
        let set = open(folder.path(), Task::Nlvr2, "val").unwrap();
        let labels: Vec<_> = (0..3)
            .map(|index| match set.example(index).unwrap() {
                Example::Nlvr2 { label, left, .. } => (label, left.into_owned()),
                _ => panic!(),
            })
            .collect();
        assert_eq!(labels, [(Some(true), b"a".to_vec()), (Some(false), b"b".to_vec()), (None, b"b".to_vec())]);
        let set = open(folder.path(), Task::ImgCls, "train").unwrap();
        assert_eq!(set.labels(), ["cat", "dog"]);
        assert!(matches!(set.example(0).unwrap(), Example::ImgCls { label: 1, .. }));
        let error = open_with(folder.path(), Task::ImgCls, "train", Some(&["cat".into()])).unwrap_err().to_string();
        assert!(error.contains("class 'dog' is none of the 1 given"), "{error}");
    }

    #[test]
    fn broken_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.png", "A");
        let mut lines: Vec<String> =
            (0..400).map(|number| format!(r#"{{"image": "a.png", "question": "{number}?", "answer": "x"}}"#)).collect();
        lines[3] = "{".into();
        lines[5] = r#"{"image": "none.png", "question": "?", "answer": "x"}"#.into();
        lines[9] = r#"{"image": "a.png"}"#.into();
        write(folder.path(), "train.jsonl", &lines.join("\n"));
        let set = open(folder.path(), Task::Vqa, "train").unwrap();
        assert_eq!(set.len(), 397);
        let sample: Vec<String> = set.broken().sample().iter().map(|row| row.to_string()).collect();
        assert!(sample.iter().any(|row| row.contains("train.jsonl row 5: there is no image 'none.png'")), "{sample:?}");
        assert!(sample.iter().any(|row| row.contains("row 3: no such line")) && sample.len() == 3, "{sample:?}");
        lines[4] = "no JSON".into();
        lines[6] = "no JSON".into();
        write(folder.path(), "train.jsonl", &lines.join("\n"));
        let error = open(folder.path(), Task::Vqa, "train").unwrap_err().to_string();
        assert!(error.starts_with("5 of 400 rows are broken"), "{error}");
    }

    #[test]
    fn easy_vqa_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "answers.txt", "circle\nred\nyes\nno\n");
        write(
            folder.path(),
            "train/questions.json",
            r#"[["what color is the circle?", "red", 0], ["is there a circle?", "yes", 0], ["is there a circle?", "no", 9],
                ["what is the red shape?", "circle", 9]]"#,
        );
        write(
            folder.path(),
            "test/questions.json",
            r#"[["what is the red shape?", "circle", 4], ["what is the red shape?", "circle", 5]]"#,
        );
        for name in ["train/images/0.png", "train/images/9.png", "test/images/4.png", "test/images/5.png"] {
            write(folder.path(), name, name);
        }
        let set = open(folder.path(), Task::Vqa, "train").unwrap();
        assert_eq!((set.len(), set.images(), set.labels().len()), (2, 1, 4));
        let Example::Vqa { image, question_id, targets, .. } = set.example(1).unwrap() else { panic!() };
        assert_eq!(
            (&image[..], question_id, targets),
            (&b"train/images/0.png"[..], 1, &[Target { label: 2, score: 1.0 }][..])
        );
        let val = open(folder.path(), Task::Vqa, "val").unwrap();
        assert!(matches!(val.example(0).unwrap(), Example::Vqa { question_id: 2, image_id: "9", .. }));
        assert_eq!(open(folder.path(), Task::Vqa, "train+val").unwrap().len(), 4);
        let test = open(folder.path(), Task::Irtr, "test").unwrap();
        assert_eq!(test.image(1).unwrap().captions[0], "a red circle");
        assert_eq!(open(folder.path(), Task::Irtr, "distinct").unwrap().images(), 1);
        let error = open(folder.path(), Task::Vqa, "dev").unwrap_err().to_string();
        assert!(error.contains("easy-VQA has train, val, test, distinct"), "{error}");
    }

    #[test]
    fn the_built_in_set_by_its_name() {
        assert_eq!(open(Path::new("toy"), Task::Vqa, "val").unwrap().images(), 256);
        assert_eq!(survey(Path::new("toy")).unwrap().len(), 4);
    }

    #[test]
    fn places_without_data() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| open(path, Task::Vqa, "train").unwrap_err().to_string();
        assert!(error(folder.path()).ends_with("it is empty"));
        write(folder.path(), "a.txt", "");
        assert!(error(folder.path()).contains("it has a.txt"));
        assert!(error(&folder.path().join("a.txt")).contains("no data set"));
        assert!(error(&folder.path().join("none")).contains("cannot open"));
        write(folder.path(), "a.whl", "PK but no wheel");
        assert!(error(&folder.path().join("a.whl")).contains("no wheel"));
    }
}
