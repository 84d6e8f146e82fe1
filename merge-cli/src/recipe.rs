//! How a file was made, kept in its metadata.

use formats::write::Metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ruled::Rule;

/// Metadata key of the recipe, in every file this project writes.
pub const RECIPE_KEY: &str = "vlmerge.recipe";

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeInput {
    /// What it was to the method: `checkpoint`, `base`, …
    pub role: String,
    /// The file's name without its folder, so that equal inputs give equal files anywhere.
    pub name: String,
    pub root: String,
    /// [`formats::Digester`]'s content digest.
    pub content_digest: String,
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

    /// The recipe in a file's metadata, if it has one that reads as such.
    pub fn from_metadata(metadata: &Metadata) -> Option<Recipe> {
        serde_json::from_str(metadata.get(RECIPE_KEY)?).ok()
    }

    /// Compact JSON for the metadata.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
