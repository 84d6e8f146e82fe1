//! easy-VQA as it lies in its wheel: images of one coloured shape, with questions.
//!
//! `train/` and `test/` hold `images/N.png` and `questions.json`, an array of `[question, answer, image]`;
//! `answers.txt` beside them lists the answers. A folder or the wheel itself will do. There is no validation split, so
//! every tenth training image is set aside as `val`. A question's id is its place in its file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;
use memmap2::Mmap;
use zip::{CompressionMethod, ZipArchive};

use super::broken::Unit;
use super::files::unmarked;
use super::folder::Paths;
use super::records::{At, Builder, Pictures, Question, Texts};
use super::{Error, Result, Target, Task};

/// The splits that can be asked for. `distinct` is the first test image of each description: retrieval among images
/// that no caption confuses.
pub const SPLITS: [&str; 4] = ["train", "val", "test", "distinct"];

/// An image with what is asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub image_id: i64,
    /// Question id, question, answer.
    pub questions: Vec<(i64, String, String)>,
}

/// easy-VQA, wherever it lies.
pub struct EasyVqa {
    path: PathBuf,
    place: Place,
    answers: Vec<String>,
}

enum Place {
    Folder(PathBuf),
    Wheel(Wheel),
}

impl EasyVqa {
    /// Finds the data in a wheel (`.whl`), in the package's folder or in its `data` folder.
    ///
    /// # Errors
    /// It isn't there, or can't be read.
    pub fn open(path: &Path) -> Result<EasyVqa> {
        let place = match path.is_file() {
            true => Place::Wheel(Wheel::open(path)?),
            false => Place::Folder(folder_in(path).ok_or_else(|| {
                Error::file(path, "no easy-VQA here: expected answers.txt, train/ and test/, or the wheel")
            })?),
        };
        let answers = place.read(path, "answers.txt")?;
        let answers: Vec<String> = text(path, "answers.txt", unmarked(&answers).to_vec())?
            .lines()
            .map(str::trim)
            .filter(|answer| !answer.is_empty())
            .map(String::from)
            .collect();
        match answers.is_empty() {
            true => Err(Error::file(path, "answers.txt is empty")),
            false => Ok(EasyVqa { path: path.into(), place, answers }),
        }
    }

    /// Whether the data seems to lie in a folder.
    pub fn is_in(folder: &Path) -> bool {
        folder_in(folder).is_some()
    }

    /// The answers, by label.
    pub fn answers(&self) -> &[String] {
        &self.answers
    }

    /// The images of a split with their questions, by image number.
    ///
    /// # Errors
    /// There is no such split, or its questions can't be read.
    pub fn asked(&self, split: &str) -> Result<Vec<Asked>> {
        let file = format!("{}/questions.json", folder_of(split).ok_or_else(|| self.no_split(split))?);
        let bytes = self.place.read(&self.path, &file)?;
        let questions: Vec<(String, String, i64)> =
            serde_json::from_slice(unmarked(&bytes)).map_err(|e| Error::file(&self.path, format!("{file}: {e}")))?;
        let mut images: BTreeMap<i64, Asked> = BTreeMap::new();
        for (number, (question, answer, image_id)) in questions.into_iter().enumerate() {
            let set_aside = image_id.rem_euclid(10) == 9;
            if (split == "train" && set_aside) || (split == "val" && !set_aside) {
                continue;
            }
            let asked = images.entry(image_id).or_insert(Asked { image_id, questions: Vec::new() });
            asked.questions.push((number as i64, question, answer));
        }
        let mut images: Vec<Asked> = images.into_values().collect();
        if split == "distinct" {
            let mut known = std::collections::HashSet::new();
            images.retain(|asked| {
                let seen = describe(asked);
                matches!(seen, (Some(_), Some(_))) && known.insert(seen)
            });
        }
        Ok(images)
    }

    /// The encoded image with a number, from the folder of a split.
    ///
    /// # Errors
    /// It isn't there or can't be read.
    pub fn image(&self, split: &str, image_id: i64) -> Result<Vec<u8>> {
        let folder = folder_of(split).ok_or_else(|| self.no_split(split))?;
        self.place.read(&self.path, &format!("{folder}/images/{image_id}.png"))
    }

    fn no_split(&self, split: &str) -> Error {
        Error::Missing {
            path: self.path.clone(),
            wanted: format!("split '{split}'"),
            found: format!("easy-VQA has {}", SPLITS.join(", ")),
        }
    }

