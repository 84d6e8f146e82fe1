//! Word pieces.
