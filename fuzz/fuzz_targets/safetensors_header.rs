//! Any bytes as the header of a safetensors file: its length is told truly, and so much data follows
//! as the first two bytes say.

#![no_main]

mod reading;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((data, header)) = bytes.split_first_chunk::<2>() else { return };
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + usize::from(u16::from_le_bytes(*data)), 0);
    reading::open(&file);
});
