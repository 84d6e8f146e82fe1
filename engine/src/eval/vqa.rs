//! Visual question answering.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Metric;
use crate::batch::{Images, Texts};
use crate::metrics::{top_k, vqa};
use crate::runner::Runner;

/// Questions about one image each.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub texts: Texts,
    pub images: Images,
    pub about: Vec<Question>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub id: i64,
    pub image_id: String,
    pub text: String,
    pub truth: Truth,
}

/// What is known of a question's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Truth {
    /// Nothing: a test split.
    #[default]
    Unknown,
    /// What each right label is worth, 0 to 1, as the Python code's Arrow files have it.
    Labels(Vec<(usize, f32)>),
    /// What people answered, word by word.
    People(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub questions: u64,
    /// Questions whose answer is known.
    pub scored: u64,
    /// The VQA score: the mean accuracy over those, 0 to 1.
    pub score: Option<f64>,
}

impl Outcome {
    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.score.map(|value| Metric { name: "vqa_score", title: "VQA score", value }).into_iter().collect()
    }
}

/// One question after the model saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub question_id: i64,
    pub image_id: String,
    pub question: String,
    /// The five likeliest answers, best first: the first is the model's.
    pub answers: Vec<Scored>,
    /// What people said, or what is right and how much; empty where nothing is known.
    pub truth: Vec<Scored>,
    pub score: Option<f64>,
}

/// An answer, with its probability if it is the model's, else with what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    pub answer: String,
    pub score: f32,
}

/// One line of a submission to EvalAI, which takes an array of these as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub question_id: i64,
    pub answer: String,
}

/// The answers of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub outcome: Outcome,
    pub answers: Vec<Answer>,
}

/// Takes the likeliest answer to every question; `labels` are the answers that the model's head stands for.
///
/// The score of an answer is its worth among [`Truth::Labels`], or the official one where people's answers are known.
///
/// # Errors
/// The model's, the batches', labels that don't fit the head, no questions.
pub fn evaluate(
    runner: &dyn Runner,
    batches: impl IntoIterator<Item = Result<Batch>>,
    labels: &[String],
    details: &mut dyn FnMut(&Detail) -> Result<()>,
) -> Result<Evaluated> {
    match runner.labels("vqa") {
        Some(head) if head == labels.len() => {}
        Some(head) => bail!("the model answers with {head} labels, but {} are named", labels.len()),
        None => bail!("the model has no head for vqa: fine-tune it with --task vqa first"),
    }
    let (mut sum, mut outcome, mut answers) = (0.0, Outcome::default(), Vec::new());
    for batch in batches {
        let batch = batch?;
        super::check_counts("questions", &[batch.texts.count, batch.images.count, batch.about.len()])?;
        let logits = runner.vqa_logits(&batch.texts, &batch.images)?;
        super::check(&logits, batch.about.len(), labels.len())?;
        for (row, question) in batch.about.into_iter().enumerate() {
            let best = top_k::largest(logits.row(row), 5);
            let Some(&first) = best.first() else { bail!("the model has no answers") };
            let score = score(&labels[first], first, &question.truth);
            outcome.questions += 1;
            if let Some(score) = score {
                outcome.scored += 1;
                sum += score;
            }
            answers.push(Answer { question_id: question.id, answer: labels[first].clone() });
            let probability = |&label: &usize| {
                let score = 1.0 / (1.0 + (-logits.row(row)[label]).exp());
                Scored { answer: labels[label].clone(), score }
            };
            details(&Detail {
                question_id: question.id,
                image_id: question.image_id,
                question: question.text,
                answers: best.iter().map(probability).collect(),
                truth: truth(&question.truth, labels),
                score,
            })
            .with_context(|| format!("question {}", question.id))?;
        }
    }
    if outcome.questions == 0 {
        bail!("nothing to evaluate: no questions");
    }
    outcome.score = (outcome.scored > 0).then(|| sum / outcome.scored as f64);
    Ok(Evaluated { outcome, answers })
}

fn score(answer: &str, label: usize, truth: &Truth) -> Option<f64> {
    match truth {
        Truth::Unknown => None,
        Truth::Labels(right) => {
            // In f64 the nearest to what the file says in f32, so that 0.3 stays 0.3.
            let worth =
                |&(other, worth): &(usize, f32)| (other == label).then(|| (f64::from(worth) * 1e6).round() / 1e6);
            Some(right.iter().find_map(worth).unwrap_or(0.0))
        }
        Truth::People(people) => Some(vqa::score(answer, people)),
    }
}

