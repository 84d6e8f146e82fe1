//! A few validation examples with what the model makes of them, for a run's report.

use std::sync::Arc;

use anyhow::Result;

use super::{Detail, Evaluation, Sizes, evaluate};
use crate::batch::Images;
use crate::data::{self, Broken, Captioned, Dataset, Example, Task};
use crate::image;
use crate::report::run_files::{Prediction, Sample, SampleImage};
use crate::runner::Runner;

/// A sample and its images as JPEG; the files' names are for whoever writes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub sample: Sample,
    /// One for each of the sample's images.
    pub images: Vec<Vec<u8>>,
}

/// Pixels along the longer side of a picture in the report.
const PICTURE: usize = 256;
/// Images that retrieval chooses from.
const GALLERY: usize = 64;
/// Images shown for a text.
const FOUND: usize = 4;

/// Shows `count` examples, taken at even distances from the split. Broken ones are left out.
///
/// # Errors
/// The model's.
pub fn samples(runner: &dyn Runner, over: &Evaluation, count: usize) -> Result<Vec<Shown>> {
    if over.set.task() == Task::Irtr {
        return retrieved(runner, over, count);
    }
    let mut all = Vec::new();
    for index in spread(over.set.len(), count) {
        let one = Evaluation { set: Arc::new(One { all: over.set.clone(), index }), workers: 1, ..over.clone() };
        let mut found = None;
        let images = pictures(over.set.as_ref(), index);
        let (Ok(()), false) = (
            evaluate(runner, &one, &mut |detail| {
                found = sample(detail);
                Ok(())
            })
            .map(|_| ()),
            images.is_empty(),
        ) else {
            continue;
        };
        let Some(mut sample) = found else { continue };
        let captions: &[&str] = if images.len() == 2 { &["left", "right"] } else { &[""] };
        let described = |caption: &&str| SampleImage { caption: (*caption).into(), ..SampleImage::default() };
        sample.images = captions.iter().map(described).collect();
        all.push(Shown { sample, images });
    }
    Ok(all)
}

/// Positions at even distances, the first in the middle of its part.
pub(super) fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |number| (2 * number + 1) * len / (2 * count))
}

fn sample(detail: Detail) -> Option<Sample> {
    let scored = |found: Vec<crate::eval::vqa::Scored>| -> Vec<Prediction> {
        found.into_iter().map(|one| Prediction { answer: one.answer, score: f64::from(one.score) }).collect()
    };
    Some(match detail {
        Detail::Irtr(_) => return None,
        Detail::Vqa(detail) => {
            let mut truth = detail.truth;
            truth.sort_by(|a, b| b.score.total_cmp(&a.score));
            Sample {
                text: detail.question,
                predictions: scored(detail.answers),
                truth: truth.into_iter().map(|one| one.answer).collect(),
                score: detail.score,
                ..Sample::default()
            }
        }
        Detail::Nlvr2(detail) => {
            let told = |answer: bool| Prediction {
                answer: answer.to_string(),
                score: if answer { f64::from(detail.probability) } else { 1.0 - f64::from(detail.probability) },
            };
            Sample {
                text: detail.sentence,
                predictions: vec![told(detail.prediction), told(!detail.prediction)],
                truth: detail.label.iter().map(bool::to_string).collect(),
                score: detail.label.map(|label| f64::from(u8::from(label == detail.prediction))),
                ..Sample::default()
            }
        }
        Detail::ImgCls(detail) => Sample {
            predictions: scored(detail.classes),
            score: detail.label.as_ref().map(|_| f64::from(u8::from(detail.rank == Some(1)))),
            truth: detail.label.into_iter().collect(),
            ..Sample::default()
        },
    })
}

/// Captions, each with the images of a gallery that come nearest to it.
fn retrieved(runner: &dyn Runner, over: &Evaluation, count: usize) -> Result<Vec<Shown>> {
    let size = Sizes::of(runner).image;
    let mut gallery: Vec<(String, Vec<u8>)> = Vec::new();
    let mut embeddings: Vec<f32> = Vec::new();
    for index in spread(over.set.images(), GALLERY) {
        let Ok(found) = over.set.image(index) else { continue };
        let (Some(&caption), Ok(decoded)) = (found.captions.first(), image::decode(&found.image)) else { continue };
        let Some(picture) = image::thumbnail(&decoded, PICTURE) else { continue };
        let mut pixels = vec![0.0; 3 * size * size];
        image::evaluation(&decoded, size, &mut pixels);
        embeddings.extend(runner.embed_images(&Images { count: 1, size, pixels })?.values);
        gallery.push((caption.to_owned(), picture));
    }
    let width = runner.embedding_size();
    let mut all = Vec::new();
    for own in spread(gallery.len(), count) {
        let text = &gallery[own].0;
        let query = runner.embed_texts(&over.tokenizer.encode(&[text], runner.text_len())?)?;
        let similarity = |image: &[f32]| image.iter().zip(&query.values).map(|(a, b)| a * b).sum::<f32>();
        let mut ranked: Vec<(usize, f32)> = embeddings.chunks_exact(width.max(1)).map(similarity).enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let rank = ranked.iter().position(|&(image, _)| image == own);
        ranked.truncate(FOUND);
        let shown = |&(image, similarity): &(usize, f32)| SampleImage {
            caption: format!("{similarity:.3}"),
            right: image == own,
            ..SampleImage::default()
        };
        let sample = Sample {
            text: text.clone(),
            images: ranked.iter().map(shown).collect(),
            score: rank.map(|rank| f64::from(u8::from(rank == 0))),
            ..Sample::default()
        };
        all.push(Shown { sample, images: ranked.iter().map(|&(image, _)| gallery[image].1.clone()).collect() });
    }
    Ok(all)
}

/// An example's images, made small; none where one is broken.
fn pictures(set: &dyn Dataset, index: usize) -> Vec<Vec<u8>> {
    let small = |bytes: &[u8]| image::thumbnail(&image::decode(bytes).ok()?, PICTURE);
    let images = match set.example(index) {
        Ok(Example::Vqa { image, .. } | Example::ImgCls { image, .. } | Example::Irtr { image, .. }) => {
            vec![small(&image)]
        }
        Ok(Example::Nlvr2 { left, right, .. }) => vec![small(&left), small(&right)],
        Err(_) => return Vec::new(),
    };
    images.into_iter().collect::<Option<_>>().unwrap_or_default()
}

/// One example of a data set, as a data set.
struct One {
    all: Arc<dyn Dataset>,
    index: usize,
}

impl Dataset for One {
    fn name(&self) -> &str {
        self.all.name()
    }

    fn task(&self) -> Task {
        self.all.task()
    }

    fn len(&self) -> usize {
        1
    }

    fn example(&self, _: usize) -> data::Result<Example<'_>> {
        self.all.example(self.index)
    }

    fn images(&self) -> usize {
        1
    }

    fn image(&self, _: usize) -> data::Result<Captioned<'_>> {
        self.all.image(self.index)
    }

    fn labels(&self) -> &[String] {
        self.all.labels()
    }

    fn broken(&self) -> &Broken {
        self.all.broken()
    }

    fn skip(&self, _: usize, cause: &str) -> data::Result<()> {
        self.all.skip(self.index, cause)
    }

    fn skip_image(&self, _: usize, cause: &str) -> data::Result<()> {
        self.all.skip(self.index, cause)
    }
}
