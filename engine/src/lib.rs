//! Running, evaluating and fine-tuning merged vision-language models, on burn.
//!
//! Data comes in as [`batch`]es on the host. [`model`] is the network, generic over a burn backend; everything else
//! speaks to it through two object-safe traits, [`runner::Runner`] (inference) and [`trainer::Trainer`] (training),
//! behind which the device and the precision are chosen at run time.

pub mod batch;
pub mod bench;
pub mod data;
pub mod device;
pub mod embed;
pub mod eval;
pub mod grams;
pub mod image;
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod predict;
pub mod report;
pub mod runner;
pub mod search;
pub mod selftest;
pub mod tasks;
pub mod text;
pub mod train;
pub mod trainer;
