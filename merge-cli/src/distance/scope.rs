//! What is compared: which experts' values, of which layers and parts.

use std::fmt;

use formats::layout::{Modality, Part};
use serde::Serialize;

use super::metrics::Metrics;

/// What the vectors hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The experts' weights.
    Weights,
    /// Modality vectors, expert − base, subtracted in the checkpoint's own precision (at least f32).
    ModalityVectors,
}

/// Two modalities whose experts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Pair(pub Modality, pub Modality);

impl Pair {
    pub const ALL: [Pair; 3] = [
        Pair(Modality::Vision, Modality::Language),
        Pair(Modality::Vision, Modality::VisionLanguage),
        Pair(Modality::Language, Modality::VisionLanguage),
    ];
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}–{}", self.0, self.1))
    }
}

/// Parts of a layer as they are reported: both norms together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartGroup {
    Attention,
    Mlp,
    Norms,
    Other,
}

impl From<Part> for PartGroup {
    fn from(part: Part) -> PartGroup {
        match part {
            Part::Attention => PartGroup::Attention,
            Part::Mlp => PartGroup::Mlp,
            Part::Norm1 | Part::Norm2 => PartGroup::Norms,
            Part::Other => PartGroup::Other,
        }
    }
}

impl fmt::Display for PartGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PartGroup::Attention => "attention",
            PartGroup::Mlp => "mlp",
            PartGroup::Norms => "norms",
            PartGroup::Other => "other",
        })
    }
}

/// Which tensors' values, one after another, make up the vectors. A layer of `None` is what stands outside the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Scope {
    /// All experts.
    Overall,
    /// One part of all layers.
    Part { part: PartGroup },
    /// All parts of one layer.
    Layer { layer: Option<usize> },
    /// One part of one layer.
    LayerPart { layer: Option<usize>, part: PartGroup },
}

/// How far two modalities' experts are apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distance {
    pub space: Space,
    pub pair: Pair,
    #[serde(flatten)]
    pub scope: Scope,
    /// Length of each vector.
    pub elements: u64,
    #[serde(flatten)]
    pub metrics: Metrics,
}
