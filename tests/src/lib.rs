//! Runs the workspace's programs as a user would, and looks at their files by other means than theirs.

mod folder;
#[cfg(unix)]
mod paused;
mod program;
mod tensors;

pub use folder::{Folder, Ran};
#[cfg(unix)]
pub use paused::{Paused, Signal};
pub use program::program;
pub use tensors::{Tensor, Tensors, read, write, write_recorded, write_sharded};
