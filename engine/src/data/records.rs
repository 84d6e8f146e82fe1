//! A split in memory: texts and labels, and where the images are.
//!
//! Every reader fills one of these row by row; a row is an image (a pair, for NLVR2) with its texts.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use super::broken::{MAX_BROKEN, Unit};
use super::{Broken, BrokenRow, Captioned, Dataset, Error, Example, Outside, Result, Target, Task};

/// Where encoded images lie.
pub(super) trait Pictures: Send + Sync {
    /// The bytes of one image, or why they can't be had.
    fn get(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, String>;
}

/// Images that are in memory.
impl Pictures for Vec<Vec<u8>> {
    fn get(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, String> {
        self.as_slice().get(index).map(|bytes| Cow::Borrowed(bytes.as_slice())).ok_or("no such image".into())
    }
}

/// A split of a data set, ready to use.
pub struct Records {
    name: String,
    task: Task,
    /// Names as messages have them, and what a row is in each.
    files: Vec<(String, Unit)>,
    /// Files and folders whose whole content this split is.
    sources: Vec<PathBuf>,
    pictures: Vec<Box<dyn Pictures>>,
    /// By row, one image or two.
    images: Vec<[At; 2]>,
    /// By row: file and row in it.
    origins: Vec<(u32, u32)>,
    /// By row: image id, or a pair's identifier.
    ids: Strings,
    /// By example.
    texts: Strings,
    /// By example: its row.
    rows: Vec<u32>,
    /// By row: its first example; one more at the end.
    firsts: Vec<u32>,
    /// By example.
    facts: Facts,
    labels: Vec<String>,
    numbering: Numbering,
    broken: Broken,
}

/// Where labels have their numbers from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbering {
    /// The data itself says numbers: there may be higher ones than those that occur in it.
    Data,
    /// A list in a file, or folders by name: all labels are there, in an order that others have too.
    Listed,
    /// This program numbered the names that occur, the most frequent first.
    #[default]
    Counted,
}

/// What is known of each example beside its text.
enum Facts {
    Irtr,
    Vqa {
        question_ids: Vec<i64>,
        answered: Vec<bool>,
        targets: Vec<Target>,
        target_ends: Vec<usize>,
        /// Answers that are none of the labels.
        outside: Vec<usize>,
    },
    Nlvr2 {
        labels: Vec<Option<bool>>,
    },
    ImgCls {
        labels: Vec<u32>,
    },
}

/// An image: which source, and where in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub source: u32,
    pub index: u32,
}

impl Records {
    /// Leaves the first `examples`, for a quick look at a large set; of the last image maybe only some of its texts.
    #[must_use]
    pub fn truncated(mut self, examples: usize) -> Records {
        let keep = self.rows.get(examples.saturating_sub(1)).map_or(self.images.len(), |row| *row as usize + 1);
        let keep = if examples == 0 { 0 } else { keep };
        self.images.truncate(keep);
        self.rows.truncate(examples);
        self.firsts.truncate(keep + 1);
        if let Some(end) = self.firsts.last_mut() {
            *end = (*end).min(self.rows.len() as u32);
        }
        self
    }

