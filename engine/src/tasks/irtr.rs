//! Image-text retrieval: a caption and its image are to be closer than it and the others.
//!
//! An example is a caption with its image. Two captions of one image may meet in a batch and then count as each other's
//! negatives, as in the Python code.

use std::cell::RefCell;

use anyhow::{Context, Result};

use super::{Detail, Evaluation, Found, Inputs, Kind, Parts, Sizes, Task, Transform, other_task, pixels};
use crate::batch::{Images, TrainBatch};
use crate::data::{Example, Loader};
use crate::eval::Outcome;
use crate::eval::irtr::{self, Image, ImageBatch, Text, TextBatch};
use crate::runner::Runner;

pub(super) struct Irtr;

impl Kind for Irtr {
    type About = ();

    fn parts(example: Example<'_>) -> Result<Parts<'_, ()>> {
        match example {
            Example::Irtr { image, caption, .. } => Ok(Parts { images: vec![image], text: Some(caption), about: () }),
            _ => other_task(Task::Irtr),
        }
    }

    fn train_batch(inputs: Inputs, _: Vec<()>, _: usize) -> Result<TrainBatch> {
        let (texts, images) = inputs.image();
        Ok(TrainBatch::Irtr { texts, images })
    }

    /// Every image is embedded once, with all of its captions after all images.
    fn evaluate(
        runner: &dyn Runner,
        over: &Evaluation,
        details: &mut dyn FnMut(Detail) -> Result<()>,
    ) -> Result<Found> {
        let captions = RefCell::new(Vec::new());
        let images = image_batches(runner, over, &captions)?;
        // Lazy: by the time that the first batch of texts is asked for, all images have been seen.
        let texts = std::iter::once_with(|| {
            let captions = captions.take();
            let batches: Vec<Vec<Text>> = captions.chunks(over.batch_size.max(1)).map(<[Text]>::to_vec).collect();
            batches.into_iter().map(|about| {
                let words: Vec<&str> = about.iter().map(|text| text.text.as_str()).collect();
                let texts = over.tokenizer.encode(&words, runner.text_len())?;
                Ok(TextBatch { texts, about })
            })
        });
        let found =
            irtr::evaluate(runner, images, texts.flatten(), &mut |detail| details(Detail::Irtr(detail.clone())))?;
        Ok(Found { outcome: Outcome::Irtr(found.outcome), answers: Vec::new() })
    }
}

/// The split's images; what is said about each is added to `captions`.
fn image_batches<'a>(
    runner: &dyn Runner,
    over: &Evaluation,
    captions: &'a RefCell<Vec<Text>>,
) -> Result<impl Iterator<Item = Result<ImageBatch>> + use<'a>> {
    let size = Sizes::of(runner).image;
    let source = over.set.clone();
    let loader = Loader::start(over.set.images(), over.options(), move |index, rng| {
        let skip = |cause: String| source.skip_image(index, &cause).map(|()| None).map_err(anyhow::Error::from);
        let found = match source.image(index) {
            Ok(found) => found,
            Err(e) => return skip(e.cause()),
        };
        let pixels = match pixels(&found.image, size, &Transform::Evaluation, rng) {
            Ok(pixels) => pixels,
            Err(e) => return skip(e.to_string()),
        };
        let captions: Vec<String> = found.captions.iter().map(|&caption| caption.to_owned()).collect();
        Ok(Some((Image { index, id: found.image_id.to_owned() }, pixels, captions)))
    });
    let loader = loader.context("images to search")?;
    Ok(loader.map(move |batch| {
        let batch = batch?;
        let mut images = Images { count: 0, size, pixels: Vec::new() };
        let mut about = Vec::with_capacity(batch.items.len());
        for (image, pixels, own) in batch.items {
            images.count += 1;
            images.pixels.extend(pixels);
            captions.borrow_mut().extend(own.into_iter().map(|text| Text { text, image: image.index }));
            about.push(image);
        }
        Ok(ImageBatch { images, about })
    }))
}
