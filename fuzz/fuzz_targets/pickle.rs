//! Any bytes as a pickle by itself.

#![no_main]

use formats::pickle::{self, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((document, length)) = pickle::read(&mut &bytes[..], bytes.len() as u64, Limits::default()) else { return };
    assert!(length <= bytes.len() as u64);
    let json = document.to_json(document.root()).to_string();
    serde_json::from_str::<serde_json::Value>(&json).expect("JSON that can be read back");
    for id in document.ids() {
        document.entries(id);
        document.attributes(id);
        document.sequence(id);
        document.key_name(id);
        document.class(id);
    }
    document.globals();
});
