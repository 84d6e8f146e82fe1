//! A split in memory: texts and labels, and where the images are.
//!
//! Every reader fills one of these row by row; a row is an image (a pair, for NLVR2) with its texts.

use std::borrow::Cow;
use std::fmt;

use super::{Broken, BrokenRow, Captioned, Dataset, Error, Example, Result, Target, Task};

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
    files: Vec<String>,
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
    broken: Broken,
}

/// What is known of each example beside its text.
enum Facts {
    Irtr,
    Vqa { question_ids: Vec<i64>, answered: Vec<bool>, targets: Vec<Target>, target_ends: Vec<usize> },
    Nlvr2 { labels: Vec<Option<bool>> },
    ImgCls { labels: Vec<u32> },
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
            Facts::Vqa { targets, target_ends, .. } => {
                let mut kept = Vec::with_capacity(targets.len());
                let mut start = 0;
                for end in target_ends.iter_mut() {
                    kept.extend(targets[start..*end].iter().filter_map(|target| {
                        let label = new.get(target.label as usize).copied().flatten()?;
                        Some(Target { label, ..*target })
                    }));
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

    fn bytes(&self, at: At) -> std::result::Result<Cow<'_, [u8]>, String> {
        self.pictures.get(at.source as usize).ok_or("no such image".to_string())?.get(at.index as usize)
    }

    fn row_image(&self, row: usize, side: usize) -> Result<Cow<'_, [u8]>> {
        let at = self.images.get(row).ok_or_else(|| self.beyond(row))?[side];
        self.bytes(at)
            .map_err(|cause| Error::file(&self.files[self.origins[row].0 as usize], self.row_says(row, &cause)))
    }

    fn row_says(&self, row: usize, cause: &str) -> String {
        format!("row {}: {cause}", self.origins[row].1)
    }

    fn row_of(&self, index: usize) -> Result<usize> {
        self.rows.get(index).map(|row| *row as usize).ok_or_else(|| self.beyond(index))
    }

    fn beyond(&self, index: usize) -> Error {
        Error::Argument(format!("{}: {index} is beyond its end", self.name))
    }

    fn skip_row(&self, row: usize, cause: &str) -> Result<()> {
        let (file, row) = self.origins[row];
        self.broken.skip(BrokenRow { file: self.files[file as usize].clone(), row: row as usize, cause: cause.into() })
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
            Facts::Vqa { question_ids, answered, targets, target_ends } => Example::Vqa {
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
            },
            Task::Nlvr2 => Facts::Nlvr2 { labels: Vec::new() },
            Task::ImgCls => Facts::ImgCls { labels: Vec::new() },
        };
        let records = Records {
            name: name.into(),
            task,
            files: Vec::new(),
            pictures: Vec::new(),
            images: Vec::new(),
            origins: Vec::new(),
            ids: Strings::default(),
            texts: Strings::default(),
            rows: Vec::new(),
            firsts: vec![0],
            facts,
            labels: Vec::new(),
            broken: Broken::new(0),
        };
        Builder { records, broken: Vec::new() }
    }

    /// Rows that follow come from this file.
    pub fn file(&mut self, name: impl Into<String>) {
        self.records.files.push(name.into());
    }

    /// The images of rows that follow may lie here: the number for [`At::source`].
    pub fn pictures(&mut self, pictures: Box<dyn Pictures>) -> u32 {
        self.records.pictures.push(pictures);
        (self.records.pictures.len() - 1) as u32
    }

    /// Adds a row; one that lacks something is broken. `images` has two for NLVR2, else one.
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
            (Facts::Vqa { question_ids, answered, targets, target_ends }, Texts::Questions(questions)) => {
                for question in questions {
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

    /// Notes a row of the current file that can't be used.
    pub fn broken(&mut self, row: usize, cause: impl Into<String>) {
        let file = self.records.files.last().cloned().unwrap_or_default();
        self.broken.push(BrokenRow { file, row, cause: cause.into() });
    }

    /// # Errors
    /// More than 1 % of the rows are broken, or none is left.
    pub fn finish(mut self, labels: Vec<String>) -> Result<Records> {
        let rows = self.records.images.len() + self.broken.len();
        self.records.broken = Broken::new(rows);
        // The count in the message should be that of all, not of those up to the first too many.
        let count = self.broken.len();
        for row in self.broken {
            if let Err(Error::TooManyBroken { rows, first, .. }) = self.records.broken.skip(row) {
                return Err(Error::TooManyBroken { broken: count, rows, first });
            }
        }
        if self.records.images.is_empty() {
            let file = self.records.files.first().cloned().unwrap_or_else(|| self.records.name.clone());
            return Err(Error::file(file, "there is no row in it"));
        }
        self.records.labels = labels;
        Ok(self.records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_images() -> Records {
        let mut builder = Builder::new("two", Task::Irtr);
        builder.file("memory");
        let source = builder.pictures(Box::new(vec![vec![1], vec![2, 2]]));
        builder.row(0, &[At { source, index: 0 }], "a", Texts::Captions(vec!["x", "y"])).unwrap();
        builder.row(1, &[At { source, index: 1 }], "b", Texts::Captions(vec!["z"])).unwrap();
        builder.finish(Vec::new()).unwrap()
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
        builder.file("memory");
        let source = builder.pictures(Box::new(vec![vec![1]]));
        let targets = vec![Target { label: 0, score: 1.0 }, Target { label: 1, score: 0.3 }];
        let first = Question { text: "?", id: 7, targets, answered: true };
        let second = Question { text: "??", id: 8, targets: vec![Target { label: 1, score: 0.9 }], answered: true };
        builder.row(0, &[At { source, index: 0 }], "a", Texts::Questions(vec![first, second])).unwrap();
        let set = builder.finish(vec!["red".into(), "blue".into()]).unwrap();
        let set = set.relabelled(&["green".into(), "yes".into(), "blue".into()]).unwrap();
        let targets = |index| match set.example(index).unwrap() {
            Example::Vqa { targets, .. } => targets.to_vec(),
            _ => panic!(),
        };
        assert_eq!(targets(0), [Target { label: 2, score: 0.3 }]);
        assert_eq!(targets(1), [Target { label: 2, score: 0.9 }]);
    }
}
