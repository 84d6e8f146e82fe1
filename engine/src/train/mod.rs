//! Fine-tuning: configuration, schedule, loop, runs on disk.
