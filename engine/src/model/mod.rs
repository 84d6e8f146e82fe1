//! The vision-language transformer.

pub mod build;
pub mod config;
pub mod input;
pub mod layers;
pub mod names;
pub mod noise;
pub mod objectives;
pub mod open;
pub mod position;
pub mod probe;
mod recompute;
pub mod save;
pub mod session;
pub mod tower;
pub mod training;
pub mod transformer;
pub mod weights;

pub use build::{Heads, LoadReport, ReplacedHead, Start, Want};
pub use config::Architecture;
pub use weights::{LoadError, Weights};