fn truth(truth: &Truth, labels: &[String]) -> Vec<Scored> {
    match truth {
        Truth::Unknown => Vec::new(),
        Truth::Labels(right) => {
            let named = |&(label, score): &(usize, f32)| Some(Scored { answer: labels.get(label)?.clone(), score });
            right.iter().filter_map(named).collect()
        }
        Truth::People(people) => {
            let mut different: Vec<&String> = Vec::new();
            for person in people {
                if !different.contains(&person) {
                    different.push(person);
                }
            }
            let scored = |answer: &String| Scored { answer: answer.clone(), score: vqa::score(answer, people) as f32 };
            different.into_iter().map(scored).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, images, texts};
    use super::*;

    fn labels() -> Vec<String> {
        ["yes", "no", "2"].map(String::from).to_vec()
    }

    fn batch(id: i64, logits: [f32; 3], truth: Truth) -> Batch {
        let about = vec![Question { id, image_id: format!("i{id}"), text: "how many?".into(), truth }];
        Batch { texts: texts(&[vec![0, 0, 1]]), images: images(&[logits.to_vec()]), about }
    }

    #[test]
    fn by_hand() {
        let people = |two: usize| (0..10).map(|i| if i < two { "Two.".into() } else { format!("{i}x") }).collect();
        let batches = [
            // The text adds 1 to the third label.
            batch(7, [0.0, -3.0, 0.5], Truth::Labels(vec![(0, 0.9), (2, 0.3)])),
            batch(8, [0.0, 3.0, 1.0], Truth::Labels(vec![])),
            batch(9, [0.0, 0.0, 0.0], Truth::People(people(3))),
            batch(10, [5.0, 0.0, 0.0], Truth::Unknown),
        ];
        let mut seen = Vec::new();
        let found = evaluate(&Fake { width: 3 }, batches.map(Ok), &labels(), &mut |detail| {
            seen.push(detail.clone());
            Ok(())
        })
        .unwrap();
        let scores: Vec<Option<f64>> = seen.iter().map(|detail| detail.score).collect();
        assert_eq!(scores[0], Some(0.3));
        assert_eq!(scores[1], Some(0.0));
        assert!((scores[2].unwrap() - 0.9).abs() < 1e-12);
        assert_eq!(scores[3], None);
        assert_eq!((found.outcome.questions, found.outcome.scored), (4, 3));
        assert!((found.outcome.score.unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(
            serde_json::to_string(&found.answers[..2]).unwrap(),
            r#"[{"question_id":7,"answer":"2"},{"question_id":8,"answer":"no"}]"#
        );
        assert_eq!(seen[0].answers.iter().map(|found| found.answer.as_str()).collect::<Vec<_>>(), ["2", "yes", "no"]);
        assert_eq!(seen[0].answers[1].score, 0.5);
        assert_eq!(seen[0].truth[0], Scored { answer: "yes".into(), score: 0.9 });
        let outcome = super::super::Outcome::Vqa(found.outcome);
        assert!(outcome.table().contains("VQA score") && outcome.table().contains("40.00"), "{}", outcome.table());
        let json = serde_json::to_string(&outcome).unwrap();
        assert!(json.starts_with(r#"{"task":"vqa","questions":4,"scored":3,"score":0."#), "{json}");
        assert_eq!(serde_json::from_str::<super::super::Outcome>(&json).unwrap(), outcome);
    }

    #[test]
    fn a_split_without_answers_has_no_score() {
        let batches = [batch(1, [0.0, 1.0, 0.0], Truth::Unknown)];
        let found = evaluate(&Fake { width: 3 }, batches.map(Ok), &labels(), &mut |_| Ok(())).unwrap();
        assert_eq!(found.outcome, Outcome { questions: 1, scored: 0, score: None });
        let outcome = super::super::Outcome::Vqa(found.outcome);
        assert_eq!(outcome.headline(), None);
        assert_eq!(outcome.table(), "No answers to compare with: 1 question, 0 with answers\n");
    }

    #[test]
    fn what_cannot_be_evaluated() {
        let run = |labels: &[String], batches: Vec<Result<Batch>>| {
            format!("{:#}", evaluate(&Fake { width: 3 }, batches, labels, &mut |_| Ok(())).unwrap_err())
        };
        assert_eq!(run(&labels()[..2], vec![]), "the model answers with 3 labels, but 2 are named");
        assert_eq!(run(&labels(), vec![]), "nothing to evaluate: no questions");
        assert_eq!(run(&labels(), vec![Err(anyhow::anyhow!("a.arrow: cut short"))]), "a.arrow: cut short");
        let nan = run(&labels(), vec![Ok(batch(1, [f32::NAN, 0.0, 0.0], Truth::Unknown))]);
        assert!(nan.contains("are not numbers (NaN)"), "{nan}");
        let mut torn = batch(1, [0.0; 3], Truth::Unknown);
        torn.about.clear();
        assert_eq!(run(&labels(), vec![Ok(torn)]), "a batch of questions has parts of [1, 1, 0] examples");
    }
}
