//! Data sets: reading, loading ahead of the model, building from official downloads.
//!
//! [`open`] takes a folder or file and answers with a [`Dataset`], whatever it was kept in: Arrow files as the Python
//! code writes them ([`arrow`]), images beside a JSONL file ([`folder`]), a folder of images a class, or easy-VQA's own
//! layout ([`easy_vqa`]).
//! [`toy`] draws one. [`Loader`] calls a closure for every example on worker threads and hands out batches in order:
//!
//! ```ignore
//! let set: Arc<dyn Dataset> = Arc::new(data::open(Path::new("arrows"), Task::Vqa, "train")?);
//! let options = LoaderOptions { batch_size: 32, shuffle: true, seed: 1, ..LoaderOptions::default() };
//! let source = set.clone();
//! let loader = Loader::start(set.len(), options, move |index, rng| {
//!     let Example::Vqa { image, question, targets, .. } = source.example(index)? else { bail!("not VQA") };
//!     match decode(&image) {
//!         Ok(image) => Ok(Some(preprocess(image, question, targets, rng))),
//!         // Counted and skipped; an error once too many rows are broken.
//!         Err(cause) => source.skip(index, &cause.to_string()).map(|()| None).map_err(Into::into),
//!     }
//! })?;
//! for batch in loader { let batch = batch?; … }
//! ```

pub mod answers;
pub mod arrow;
mod broken;
pub mod build;
mod convert;
pub mod easy_vqa;
mod error;
mod files;
pub mod folder;
mod images;
pub mod inspect;
pub mod loader;
mod open;
pub mod order;
mod published;
mod records;
pub mod toy;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub use broken::{Broken, BrokenRow, MAX_BROKEN, Unit};
pub use error::{Error, Result};
pub use loader::{Batch, Loader, Options as LoaderOptions, Position};
pub use open::{Found, Opening, SplitFiles, TOY, only_task, open, open_as, own_split, survey};
pub use published::{Published, published};
pub use records::{Numbering, Records};

/// What the examples of a data set are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Task {
    /// Image-text retrieval.
    Irtr,
    /// Visual question answering.
    Vqa,
    /// Is a sentence about two images true?
    Nlvr2,
    /// Image classification.
    ImgCls,
}

impl Task {
    pub const ALL: [Task; 4] = [Task::Irtr, Task::Vqa, Task::Nlvr2, Task::ImgCls];

    pub fn name(self) -> &'static str {
        match self {
            Task::Irtr => "irtr",
            Task::Vqa => "vqa",
            Task::Nlvr2 => "nlvr2",
            Task::ImgCls => "img_cls",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Task, String> {
        Task::ALL
            .into_iter()
            .find(|task| task.name() == text)
            .ok_or_else(|| format!("'{text}' is no task: irtr, vqa, nlvr2 or img_cls"))
    }
}

/// A right answer and how right it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Position in [`Dataset::labels`].
    pub label: u32,
    /// In [0, 1].
    pub score: f32,
}

/// One example. Images are encoded (JPEG, PNG, …) and borrowed from the memory map where they lie in one.
#[derive(Clone, Debug, PartialEq)]
pub enum Example<'a> {
    /// One caption with its image.
    Irtr {
        image: Cow<'a, [u8]>,
        caption: &'a str,
        /// Position among [`Dataset::images`]: captions of one image share it.
        image_index: usize,
    },
    Vqa {
        image: Cow<'a, [u8]>,
        question: &'a str,
        /// Answers of the vocabulary only; empty also where nothing is known.
        targets: &'a [Target],
        /// Whether people's answers are known: `false` in a test split.
        answered: bool,
        question_id: i64,
        image_id: &'a str,
    },
    Nlvr2 {
        left: Cow<'a, [u8]>,
        right: Cow<'a, [u8]>,
        sentence: &'a str,
        label: Option<bool>,
        /// The pair's, such as `dev-850-0`. Sentences that are equal belong together in the consistency metric.
        identifier: &'a str,
    },
    ImgCls {
        image: Cow<'a, [u8]>,
        /// Position in [`Dataset::labels`].
        label: u32,
        image_id: &'a str,
    },
}

/// How many of a question's true answers a head can't give, as they are none of its labels. Counted over the questions
/// whose answers are known; what several people answered alike is one answer of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    pub questions: usize,
    /// Questions of which no true answer is among the labels.
    pub unanswerable: usize,
    pub answers: usize,
    /// Of the answers, those that are none of the labels.
    pub outside: usize,
}

/// An image with all that is said about it: what retrieval is evaluated on.
#[derive(Clone, Debug, PartialEq)]
pub struct Captioned<'a> {
    pub image: Cow<'a, [u8]>,
    pub image_id: &'a str,
    /// Empty where the task is another.
    pub captions: Vec<&'a str>,
    /// The first caption's position among the examples; the others follow.
    pub first: usize,
}

/// A split of a data set.
pub trait Dataset: Send + Sync {
    /// For messages, such as `coco_caption_karpathy train`.
    fn name(&self) -> &str;

    fn task(&self) -> Task;

    /// Number of examples: captions, questions, sentences or images.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Always of the variant that [`Dataset::task`] names.
    ///
    /// # Errors
    /// `index` is beyond the end, or an image that is a file of its own can't be read.
    fn example(&self, index: usize) -> Result<Example<'_>>;

    /// A caption alone, with the position of its image in [`Dataset::image`]; the image isn't read.
    ///
    /// # Errors
    /// `index` is beyond the end, or the task is another.
    fn caption(&self, index: usize) -> Result<(&str, usize)> {
        match self.example(index)? {
            Example::Irtr { caption, image_index, .. } => Ok((caption, image_index)),
            _ => Err(Error::Argument(format!("{} has no captions", self.name()))),
        }
    }

    /// Number of different images (of pairs, for NLVR2).
    fn images(&self) -> usize;

    /// An image by position, with its captions. For NLVR2 the left one.
    ///
    /// # Errors
    /// As [`Dataset::example`].
    fn image(&self, index: usize) -> Result<Captioned<'_>>;

    /// The answers of VQA or the classes of classification, by label; empty for other tasks.
    fn labels(&self) -> &[String];

    /// Rows that were or will be skipped.
    fn broken(&self) -> &Broken;

    /// Where the example at `index` comes from, for messages: `train.jsonl line 3`.
    fn origin(&self, index: usize) -> String {
        format!("{} example {}", self.name(), index + 1)
    }

    /// How many true answers are none of the labels; all 0 for other tasks than VQA.
    fn outside(&self) -> Outside {
        Outside::default()
    }

    /// Notes that the example at `index` can't be used, because its image can't be decoded for instance. Its row is
    /// counted once, however often it comes up.
    ///
    /// # Errors
    /// More rows are broken than [`Broken::allowed`].
    fn skip(&self, index: usize, cause: &str) -> Result<()>;

    /// As [`Dataset::skip`], for the image at position `index` of [`Dataset::image`].
    ///
    /// # Errors
    /// As [`Dataset::skip`].
    fn skip_image(&self, index: usize, cause: &str) -> Result<()>;
}
