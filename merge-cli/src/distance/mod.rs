//! How far apart experts are: the indicators by which one sees before merging how well it will go.
//!
//! Four of them, from "An Empirical Study of Multimodal Model Merging" (Sung et al., 2023), each between two
//! vectors x and y: two experts' weights, or their modality vectors (expert − base). The closer the experts, the
//! better a merge of them is expected to be.
//!
//! [`metrics`] computes them for slices. [`Measurement`] computes them for a checkpoint, streaming: for every
//! layer and part, and for unions of these, where x and y are the concatenation of all the union's tensors.

mod measure;
mod metrics;
mod scope;
mod threshold;

pub use measure::Measurement;
pub use metrics::{Metrics, Sums, add_truncated, metrics};
pub use scope::{Distance, Pair, PartGroup, Scope, Space};
pub use threshold::{Real, kept, threshold};
