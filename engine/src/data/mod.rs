//! Data sets: reading, loading ahead of the model, building from official downloads.
