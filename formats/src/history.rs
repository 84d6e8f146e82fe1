//! How a file came about, from its metadata: the recipe it was made by and the training since.
//!
//! A recipe is JSON, `{"tool", "version", "method", "parameters", "inputs"}`. What a file was made *of*, where that was
//! one file, stands in `parameters.of`, which is a recipe again. A trained file has no recipe of its training in its
//! metadata but the trainer's own keys, beside the recipe of what the training started from; [`history`] makes one
//! chain of both.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Metadata key of the recipe, in every file that is made by merging, converting, resizing or initialising.
pub const RECIPE_KEY: &str = "vlmerge.recipe";

/// The method in a recipe that stands for a training run.
pub const TRAINING: &str = "training";

const TRAINER: &str = "engine.";
const STEP: &str = "engine.step";
const RUN: &str = "engine.run";
const TASK: &str = "engine.task";
const VERSION: &str = "engine.version";
/// What the metadata keys of heads' labels begin with, before the task: a JSON array of names in the head's order.
pub const LABELS: &str = "engine.labels.";

/// The recipe of a file, with a training since at its head: method [`TRAINING`], and as parameters the task, the
/// step, metrics, and its configuration as TOML. `None` for a file that says nothing of this.
pub fn history(metadata: &BTreeMap<String, String>) -> Option<Value> {
    let recipe = metadata.get(RECIPE_KEY).and_then(|text| serde_json::from_str::<Value>(text).ok());
    if !is_trained(metadata) {
        return recipe;
    }
    let mut parameters = Map::new();
    let texts = [("task", TASK), ("config", RUN)];
    for (name, key) in texts {
        parameters.extend(metadata.get(key).map(|text| (name.to_owned(), json!(text))));
    }
    let step = metadata.get(STEP).and_then(|step| step.parse::<u64>().ok());
    parameters.extend(step.map(|step| ("step".to_owned(), json!(step))));
    let metrics: Map<String, Value> = metadata
        .iter()
        .filter(|(key, _)| is_training(key) && ![STEP, VERSION].contains(&key.as_str()))
        .filter_map(|(key, value)| Some((key.strip_prefix(TRAINER)?.to_owned(), json!(value.parse::<f64>().ok()?))))
        .collect();
    if !metrics.is_empty() {
        parameters.insert("metrics".into(), Value::Object(metrics));
    }
    parameters.extend(recipe.map(|recipe| ("of".to_owned(), recipe)));
    let version = metadata.get(VERSION).map_or("", String::as_str);
    Some(json!({
        "tool": "engine",
        "version": version,
        "method": TRAINING,
        "parameters": parameters,
        "inputs": [],
    }))
}

/// Whether a training ended in the file.
fn is_trained(metadata: &BTreeMap<String, String>) -> bool {
    metadata.contains_key(STEP) || metadata.contains_key(RUN)
}

/// Whether a metadata key tells of a training run that ended in this file, so that it isn't true of a file that is made
/// from this one. The task and the names of a head's labels stay true.
pub fn is_training(key: &str) -> bool {
    key.starts_with(TRAINER) && key != TASK && !key.starts_with(LABELS)
}

/// What a file's metadata becomes in the files of a training that starts from it: a training that it came from itself
/// is now a step of its recipe.
pub fn for_training(mut metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if is_trained(&metadata)
        && let Some(history) = history(&metadata)
    {
        metadata.insert(RECIPE_KEY.into(), history.to_string());
    }
    metadata.retain(|key, _| !is_training(key));
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_training_is_the_last_step_of_the_chain() {
        let merge = r#"{"tool":"vlmerge","version":"1","method":"interpolate","parameters":{"ratio":0.5},"inputs":[]}"#;
        assert_eq!(history(&metadata(&[])), None);
        assert_eq!(history(&metadata(&[(RECIPE_KEY, merge), (TASK, "vqa")])).unwrap()["method"], "interpolate");
        let trained = metadata(&[
            (RECIPE_KEY, merge),
            (TASK, "vqa"),
            (STEP, "120"),
            (RUN, "lr = 1e-4\n"),
            (VERSION, "0.1.0"),
            ("engine.score", "0.75"),
            ("engine.labels.vqa", "[]"),
        ]);
        let found = history(&trained).unwrap();
        assert_eq!([&found["tool"], &found["version"], &found["method"]], ["engine", "0.1.0", TRAINING]);
        let parameters = &found["parameters"];
        assert_eq!((&parameters["task"], &parameters["step"]), (&json!("vqa"), &json!(120)));
        assert_eq!(parameters["config"], "lr = 1e-4\n");
        assert_eq!(parameters["metrics"], json!({"score": 0.75}));
        assert_eq!(parameters["of"]["method"], "interpolate");
        let again = for_training(trained.clone());
        assert_eq!(again.keys().collect::<Vec<_>>(), ["engine.labels.vqa", TASK, RECIPE_KEY]);
        assert_eq!(history(&again), Some(found));
    }
}
