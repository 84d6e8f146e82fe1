//! Signals in the middle of a merge, which waits for them there.

use blackbox::{Folder, Paused, Signal};

const CHECKPOINT: &str = "model_all_moe.safetensors";

/// A merge that has written its first piece and waits.
fn merging(folder: &Folder, output: &str, ignored: &[Signal]) -> Paused {
    let line = format!("interpolate {CHECKPOINT} --ratio 0.5 -o {output} --force");
    Paused::at("write", folder.command(&line), ignored)
}

#[test]
fn an_interrupted_merge_leaves_nothing() {
    let folder = Folder::with_golden(&[CHECKPOINT]);
    for output in ["out.safetensors", "out.ckpt"] {
        for (signal, code) in [(Signal::Int, 130), (Signal::Term, 143), (Signal::Hup, 129)] {
            let running = merging(&folder, output, &[]);
            assert_eq!(folder.names().len(), 2, "{output}, {signal:?}: a temporary file is being written");
            running.signal(signal);
            assert_eq!(running.end().code, Some(code), "{output}, {signal:?}");
            assert_eq!(folder.names(), [CHECKPOINT], "{output}, {signal:?}");
        }
    }
}

#[test]
fn an_interrupted_merge_leaves_an_older_file_as_it_was() {
    let folder = Folder::with_golden(&[CHECKPOINT]);
    for output in ["out.safetensors", "out.ckpt"] {
        folder.write(output, "precious");
        let running = merging(&folder, output, &[]);
        running.signal(Signal::Int);
        assert_eq!(running.end().code, Some(130), "{output}");
        assert_eq!(folder.names(), [CHECKPOINT, output]);
        assert_eq!(folder.read(output), b"precious");
        std::fs::remove_file(folder.path(output)).unwrap();
    }
}

/// Killed without a chance to clean up, it leaves its temporary file, and the older file is whole.
#[test]
fn a_killed_merge_leaves_an_older_file_as_it_was() {
    let folder = Folder::with_golden(&[CHECKPOINT]);
    folder.write("out.ckpt", "precious");
    let running = merging(&folder, "out.ckpt", &[]);
    running.signal(Signal::Kill);
    assert_eq!(running.end().code, None);
    assert_eq!(folder.read("out.ckpt"), b"precious");
}

/// `nohup vlmerge … &` goes on when the terminal closes, and a job that a script runs in the background when the
/// script is interrupted.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let folder = Folder::with_golden(&[CHECKPOINT]);
    for signal in [Signal::Hup, Signal::Int] {
        let mut running = merging(&folder, "out.ckpt", &[signal]);
        running.signal(signal);
        running.go_on();
        let ran = running.end();
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert_eq!(folder.names(), [CHECKPOINT, "out.ckpt"]);
        let running = merging(&folder, "out.ckpt", &[signal]);
        running.signal(signal);
        running.signal(Signal::Term);
        assert_eq!(running.end().code, Some(143), "other signals end it");
    }
}
