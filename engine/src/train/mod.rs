//! Fine-tuning: configuration, the loop, and runs that survive.

mod bad_batch;
pub mod config;
#[cfg(test)]
pub(crate) mod fake;
pub mod finetune;
pub mod fit;
pub mod interrupt;
pub mod merge_in;
pub mod open;
pub mod presets;
pub mod recorder;
pub mod resolve;
pub mod run_dir;
pub mod schedule;
