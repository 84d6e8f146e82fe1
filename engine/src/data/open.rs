//! Finding out what lies at a path, and opening it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::{show_name, show_path};

use super::arrow::{self, ArrowFile};
use super::broken::MAX_BROKEN;
use super::easy_vqa::{self, EasyVqa};
use super::files::{Named, splits_for};
use super::folder::{Lines, METADATA};
use super::records::{Builder, Numbering};
use super::toy::{self, Toy};
use super::{Error, Records, Result, Task, answers, convert, images};

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

/// How to open a split.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Where there are several data sets with such a split, the one of this name.
    pub preferred: Option<&'a str>,
    /// The share of the rows that may be broken, 0 to 1.
    pub max_broken: f64,
}

impl Default for Opening<'_> {
    fn default() -> Self {
        Opening { preferred: None, max_broken: MAX_BROKEN }
    }
}

/// Opens a split of what lies at `path` for a task.
///
/// `path` is a folder of Arrow files, of images beside JSONL files or of one folder of images a class; a single Arrow or
/// JSONL file; easy-VQA's wheel or folder, or [`TOY`]. `split` is `train`, `val` or `test`, or a name as the files have
/// it (`restval`, `test-dev`); `a+b` is both; `SET:split` chooses between several data sets in a folder. A single file
/// whose name says its split is that split alone; one whose name doesn't is whatever split is asked for.
///
/// # Errors
/// There is no such split (the message lists those that there are), a file is damaged or has wrong columns, or more
/// than 1 % of the rows are broken.
pub fn open(path: &Path, task: Task, split: &str) -> Result<Records> {
    open_as(path, task, split, &Opening::default())
}

/// As [`open`].
///
/// # Errors
/// As [`open`], of the share of broken rows that is allowed.
pub fn open_as(path: &Path, task: Task, split: &str, opening: &Opening) -> Result<Records> {
    if path == Path::new(TOY) && !path.exists() {
        return Toy::default().open(task, split);
    }
    match Place::at(path)? {
        Place::EasyVqa(set) => {
            let mut into = Builder::new(format!("easy-VQA {split}"), task).allowing(opening.max_broken);
            for split in split.split('+') {
                set.read(task, split.trim(), &mut into)?;
            }
            let labels = if task == Task::Vqa { set.answers().to_vec() } else { Vec::new() };
            into.finish(labels, Numbering::Listed)
        }
        Place::Files(files) => {
            let (found, names) = files.choose(path, task, split, opening.preferred)?;
            let asked = split.split_once(':').map_or(split, |(_, split)| split);
            let read = names.join("+");
            let name = match &files.single {
                // Nobody knows which split it is.
                Some(None) => found.set.clone(),
                _ if read == asked => format!("{} {asked}", found.set),
                // As VQAv2's val is its rest_val.
                _ => format!("{} {asked} ({read})", found.set),
            };
            let name = if name.trim().is_empty() { task.name().to_owned() } else { name.trim().to_owned() };
            let mut into = Builder::new(&name, task).allowing(opening.max_broken);
            let chosen = names.iter().filter_map(|name| found.splits.iter().find(|splits| splits.split == *name));
            let chosen: Vec<&PathBuf> = chosen.flat_map(|splits| &splits.files).collect();
            refuse_copies(chosen.iter().copied())?;
            match files.kind {
                Kind::Lines => open_lines(found, &chosen, into),
                Kind::Classes => open_classes(path, found, &chosen, into),
                Kind::Arrow => {
                    let labels = arrow_labels(path, found, &chosen)?;
                    // Without a list of labels any is right.
                    let listed = labels.numbering == Numbering::Listed;
                    let count = if listed { labels.names.len() } else { usize::MAX };
                    for file in chosen {
                        arrow::read(&ArrowFile::open(file)?, task, count, &mut into)?;
                    }
                    into.finish(labels.names, labels.numbering)
                }
            }
        }
    }
}