    /// Other labels for the same answers: those of a checkpoint's head, whose order may differ. Answers that are not
    /// among `labels` are dropped from the targets, as a model with this head can't give them.
    ///
    /// # Errors
    /// A class of an image classification set is not among `labels`.
    pub fn relabelled(mut self, labels: &[String]) -> Result<Records> {
        if labels == self.labels {
            return Ok(self);
        }
        let by_name: std::collections::HashMap<&str, u32> = labels.iter().map(String::as_str).zip(0..).collect();
        let new: Vec<Option<u32>> = self.labels.iter().map(|label| by_name.get(label.as_str()).copied()).collect();
        match &mut self.facts {
            Facts::Irtr | Facts::Nlvr2 { .. } => return Ok(self),
            Facts::Vqa { targets, target_ends, outside, .. } => {
                let mut kept = Vec::with_capacity(targets.len());
                let mut start = 0;
                for (end, outside) in target_ends.iter_mut().zip(outside) {
                    let before = kept.len();
                    kept.extend(targets[start..*end].iter().filter_map(|target| {
                        let label = new.get(target.label as usize).copied().flatten()?;
                        Some(Target { label, ..*target })
                    }));
                    *outside += (*end - start) - (kept.len() - before);
                    start = *end;
                    *end = kept.len();
                }
                *targets = kept;
            }
            Facts::ImgCls { labels: classes } => {
                for class in classes.iter_mut() {
                    *class = new.get(*class as usize).copied().flatten().ok_or_else(|| {
                        let name = self.labels.get(*class as usize).map_or("?", String::as_str);
                        Error::Argument(format!("{}: class '{name}' is none of the {} given", self.name, labels.len()))
                    })?;
                }
            }
        }
        self.labels = labels.to_vec();
        Ok(self)
    }

    /// Where [`Dataset::labels`] have their numbers from.
    pub fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// As many labels as a head has: those that don't occur in the data are called `unknown`.
    #[must_use]
    pub fn padded(mut self, labels: usize) -> Records {
        if self.labels.len() < labels {
            self.labels.resize(labels, "unknown".into());
        }
        self
    }

    /// Files and folders that this split is the whole content of: two splits that share one share examples. Empty where
    /// splits are cut out of one file, as easy-VQA's are.
    pub fn sources(&self) -> &[PathBuf] {
        &self.sources
    }

    fn bytes(&self, at: At) -> std::result::Result<Cow<'_, [u8]>, String> {
        self.pictures.get(at.source as usize).ok_or("no such image".to_string())?.get(at.index as usize)
    }

    fn row_image(&self, row: usize, side: usize) -> Result<Cow<'_, [u8]>> {
        let at = self.images.get(row).ok_or_else(|| self.beyond(row))?[side];
        self.bytes(at).map_err(|cause| Error::Row(self.broken_row(row, cause)))
    }

    fn broken_row(&self, row: usize, cause: impl Into<String>) -> BrokenRow {
        let (file, row) = self.origins[row];
        let (file, unit) = self.files[file as usize].clone();
        BrokenRow { file, unit, row: row as usize + 1, cause: cause.into() }
    }

    fn row_of(&self, index: usize) -> Result<usize> {
        self.rows.get(index).map(|row| *row as usize).ok_or_else(|| self.beyond(index))
    }

    fn beyond(&self, index: usize) -> Error {
        Error::Argument(format!("{}: {index} is beyond its end", self.name))
    }

    fn skip_row(&self, row: usize, cause: &str) -> Result<()> {
        self.broken.skip(self.broken_row(row, cause))
    }
}

impl Dataset for Records {
    fn name(&self) -> &str {
        &self.name
    }

    fn task(&self) -> Task {
        self.task
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn example(&self, index: usize) -> Result<Example<'_>> {
        let row = self.row_of(index)?;
        let image = self.row_image(row, 0)?;
        let text = self.texts.get(index);
        Ok(match &self.facts {
            Facts::Irtr => Example::Irtr { image, caption: text, image_index: row },
            Facts::Vqa { question_ids, answered, targets, target_ends, .. } => Example::Vqa {
                image,
                question: text,
                targets: &targets[start_of(target_ends, index)..target_ends[index]],
                answered: answered[index],
                question_id: question_ids[index],
                image_id: self.ids.get(row),
            },
            Facts::Nlvr2 { labels } => Example::Nlvr2 {
                left: image,
                right: self.row_image(row, 1)?,
                sentence: text,
                label: labels[index],
                identifier: self.ids.get(row),
            },
            Facts::ImgCls { labels } => Example::ImgCls { image, label: labels[index], image_id: self.ids.get(row) },
        })
    }

