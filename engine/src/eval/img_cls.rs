//! Image classification.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Metric;
use super::vqa::Scored;
use crate::batch::{Images, Matrix};
use crate::metrics::top_k::{self, TopK};
use crate::runner::Runner;

#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub images: Images,
    pub about: Vec<Image>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// Its class, where that is known.
    pub label: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub images: u64,
    /// Images whose class is known.
    pub labelled: u64,
    pub top_1: Option<f64>,
    pub top_5: Option<f64>,
}

impl Outcome {
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let metric = |name, title, value: Option<f64>| value.map(|value| Metric { name, title, value });
        let metrics = [metric("top_1", "top-1 accuracy", self.top_1), metric("top_5", "top-5 accuracy", self.top_5)];
        metrics.into_iter().flatten().collect()
    }
}

/// One image after the model saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub image_id: String,
    /// The five likeliest classes with their probabilities, best first.
    pub classes: Vec<Scored>,
    pub label: Option<String>,
    /// Of the right class, from 1.
    pub rank: Option<usize>,
}

/// Classifies every image; `labels` name the classes, in the order of the model's head.
///
/// # Errors
/// The model's, the batches', labels that don't fit the head, no images.
pub fn evaluate(
    runner: &dyn Runner,
    batches: impl IntoIterator<Item = Result<Batch>>,
    labels: &[String],
    details: &mut dyn FnMut(&Detail) -> Result<()>,
) -> Result<Outcome> {
    match runner.labels("img_cls") {
        Some(head) if head == labels.len() => {}
        Some(head) => bail!("the model tells {head} classes apart, but {} are named", labels.len()),
        None => bail!("the model has no head for img_cls: fine-tune it with --task img_cls first"),
    }
    let (mut counts, mut images) = (TopK::default(), 0);
    for batch in batches {
        let batch = batch?;
        super::check_counts("images", &[batch.images.count, batch.about.len()])?;
        let logits = runner.class_logits(&batch.images)?;
        super::check(&logits, batch.about.len(), labels.len())?;
        for (row, image) in batch.about.into_iter().enumerate() {
            let rank = match image.label {
                Some(label) => {
                    Some(counts.add(logits.row(row), label).with_context(|| format!("image {}", image.id))? + 1)
                }
                None => None,
            };
            images += 1;
            details(&Detail {
                image_id: image.id,
                classes: likeliest(&logits, row, labels),
                label: image.label.map(|label| labels[label].clone()),
                rank,
            })?;
        }
    }
    if images == 0 {
        bail!("nothing to evaluate: no images");
    }
    let known = counts.examples > 0;
    Ok(Outcome {
        images,
        labelled: counts.examples,
        top_1: known.then(|| counts.top_1()),
        top_5: known.then(|| counts.top_5()),
    })
}

/// Softmax over all, of which five are shown.
fn likeliest(logits: &Matrix, row: usize, labels: &[String]) -> Vec<Scored> {
    let scores = logits.row(row);
    let best = top_k::largest(scores, 5);
    let most = best.first().map_or(0.0, |&first| scores[first]);
    let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
    let named = |&class: &usize| Scored { answer: labels[class].clone(), score: (scores[class] - most).exp() / sum };
    best.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, images};
    use super::*;

    fn labels() -> Vec<String> {
        (0..6).map(|class| format!("class {class}")).collect()
    }

    #[test]
    fn by_hand() {
        let ln2 = f32::ln(2.0);
        let batch = Batch {
            images: images(&[vec![0.0, ln2, 0.0, 0.0, 0.0, -9.0], vec![6.0, 5.0, 4.0, 3.0, 2.0, 1.0], vec![0.0; 6]]),
            about: vec![
                Image { id: "a".into(), label: Some(1) },
                Image { id: "b".into(), label: Some(5) },
                Image { id: "c".into(), label: None },
            ],
        };
        let mut seen = Vec::new();
        let found = evaluate(&Fake { width: 6 }, [Ok(batch)], &labels(), &mut |detail| {
            seen.push(detail.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(found, Outcome { images: 3, labelled: 2, top_1: Some(0.5), top_5: Some(0.5) });
        assert_eq!(seen.iter().map(|detail| detail.rank).collect::<Vec<_>>(), [Some(1), Some(6), None]);
        // 2 / (2 + 4·1 + e⁻⁹)
        assert!((seen[0].classes[0].score - 2.0 / (6.0 + f32::exp(-9.0))).abs() < 1e-6);
        assert_eq!(seen[1].label.as_deref(), Some("class 5"));
        assert_eq!(seen[2].classes.len(), 5);
    }

    #[test]
    fn what_cannot_be_evaluated() {
        let run = |labels: &[String], label| {
            let batch =
                Batch { images: images(&[vec![0.0; 6]]), about: vec![Image { id: "a".into(), label: Some(label) }] };
            format!("{:#}", evaluate(&Fake { width: 6 }, [Ok(batch)], labels, &mut |_| Ok(())).unwrap_err())
        };
        assert_eq!(run(&labels()[1..], 0), "the model tells 6 classes apart, but 5 are named");
        assert_eq!(run(&labels(), 6), "image a: the label is 6, but there are 6 classes");
    }
}
