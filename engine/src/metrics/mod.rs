//! What evaluation measures.

pub mod vqa;
