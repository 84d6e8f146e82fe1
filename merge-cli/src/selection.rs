//! Which experts of a layer take part in a merge.

use formats::layout::Modality;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A downstream task, where it decides which experts its forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Image-text retrieval: text and image apart, in every layer.
    Irtr,
    /// Visual question answering: text and image together from the first `vl` layer on.
    Vqa,
    /// Reasoning over two images, like `vqa`.
    Nlvr2,
}

impl Task {
    /// From a recipe's parameters, where they name one.
    pub fn from_parameters(parameters: &Map<String, Value>) -> Result<Option<Task>, String> {
        match parameters.get("task") {
            None | Some(Value::Null) => Ok(None),
            Some(task) => serde_json::from_value(task.clone())
                .map(Some)
                .map_err(|_| format!("no task {task}: it is irtr, vqa or nlvr2")),
        }
    }
}

/// Which experts take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All there are.
    All,
    /// Those that the task's forward pass uses.
    Used(Task),
}

impl Selection {
    /// From a recipe's parameters; all experts where nothing is said.
    pub fn from_parameters(parameters: &Map<String, Value>) -> Result<Selection, String> {
        let task = Task::from_parameters(parameters)?;
        match (parameters.get("experts").and_then(Value::as_str), task) {
            (Some("used"), Some(task)) => Ok(Selection::Used(task)),
            (Some("used"), None) => Err("experts = \"used\" needs a task".into()),
            (None | Some("all"), None) => Ok(Selection::All),
            (None | Some("all"), Some(_)) => Err("a task means nothing unless experts = \"used\"".into()),
            (Some(other), _) => Err(format!("no experts \"{other}\": it is all or used")),
        }
    }

    /// As it stands in recipes.
    pub fn parameters(self) -> Map<String, Value> {
        let mut parameters = Map::new();
        match self {
            Selection::All => parameters.insert("experts".into(), json!("all")),
            Selection::Used(task) => {
                parameters.insert("experts".into(), json!("used"));
                parameters.insert("task".into(), json!(task))
            }
        };
        parameters
    }

    /// The modalities merged in a layer, in the order they are summed.
    ///
    /// `vl_start` is the first layer with a `vl` expert. Parts outside the layers (`None`) have no
    /// `vl` expert in any known model and count as shallow.
    pub fn modalities(self, layer: Option<usize>, vl_start: Option<usize>) -> &'static [Modality] {
        use Modality::{Language, Vision, VisionLanguage};
        let deep = matches!((layer, vl_start), (Some(layer), Some(start)) if layer >= start);
        match self {
            _ if !deep => &[Vision, Language],
            Selection::All => &[Vision, Language, VisionLanguage],
            Selection::Used(Task::Irtr) => &[Vision, Language],
            Selection::Used(Task::Vqa | Task::Nlvr2) => &[VisionLanguage],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selection: Selection, layer: usize) -> Vec<String> {
        selection.modalities(Some(layer), Some(10)).iter().map(Modality::to_string).collect()
    }

    #[test]
    fn follows_the_table() {
        assert_eq!(names(Selection::All, 9), ["v", "l"]);
        assert_eq!(names(Selection::All, 10), ["v", "l", "vl"]);
        assert_eq!(names(Selection::Used(Task::Irtr), 9), ["v", "l"]);
        assert_eq!(names(Selection::Used(Task::Irtr), 11), ["v", "l"]);
        assert_eq!(names(Selection::Used(Task::Vqa), 9), ["v", "l"]);
        assert_eq!(names(Selection::Used(Task::Vqa), 10), ["vl"]);
        assert_eq!(names(Selection::Used(Task::Nlvr2), 11), ["vl"]);
    }

    #[test]
    fn a_model_without_vl_experts_is_shallow_throughout() {
        assert_eq!(Selection::All.modalities(Some(11), None).len(), 2);
        assert_eq!(Selection::All.modalities(None, Some(10)).len(), 2);
    }
}
