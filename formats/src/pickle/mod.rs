//! Pickles, read as data and never run, and written for PyTorch.

mod emit;

pub use emit::Emitter;
