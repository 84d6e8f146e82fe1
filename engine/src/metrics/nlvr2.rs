//! NLVR2: accuracy, and consistency over the image pairs that share a sentence.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Results so far.
///
/// Source: the evaluation published with the data set (Suhr et al., 2019).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nlvr2 {
    examples: u64,
    right: u64,
    /// By sentence, whether all pairs shown with it were judged right.
    sentences: HashMap<String, bool>,
}

/// Fractions, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub examples: u64,
    pub accuracy: f64,
    /// Different sentences.
    pub sentences: u64,
    /// The share of sentences that are judged rightly of every pair they come with.
    pub consistency: f64,
}

impl Nlvr2 {
    /// Counts one example.
    ///
    /// `identifier` is the official `split-set-pair-sentence`: examples that differ in the pair alone share their
    /// sentence. The Python code's Arrow files keep `split-set-pair` for the pair and a list of texts; there, or in
    /// any identifier with other than four parts, it is the same text in the same set (first two parts).
    pub fn add(&mut self, identifier: &str, text: &str, right: bool) {
        let parts: Vec<&str> = identifier.split('-').collect();
        let sentence = match parts[..] {
            [split, set, _, sentence] => format!("{split}-{set}--{sentence}"),
            [split, set, ..] => format!("{split}-{set}\n{text}"),
            _ => format!("\n{text}"),
        };
        self.examples += 1;
        self.right += u64::from(right);
        *self.sentences.entry(sentence).or_insert(true) &= right;
    }

    pub fn score(&self) -> Score {
        let share = |count: u64, of: u64| count as f64 / of.max(1) as f64;
        let sentences = self.sentences.len() as u64;
        let consistent = self.sentences.values().filter(|&&consistent| consistent).count() as u64;
        Score {
            examples: self.examples,
            accuracy: share(self.right, self.examples),
            sentences,
            consistency: share(consistent, sentences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut counts = Nlvr2::default();
        assert_eq!(counts.score(), Score::default());
        // Two sentences of one set, each with two pairs; the second is judged wrongly once.
        counts.add("dev-1-0-0", "a", true);
        counts.add("dev-1-1-0", "a", true);
        counts.add("dev-1-0-1", "b", true);
        counts.add("dev-1-2-1", "b", false);
        // The same numbers in another set.
        counts.add("dev-2-0-1", "b", true);
        assert_eq!(counts.score(), Score { examples: 5, accuracy: 0.8, sentences: 3, consistency: 2.0 / 3.0 });
    }

    #[test]
    fn without_the_sentence_number_the_text_tells() {
        let mut counts = Nlvr2::default();
        counts.add("dev-1-0", "a", true);
        counts.add("dev-1-1", "a", false);
        counts.add("dev-1-0", "b", true);
        counts.add("dev-2-0", "a", true);
        let score = counts.score();
        assert_eq!((score.sentences, score.consistency), (3, 2.0 / 3.0));
    }
}
