//! Retrieval: every text of a split against every image.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Metric;
use crate::batch::{Images, Matrix, Texts};
use crate::metrics::recall::{self, Recall};
use crate::runner::Runner;

/// Images to embed.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    pub images: Images,
    pub about: Vec<Image>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Position in the data set, which texts refer to.
    pub index: usize,
    pub id: String,
}

/// Texts to embed.
#[derive(Clone, Debug, PartialEq)]
pub struct TextBatch {
    pub texts: Texts,
    pub about: Vec<Text>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// Position in the data set of the image it is about.
    pub image: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub texts: u64,
    pub images: u64,
    #[serde(flatten)]
    pub recall: Recall,
}

impl Outcome {
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let (ir, tr) = (self.recall.image_retrieval, self.recall.text_retrieval);
        let metric = |name, title, value| Metric { name, title, value };
        vec![
            metric("recall_mean", "mean recall", self.recall.mean()),
            metric("ir_recall_at_1", "IR recall@1", ir.recall_at_1),
            metric("ir_recall_at_5", "IR recall@5", ir.recall_at_5),
            metric("ir_recall_at_10", "IR recall@10", ir.recall_at_10),
            metric("tr_recall_at_1", "TR recall@1", tr.recall_at_1),
            metric("tr_recall_at_5", "TR recall@5", tr.recall_at_5),
            metric("tr_recall_at_10", "TR recall@10", tr.recall_at_10),
        ]
    }
}

/// One text, or one image, after the search. Ranks count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "snake_case")]
pub enum Detail {
    Text {
        text: String,
        image_id: String,
        /// Of its image among all images.
        rank: u32,
    },
    Image {
        image_id: String,
        /// Of the first of its texts among all texts; none where it has no text.
        rank: Option<u32>,
    },
}

/// All that was computed, for whoever wants to show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub outcome: Outcome,
    pub images: Vec<Image>,
    /// [images, width]
    pub image_embeddings: Matrix,
    pub texts: Vec<Text>,
    /// [texts, width]
    pub text_embeddings: Matrix,
}

/// Embeds all images, then all texts, and ranks each by the other. Texts whose image is not among those that came
/// (it could not be decoded, say) are left out.
///
/// # Errors
/// The model's, the batches', embeddings that are not finite, two images with one index, no images or no texts.
pub fn evaluate(
    runner: &dyn Runner,
    image_batches: impl IntoIterator<Item = Result<ImageBatch>>,
    text_batches: impl IntoIterator<Item = Result<TextBatch>>,
    details: &mut dyn FnMut(&Detail) -> Result<()>,
) -> Result<Evaluated> {
    let width = runner.embedding_size();
    let mut image_embeddings = Matrix { rows: 0, columns: width, values: Vec::new() };
    let mut images = Vec::new();
    let mut row_of = HashMap::new();
    for batch in image_batches {
        let batch = batch?;
        super::check_counts("images", &[batch.images.count, batch.about.len()])?;
        let found = runner.embed_images(&batch.images)?;
        super::check(&found, batch.about.len(), width)?;
        append(&mut image_embeddings, &found, |_| true);
        for image in batch.about {
            if row_of.insert(image.index, images.len()).is_some() {
                bail!("image {} ({}) came twice", image.index, image.id);
            }
            images.push(image);
        }
    }
    let mut text_embeddings = Matrix { rows: 0, columns: width, values: Vec::new() };
    let mut texts: Vec<Text> = Vec::new();
    let mut image_of_text = Vec::new();
    for batch in text_batches {
        let batch = batch?;
        super::check_counts("texts", &[batch.texts.count, batch.about.len()])?;
        let found = runner.embed_texts(&batch.texts)?;
        super::check(&found, batch.about.len(), width)?;
        append(&mut text_embeddings, &found, |row| row_of.contains_key(&batch.about[row].image));
        for text in batch.about {
            if let Some(&row) = row_of.get(&text.image) {
                image_of_text.push(row);
                texts.push(text);
            }
        }
    }
    if images.is_empty() || texts.is_empty() {
        bail!("nothing to evaluate: {} images, {} texts that are about one of them", images.len(), texts.len());
    }

    let ranks = recall::ranks(&text_embeddings, &image_embeddings, &image_of_text).context("ranking")?;
    for ((text, &row), &rank) in texts.iter().zip(&image_of_text).zip(&ranks.images) {
        details(&Detail::Text { text: text.text.clone(), image_id: images[row].id.clone(), rank: rank + 1 })?;
    }
    for (image, rank) in images.iter().zip(&ranks.texts) {
        details(&Detail::Image { image_id: image.id.clone(), rank: rank.map(|rank| rank + 1) })?;
    }
    let outcome = Outcome { texts: texts.len() as u64, images: images.len() as u64, recall: ranks.recall() };
    Ok(Evaluated { outcome, images, image_embeddings, texts, text_embeddings })
}

