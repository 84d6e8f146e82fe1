//! Visual question answering, as classification over the data set's answers.

use anyhow::Result;

use super::{Detail, Evaluation, Found, Inputs, Kind, Parts, Task, other_task};
use crate::batch::{Matrix, TrainBatch};
use crate::data::{Example, Target};
use crate::eval::Outcome;
use crate::eval::vqa::{self, Batch, Question, Truth};
use crate::runner::Runner;

pub(super) struct Vqa;

pub(super) struct About {
    question: String,
    targets: Vec<Target>,
    answered: bool,
    question_id: i64,
    image_id: String,
}

impl Kind for Vqa {
    type About = About;

    fn parts(example: Example<'_>) -> Result<Parts<'_, About>> {
        let Example::Vqa { image, question, targets, answered, question_id, image_id } = example else {
            return other_task(Task::Vqa);
        };
        let about = About {
            question: question.to_owned(),
            targets: targets.to_vec(),
            answered,
            question_id,
            image_id: image_id.to_owned(),
        };
        Ok(Parts { images: vec![image], text: Some(question), about })
    }

    fn learnable(about: &About, labels: usize) -> std::result::Result<(), String> {
        if !about.answered {
            return Err(format!("question {} has no answer to learn from: is this a test split?", about.question_id));
        }
        match about.targets.iter().find(|target| target.label as usize >= labels) {
            None => Ok(()),
            Some(target) => Err(format!(
                "question {}: answer {} is beyond the head's {labels} labels",
                about.question_id, target.label
            )),
        }
    }

    /// Soft targets: what each label is worth as an answer, 0 where nobody gave it.
    fn train_batch(inputs: Inputs, about: Vec<About>, labels: usize) -> Result<TrainBatch> {
        let mut targets = Matrix { rows: about.len(), columns: labels, values: vec![0.0; about.len() * labels] };
        for (row, question) in targets.values.chunks_exact_mut(labels.max(1)).zip(&about) {
            for target in &question.targets {
                if let Some(cell) = row.get_mut(target.label as usize) {
                    *cell = target.score;
                }
            }
        }
        let (texts, images) = inputs.image();
        Ok(TrainBatch::Vqa { texts, images, targets })
    }

    fn evaluate(
        runner: &dyn Runner,
        over: &Evaluation,
        details: &mut dyn FnMut(Detail) -> Result<()>,
    ) -> Result<Found> {
        let batches = over.batches::<Vqa>(runner)?.map(|found| {
            let (inputs, about) = found?;
            let (texts, images) = inputs.image();
            Ok(Batch { texts, images, about: about.into_iter().map(About::question).collect() })
        });
        let found = vqa::evaluate(runner, batches, &over.labels, &mut |detail| details(Detail::Vqa(detail.clone())))?;
        Ok(Found { outcome: Outcome::Vqa(found.outcome), answers: found.answers })
    }
}

impl About {
    fn question(self) -> Question {
        let right = || self.targets.iter().map(|target| (target.label as usize, target.score)).collect();
        let truth = if self.answered { Truth::Labels(right()) } else { Truth::Unknown };
        Question { id: self.question_id, image_id: self.image_id, text: self.question, truth }
    }
}