    fn caption(&self, index: usize) -> Result<(&str, usize)> {
        let row = self.row_of(index)?;
        match self.facts {
            Facts::Irtr => Ok((self.texts.get(index), row)),
            _ => Err(Error::Argument(format!("{} has no captions", self.name))),
        }
    }

    fn images(&self) -> usize {
        self.images.len()
    }

    fn image(&self, index: usize) -> Result<Captioned<'_>> {
        let image = self.row_image(index, 0)?;
        let (first, end) = (self.firsts[index] as usize, self.firsts[index + 1] as usize);
        let captions = match self.facts {
            Facts::Irtr => (first..end).map(|text| self.texts.get(text)).collect(),
            _ => Vec::new(),
        };
        Ok(Captioned { image, image_id: self.ids.get(index), captions, first })
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn broken(&self) -> &Broken {
        &self.broken
    }

    fn origin(&self, index: usize) -> String {
        match self.row_of(index) {
            Ok(row) => self.broken_row(row, "").place(),
            Err(_) => self.name.clone(),
        }
    }

    fn outside(&self) -> Outside {
        let Facts::Vqa { answered, target_ends, outside, .. } = &self.facts else { return Outside::default() };
        let mut found = Outside::default();
        for index in (0..self.rows.len()).filter(|&index| answered[index]) {
            let inside = target_ends[index] - start_of(target_ends, index);
            found.questions += 1;
            found.unanswerable += usize::from(inside == 0);
            found.answers += inside + outside[index];
            found.outside += outside[index];
        }
        found
    }

    fn skip(&self, index: usize, cause: &str) -> Result<()> {
        self.skip_row(self.row_of(index)?, cause)
    }

    fn skip_image(&self, index: usize, cause: &str) -> Result<()> {
        match index < self.images.len() {
            true => self.skip_row(index, cause),
            false => Err(self.beyond(index)),
        }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Records")
            .field("name", &self.name)
            .field("task", &self.task)
            .field("len", &self.rows.len())
            .field("images", &self.images.len())
            .field("broken", &self.broken.count())
            .finish_non_exhaustive()
    }
}

/// Many short texts in one allocation.
#[derive(Debug, Default)]
struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn get(&self, index: usize) -> &str {
        &self.text[start_of(&self.ends, index)..self.ends[index]]
    }
}

fn start_of(ends: &[usize], index: usize) -> usize {
    index.checked_sub(1).map_or(0, |before| ends[before])
}

/// A row's question, as read.
#[derive(Clone, Debug, Default)]
pub(super) struct Question<'a> {
    pub text: &'a str,
    pub id: i64,
    pub targets: Vec<Target>,
    /// Answers that are none of the labels.
    pub outside: usize,
    pub answered: bool,
}

