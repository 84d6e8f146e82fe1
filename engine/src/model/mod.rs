//! The vision-language transformer.
