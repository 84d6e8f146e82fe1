//! Answer vocabularies and how right an answer is.

use std::path::Path;

use serde_json::Value;

use super::files::unmarked;
use super::{Error, Result};
use crate::metrics::vqa::soft_score;

/// The different answers with how often each was given, in order of first appearance.
pub fn counts<'a>(answers: impl IntoIterator<Item = &'a str>) -> Vec<(&'a str, usize)> {
    let mut counts = indexmap::IndexMap::new();
    for answer in answers {
        *counts.entry(answer).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// [`soft_score`]s of a question's answers, whose number need not be ten: the only answer of one person is as right as
/// if all ten had given it.
pub fn scores<'a>(answers: impl IntoIterator<Item = &'a str>) -> Vec<(&'a str, f32)> {
    let counts = counts(answers);
    let people: usize = counts.iter().map(|(_, count)| count).sum();
    counts.into_iter().map(|(answer, count)| (answer, soft_score(count * 10 / people))).collect()
}

/// Labels by number from a JSON file: an array of names, or an object of name → number or number → name.
///
/// # Errors
/// It can't be read, is something else, or its numbers have gaps.
pub fn read(path: &Path) -> Result<Vec<String>> {
    from_json(path, &std::fs::read(path).map_err(|e| Error::io(path, "read", e))?)
}

/// As [`read`], for a file whose bytes are here.
///
/// # Errors
/// They are something else, or their numbers have gaps.
pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let value: Value =
        serde_json::from_slice(unmarked(bytes)).map_err(|e| Error::file(path, format!("no JSON: {e}")))?;
    parse(value).map_err(|reason| Error::file(path, reason))
}

fn parse(value: Value) -> std::result::Result<Vec<String>, String> {
    const EXPECTED: &str = "expected an array of label names, or an object of names and numbers";
    let labels: Vec<String> = match value {
        Value::Array(names) => names.into_iter().map(|name| string(name).ok_or(EXPECTED)).collect::<Result<_, _>>()?,
        Value::Object(pairs) => {
            let mut numbered = pairs
                .into_iter()
                .map(|(key, value)| match (key.parse::<usize>(), value) {
                    (_, Value::Number(number)) => number.as_u64().map(|number| (number as usize, key)),
                    (Ok(number), Value::String(name)) => Some((number, name)),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .ok_or(EXPECTED)?;
            numbered.sort();
            if let Some(gap) = (0..numbered.len()).find(|label| numbered[*label].0 != *label) {
                return Err(format!("label {gap} is missing or doubled"));
            }
            numbered.into_iter().map(|(_, name)| name).collect()
        }
        _ => return Err(EXPECTED.into()),
    };
    match labels.is_empty() {
        true => Err("it has no labels".into()),
        false => Ok(labels),
    }
}

fn string(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_of_ten_people() {
        let answers = ["red"; 6].into_iter().chain(["dark red"; 3]).chain(["blue"]);
        assert_eq!(scores(answers), [("red", 1.0), ("dark red", 0.9), ("blue", 0.3)]);
    }

    #[test]
    fn scores_of_fewer() {
        assert_eq!(scores(["yes"]), [("yes", 1.0)]);
        assert_eq!(scores(["a", "b", "a", "b", "c"]), [("a", 1.0), ("b", 1.0), ("c", 0.6)]);
        assert_eq!(scores([]), []);
    }

    #[test]
    fn a_byte_order_mark_costs_no_label() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.json");
        std::fs::write(&path, "\u{feff}[\"yes\", \"no\"]").unwrap();
        assert_eq!(read(&path).unwrap(), ["yes", "no"]);
    }

    #[test]
    fn vocabularies_in_three_shapes() {
        let names = vec!["yes".to_string(), "no".to_string()];
        assert_eq!(parse(json!(["yes", "no"])).unwrap(), names);
        assert_eq!(parse(json!({"no": 1, "yes": 0})).unwrap(), names);
        assert_eq!(parse(json!({"0": "yes", "1": "no"})).unwrap(), names);
        // An answer that is itself a number.
        assert_eq!(parse(json!({"2": 0})).unwrap(), ["2"]);
        assert!(parse(json!({"yes": 0, "no": 2})).unwrap_err().contains("label 1 is missing"));
        assert!(parse(json!([1])).is_err() && parse(json!([])).is_err() && parse(json!("x")).is_err());
    }
}
