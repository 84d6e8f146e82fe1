//! How a file was made, kept in its metadata.

use formats::history::{self, TRAINING};
use formats::write::Metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::methods;
use crate::ruled::Rule;

pub use formats::history::RECIPE_KEY;

/// The method, its parameters and its inputs: enough to make the file again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub tool: String,
    pub version: String,
    pub method: String,
    /// The layout that was asked for: a built-in one's name, or a file's text in full, which has more than one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Other parameters for some of the tensors.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    #[serde(default)]
    pub inputs: Vec<RecipeInput>,
}

/// A checkpoint that went in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecipeInput {
    /// What it was to the method: `checkpoint`, `base`, …
    pub role: String,
    /// The file's name without its folder, so that equal inputs give equal files anywhere.
    pub name: String,
    pub root: String,
    /// [`formats::Digester`]'s content digest.
    pub content_digest: String,
    /// How the file was made itself, as far as it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<Box<Recipe>>,
}

impl Recipe {
    pub fn new(method: &str, parameters: Map<String, Value>) -> Recipe {
        Recipe {
            tool: "vlmerge".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            method: method.into(),
            layout: None,
            parameters,
            rules: Vec::new(),
            inputs: Vec::new(),
        }
    }

    /// How a file was made, from its metadata: its recipe or, where it was trained since, that training, whose
    /// [`Recipe::before`] is the recipe.
    pub fn history(metadata: &Metadata) -> Option<Recipe> {
        serde_json::from_value(history::history(metadata)?).ok()
    }

    /// How the file was made that this step started from: the one it was made of or, for a merge, its first input.
    pub fn before(&self) -> Option<Recipe> {
        match self.parameters.get("of") {
            Some(of) => serde_json::from_value(of.clone()).ok(),
            None => self.inputs.first()?.made_by.as_deref().cloned(),
        }
    }

    /// This step and all before it, the newest first.
    pub fn chain(self) -> Vec<Recipe> {
        std::iter::successors(Some(self), Recipe::before).collect()
    }

    /// `vlmerge 0.1.0`, without the version where none is known.
    pub fn tool_and_version(&self) -> String {
        format!("{} {}", self.tool, self.version).trim_end().to_owned()
    }

    /// The parameters for people, without the step before. Of a training's configuration only what it started from
    /// and what it saw are shown.
    pub fn shown_parameters(&self) -> impl Iterator<Item = (String, String)> {
        let is_training = self.is_training();
        let config = self.parameters.get("config").and_then(Value::as_str).filter(|_| is_training);
        let config = config.and_then(|text| text.parse::<toml::Table>().ok()).unwrap_or_default();
        let of_config = ["checkpoint", "merge", "data"].into_iter().filter_map(move |name| {
            let value = config.get(name)?;
            Some((name.to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        });
        let own = self
            .parameters
            .iter()
            .filter(move |(name, value)| *name != "of" && !(is_training && *name == "config") && !value.is_null());
        let shown = |value: &Value| match value {
            Value::String(text) if is_training => text.clone(),
            value => value.to_string(),
        };
        let own: Vec<(String, String)> = own.map(|(name, value)| (name.clone(), shown(value))).collect();
        own.into_iter().chain(of_config)
    }

    /// Whether the step is a training run, which no recipe can make again.
    pub fn is_training(&self) -> bool {
        self.method == TRAINING
    }

    /// Whether the step is a merge, which a recipe file can make again.
    pub fn is_merge(&self) -> bool {
        methods::NAMES.contains(&self.method.as_str())
    }

    /// Whether the step kept every value as it was.
    pub fn is_copy(&self) -> bool {
        self.method == "convert" && self.parameters.get("dtype").is_none_or(Value::is_null)
    }

    /// Compact JSON for the metadata.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
