//! Names of tensors that would do something to a terminal, a log or a path.

use formats::Dtype;

use crate::files::{View, done, safetensors, state_dict, torch_zip};
use crate::harness::open;

/// Names as text, and what must not be left of them in a message.
const NAMES: [&str; 12] = [
    "a\0b",
    "a\nb",
    "a\r\nb",
    "a\u{1b}[31mred\u{1b}[0m",
    "a\u{1b}]0;title\u{7}",
    "a\u{9b}2J",
    "a\u{202e}txt.exe",
    "a\u{2066}b\u{2069}",
    "a\u{61c}b",
    "a\u{200b}b\u{feff}",
    "a\u{7f}\u{8}b",
    "a\u{2028}b\u{2029}c",
];

#[test]
fn names_are_kept_and_shown_escaped() {
    for name in NAMES {
        let object = state_dict(|p| done(p.str(name).tensor(Dtype::F32, "0", &[2])));
        let opened = open(&torch_zip(&object, &[("0", &[0; 8])])).opened();
        assert_eq!(opened.tensors[0].0, name);
        // The same name in an error: escaped by the harness's own check.
        let object = state_dict(|p| {
            p.str(name);
            View { key: name, ..View::default() }.push(p);
        });
        let message = open(&torch_zip(&object, &[])).refused(&["tensor 'a", "storage 'a"]);
        assert!(message.contains('\\'), "{message}");
    }
}

#[test]
fn names_in_safetensors_are_kept_and_shown_escaped() {
    for name in NAMES {
        let quoted = serde_json::to_string(name).unwrap();
        let header = format!(r#"{{{quoted}:{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
        assert_eq!(open(&safetensors(&header, &[0; 8])).opened().tensors[0].0, name);
        for broken in [
            format!(r#"{{{quoted}:{{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}}}"#),
            format!(r#"{{{quoted}:{{"dtype":{quoted},"shape":[2],"data_offsets":[0,8]}}}}"#),
            format!(r#"{{{quoted}:{{"dtype":"F32","shape":{quoted},"data_offsets":[0,8]}}}}"#),
            format!(r#"{{{quoted}:{quoted}}}"#),
            format!(r#"{{{quoted}:{{"dtype":"F32","dtype":"F32"}}}}"#),
            format!(r#"{{"__metadata__":{{{quoted}:1}}}}"#),
            format!(r#"{{"__metadata__":{quoted}}}"#),
        ] {
            open(&safetensors(&broken, &[0; 8])).refused(&["hostile.bin"]);
        }
    }
}

#[test]
fn roots_that_do_not_exist_are_answered_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    let object = crate::files::pickle(|p| {
        p.empty_dict().mark();
        NAMES.iter().for_each(|name| done(p.str(name).none()));
        p.set_items();
    });
    std::fs::write(&path, torch_zip(&object, &[])).unwrap();
    for root in NAMES {
        let message = formats::open_root(&path, Some(&format!("{root}.x"))).unwrap_err().to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    // A root of very many parts, in a file where each part has several ways.
    let object = crate::files::pickle(|p| {
        p.empty_dict().put(1).mark();
        for key in ["a", "a.a", "a.a.a"] {
            p.str(key).get(1);
        }
        p.set_items();
    });
    std::fs::write(&path, torch_zip(&object, &[])).unwrap();
    let root = "a.".repeat(60) + "b";
    crate::harness::watched("roots", move || formats::open_root(&path, Some(&root)).unwrap_err().to_string());
}

#[test]
fn names_that_no_container_would_hold_are_refused() {
    let file = |length: usize| {
        let name = "x".repeat(length);
        open(&safetensors(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#), &[0; 8]))
    };
    file(4096).opened();
    file(4097).refused(&["hostile.bin", "a name of more than 4096 bytes"]);
    let file = |length: usize| {
        let object = state_dict(|p| done(p.str(&"x".repeat(length)).tensor(Dtype::F32, "0", &[2])));
        open(&torch_zip(&object, &[("0", &[0; 8])]))
    };
    file(4096).opened();
    file(4097).refused(&["hostile.bin", "a name of more than 4096 bytes"]);
}

#[test]
fn long_names_are_cut_in_messages() {
    let name = "x".repeat(4000);
    let object = state_dict(|p| {
        p.str(&name);
        View { key: "gone", ..View::default() }.push(p);
    });
    let message = open(&torch_zip(&object, &[])).refused(&["storage 'gone' is not in the file"]);
    assert!(message.len() < 500, "{} bytes", message.len());
}