/// A row's texts and what is known of them.
#[derive(Clone, Debug)]
pub(super) enum Texts<'a> {
    Captions(Vec<&'a str>),
    Questions(Vec<Question<'a>>),
    Sentences(Vec<(&'a str, Option<bool>)>),
    Class(u32),
}

/// [`Records`] in the making.
pub(super) struct Builder {
    records: Records,
    broken: Vec<BrokenRow>,
    max_broken: f64,
}

impl Builder {
    pub fn new(name: impl Into<String>, task: Task) -> Builder {
        let facts = match task {
            Task::Irtr => Facts::Irtr,
            Task::Vqa => Facts::Vqa {
                question_ids: Vec::new(),
                answered: Vec::new(),
                targets: Vec::new(),
                target_ends: Vec::new(),
                outside: Vec::new(),
            },
            Task::Nlvr2 => Facts::Nlvr2 { labels: Vec::new() },
            Task::ImgCls => Facts::ImgCls { labels: Vec::new() },
        };
        let records = Records {
            name: name.into(),
            task,
            files: Vec::new(),
            sources: Vec::new(),
            pictures: Vec::new(),
            images: Vec::new(),
            origins: Vec::new(),
            ids: Strings::default(),
            texts: Strings::default(),
            rows: Vec::new(),
            firsts: vec![0],
            facts,
            labels: Vec::new(),
            numbering: Numbering::default(),
            broken: Broken::new(0, MAX_BROKEN),
        };
        Builder { records, broken: Vec::new(), max_broken: MAX_BROKEN }
    }

    /// The share of the rows that may be broken, 0 to 1, instead of [`MAX_BROKEN`].
    #[must_use]
    pub fn allowing(mut self, max_broken: f64) -> Builder {
        self.max_broken = max_broken;
        self
    }

    /// Rows that follow come from this file, which messages call `name`.
    pub fn file(&mut self, name: impl Into<String>, unit: Unit) {
        self.records.files.push((name.into(), unit));
    }

    /// All of a file or folder goes into the split.
    pub fn source(&mut self, path: &Path) {
        self.records.sources.push(path.canonicalize().unwrap_or_else(|_| path.into()));
    }

    /// The images of rows that follow may lie here: the number for [`At::source`].
    pub fn pictures(&mut self, pictures: Box<dyn Pictures>) -> u32 {
        self.records.pictures.push(pictures);
        (self.records.pictures.len() - 1) as u32
    }

    /// Adds a row, counted from 0; one that lacks something is broken. `images` has two for NLVR2, else one.
    ///
    /// # Errors
    /// More than 2³² examples.
    pub fn row(&mut self, row: usize, images: &[At], id: &str, texts: Texts) -> Result<()> {
        let broken = match &texts {
            Texts::Captions(captions) if captions.is_empty() => Some("no caption"),
            Texts::Questions(questions) if questions.is_empty() => Some("no question"),
            Texts::Sentences(sentences) if sentences.is_empty() => Some("no sentence"),
            _ => None,
        };
        let images = match images {
            [one] => [*one, *one],
            [left, right] => [*left, *right],
            _ => return Err(Error::Argument("a row has one image or two".into())),
        };
        if let Some(cause) = broken {
            self.broken(row, cause);
            return Ok(());
        }
        let records = &mut self.records;
        let number = records.images.len() as u32;
        match (&mut records.facts, texts) {
            (Facts::Irtr, Texts::Captions(captions)) => captions.into_iter().for_each(|text| records.texts.push(text)),
            (Facts::Vqa { question_ids, answered, targets, target_ends, outside }, Texts::Questions(questions)) => {
                for question in questions {
                    outside.push(question.outside);
                    records.texts.push(question.text);
                    question_ids.push(question.id);
                    answered.push(question.answered);
                    targets.extend(question.targets);
                    target_ends.push(targets.len());
                }
            }
            (Facts::Nlvr2 { labels }, Texts::Sentences(sentences)) => {
                for (text, label) in sentences {
                    records.texts.push(text);
                    labels.push(label);
                }
            }
            (Facts::ImgCls { labels }, Texts::Class(label)) => {
                records.texts.push("");
                labels.push(label);
            }
            _ => return Err(Error::Argument("a row of another task".into())),
        }
        let examples = u32::try_from(records.texts.ends.len())
            .map_err(|_| Error::Argument(format!("{}: more than 2^32 examples", records.name)))?;
        records.images.push(images);
        records.origins.push((records.files.len().saturating_sub(1) as u32, row as u32));
        records.ids.push(id);
        records.rows.resize(examples as usize, number);
        records.firsts.push(examples);
        Ok(())
    }

    /// Notes a row of the current file, counted from 0, that can't be used.
    pub fn broken(&mut self, row: usize, cause: impl Into<String>) {
        let (file, unit) = self.records.files.last().cloned().unwrap_or_default();
        self.broken.push(BrokenRow { file, unit, row: row + 1, cause: cause.into() });
    }

    /// # Errors
    /// More rows are broken than may be, or none is left.
    pub fn finish(mut self, labels: Vec<String>, numbering: Numbering) -> Result<Records> {
        let rows = self.records.images.len() + self.broken.len();
        self.records.broken = Broken::new(rows, self.max_broken);
        // The count in the message should be that of all, not of those up to the first too many.
        let count = self.broken.len();
        for row in self.broken {
            if let Err(Error::TooManyBroken { first, .. }) = self.records.broken.skip(row) {
                return Err(self.records.broken.too_many(count, first));
            }
        }
        if self.records.images.is_empty() {
            if let Some(first) = self.records.broken.sample().into_iter().next() {
                return Err(Error::Argument(format!("{first}; no row is left")));
            }
            let file = self.records.files.first().map_or(&self.records.name, |(name, _)| name);
            return Err(Error::file(file, "there is no row in it"));
        }
        (self.records.labels, self.records.numbering) = (labels, numbering);
        Ok(self.records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_images() -> Records {
        let mut builder = Builder::new("two", Task::Irtr);
        builder.file("memory", Unit::Row);
        let source = builder.pictures(Box::new(vec![vec![1], vec![2, 2]]));
        builder.row(0, &[At { source, index: 0 }], "a", Texts::Captions(vec!["x", "y"])).unwrap();
        builder.row(1, &[At { source, index: 1 }], "b", Texts::Captions(vec!["z"])).unwrap();
        builder.finish(Vec::new(), Numbering::Counted).unwrap()
    }

    #[test]
    fn captions_are_examples_and_images_have_them() {
        let set = two_images();
        assert_eq!((set.len(), set.images()), (3, 2));
        let Example::Irtr { image, caption, image_index } = set.example(2).unwrap() else { panic!() };
        assert_eq!((&image[..], caption, image_index), (&[2u8, 2][..], "z", 1));
        let image = set.image(0).unwrap();
        assert_eq!((image.image_id, image.captions, image.first), ("a", vec!["x", "y"], 0));
        assert_eq!(set.image(1).unwrap().first, 2);
        assert_eq!(set.caption(2).unwrap(), ("z", 1));
        assert!(set.example(3).is_err() && set.image(2).is_err() && set.caption(3).is_err());
    }

    #[test]
    fn truncation_is_by_examples() {
        let lengths = |examples| {
            let set = two_images().truncated(examples);
            (set.len(), set.images())
        };
        assert_eq!([0, 1, 2, 3, 9].map(lengths), [(0, 0), (1, 1), (2, 1), (3, 2), (3, 2)]);
        let set = two_images().truncated(1);
        assert_eq!(set.image(0).unwrap().captions.len(), 1);
        assert!(set.example(1).is_err());
    }

    #[test]
    fn labels_of_a_head_replace_those_of_the_set() {
        let mut builder = Builder::new("q", Task::Vqa);
        builder.file("memory", Unit::Row);
        let source = builder.pictures(Box::new(vec![vec![1]]));
        let targets = vec![Target { label: 0, score: 1.0 }, Target { label: 1, score: 0.3 }];
        let first = Question { text: "?", id: 7, targets, outside: 0, answered: true };
        let second =
            Question { text: "??", id: 8, targets: vec![Target { label: 0, score: 0.9 }], outside: 1, answered: true };
        builder.row(0, &[At { source, index: 0 }], "a", Texts::Questions(vec![first, second])).unwrap();
        let set = builder.finish(vec!["red".into(), "blue".into()], Numbering::Listed).unwrap();
        let before = Outside { questions: 2, unanswerable: 0, answers: 4, outside: 1 };
        assert_eq!(set.outside(), before);
        let set = set.relabelled(&["green".into(), "yes".into(), "blue".into()]).unwrap();
        let targets = |index| match set.example(index).unwrap() {
            Example::Vqa { targets, .. } => targets.to_vec(),
            _ => panic!(),
        };
        assert_eq!(targets(0), [Target { label: 2, score: 0.3 }]);
        assert_eq!(targets(1), []);
        assert_eq!(set.outside(), Outside { unanswerable: 1, outside: 3, ..before });
        assert_eq!(set.truncated(1).outside(), Outside { questions: 1, unanswerable: 0, answers: 2, outside: 1 });
    }
}
