//! Showing a run: metrics in a file, TensorBoard, a progress line, one page.

mod chart;
pub mod gallery;
pub mod html;
pub mod metrics_log;
mod page;
pub mod progress;
pub mod run_files;
pub mod run_log;
pub mod tensorboard;
pub mod terminal;

pub use gallery::{Hit, gallery};
pub use html::report;
pub use run_log::RunLog;