fn append(all: &mut Matrix, batch: &Matrix, keep: impl Fn(usize) -> bool) {
    for row in (0..batch.rows).filter(|&row| keep(row)) {
        all.values.extend_from_slice(batch.row(row));
        all.rows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, images, texts};
    use super::*;

    fn image_batch(from: usize, rows: &[Vec<f32>]) -> ImageBatch {
        let about = |index: usize| Image { index: from + index, id: format!("i{}", from + index) };
        ImageBatch { images: images(rows), about: (0..rows.len()).map(about).collect() }
    }

    fn text_batch(rows: &[(usize, Vec<i32>)]) -> TextBatch {
        let about = |&(image, _): &(usize, Vec<i32>)| Text { text: format!("about {image}"), image };
        let rows_only: Vec<Vec<i32>> = rows.iter().map(|(_, row)| row.clone()).collect();
        TextBatch { texts: texts(&rows_only), about: rows.iter().map(about).collect() }
    }

    #[test]
    fn by_hand() {
        // Image 1 is missing, as if it could not be decoded: its text doesn't count.
        let batches = [image_batch(0, &[vec![1.0, 0.0]]), image_batch(2, &[vec![0.0, 1.0], vec![-1.0, 0.0]])];
        let text_batches =
            [text_batch(&[(0, vec![3, 1]), (1, vec![9, 9])]), text_batch(&[(2, vec![2, 1]), (0, vec![-1, 0])])];
        let mut seen = Vec::new();
        let found = evaluate(&Fake { width: 2 }, batches.map(Ok), text_batches.map(Ok), &mut |detail| {
            seen.push(serde_json::to_string(detail)?);
            Ok(())
        })
        .unwrap();
        // Scores (rows texts, columns images 0, 2, 3): 3 1 −3, 2 1 −2, −1 0 1.
        assert_eq!(
            seen,
            [
                r#"{"query":"text","text":"about 0","image_id":"i0","rank":1}"#,
                r#"{"query":"text","text":"about 2","image_id":"i2","rank":2}"#,
                r#"{"query":"text","text":"about 0","image_id":"i0","rank":3}"#,
                r#"{"query":"image","image_id":"i0","rank":1}"#,
                r#"{"query":"image","image_id":"i2","rank":2}"#,
                r#"{"query":"image","image_id":"i3","rank":null}"#,
            ]
        );
        let outcome = found.outcome;
        assert_eq!((outcome.texts, outcome.images), (3, 3));
        assert_eq!(outcome.recall.image_retrieval.recall_at_1, 1.0 / 3.0);
        assert_eq!(outcome.recall.text_retrieval.recall_at_1, 0.5);
        assert_eq!((found.text_embeddings.rows, found.text_embeddings.row(1)), (3, &[2.0, 1.0][..]));
        let table = super::super::Outcome::Irtr(outcome).table();
        assert!(
            table.contains("text → image (IR)") && table.contains(" 33.33 ") && table.contains("3 texts, 3 images")
        );
    }

    #[test]
    fn what_cannot_be_evaluated() {
        let run = |images: Vec<ImageBatch>, texts: Vec<TextBatch>| {
            let found =
                evaluate(&Fake { width: 2 }, images.into_iter().map(Ok), texts.into_iter().map(Ok), &mut |_| Ok(()));
            format!("{:#}", found.unwrap_err())
        };
        let one = image_batch(0, &[vec![1.0, 0.0]]);
        assert_eq!(run(vec![one.clone()], vec![]), "nothing to evaluate: 1 images, 0 texts that are about one of them");
        assert_eq!(run(vec![one.clone(), one], vec![]), "image 0 (i0) came twice");
        let error = run(vec![image_batch(0, &[vec![1.0, 0.0], vec![f32::NAN, 0.0]])], vec![]);
        assert!(error.starts_with("example 1 of a batch: the model's scores are not numbers (NaN)"), "{error}");
    }
}
