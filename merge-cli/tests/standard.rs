//! `-`: standard input and output.
#![cfg(unix)]

mod support;

use std::process::{Command, Output, Stdio};

use support::{Folder, all_values};

fn small() -> Folder {
    let folder = Folder::new();
    let names = ["v", "l"].map(|m| format!("transformer.blocks.0.mlp.{m}.fc1.weight"));
    let tensors = names.each_ref().map(|name| (name.as_str(), &[2][..], &[1.0f32, 2.0][..]));
    folder.safetensors("ms.safetensors", &tensors);
    folder.ok(&["convert", "ms.safetensors", "-o", "ms.ckpt"]);
    folder.ok(&["interpolate", "ms.safetensors", "--ratio", "0.5", "-o", "merged.safetensors"]);
    folder
}

/// Runs a line of the shell in which `vlmerge` is the program under test.
fn shell(folder: &Folder, line: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_vlmerge");
    let script = format!("vlmerge() {{ \"{program}\" \"$@\"; }}\n{line}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder.path(".")).stdin(Stdio::null());
    command.output().unwrap()
}

fn ok(folder: &Folder, line: &str) -> String {
    let output = shell(folder, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}: {stderr}");
    stderr
}

#[test]
fn a_dash_is_never_a_files_name() {
    let folder = small();
    // Through a pipe, which can't be read twice or at positions, and from a file.
    for input in ["cat ms.ckpt | vlmerge", "cat ms.safetensors | vlmerge", "< ms.ckpt vlmerge"] {
        let said = ok(&folder, &format!("{input} interpolate - --ratio 0.5 -o - > out.safetensors"));
        assert!(said.starts_with("standard output: 1 tensor, 1 of them merged by interpolate"), "{said}");
        assert_eq!(all_values(&folder.open("out.safetensors")), all_values(&folder.open("merged.safetensors")));
        assert!(ok(&folder, &format!("{input} interpolate - --ratio 0.5 -o - --quiet > out.safetensors")).is_empty());
        let text = shell(&folder, &format!("{input} inspect -"));
        assert!(String::from_utf8(text.stdout).unwrap().starts_with("standard input\n"));
    }
    ok(&folder, "cat ms.ckpt | vlmerge convert - -o - -q | vlmerge convert - -o - -q | vlmerge diff ms.ckpt -");
    ok(&folder, "vlmerge recipe merged.safetensors | vlmerge merge --recipe - -o again.safetensors");
    ok(&folder, "vlmerge diff merged.safetensors again.safetensors");
    ok(&folder, &format!("vlmerge soup ms.ckpt --experts --layout - -o soup.ckpt < {}", layout()));
    assert!(!folder.path("-").exists());
}

fn layout() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../formats/src/layouts/vl-merging.toml").to_owned()
}

#[test]
fn what_cannot_be_standard_input_or_output_is_refused() {
    let folder = small();
    for (line, code, expected) in [
        ("vlmerge diff - - < ms.ckpt", 2, "only one of the files can be standard input ('-')"),
        ("vlmerge soup - - -o o.ckpt < ms.ckpt", 2, "only one of the files can be standard input ('-')"),
        ("vlmerge inspect - --layout - < ms.ckpt", 2, "only one of the files can be standard input ('-')"),
        ("vlmerge convert ms.ckpt -o - --json", 2, "where --json would print too"),
        ("vlmerge inspect - < /dev/null", 1, "standard input: the file is empty"),
        ("echo nonsense | vlmerge inspect -", 1, "standard input: a text file"),
        ("vlmerge distance ms.ckpt --plot -", 1, "-: which format? name the plot .svg or .png"),
        (
            "echo '{\"metadata\": {}, \"weight_map\": {}}' | vlmerge inspect -",
            1,
            "standard input: an index names files",
        ),
    ] {
        let output = shell(&folder, line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && stderr.contains(expected), "{line}: {stderr}");
        assert!(output.stdout.is_empty() && !folder.path("-").exists(), "{line}");
    }
    // A merge that fails prints nothing.
    let output = shell(&folder, "vlmerge interpolate merged.safetensors --ratio 0.5 -o -");
    assert!(output.status.code() == Some(1) && output.stdout.is_empty());
}
