//! Nothing that is read, and nothing that is there, is overwritten by mistake.

use blackbox::Ran;

use crate::models::{copy, folder};
use crate::{engine, engine_command, failed};

const BATCH: &str = "probe.safetensors";

/// Runs a line that would write over something, which then is as it was.
#[track_caller]
fn spares(folder: &blackbox::Folder, file: &str, reason: &str, line: &str) {
    let before = folder.read(file);
    let said = failed(folder, line);
    assert!(said.contains(&format!("{file}: ")) && said.contains(reason), "{said}");
    assert_eq!(folder.read(file), before, "{line}");
}

#[test]
fn outputs_are_none_of_the_inputs() {
    let folder = folder();
    copy(&folder, "photo.png", "pictures/a.png");
    folder.write("texts.txt", "a dog\na cat\n");
    folder.write("answers.json", r#"["a","b","c","d","e"]"#);
    let image = blackbox::Tensor::f32(&[1, 3, 48, 48], &vec![0.5; 3 * 48 * 48]);
    blackbox::write(&folder.path(BATCH), &[("image".to_owned(), image)].into_iter().collect());
    let data = r#"{"image":"pictures/a.png","question":"is it?","answers":["a"]}"#;
    std::fs::create_dir(folder.path("set")).unwrap();
    folder.write("set/val.jsonl", format!("{}\n", data.replace("pictures", "../pictures")));
    let also = "this output is also an input";
    spares(&folder, BATCH, also, &format!("--quiet probe ms.ckpt --batch {BATCH} -o {BATCH} --force"));
    spares(&folder, "ms.ckpt", also, &format!("--quiet probe ms.ckpt --batch {BATCH} -o ms.ckpt --force"));
    spares(&folder, "ms.ckpt", also, "--quiet embed ms.ckpt --images pictures -o ms.ckpt --force");
    let page = "--quiet search ms.ckpt --images pictures --query dog --html pictures/a.png --force";
    spares(&folder, "pictures/a.png", "this file may be one that is read from pictures", page);
    let eval = "--quiet eval ms.ckpt --task vqa --data set --answers answers.json";
    spares(&folder, "ms.ckpt", "the file exists already", &format!("{eval} --details ms.ckpt"));
    spares(&folder, "ms.ckpt", also, &format!("{eval} --details ms.ckpt --force"));
    spares(&folder, "answers.json", also, &format!("{eval} --submission answers.json --split val --force"));
    let into = format!("{eval} --details set/val.jsonl --force");
    spares(&folder, "set/val.jsonl", "this file may be one that is read from set", &into);
    let predict = "--quiet predict vqa ms.ckpt --data set --split val --answers answers.json";
    spares(&folder, "answers.json", also, &format!("{predict} -o answers.json --force"));
}

#[test]
fn a_report_is_none_of_the_runs_files() {
    let folder = folder();
    engine(&folder, "--quiet finetune --steps 2 -o run").done();
    for file in ["run/last.safetensors", "run/metrics.jsonl", "run/config.toml"] {
        spares(&folder, file, "this file belongs to the run itself", &format!("report run -o {file} --force"));
    }
    engine(&folder, "report run -o run/report.html").done();
    // A run can't be what replaces it starts from.
    let again = "--quiet finetune run/last.safetensors --steps 2 --force -o run";
    spares(&folder, "run/last.safetensors", "is of the run that --force would replace", again);
}

/// A command with a folder of its own for temporary files.
fn with_temporary(folder: &blackbox::Folder, line: &str) -> std::process::Command {
    let temporary = folder.path("temporary");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = engine_command(folder, line);
    // The first on Unix, the others on Windows.
    for name in ["TMPDIR", "TMP", "TEMP"] {
        command.env(name, temporary.canonicalize().unwrap());
    }
    command
}

fn temporary(folder: &blackbox::Folder) -> usize {
    std::fs::read_dir(folder.path("temporary")).unwrap().count()
}

#[test]
fn wrong_usage_leaves_no_temporary_folder() {
    let folder = folder();
    let line = "eval ms.ckpt --task irtr --data toy --device cpu --submission -";
    let ran = Ran::of(with_temporary(&folder, line), line);
    assert_eq!(ran.code, Some(2), "{ran:#?}");
    assert!(ran.stderr.contains("--submission is for --task vqa and one --split"), "{ran:#?}");
    assert_eq!(temporary(&folder), 0);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_no_temporary_folder() {
    use blackbox::{Paused, Signal};
    let folder = folder();
    folder.write("texts.txt", "a dog\n");
    let line = "embed ms.ckpt --texts texts.txt --device cpu -o -";
    for (signal, code) in [(Signal::Int, 130), (Signal::Term, 143)] {
        let running = Paused::at("write", with_temporary(&folder, line), &[]);
        assert_eq!(temporary(&folder), 1, "what will go to standard output");
        running.signal(signal);
        assert_eq!(running.end().code, Some(code), "{signal:?}");
        assert_eq!(temporary(&folder), 0, "{signal:?}");
    }
}
