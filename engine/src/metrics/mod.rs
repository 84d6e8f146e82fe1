//! What evaluation measures.
