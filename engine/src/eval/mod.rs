//! Evaluation: a model, batches ready for it, a result.
//!
//! Each task has a file with what a batch is, a function `evaluate` that runs one split through a [`Runner`] and what
//! comes out: a result for tables, JSON and curves, and one line for each example.
//! Batches come as an iterator, so that they can be prepared ahead by others; an error in it ends the evaluation.
//!
//! [`Runner`]: crate::runner::Runner

pub mod img_cls;
pub mod irtr;
pub mod json_lines;
pub mod nlvr2;
pub mod vqa;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::{Deserialize, Serialize};

use crate::batch::Matrix;

pub use json_lines::JsonLines;

/// What an evaluation came to, as `result.json` and `--json` have it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Outcome {
    Irtr(irtr::Outcome),
    Vqa(vqa::Outcome),
    Nlvr2(nlvr2::Outcome),
    ImgCls(img_cls::Outcome),
}

/// One number of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// For files and curves, such as `ir_recall_at_1`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// 0 to 1.
    pub value: f64,
}

impl Outcome {
    /// The numbers, the one that tells runs apart first. Empty where the split has no answers to compare with.
    pub fn metrics(&self) -> Vec<Metric> {
        match self {
            Outcome::Irtr(outcome) => outcome.metrics(),
            Outcome::Vqa(outcome) => outcome.metrics(),
            Outcome::Nlvr2(outcome) => outcome.metrics(),
            Outcome::ImgCls(outcome) => outcome.metrics(),
        }
    }

    /// The metric that tells which checkpoint is the best; more is better.
    pub fn headline(&self) -> Option<Metric> {
        self.metrics().first().copied()
    }

    /// What was counted: `("questions", 9673)`, …
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        match self {
            Outcome::Irtr(outcome) => vec![("texts", outcome.texts), ("images", outcome.images)],
            Outcome::Vqa(outcome) => vec![("questions", outcome.questions), ("with answers", outcome.scored)],
            Outcome::Nlvr2(outcome) => {
                vec![
                    ("examples", outcome.examples),
                    ("with labels", outcome.labelled.examples),
                    ("sentences", outcome.labelled.sentences),
                ]
            }
            Outcome::ImgCls(outcome) => vec![("images", outcome.images), ("with labels", outcome.labelled)],
        }
    }

    /// A table for a terminal, in percent, with a line break at its end.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
        match self {
            // Two directions at three depths: one row each reads better than six.
            Outcome::Irtr(outcome) => {
                table.set_header(["", "R@1", "R@5", "R@10"]);
                for (name, at) in [
                    ("text → image (IR)", outcome.recall.image_retrieval),
                    ("image → text (TR)", outcome.recall.text_retrieval),
                ] {
                    let cells = [at.recall_at_1, at.recall_at_5, at.recall_at_10].map(percent);
                    table.add_row(std::iter::once(name.to_owned()).chain(cells));
                }
            }
            _ => {
                table.set_header(["metric", "%"]);
                for metric in self.metrics() {
                    table.add_row([metric.title.to_owned(), percent(metric.value)]);
                }
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let counted = |&(what, count): &(&str, u64)| match what.strip_suffix('s') {
            // "1 question", but "1 with answers".
            Some(one) if count == 1 && !what.contains(' ') => format!("1 {one}"),
            _ => format!("{count} {what}"),
        };
        let mut counts: Vec<String> = self.counts().iter().map(counted).collect();
        if let Outcome::Irtr(outcome) = self {
            counts.push(format!("mean of the six {}", percent(outcome.recall.mean())));
        }
        let counts = counts.join(", ");
        match self.metrics().is_empty() {
            true => format!("No answers to compare with: {counts}\n"),
            false => format!("{}\n{counts}\n", table.trim_fmt()),
        }
    }
}

fn percent(value: f64) -> String {
    format!("{:.2}", 100.0 * value)
}

/// Refuses what a model gave for a batch of `count` examples if it isn't a row of `columns` numbers for each.
fn check(values: &Matrix, count: usize, columns: usize) -> Result<()> {
    if (values.rows, values.columns) != (count, columns) || values.values.len() != count * columns {
        bail!("the model gave [{}, {}] scores for {count} examples × {columns}", values.rows, values.columns);
    }
    if let Some(at) = values.values.iter().position(|value| value.is_nan()) {
        bail!(
            "example {} of a batch: the model's scores are not numbers (NaN): its weights may be damaged; try \
             --precision f32",
            at / columns
        );
    }
    Ok(())
}

/// Refuses a batch whose parts don't belong together.
fn check_counts(of_what: &str, counts: &[usize]) -> Result<()> {
    match counts.iter().all(|count| *count == counts[0]) {
        true => Ok(()),
        false => bail!("a batch of {of_what} has parts of {counts:?} examples"),
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A model whose answers are written in its input: every image and text is a few numbers, which are what it gives.

    use anyhow::{Result, bail};

    use crate::batch::{Images, Matrix, Texts};
    use crate::runner::Runner;

    pub struct Fake {
        pub width: usize,
    }

    /// Images of 2 × 2 pixels whose first numbers are these.
    pub fn images(rows: &[Vec<f32>]) -> Images {
        let mut pixels = Vec::new();
        for row in rows {
            pixels.extend(row);
            pixels.resize(pixels.len() + 12 - row.len(), 0.0);
        }
        Images { count: rows.len(), size: 2, pixels }
    }

    pub fn texts(rows: &[Vec<i32>]) -> Texts {
        let len = rows.first().map_or(0, Vec::len);
        let ids: Vec<i32> = rows.concat();
        Texts { count: rows.len(), len, mask: vec![1; ids.len()], ids }
    }

    impl Fake {
        fn of_images(&self, images: &Images) -> Result<Matrix> {
            if images.size != 2 {
                bail!("images of {} pixels, the model takes 2", images.size);
            }
            let values = images.pixels.chunks(12).flat_map(|image| &image[..self.width]).copied().collect();
            Ok(Matrix { rows: images.count, columns: self.width, values })
        }
    }

    impl Runner for Fake {
        fn image_size(&self) -> usize {
            2
        }
        fn text_len(&self) -> usize {
            self.width
        }
        fn embedding_size(&self) -> usize {
            self.width
        }
        fn labels(&self, _: &str) -> Option<usize> {
            Some(self.width)
        }
        fn embed_texts(&self, texts: &Texts) -> Result<Matrix> {
            let values = texts.ids.iter().map(|&id| id as f32).collect();
            Ok(Matrix { rows: texts.count, columns: self.width, values })
        }
        fn embed_images(&self, images: &Images) -> Result<Matrix> {
            self.of_images(images)
        }
        /// Text plus image.
        fn vqa_logits(&self, texts: &Texts, images: &Images) -> Result<Matrix> {
            let mut sum = self.of_images(images)?;
            sum.values.iter_mut().zip(&texts.ids).for_each(|(sum, &id)| *sum += id as f32);
            Ok(sum)
        }
        fn nlvr2_logits(&self, texts: &Texts, left: &Images, right: &Images) -> Result<Matrix> {
            let mut sum = self.vqa_logits(texts, left)?;
            sum.values.iter_mut().zip(self.of_images(right)?.values).for_each(|(sum, x)| *sum += x);
            Ok(sum)
        }
        fn class_logits(&self, images: &Images) -> Result<Matrix> {
            self.of_images(images)
        }
    }
}
