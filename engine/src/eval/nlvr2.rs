//! NLVR2: is a sentence true of two images?

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::Metric;
use crate::batch::{Images, Texts};
use crate::metrics::nlvr2::{Nlvr2, Score};
use crate::runner::Runner;

/// Sentences with their pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub texts: Texts,
    pub left: Images,
    pub right: Images,
    pub about: Vec<Sentence>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// `split-set-pair` or `split-set-pair-sentence`; see [`Nlvr2::add`].
    pub identifier: String,
    pub text: String,
    pub label: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub examples: u64,
    /// Over the examples whose label is known.
    pub labelled: Score,
}

impl Outcome {
    pub(super) fn metrics(&self) -> Vec<Metric> {
        if self.labelled.examples == 0 {
            return Vec::new();
        }
        vec![
            Metric { name: "accuracy", title: "accuracy", value: self.labelled.accuracy },
            Metric { name: "consistency", title: "consistency", value: self.labelled.consistency },
        ]
    }
}

/// One example after the model saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub identifier: String,
    pub sentence: String,
    pub prediction: bool,
    /// Of the sentence being true.
    pub probability: f32,
    pub label: Option<bool>,
}

/// Judges every sentence: true where the second score is larger than the first.
///
/// # Errors
/// The model's, the batches', no examples.
pub fn evaluate(
    runner: &dyn Runner,
    batches: impl IntoIterator<Item = Result<Batch>>,
    details: &mut dyn FnMut(&Detail) -> Result<()>,
) -> Result<Outcome> {
    let (mut counts, mut examples) = (Nlvr2::default(), 0);
    for batch in batches {
        let batch = batch?;
        let parts = [batch.texts.count, batch.left.count, batch.right.count, batch.about.len()];
        super::check_counts("sentences", &parts)?;
        let logits = runner.nlvr2_logits(&batch.texts, &batch.left, &batch.right)?;
        super::check(&logits, batch.about.len(), 2)?;
        for (row, sentence) in batch.about.into_iter().enumerate() {
            let more = logits.row(row)[1] - logits.row(row)[0];
            let prediction = more > 0.0;
            if let Some(label) = sentence.label {
                counts.add(&sentence.identifier, &sentence.text, prediction == label);
            }
            examples += 1;
            details(&Detail {
                identifier: sentence.identifier,
                sentence: sentence.text,
                prediction,
                probability: 1.0 / (1.0 + (-more).exp()),
                label: sentence.label,
            })?;
        }
    }
    if examples == 0 {
        bail!("nothing to evaluate: no sentences");
    }
    Ok(Outcome { examples, labelled: counts.score() })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, images, texts};
    use super::*;

    #[test]
    fn by_hand() {
        // Scores are the sums of text, left and right.
        let example = |identifier: &str, logits: [f32; 2], label| Batch {
            texts: texts(&[vec![1, 1]]),
            left: images(&[vec![logits[0], 0.0]]),
            right: images(&[vec![0.0, logits[1]]]),
            about: vec![Sentence { identifier: identifier.into(), text: "two dogs".into(), label }],
        };
        let batches = [
            example("dev-1-0", [0.0, 1.0], Some(true)),
            example("dev-1-1", [1.0, 0.0], Some(true)),
            example("dev-2-0", [1.0, 0.0], Some(false)),
            // Undecided is false.
            example("dev-2-1", [1.0, 1.0], Some(false)),
            example("test1-2-1", [1.0, 1.0], None),
        ];
        let mut seen = Vec::new();
        let found = evaluate(&Fake { width: 2 }, batches.map(Ok), &mut |detail| {
            seen.push(detail.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(found.examples, 5);
        assert_eq!(found.labelled, Score { examples: 4, accuracy: 0.75, sentences: 2, consistency: 0.5 });
        assert_eq!(seen.iter().map(|detail| detail.prediction).collect::<Vec<_>>(), [true, false, false, false, false]);
        assert_eq!(seen[3].probability, 0.5);
        let outcome = super::super::Outcome::Nlvr2(found);
        assert_eq!(outcome.headline().unwrap().value, 0.75);
        assert!(outcome.table().contains("consistency"));
    }

    #[test]
    fn nothing() {
        let error = evaluate(&Fake { width: 2 }, [], &mut |_| Ok(())).unwrap_err().to_string();
        assert_eq!(error, "nothing to evaluate: no sentences");
        assert!(super::super::Outcome::Nlvr2(Outcome::default()).metrics().is_empty());
    }
}
