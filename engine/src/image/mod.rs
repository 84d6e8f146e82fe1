//! Decoding, resizing, normalising and augmenting images.