    pub(super) fn read(&self, task: Task, split: &str, into: &mut Builder) -> Result<()> {
        if !matches!(task, Task::Irtr | Task::Vqa) {
            return Err(Error::Missing {
                path: self.path.clone(),
                wanted: format!("examples for {task}"),
                found: "easy-VQA is for vqa and irtr".into(),
            });
        }
        let folder = folder_of(split).ok_or_else(|| self.no_split(split))?;
        let mut images = self.asked(split)?;
        if task == Task::Irtr {
            // Of some images too little is asked to say anything.
            images.retain(|asked| !captions(asked).is_empty());
        }
        let labels: HashMap<&str, u32> = self.answers.iter().map(String::as_str).zip(0..).collect();
        into.file(format!("easy-VQA {split}"), Unit::Row);
        let names: Vec<String> = images.iter().map(|asked| format!("{folder}/images/{}.png", asked.image_id)).collect();
        let there: Vec<bool> = names.iter().map(|name| self.place.has(name)).collect();
        let source = into.pictures(match &self.place {
            Place::Folder(root) => Box::new(Paths(names.iter().map(|name| root.join(name)).collect())),
            Place::Wheel(wheel) => Box::new(Packed { wheel: wheel.clone(), names }),
        });
        for (row, (asked, there)) in images.iter().zip(there).enumerate() {
            if !there {
                into.broken(row, format!("there is no image {}", asked.image_id));
                continue;
            }
            let captions = captions(asked);
            let texts = match task {
                Task::Irtr => Texts::Captions(captions.iter().map(String::as_str).collect()),
                _ => Texts::Questions(
                    asked
                        .questions
                        .iter()
                        .map(|(id, question, answer)| Question {
                            text: question,
                            id: *id,
                            targets: labels
                                .get(answer.as_str())
                                .map(|label| Target { label: *label, score: 1.0 })
                                .into_iter()
                                .collect(),
                            outside: usize::from(!labels.contains_key(answer.as_str())),
                            answered: true,
                        })
                        .collect(),
                ),
            };
            into.row(row, &[At { source, index: row as u32 }], &asked.image_id.to_string(), texts)?;
        }
        Ok(())
    }
}

fn folder_of(split: &str) -> Option<&'static str> {
    match split {
        "train" | "val" => Some("train"),
        "test" | "distinct" => Some("test"),
        _ => None,
    }
}

fn folder_in(path: &Path) -> Option<PathBuf> {
    ["", "data", "easy_vqa/data"]
        .map(|inner| path.join(inner))
        .into_iter()
        .find(|folder| folder.join("answers.txt").is_file() && folder.join("train/questions.json").is_file())
}

fn text(path: &Path, name: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::file(path, format!("{name}: no UTF-8: {e}")))
}

const SHAPES: [&str; 3] = ["circle", "rectangle", "triangle"];
const COLOURS: [&str; 8] = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"];

/// Shape and colour as far as the questions and answers tell: an answer that names them, a question that is answered
/// with yes (with no, where it asks whether there is none), or all others being ruled out.
fn describe(asked: &Asked) -> (Option<&'static str>, Option<&'static str>) {
    (told(asked, &SHAPES), told(asked, &COLOURS))
}

