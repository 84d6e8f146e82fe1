//! Indexes of safetensors shards that name what they shouldn't.

use std::path::Path;

use crate::files::safetensors;
use crate::harness::{Outcome, open_path};

const INDEX: &str = "model.safetensors.index.json";

/// An index beside two good shards, `one` with tensor `a` and `two` with tensor `b`.
fn index(text: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    std::fs::write(folder.path().join(INDEX), text).unwrap();
    open_path(&folder.path().join(INDEX))
}

fn fill(folder: &Path) {
    for (file, tensor) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
        std::fs::write(folder.join(file), safetensors(&header, &[1; 8])).unwrap();
    }
}

fn map(entries: &str) -> String {
    format!("{{\"metadata\":{{\"total_size\":16}},\"weight_map\":{{{entries}}}}}")
}

#[test]
fn the_good_one_opens() {
    let opened = index(&map(r#""b":"two.safetensors","a":"one.safetensors""#)).opened();
    let names: Vec<_> = opened.tensors.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn shards_outside_the_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let elsewhere = folder.path().join("one.safetensors");
    for file in [
        elsewhere.to_str().unwrap(),
        "../one.safetensors",
        "sub/../../one.safetensors",
        "./one.safetensors",
        "sub/one.safetensors",
        "/etc/passwd",
        "file:///etc/passwd",
        "..",
        ".",
        "",
        "/",
    ] {
        index(&map(&format!("\"a\":{file:?}"))).refused(&[INDEX, "tensor 'a'", "not a plain file name"]);
    }
    for file in ["C:\\\\one", "..\\\\one", "\\u0000"] {
        index(&map(&format!("\"a\":\"{file}\""))).refused(&["cannot open"]);
    }
}

#[test]
fn shards_that_are_none_are_refused() {
    index(&map(r#""a":"gone.safetensors""#)).refused(&["gone.safetensors", "cannot open"]);
    index(&map(&format!("\"a\":\"{INDEX}\""))).refused(&[INDEX, "named as a shard"]);
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::write(folder.path().join("pickle"), "\u{80}\u{2}}.").unwrap();
    for file in ["folder", "empty", "pickle"] {
        std::fs::write(folder.path().join(INDEX), map(&format!("\"a\":\"{file}\""))).unwrap();
        open_path(&folder.path().join(INDEX)).refused(&[file]);
    }
}

#[test]
fn tensors_that_are_elsewhere_are_refused() {
    index(&map(r#""b":"one.safetensors""#)).refused(&[INDEX, "tensor 'b'", "one.safetensors", "doesn't hold it"]);
    index(&map(r#""":"one.safetensors""#)).refused(&["doesn't hold it"]);
    // A tensor that the index leaves out is left out.
    assert_eq!(index(&map(r#""a":"one.safetensors""#)).opened().tensors.len(), 1);
    assert!(index(&map("")).opened().tensors.is_empty());
}

#[test]
fn a_tensor_named_twice_is_refused() {
    index(&map(r#""a":"one.safetensors","a":"two.safetensors""#)).refused(&[INDEX, "'a'", "twice"]);
}

#[test]
fn json_that_is_no_index_is_refused() {
    for text in [
        "{}",
        "{",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}",
        "{\"metadata\":[],\"weight_map\":{}}",
        "{\"weight_map\":{}}{}",
        "{\"weight_map\":{},\"weight_map\":{}}",
        "{\"architectures\":[\"Bert\"]}",
        "{\u{0}}",
    ] {
        index(text).refused(&[INDEX]);
    }
    for text in ["[]", "null", "\"weight_map\"", "1"] {
        index(text).refused(&[INDEX]);
    }
    for levels in [200, 1_000_000] {
        index(&format!("{{\"metadata\":{}", "[".repeat(levels))).refused(&[INDEX, "no index"]);
        index(&format!("{{\"weight_map\":{}", "{\"a\":".repeat(levels))).refused(&[INDEX, "no index"]);
        let _ = index(&format!("{{\"x\":{},\"weight_map\":{{}}}}", "[".repeat(levels) + &"]".repeat(levels)));
    }
}

#[test]
fn metadata_of_many_small_values_takes_memory_in_proportion() {
    let lists = "[],".repeat(1_000_000);
    let numbers = "0,".repeat(1_000_000);
    for values in [&lists, &numbers] {
        let text = format!("{{\"metadata\":{{\"x\":[{}0]}},\"weight_map\":{{}}}}", values);
        index(&text).opened();
    }
    let keys: String = (0..200_000).map(|key| format!("\"{key}\":0,")).collect();
    index(&format!("{{\"metadata\":{{{keys}\"x\":{{\"y\":[]}}}},\"weight_map\":{{}}}}")).opened();
}

#[test]
fn names_in_an_index_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    // A shard whose own name is an escape sequence, and which lacks the tensor.
    std::fs::rename(folder.path().join("one.safetensors"), folder.path().join("\u{1b}[31m\n")).unwrap();
    std::fs::write(folder.path().join(INDEX), map(r#""x\u001b[2J":"\u001b[31m\n""#)).unwrap();
    open_path(&folder.path().join(INDEX)).refused(&["tensor 'x\\u{1b}[2J'", "\\u{1b}[31m\\n"]);
    index(&map(r#""a":"\u001b[31m/x""#)).refused(&["\\u{1b}[31m/x"]);
    index(&map(r#""a":"\u202egone""#)).refused(&["\\u{202e}gone"]);
}
