//! The merging mathematics and the jobs that apply it to checkpoints.
//!
//! A merge is a list of [`Job`]s, one for each tensor of the result: copied from an input, or
//! computed by a [`Method`] from several. [`jobs::merge_experts`] makes the list for one
//! modality-specific checkpoint, [`several::merge_checkpoints`] for several checkpoints,
//! [`run::run`] streams it into a file.

pub mod diff;
pub mod distance;
pub mod init;
pub mod jobs;
pub mod methods;
pub mod plot;
mod random;
pub mod recipe;
pub mod recipe_file;
pub mod resize;
pub mod ruled;
pub mod run;
pub mod seed;
pub mod selection;
pub mod several;

pub use jobs::{Emit, Input, Job, Merge, Role, Source};
pub use methods::Method;
pub use recipe::Recipe;
pub use run::{Run, Summary};
pub use selection::{Selection, Task};
