//! NLVR2: whether a sentence is true of two photographs.

use anyhow::Result;

use super::{Detail, Evaluation, Found, Inputs, Kind, Parts, Task, other_task};
use crate::batch::TrainBatch;
use crate::data::Example;
use crate::eval::Outcome;
use crate::eval::nlvr2::{self, Batch, Sentence};
use crate::runner::Runner;

pub(super) struct Nlvr2;

impl Kind for Nlvr2 {
    type About = Sentence;

    fn parts(example: Example<'_>) -> Result<Parts<'_, Sentence>> {
        let Example::Nlvr2 { left, right, sentence, label, identifier } = example else {
            return other_task(Task::Nlvr2);
        };
        let about = Sentence { identifier: identifier.to_owned(), text: sentence.to_owned(), label };
        Ok(Parts { images: vec![left, right], text: Some(sentence), about })
    }

    fn learnable(about: &Sentence, _: usize) -> std::result::Result<(), String> {
        match about.label {
            Some(_) => Ok(()),
            None => Err(format!("pair {} has no label to learn from: is this a test split?", about.identifier)),
        }
    }

    fn train_batch(inputs: Inputs, about: Vec<Sentence>, _: usize) -> Result<TrainBatch> {
        let labels = about.iter().map(|sentence| i32::from(sentence.label.unwrap_or_default())).collect();
        let (texts, left, right) = inputs.pair();
        Ok(TrainBatch::Nlvr2 { texts, left, right, labels })
    }

    fn evaluate(
        runner: &dyn Runner,
        over: &Evaluation,
        details: &mut dyn FnMut(Detail) -> Result<()>,
    ) -> Result<Found> {
        let batches = over.batches::<Nlvr2>(runner)?.map(|found| {
            let (inputs, about) = found?;
            let (texts, left, right) = inputs.pair();
            Ok(Batch { texts, left, right, about })
        });
        let outcome = nlvr2::evaluate(runner, batches, &mut |detail| details(Detail::Nlvr2(detail.clone())))?;
        Ok(Found { outcome: Outcome::Nlvr2(outcome), answers: Vec::new() })
    }
}