fn told(asked: &Asked, words: &[&'static str]) -> Option<&'static str> {
    let mut possible = words.to_vec();
    for (_, question, answer) in &asked.questions {
        let mentioned = |text: &str| {
            let text = text.trim_end_matches('?');
            words.iter().find(|word| text.split_whitespace().any(|part| part == **word)).copied()
        };
        let negated = question.split_whitespace().any(|word| word == "no" || word == "not");
        match (answer.as_str(), mentioned(question)) {
            ("yes" | "no", Some(word)) => match (answer == "yes") != negated {
                true => return Some(word),
                false => possible.retain(|other| *other != word),
            },
            ("yes" | "no", None) => {}
            // "what is the blue shape?" is about a blue one, and its answer names the other property.
            (answer, Some(word)) if mentioned(answer).is_none() => return Some(word),
            (answer, _) => {
                if let Some(word) = mentioned(answer) {
                    return Some(word);
                }
            }
        }
    }
    match possible[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// Captions in several wordings, of what the questions and answers tell; none where they tell nothing.
pub fn captions(asked: &Asked) -> Vec<String> {
    match describe(asked) {
        (Some(shape), Some(colour)) => vec![
            format!("a {colour} {shape}"),
            format!("there is a {colour} {shape} in the image"),
            format!("the image contains a {shape} and its color is {colour}"),
            format!("the shape is a {colour} {shape}"),
        ],
        (Some(shape), None) => vec![format!("a {shape}"), format!("there is a {shape} in the image")],
        (None, Some(colour)) => vec![format!("a {colour} shape"), format!("there is a {colour} shape in the image")],
        (None, None) => Vec::new(),
    }
}

impl Place {
    fn read(&self, path: &Path, name: &str) -> Result<Vec<u8>> {
        match self {
            Place::Folder(root) => {
                let file = root.join(name);
                std::fs::read(&file).map_err(|e| Error::io(file, "read", e))
            }
            Place::Wheel(wheel) => wheel.read(name).map_err(|reason| Error::file(path, reason)),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Place::Folder(root) => root.join(name).is_file(),
            Place::Wheel(wheel) => wheel.entries.contains_key(name),
        }
    }
}

/// A wheel's entries under `easy_vqa/data/`.
#[derive(Clone)]
struct Wheel {
    map: std::sync::Arc<Mmap>,
    entries: std::sync::Arc<HashMap<String, Entry>>,
}

struct Entry {
    data: Range<usize>,
    deflated: bool,
    size: u64,
}

/// No entry of the wheel is longer, uncompressed.
const LONGEST_ENTRY: u64 = 64 << 20;

impl Wheel {
    fn open(path: &Path) -> Result<Wheel> {
        let wrong = |reason: String| Error::file(path, reason);
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        // SAFETY: the map is read-only; that nobody cuts the file short meanwhile is the caller's part.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let mut archive = ZipArchive::new(Cursor::new(&map[..])).map_err(|e| wrong(format!("no wheel: {e}")))?;
        let mut entries = HashMap::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(|e| wrong(format!("entry {index}: {e}")))?;
            let name = entry.name().map_err(|e| wrong(format!("entry {index}: {e}")))?.to_string();
            let Some((_, name)) = name.split_once("easy_vqa/data/") else { continue };
            let name = name.to_string();
            let deflated = match entry.compression() {
                CompressionMethod::STORE => false,
                CompressionMethod::DEFLATE => true,
                other => return Err(wrong(format!("{name} is compressed with {other}"))),
            };
            let data = entry
                .data_start()
                .and_then(|start| usize::try_from(start).ok())
                .and_then(|start| Some(start..start.checked_add(usize::try_from(entry.compressed_size()).ok()?)?))
                .filter(|data| data.end <= map.len())
                .ok_or_else(|| wrong(format!("{name} ends beyond the file")))?;
            entries.insert(name, Entry { data, deflated, size: entry.size() });
        }
        drop(archive);
        match entries.is_empty() {
            true => Err(wrong("no easy-VQA wheel: there is no easy_vqa/data in it".into())),
            false => Ok(Wheel { map: map.into(), entries: entries.into() }),
        }
    }

    fn read(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        let entry = self.entries.get(name).ok_or_else(|| format!("there is no {name} in it"))?;
        if entry.size > LONGEST_ENTRY {
            return Err(format!("{name} claims to be {} bytes long", entry.size));
        }
        let data = self.map.get(entry.data.clone()).ok_or_else(|| format!("{name} ends beyond the file"))?;
        if !entry.deflated {
            return Ok(data.to_vec());
        }
        let mut bytes = Vec::new();
        let mut inflated = DeflateDecoder::new(data).take(LONGEST_ENTRY + 1);
        inflated.read_to_end(&mut bytes).map_err(|e| format!("{name} can't be inflated: {e}"))?;
        match bytes.len() as u64 == entry.size {
            true => Ok(bytes),
            false => Err(format!("{name} is {} bytes long, not {}", bytes.len(), entry.size)),
        }
    }
}

/// Images in the wheel.
struct Packed {
    wheel: Wheel,
    names: Vec<String>,
}

impl Pictures for Packed {
    fn get(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, String> {
        self.wheel.read(self.names.get(index).ok_or("no such image")?).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(questions: &[(&str, &str)]) -> Asked {
        let question =
            |(id, (question, answer)): (usize, &(&str, &str))| (id as i64, question.to_string(), answer.to_string());
        Asked { image_id: 0, questions: questions.iter().enumerate().map(question).collect() }
    }

    #[test]
    fn what_questions_tell() {
        type Known = (Option<&'static str>, Option<&'static str>);
        let cases: [(&[(&str, &str)], Known); 8] = [
            (&[("what is the blue shape?", "rectangle")], (Some("rectangle"), Some("blue"))),
            (&[("what color is the triangle?", "teal")], (Some("triangle"), Some("teal"))),
            (&[("what is the color of the shape?", "red")], (None, Some("red"))),
            (&[("what shape is present?", "circle")], (Some("circle"), None)),
            (&[("is there a red shape?", "no"), ("is there not a circle in the image?", "no")], (Some("circle"), None)),
            (&[("does the image contain a gray shape?", "yes")], (None, Some("gray"))),
            (&[("is no circle present?", "yes"), ("is a rectangle present?", "no")], (Some("triangle"), None)),
            (&[("is there a circle?", "no")], (None, None)),
        ];
        for (questions, expected) in cases {
            assert_eq!(describe(&asked(questions)), expected, "{questions:?}");
        }
    }

    #[test]
    fn captions_say_what_is_known() {
        assert_eq!(captions(&asked(&[("what is the blue shape?", "rectangle")]))[0], "a blue rectangle");
        assert_eq!(captions(&asked(&[("is there a circle?", "yes")]))[0], "a circle");
        assert!(captions(&asked(&[("is there a circle?", "no")])).is_empty());
    }
}
