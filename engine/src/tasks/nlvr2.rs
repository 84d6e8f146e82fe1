//! NLVR2: whether a sentence is true of two photographs.

use anyhow::{Result, bail};

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

    fn train_batch(inputs: Inputs, about: Vec<Sentence>, _: usize) -> Result<TrainBatch> {
        let mut labels = Vec::with_capacity(about.len());
        for sentence in &about {
            match sentence.label {
                Some(label) => labels.push(i32::from(label)),
                None => bail!("{}: it has no label to learn from: is this a test split?", sentence.identifier),
            }
        }
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
