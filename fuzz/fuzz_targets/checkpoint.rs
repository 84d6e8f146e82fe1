//! Any bytes as a checkpoint file of any container.

#![no_main]

mod reading;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| reading::open(bytes));
