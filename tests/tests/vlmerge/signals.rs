//! Interrupts in the middle of a merge.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blackbox::Folder;
use serde_json::{Map, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A file that takes seconds to merge and almost no disk: 4 GB of experts that are a hole in the file.
fn big(folder: &Folder) {
    let mut header = Map::new();
    let mut end = 0u64;
    for layer in 0..8 {
        for modality in ["v", "l"] {
            let start = end;
            end += 4096 * 16384 * 4;
            let entry = json!({"dtype": "F32", "shape": [16384, 4096], "data_offsets": [start, end]});
            header.insert(format!("transformer.blocks.{layer}.mlp.{modality}.fc1.weight"), entry);
        }
    }
    let header = serde_json::to_string(&header).unwrap();
    let mut file = File::create(folder.path("ms.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

fn signal(running: &Child, name: &str) {
    let kill = format!("kill -{name} {}", running.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
}

/// Waits until the merge has started to write.
fn wait_for_temporary(folder: &Folder, running: &mut Child) {
    let started = Instant::now();
    while !folder.names().iter().any(|name| name.ends_with(".tmp")) {
        assert!(running.try_wait().unwrap().is_none(), "it ended before it began");
        assert!(started.elapsed() < PATIENCE, "it never began");
        sleep(Duration::from_millis(1));
    }
}

fn start(folder: &Folder, output: &str) -> Child {
    let line = format!("interpolate ms.safetensors --ratio 0.5 -o {output} --force");
    let mut running = folder.command(&line).stdout(Stdio::null()).spawn().unwrap();
    wait_for_temporary(folder, &mut running);
    running
}

#[test]
fn an_interrupted_merge_leaves_nothing() {
    let folder = Folder::new();
    big(&folder);
    for (output, name) in [("out.safetensors", "INT"), ("out.ckpt", "INT"), ("out.ckpt", "TERM"), ("out.ckpt", "HUP")] {
        let mut running = start(&folder, output);
        sleep(Duration::from_millis(20));
        signal(&running, name);
        assert_eq!(running.wait().unwrap().code(), Some(130), "{output}, SIG{name}");
        assert_eq!(folder.names(), ["ms.safetensors"], "{output}, SIG{name}");
    }
}

#[test]
fn an_interrupted_merge_leaves_an_older_file_as_it_was() {
    let folder = Folder::new();
    big(&folder);
    for output in ["out.safetensors", "out.ckpt"] {
        folder.write(output, "precious");
        let mut running = start(&folder, output);
        signal(&running, "INT");
        assert_eq!(running.wait().unwrap().code(), Some(130), "{output}");
        assert_eq!(folder.names(), ["ms.safetensors", output]);
        assert_eq!(folder.read(output), b"precious");
        std::fs::remove_file(folder.path(output)).unwrap();
    }
}

/// Killed without a chance to clean up, it leaves its temporary file, and the older file is whole.
#[test]
fn a_killed_merge_leaves_an_older_file_as_it_was() {
    let folder = Folder::new();
    big(&folder);
    folder.write("out.ckpt", "precious");
    let mut running = start(&folder, "out.ckpt");
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(folder.read("out.ckpt"), b"precious");
}

/// `nohup vlmerge … &` goes on when the terminal closes.
#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let folder = Folder::new();
    big(&folder);
    let program = folder.command("").get_program().to_owned();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program).current_dir(folder.path("."));
    command.args(["interpolate", "ms.safetensors", "--ratio", "0.5", "-o", "out.ckpt"]);
    let mut running = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for_temporary(&folder, &mut running);
    signal(&running, "HUP");
    sleep(Duration::from_millis(100));
    assert!(running.try_wait().unwrap().is_none(), "it goes on");
    signal(&running, "TERM");
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert_eq!(folder.names(), ["ms.safetensors"]);
}
