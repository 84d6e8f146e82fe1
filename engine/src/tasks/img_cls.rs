//! Image classification.

use anyhow::Result;

use super::{Detail, Evaluation, Found, Inputs, Kind, Parts, Task, other_task};
use crate::batch::TrainBatch;
use crate::data::Example;
use crate::eval::Outcome;
use crate::eval::img_cls::{self, Batch, Image};
use crate::runner::Runner;

pub(super) struct ImgCls;

impl Kind for ImgCls {
    type About = Image;

    fn parts(example: Example<'_>) -> Result<Parts<'_, Image>> {
        let Example::ImgCls { image, label, image_id } = example else { return other_task(Task::ImgCls) };
        let about = Image { id: image_id.to_owned(), label: Some(label as usize) };
        Ok(Parts { images: vec![image], text: None, about })
    }

    fn learnable(about: &Image, labels: usize) -> std::result::Result<(), String> {
        match about.label {
            Some(label) if label < labels => Ok(()),
            Some(label) => Err(format!("class {label} is beyond the head's {labels}")),
            None => Err("it has no class to learn from".into()),
        }
    }

    fn train_batch(inputs: Inputs, about: Vec<Image>, _: usize) -> Result<TrainBatch> {
        let classes = about.iter().map(|image| image.label.unwrap_or_default() as i32).collect();
        let (_, images) = inputs.image();
        Ok(TrainBatch::ImgCls { images, labels: classes })
    }

    fn evaluate(
        runner: &dyn Runner,
        over: &Evaluation,
        details: &mut dyn FnMut(Detail) -> Result<()>,
    ) -> Result<Found> {
        let batches = over.batches::<ImgCls>(runner)?.map(|found| {
            let (inputs, about) = found?;
            Ok(Batch { images: inputs.image().1, about })
        });
        let outcome =
            img_cls::evaluate(runner, batches, &over.labels, &mut |detail| details(Detail::ImgCls(detail.clone())))?;
        Ok(Found { outcome: Outcome::ImgCls(outcome), answers: Vec::new() })
    }
}
