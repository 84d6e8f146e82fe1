//! Showing a run: metrics in a file, TensorBoard, a progress line, one page.

pub mod metrics_log;
pub mod progress;
pub mod tensorboard;