/// Refuses two files that are the same shard of the same split by their names: most likely one is a copy of the other,
/// such as `code224_vg.arrow` of `vg.arrow`, and every example would be there twice.
pub(super) fn refuse_copies<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let mut shards: BTreeMap<(String, Option<u32>), &Path> = BTreeMap::new();
    for file in files {
        let Named { split, shard, .. } = named(file);
        let split = split.unwrap_or_else(|| "train".into());
        let what = match shard {
            Some(shard) => format!("part {shard} of split '{split}'"),
            None => format!("split '{split}'"),
        };
        if let Some(other) = shards.insert((split, shard), file) {
            return Err(Error::Argument(format!(
                "{} and {}: by their names both are {what}: move one of them elsewhere, or number them",
                show_path(other),
                show_path(file)
            )));
        }
    }
    Ok(())
}

/// The split that a single file is by its name, `None` where the name doesn't say it or `path` has several splits.
pub fn own_split(path: &Path) -> Option<String> {
    match Place::at(path) {
        Ok(Place::Files(files)) => files.single.flatten(),
        _ => None,
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
/// They are for several of the tasks `among`, or for none of them, or can't be read; or they are folders of images that
/// need not be classes, as they have no splits.
pub fn only_task(path: &Path, preferred: Option<&str>, among: &[Task]) -> Result<Task> {
    let (found, why_not) = match Place::at(path) {
        // What a download unpacks to may look like that: only who asks for the task knows that these are classes.
        Ok(Place::Files(files))
            if files.kind == Kind::Classes && files.single == Some(None) && among.contains(&Task::ImgCls) =>
        {
            let reason = "it has folders of images, but no folder train or val around them, so that they need not be \
                          classes: if they are, --task img_cls says so";
            return Err(Error::file(path, reason));
        }
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

/// What data sets in files are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Arrow,
    Lines,
    /// Folders of images, one for each class.
    Classes,
}

/// Arrow or JSONL files or folders of classes, by data set.
struct Files {
    kind: Kind,
    /// Where all there is is one file, or one folder without splits: the split that its name says, if it says one.
    single: Option<Option<String>>,
    found: Vec<Found>,
    /// Files that couldn't be looked into, and why.
    unreadable: Vec<(PathBuf, Error)>,
}

impl Place {
    fn at(path: &Path) -> Result<Place> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if kind.is_file() {
            let single = |kind| Ok(Place::Files(Files::of(&[path.into()], kind, Some(split_of(path)))));
            return match ending(path).as_str() {
                "arrow" | "feather" => single(Kind::Arrow),
                "jsonl" | "ndjson" => single(Kind::Lines),
                "whl" | "zip" => EasyVqa::open(path).map(|set| Place::EasyVqa(Box::new(set))),
                _ => Err(convert::file(path).unwrap_or_else(|| {
                    Error::file(path, "no data set: expected a folder, an .arrow, .jsonl or .whl file")
                })),
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
        // Its shards are .arrow files too, of another format.
        if !arrows.is_empty() && !path.join("state.json").is_file() {
            return Ok(Place::Files(Files::of(&arrows, Kind::Arrow, None)));
        }
        if let [one] = &lines[..]
            && one.file_name().is_some_and(|name| name == METADATA)
        {
            return Ok(Place::Files(Files::of(&lines, Kind::Lines, Some(split_of(one)))));
        }
        if !lines.is_empty() {
            return Ok(Place::Files(Files::of(&lines, Kind::Lines, None)));
        }
        if EasyVqa::is_in(path) {
            return EasyVqa::open(path).map(|set| Place::EasyVqa(Box::new(set)));
        }
        let metadata: Vec<PathBuf> =
            entries.iter().map(|entry| entry.join(METADATA)).filter(|file| file.is_file()).collect();
        if !metadata.is_empty() {
            return Ok(Place::Files(Files::of(&metadata, Kind::Lines, None)));
        }
        if let Some(classes) = Files::of_classes(path)? {
            return Ok(Place::Files(classes));
        }
        if let Some(error) = convert::folder(path, &entries).or_else(|| convert::only_images(path, &entries)) {
            return Err(error);
        }
        let there: Vec<String> =
            entries.iter().filter_map(|entry| Some(show_name(&entry.file_name()?.to_string_lossy()))).take(5).collect();
        let there = if there.is_empty() { "it is empty".into() } else { format!("it has {}, …", there.join(", ")) };
        let expected = "no data set: expected .arrow or .jsonl files, a folder of images for each class, or easy-VQA";
        Err(Error::file(path, format!("{expected}; {there}")))
    }
}

pub(super) fn ending(path: &Path) -> String {
    path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// The name that says a file's data set and split: its own, or its folder's for Hugging Face's `metadata.jsonl`.
fn named(path: &Path) -> Named {
    let folder = path.file_name().is_some_and(|name| name == METADATA).then(|| path.parent()).flatten();
    match folder {
        // "." has no name.
        Some(folder) => {
            let folder = folder.canonicalize().unwrap_or_else(|_| folder.into());
            Named::parse(&folder.file_name().unwrap_or_default().to_string_lossy())
        }
        None => Named::parse(&path.file_stem().unwrap_or_default().to_string_lossy()),
    }
}

fn split_of(path: &Path) -> Option<String> {
    named(path).split
}

impl Files {
    fn of(paths: &[PathBuf], kind: Kind, single: Option<Option<String>>) -> Files {
        type Shards = Vec<(Option<u32>, PathBuf)>;
        let mut sets: BTreeMap<(String, Task), BTreeMap<String, Shards>> = BTreeMap::new();
        let mut unreadable = Vec::new();
        for path in paths {
            let task = match kind {
                Kind::Lines | Kind::Classes => Lines::read(path).map(|lines| lines.task()),
                Kind::Arrow => ArrowFile::open(path).and_then(|file| {
                    arrow::task_of(&file).ok_or_else(|| {
                        let columns: Vec<&str> =
                            file.schema().fields().iter().map(|field| field.name().as_str()).collect();
                        let found = format!("no task has its columns: {}", columns.join(", "));
                        let wanted = "there must be image, and caption or label or questions, or image_0 and image_1";
                        Error::file(path, format!("{found}; {wanted}"))
                    })
                }),
            };
            match task {
                Ok(task) => {
                    let Named { set, split, shard } = named(path);
                    // A JSONL file may say its task before the split, as `vqa_train`.
                    let set = if kind == Kind::Lines && set == task.name() { String::new() } else { set };
                    let split = split.unwrap_or_else(|| "train".into());
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
        Files { kind, single, found: found.collect(), unreadable }
    }

    /// Folders of images, one a class; `None` where there are none.
    fn of_classes(path: &Path) -> Result<Option<Files>> {
        let mut splits = images::splits_in(path)?;
        let single = match &mut splits[..] {
            [] => return Ok(None),
            [one] if one.split.is_empty() => {
                let folder = path.canonicalize().unwrap_or_else(|_| path.into());
                let own = Named::parse(&folder.file_name().unwrap_or_default().to_string_lossy()).split;
                one.split = own.clone().unwrap_or_else(|| "train".into());
                Some(own)
            }
            _ => None,
        };
        let found = vec![Found { set: String::new(), task: Task::ImgCls, splits }];
        Ok(Some(Files { kind: Kind::Classes, single, found, unreadable: Vec::new() }))
    }

    /// The data set and the names of the splits to read.
    fn choose(&self, path: &Path, task: Task, split: &str, preferred: Option<&str>) -> Result<(&Found, Vec<String>)> {
        let (set, split) = split.split_once(':').map_or((None, split), |(set, split)| (Some(set), split));
        let candidates: Vec<&Found> =
            self.found.iter().filter(|found| found.task == task && set.is_none_or(|set| found.set == set)).collect();
        let missing = |wanted: String| {
            let found = match self.listed(task) {
                listed if listed.is_empty() => {
                    let others: Vec<String> = self
                        .found
                        .iter()
                        .map(|found| match found.set.as_str() {
                            "" => found.task.to_string(),
                            set => format!("{set} ({})", found.task),
                        })
                        .collect();
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
                let names = match &self.single {
                    Some(None) => have.iter().map(|split| split.to_string()).collect(),
                    _ => splits_for(split, &have),
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
            0 => Err(match (self.blame(split), &self.single) {
                (Some(damaged), _) => Error::Argument(damaged),
                (None, _) if candidates.is_empty() && set.is_none() => missing(format!("examples for {task}")),
                (None, Some(Some(own))) => Error::Missing {
                    path: path.into(),
                    wanted: format!("split '{split}' for {task}"),
                    found: format!("its name says that it is '{own}'; give the folder that has both"),
                },
                (None, _) => missing(format!("split '{split}' for {task}")),
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
        let mut named = self.unreadable.iter().map(|(path, error)| (split_of(path), error));
        let wanted = |name: Option<&str>| {
            let name = name.unwrap_or("train");
            // A single file is the one that was meant, whatever it is called.
            self.single.is_some() || split.split('+').any(|split| !splits_for(split.trim(), &[name]).is_empty())
        };
        named.find(|(name, _)| wanted(name.as_deref())).map(|(_, error)| error.to_string())
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
    let mut numbering = Numbering::Listed;
    let labels = match list_beside(chosen.first().map_or(Path::new(""), |path| path), found)? {
        Some(labels) => labels,
        None => {
            numbering = match read.iter().all(Lines::numbered) {
                true => Numbering::Data,
                false => Numbering::Counted,
            };
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
    into.finish(labels, numbering)
}

/// Folders of classes: those of the training split number them for every split.
fn open_classes(path: &Path, found: &Found, chosen: &[&PathBuf], mut into: Builder) -> Result<Records> {
    let labels = match list_beside(&path.join("classes"), found)? {
        Some(labels) => labels,
        None => {
            let training = found.splits.iter().find(|splits| splits.split == "train");
            let folder = training.and_then(|splits| splits.files.first()).or(chosen.first().copied());
            folder.map(|folder| images::classes(folder)).transpose()?.unwrap_or_default()
        }
    };
    for split in chosen {
        into.source(split);
        images::read(split, &labels, &mut into)?;
    }
    into.finish(labels, Numbering::Listed)
}

struct Labels {
    names: Vec<String>,
    numbering: Numbering,
}

fn arrow_labels(path: &Path, found: &Found, chosen: &[&PathBuf]) -> Result<Labels> {
    if !matches!(found.task, Task::Vqa | Task::ImgCls) {
        return Ok(Labels { names: Vec::new(), numbering: Numbering::Data });
    }
    if let Some(names) = list_beside(chosen.first().map_or(path, |path| path), found)? {
        return Ok(Labels { names, numbering: Numbering::Listed });
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
            Ok(Labels { names, numbering: Numbering::Data })
        }
        _ => {
            let mut highest = None;
            for file in files {
                highest = highest.max(arrow::highest_label(&ArrowFile::open(file)?)?);
            }
            let names = (0..highest.map_or(0, |highest| highest + 1)).map(|label| label.to_string()).collect();
            Ok(Labels { names, numbering: Numbering::Data })
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
        let set = open(folder.path(), Task::Vqa, "train").unwrap().relabelled(&labels).unwrap();
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
        let error = open(folder.path(), Task::ImgCls, "train").unwrap().relabelled(&["cat".into()]);
        let error = error.unwrap_err().to_string();
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
        assert!(sample.iter().any(|row| row == "train.jsonl line 6: there is no image 'none.png'"), "{sample:?}");
        assert!(
            sample.iter().any(|row| row.starts_with("train.jsonl line 4: not JSON: EOF")) && sample.len() == 3,
            "{sample:?}"
        );
        lines[4] = "no JSON".into();
        lines[6] = "no JSON".into();
        write(folder.path(), "train.jsonl", &lines.join("\n"));
        let error = open(folder.path(), Task::Vqa, "train").unwrap_err().to_string();
        assert!(error.starts_with("train.jsonl line 4: not JSON"), "{error}");
        assert!(error.contains("; 5 of 400 rows are broken"), "{error}");
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

    /// A picture of its own and a question about it, so that splits can be told apart.
    fn question(folder: &Path, file: &str) {
        write(folder, "a.png", "A");
        write(folder, file, "{\"image\": \"a.png\", \"question\": \"is it?\", \"answer\": \"yes\"}\n");
    }

    #[test]
    fn a_single_file_is_no_other_split_than_its_name_says() {
        let folder = tempfile::tempdir().unwrap();
        question(folder.path(), "pets_train.jsonl");
        let file = folder.path().join("pets_train.jsonl");
        for split in ["test", "val", "train+val"] {
            let error = open(&file, Task::Vqa, split).unwrap_err().to_string();
            let said = format!(
                "pets_train.jsonl: no split '{split}' for vqa; its name says that it is 'train'; give the folder that has both"
            );
            assert!(error.ends_with(&said), "{error}");
        }
        assert_eq!(open(&file, Task::Vqa, "train").unwrap().name(), "pets train");
        assert_eq!(own_split(&file).as_deref(), Some("train"));
        // As in folders, dev is a val.
        question(folder.path(), "pets_dev.jsonl");
        let dev = open(&folder.path().join("pets_dev.jsonl"), Task::Vqa, "val").unwrap();
        assert_eq!(dev.name(), "pets val (dev)");
    }

    #[test]
    fn a_single_file_without_a_split_claims_none() {
        let folder = tempfile::tempdir().unwrap();
        question(folder.path(), "pets.jsonl");
        let file = folder.path().join("pets.jsonl");
        for split in ["train", "val", "test"] {
            assert_eq!(open(&file, Task::Vqa, split).unwrap().name(), "pets");
        }
        assert_eq!(own_split(&file), None);
        let (train, val) = (open(&file, Task::Vqa, "train").unwrap(), open(&file, Task::Vqa, "val").unwrap());
        assert_eq!(train.sources(), val.sources());
        assert_eq!(train.sources(), [file.canonicalize().unwrap()]);
    }

    #[test]
    fn half_of_the_splits_asked_for_is_not_enough() {
        let folder = tempfile::tempdir().unwrap();
        question(folder.path(), "train.jsonl");
        let error = open(folder.path(), Task::Vqa, "train+restval").unwrap_err().to_string();
        assert!(error.contains("no split 'train+restval' for vqa; there are vqa (train)"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_costs_no_line() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.png", "A");
        let line = "{\"image\": \"a.png\", \"caption\": \"one\"}\r\n{\"image\": \"a.png\", \"caption\": \"two\"}\r\n";
        write(folder.path(), "train.jsonl", &format!("\u{feff}{line}"));
        let set = open(folder.path(), Task::Irtr, "train").unwrap();
        assert_eq!((set.image(0).unwrap().captions, set.broken().count()), (vec!["one", "two"], 0));
    }

    #[test]
    fn a_broken_row_is_named_by_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.png", "A");
        let error = |lines: &str| {
            write(folder.path(), "pets_train.jsonl", lines);
            let error = open(folder.path(), open_task(lines), "train").unwrap_err().to_string();
            error.split_once("pets_train.jsonl").expect("the file is named").1.to_owned()
        };
        fn open_task(lines: &str) -> Task {
            if lines.contains("question") { Task::Vqa } else { Task::Irtr }
        }
        const GOOD: &str = "{\"image\": \"a.png\", \"caption\": \"a dog\"}\n";
        const ASKED: &str = "{\"image\": \"a.png\", \"question\": \"?\", \"answer\": \"yes\"}\n";
        for (lines, said) in [
            (
                format!("{GOOD}{{\"image\": \"a.png\", \"caption\": 5}}"),
                " line 2: \"caption\" is 5, expected a text or a list of texts; 1 of 2 rows are broken, more than 1 %",
            ),
            (
                format!("{GOOD}{{\"image\": \"a.png\", \"captions\": [\"a\", 5]}}"),
                " line 2: \"captions\" is [5], expected a text or a list of texts",
            ),
            (format!("{GOOD}\n\n{{\"image\": 7, \"caption\": \"a\"}}"), " line 4: \"image\" is 7, expected a text"),
            (format!("{GOOD}{{\"image\": \"a.png\","), " line 2: not JSON: EOF while parsing a value at column"),
            (format!("{GOOD}[1]"), " line 2: not a JSON object, such as "),
            (
                format!("{ASKED}{{\"image\": \"a.png\", \"question\": \"?\", \"question_id\": \"x\"}}"),
                " line 2: \"question_id\" is \"x\", expected a whole number",
            ),
            (
                format!("{ASKED}{{\"image\": \"a.png\", \"question\": \"?\", \"answers\": [3]}}"),
                " line 2: \"answers\" is [3], expected a list of texts",
            ),
            (format!("{ASKED}{{\"image\": \"b.png\", \"question\": \"?\"}}"), " line 2: there is no image 'b.png'"),
        ] {
            let error = error(&lines);
            assert!(error.starts_with(said), "{lines}: {error}");
        }
        // Where no line is an example, the first is what there is to say.
        let error = error("{\"image\": \"a.png\", \"caption\": 5}");
        let said = ": no line of it is an example: line 1: \"caption\" is 5, expected a text or a list of texts";
        assert!(error.ends_with(said), "{error}");
    }

    #[test]
    fn more_broken_rows_are_allowed_where_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        question(folder.path(), "train.jsonl");
        let good = fs::read_to_string(folder.path().join("train.jsonl")).unwrap();
        write(folder.path(), "train.jsonl", &format!("{good}no JSON\n{good}"));
        let open = |max_broken| {
            let opening = Opening { max_broken, ..Opening::default() };
            open_as(folder.path(), Task::Vqa, "train", &opening).map(|set| (set.len(), set.broken().count()))
        };
        assert_eq!(open(0.5).unwrap(), (2, 1));
        let error = open(0.3).unwrap_err().to_string();
        assert!(error.contains("1 of 3 rows are broken, more than 30 %"), "{error}");
    }

    #[test]
    fn a_folder_for_each_class_is_image_classification() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["train/dog/1.jpg", "train/cat/deep/2.PNG", "train/cat/3.jpg", "val/dog/4.jpg", "val/.x/5.jpg"] {
            write(folder.path(), name, name);
        }
        write(folder.path(), "train/cat/notes.txt", "no image");
        fs::create_dir(folder.path().join("train/empty")).unwrap();
        let set = open(folder.path(), Task::ImgCls, "train").unwrap();
        assert_eq!((set.labels(), set.len(), set.name()), (&["cat".to_string(), "dog".into()][..], 3, "train"));
        let Example::ImgCls { image, label, image_id } = set.example(2).unwrap() else { panic!() };
        assert_eq!((&image[..], label, image_id), (&b"train/dog/1.jpg"[..], 1, "dog/1.jpg"));
        // The training split numbers the classes.
        let val = open(folder.path(), Task::ImgCls, "val").unwrap();
        assert!(matches!(val.example(0).unwrap(), Example::ImgCls { label: 1, .. }));
        assert_eq!((val.len(), val.labels().len()), (1, 2));
        let error = open(folder.path(), Task::ImgCls, "test").unwrap_err().to_string();
        assert!(error.ends_with("no split 'test' for img_cls; there are img_cls (train, val)"), "{error}");
        assert!(val.skip(0, "no JPEG").unwrap_err().to_string().starts_with("dog/4.jpg: no JPEG; 1 of 1 rows"));
        write(folder.path(), "val/bird/6.jpg", "");
        let error = open(folder.path(), Task::ImgCls, "val").unwrap_err().to_string();
        assert!(error.starts_with("bird/6.jpg: the training split has no class 'bird'; 1 of 2 rows"), "{error}");
        // The folder of one split is that split; one without a name is whatever is asked for.
        let train = folder.path().join("train");
        assert_eq!(open(&train, Task::ImgCls, "train").unwrap().len(), 3);
        let error = open(&train, Task::ImgCls, "val").unwrap_err().to_string();
        assert!(error.contains("its name says that it is 'train'"), "{error}");
        fs::rename(&train, folder.path().join("pets")).unwrap();
        let pets = folder.path().join("pets");
        assert_eq!(open(&pets, Task::ImgCls, "val").unwrap().sources(), [pets.canonicalize().unwrap()]);
    }

    #[test]
    fn folders_of_images_without_splits_are_no_classes_unless_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["coco/train2014/1.jpg", "coco/val2014/2.jpg", "pets/train/cat/1.jpg", "pets/train/dog/2.jpg"] {
            write(folder.path(), name, name);
        }
        let coco = folder.path().join("coco");
        let error = only_task(&coco, None, &Task::ALL).unwrap_err().to_string();
        assert!(error.contains("coco: it has folders of images, but no folder train or val around them"), "{error}");
        assert!(error.ends_with("--task img_cls says so"), "{error}");
        assert_eq!(open(&coco, Task::ImgCls, "train").unwrap().labels(), ["train2014", "val2014"]);
        for path in ["pets", "pets/train"] {
            assert_eq!(only_task(&folder.path().join(path), None, &Task::ALL).unwrap(), Task::ImgCls, "{path}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_do_not_lead_in_circles() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "train/cat/1.jpg", "1");
        write(folder.path(), "elsewhere/2.jpg", "2");
        let train = folder.path().join("train");
        for link in ["a", "b", "c.jpg"] {
            symlink(&train, train.join("cat").join(link)).unwrap();
        }
        // A class may be a link, and an image.
        symlink(folder.path().join("elsewhere"), train.join("dog")).unwrap();
        symlink(train.join("cat/1.jpg"), train.join("cat/3.jpg")).unwrap();
        let set = open(folder.path(), Task::ImgCls, "train").unwrap();
        let images = (0..set.len()).map(|index| match set.example(index).unwrap() {
            Example::ImgCls { image_id, .. } => image_id.to_owned(),
            _ => panic!(),
        });
        let images: Vec<String> = images.collect();
        assert_eq!(images, ["cat/1.jpg", "cat/3.jpg", "dog/2.jpg"]);
    }

    #[test]
    fn the_same_part_of_a_split_is_not_read_twice() {
        let folder = tempfile::tempdir().unwrap();
        let said = |first: &str, second: &str| {
            let set = tempfile::tempdir_in(folder.path()).unwrap();
            question(set.path(), &format!("{first}.jsonl"));
            question(set.path(), &format!("{second}.jsonl"));
            open(set.path(), Task::Vqa, "train").map(|set| set.len()).map_err(|e| e.to_string())
        };
        for (first, second, what) in [
            ("code224_pets_train", "pets_train", "split 'train'"),
            ("pets", "pets_train", "split 'train'"),
            ("train", "vqa_train", "split 'train'"),
            ("code224_pets_train_2", "pets_train_2", "part 2 of split 'train'"),
            ("train-00000-of-00002", "train-00000-of-00003", "part 0 of split 'train'"),
        ] {
            let error = said(first, second).unwrap_err();
            assert!(error.contains(&format!("{first}.jsonl and ")), "{error}");
            assert!(error.contains(&format!("{second}.jsonl: by their names both are {what}: move one")), "{error}");
        }
        for (first, second) in [("pets_train", "pets_train_0"), ("train_0", "train_1"), ("train", "trainable_val")] {
            assert_eq!(said(first, second), Ok(2), "{first} {second}");
        }
    }

    #[test]
    fn hugging_faces_metadata_is_captions() {
        let folder = tempfile::tempdir().unwrap();
        for split in ["train", "validation"] {
            write(folder.path(), &format!("{split}/a.jpg"), split);
            let lines = "{\"file_name\": \"a.jpg\", \"text\": \"a dog\"}\n";
            write(folder.path(), &format!("{split}/metadata.jsonl"), lines);
        }
        let set = open(folder.path(), Task::Irtr, "train").unwrap();
        let image = set.image(0).unwrap();
        assert_eq!((&image.image[..], image.captions), (&b"train"[..], vec!["a dog"]));
        assert_eq!(open(folder.path(), Task::Irtr, "val").unwrap().image(0).unwrap().image, &b"validation"[..]);
        let one = open(&folder.path().join("train"), Task::Irtr, "train").unwrap();
        assert_eq!((one.len(), one.origin(0).as_str()), (1, "train/metadata.jsonl line 1"));
        assert!(open(&folder.path().join("train"), Task::Irtr, "test").is_err());
        // Labels make it another task.
        write(folder.path(), "train/metadata.jsonl", "{\"file_name\": \"a.jpg\", \"label\": 0, \"text\": \"a dog\"}");
        assert_eq!(open(&folder.path().join("train"), Task::ImgCls, "train").unwrap().len(), 1);
    }

    #[test]
    fn other_formats_say_what_converts_them() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &str| open(&folder.path().join(path), Task::Irtr, "train").unwrap_err().to_string();
        write(folder.path(), "it's.parquet", "PAR1");
        let parquet = error("it's.parquet");
        assert!(
            parquet.contains("it's.parquet: a Parquet file isn't read; this makes it readable: python3 -c \"import")
        );
        assert!(parquet.ends_with("it'\\''s.parquet'"), "quoted for the shell: {parquet}");
        if cfg!(unix) {
            write(folder.path(), "a\tb.parquet", "PAR1");
            let tab = error("a\tb.parquet");
            assert!(tab.ends_with(r"a\x09b.parquet'") && tab.contains(" $'"), "the file's real name: {tab}");
        }
        write(folder.path(), "pets.csv", "\u{feff}image,caption\na.jpg,a dog\n");
        let csv = error("pets.csv");
        assert!(csv.contains("csv.DictReader(open(sys.argv[1]") && csv.ends_with("pets.jsonl"), "{csv}");
        write(folder.path(), "pets.tsv", "url\tcaption\n");
        let tsv = error("pets.tsv");
        assert!(
            tsv.contains("delimiter='\\t'") && tsv.contains("its first line must name the columns: image"),
            "{tsv}"
        );
        let mut tar = vec![0u8; 2048];
        tar[..9].copy_from_slice(b"00001.png");
        tar[124..135].copy_from_slice(b"00000000003");
        tar[1024..1033].copy_from_slice(b"00001.cls");
        tar[1148..1159].copy_from_slice(b"00000000001");
        fs::write(folder.path().join("wds.tar"), tar).unwrap();
        let tar = error("wds.tar");
        assert!(tar.contains("'label': int(") && tar.contains("**/*.png"), "{tar}");
        // Folders say it too.
        write(folder.path(), "hub/data/train-00000-of-00002.parquet", "PAR1");
        let hub = error("hub");
        assert!(hub.contains("hub/train.arrow") && hub.contains("hub/data/train*.parquet; the other splits"), "{hub}");
        for name in ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"] {
            write(folder.path(), &format!("saved/validation/{name}"), "{}");
        }
        for path in ["saved", "saved/validation"] {
            let saved = error(path);
            assert!(saved.contains("a folder that datasets.save_to_disk wrote isn't read"), "{saved}");
            assert!(saved.contains("validation.arrow") && saved.contains("validation/data-*.arrow"), "{saved}");
        }
        write(folder.path(), "photos/a.jpg", "");
        let photos = error("photos");
        assert!(photos.contains("it has images, such as a.jpg, but nothing says what they show"), "{photos}");
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
