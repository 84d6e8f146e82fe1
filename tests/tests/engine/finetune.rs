//! `engine finetune`, `engine presets`, and what goes wrong with them.

use std::path::Path;

use blackbox::Folder;
use fixtures::{ModelSpec, TaskHeads, Variant};
use serde_json::Value;

use crate::{engine, failed, models, rejected};

/// A model that needs no vocabulary: image classification on the built-in data, small enough for a test.
const SMALL: &str =
    "--task img_cls --batch-size 4 --accumulate 2 --device cpu --image-size 48 --set val_limit=12 --set samples=2";

/// What equal runs have in common of `metrics.jsonl`.
fn curve(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        for timed in ["seconds", "images_per_second", "data_wait"] {
            line.as_object_mut().expect("an object").remove(timed);
        }
        line
    });
    lines.collect()
}

#[test]
fn presets_are_listed_and_printed() {
    let folder = Folder::new();
    let list = engine(&folder, "presets").done();
    for name in ["toy", "easy-vqa", "irtr-coco-base-384", "vqa-base-480", "pretrain-base-224"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}: {list}");
    }
    let vqa = engine(&folder, "presets vqa-base-480").done();
    assert!(vqa.starts_with('#') && vqa.contains("\nlr = 3e-5\nlr_mult = 10\n"), "{vqa}");
    let typo = rejected(&folder, "presets vqa-base-840");
    assert!(typo.contains("unknown preset 'vqa-base-840': did you mean 'vqa-base-480'?"), "{typo}");
}

#[test]
fn wrong_usage_names_the_key_and_leaves_nothing() {
    let folder = Folder::with_golden(&["model_ufo.safetensors"]);
    folder.write("typo.toml", "lr = 1e-3\nbatch_sise = 8\n");
    for (line, wanted) in [
        ("--set lrr=3", "--set lrr=3: unknown key 'lrr': did you mean 'lr'?"),
        ("--config typo.toml", "typo.toml: line 2: unknown key 'batch_sise': did you mean 'batch_size'?"),
        ("--batch-size 0", "batch_size is 0: it must be at least 1"),
        ("--max-broken 2", "it must be from 0 to 1"),
        ("--no-validation --set val_limit=3", "val_limit is for the validation split, and a run with validate = false"),
        ("--lr inf", "lr is inf: it must be a finite number from 0 on"),
        ("--steps 3 --epochs 2", "cannot be used with"),
        ("--task img_cls --image-size 50", "image_size 50 is not a multiple of the patch size 16: try 48 or 64"),
        ("--preset pretrain-base-224", "pre-training"),
        ("--resume run", "cannot be used with"),
        ("--task vqaa", "vqaa"),
        ("--task img_cls --merge average", "it is interpolate:RATIO, arithmetic:LAMBDA:SEED, regmean:GRAMS"),
    ] {
        let said = rejected(&folder, &format!("finetune model_ufo.safetensors -o run {line}"));
        assert!(said.contains(wanted), "{line}: {said}");
    }
    let missing = failed(&folder, "finetune no.ckpt -o run --task img_cls");
    assert!(missing.starts_with("no.ckpt: "), "{missing}");
    let data = failed(&folder, "finetune model_ufo.safetensors -o run --task img_cls --data nowhere");
    assert!(data.starts_with("nowhere: "), "{data}");
    assert_eq!(folder.names(), ["model_ufo.safetensors", "typo.toml"]);
}

#[test]
fn a_merge_on_the_way_in_gives_the_numbers_of_vlmerge() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    blackbox::program("vlmerge");
    let line = format!("finetune ms.ckpt --merge interpolate:0.5 {SMALL} --steps 2 -o run --quiet");
    assert_eq!(engine(&folder, &line).done(), "");
    folder.vlmerge("interpolate ms.ckpt --ratio 0.5 -o merged.safetensors").done();
    assert_eq!(folder.tensors("run/merged.safetensors"), folder.tensors("merged.safetensors"));
    let result: Value = serde_json::from_slice(&folder.read("run/result.json")).expect("JSON");
    assert_eq!((&result["status"], &result["step"]), (&"finished".into(), &2.into()));
    assert_eq!(result["recipe"]["method"], "interpolate");
    for file in ["config.toml", "last.safetensors", "best.safetensors", "metrics.jsonl", "samples.json", "tensorboard"]
    {
        assert!(folder.path("run").join(file).exists(), "{file}");
    }

    let table = engine(&folder, "eval run/best.safetensors --data toy --limit 12 --device cpu --quiet").done();
    assert!(table.contains("top-1 accuracy") && table.contains("12 images"), "{table}");
    let line = "eval run/best.safetensors --data toy --limit 12 --device cpu --quiet --json --details details.jsonl";
    let report: Value = serde_json::from_str(&engine(&folder, line).done()).expect("JSON");
    assert_eq!(report["task"], "img_cls");
    assert_eq!(report["splits"]["val"]["images"], 12);
    assert_eq!(report["splits"]["val"]["top_1"], result["metrics"]["top_1"]);
    assert_eq!(String::from_utf8(folder.read("details.jsonl")).expect("UTF-8").lines().count(), 12);

    let again = failed(&folder, &format!("finetune ms.ckpt {SMALL} --steps 2 -o run"));
    assert!(again.contains("run: this folder already holds a run: --resume run continues it"), "{again}");
    let seed = failed(&folder, &format!("finetune ms.ckpt --merge arithmetic:0.5:no.ckpt {SMALL} --steps 2 -o other"));
    assert!(seed.starts_with("--merge: no.ckpt: "), "{seed}");
    assert!(!folder.path("other").exists());
}

#[test]
fn every_merge_on_the_way_in_is_vlmerges() {
    let folder = Folder::new();
    let spec = ModelSpec { task_heads: TaskHeads::default(), ..models::spec() };
    models::write(&folder, "ms.ckpt", &spec);
    models::write(&folder, "seed.ckpt", &ModelSpec { variant: Variant::Ufo, ..spec });
    let grams = "--quiet grams ms.ckpt --task irtr --samples 96 --device cpu -o grams.safetensors";
    engine(&folder, grams).done();
    for (merge, by_hand) in [
        ("arithmetic:0.75:seed.ckpt", "arithmetic ms.ckpt --base seed.ckpt --lambda 0.75"),
        ("regmean:grams.safetensors", "regmean ms.ckpt --grams grams.safetensors"),
    ] {
        let small = format!("{SMALL} --steps 1 --quiet");
        engine(&folder, &format!("finetune ms.ckpt --merge {merge} {small} -o run --force")).done();
        folder.vlmerge(&format!("{by_hand} -o merged.safetensors --force")).done();
        assert_eq!(folder.tensors("run/merged.safetensors"), folder.tensors("merged.safetensors"), "{merge}");
        // What is trained is that file.
        engine(&folder, &format!("finetune merged.safetensors {small} -o again --force")).done();
        assert_eq!(folder.tensors("run/last.safetensors"), folder.tensors("again/last.safetensors"), "{merge}");
    }
    // The saved configuration repeats a run from anywhere.
    let config = String::from_utf8(folder.read("run/config.toml")).expect("UTF-8");
    let full = folder.path("grams.safetensors").canonicalize().expect("there");
    assert!(config.contains(&format!("merge = \"regmean:{}\"", full.display())), "{config}");
}

/// TIES and DARE take the base first.
#[test]
fn a_merge_with_a_base_keeps_it_first() {
    let folder = Folder::new();
    let spec = ModelSpec { task_heads: TaskHeads::default(), ..models::spec() };
    models::write(&folder, "ms.ckpt", &spec);
    models::write(&folder, "seed.ckpt", &ModelSpec { variant: Variant::Ufo, ..spec });
    blackbox::program("vlmerge");
    let mut words = vec!["finetune", "ms.ckpt", "--merge", "ties seed.ckpt --experts", "--steps", "1", "-o", "run"];
    words.extend(SMALL.split_whitespace());
    words.push("--quiet");
    folder.engine(&words).done();
    folder.vlmerge("ties seed.ckpt ms.ckpt --experts -o merged.safetensors").done();
    assert_eq!(folder.tensors("run/merged.safetensors"), folder.tensors("merged.safetensors"));
}

#[test]
fn a_note_is_told_once() {
    let folder = models::folder();
    let ran = engine(&folder, &format!("finetune ms.ckpt {SMALL} --head new --steps 1 -o run"));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(ran.stderr.matches("takes the place of its 4").count(), 1, "{ran:#?}");
}

#[test]
fn a_resumed_run_can_do_without_what_stopped_it() {
    let folder = Folder::with_golden(&["model_ufo.safetensors"]);
    engine(&folder, &format!("finetune model_ufo.safetensors {SMALL} --steps 1 -o run --quiet")).done();
    let refused = rejected(&folder, "finetune --resume run --set max_broken=0.25");
    assert!(refused.contains("cannot be used with"), "{refused}");
    engine(&folder, "finetune --resume run --max-broken 0.25 --no-validation --quiet").done();
    let config = String::from_utf8(folder.read("run/config.toml")).expect("UTF-8");
    assert!(config.contains("max_broken = 0.25\n") && config.contains("validate = false\n"), "{config}");
}

#[cfg(unix)]
mod signals {
    use std::process::Command;

    use blackbox::{Paused, Ran, Signal};

    use super::*;
    use crate::engine_command;

    /// Runs until this update is done, then sends a signal and waits for the end.
    fn interrupted(folder: &Folder, line: &str, signal: Signal, after: u64) -> Ran {
        let mut running = Paused::at(&format!("update {after}"), engine_command(folder, line), &[]);
        running.signal(signal);
        running.wait_for("a second signal ends it at once\n");
        running.go_on();
        running.end()
    }

    #[test]
    fn an_interrupted_run_saves_itself_and_goes_on_with_the_same_curve() {
        let folder = Folder::with_golden(&["model_all_moe.safetensors"]);
        let line =
            format!("finetune model_all_moe.safetensors {SMALL} --steps 40 --set eval_every=15 --set drop_rate=0.2");
        engine(&folder, &format!("{line} -o whole --quiet")).done();
        let ended = interrupted(&folder, &format!("{line} -o run"), Signal::Int, 5);
        assert_eq!(ended.code, Some(130), "{ended:#?}");
        let said = &ended.stdout;
        assert!(said.starts_with("stopped after 5 of 40 ") && said.contains("engine finetune --resume run"), "{said}");
        let ended = interrupted(&folder, "finetune --resume run", Signal::Term, 20);
        assert_eq!(ended.code, Some(143), "{ended:#?}");
        assert!(ended.stdout.starts_with("stopped after 20 of 40 "), "{ended:#?}");
        let ended = engine(&folder, "finetune --resume run");
        assert!(ended.stdout.starts_with("40 updates done"), "{ended:#?}");
        assert_eq!(curve(&folder.path("run")), curve(&folder.path("whole")));
        assert_eq!(folder.tensors("run/last.safetensors"), folder.tensors("whole/last.safetensors"));
        assert_eq!(folder.tensors("run/best.safetensors"), folder.tensors("whole/best.safetensors"));
    }

    #[test]
    fn a_second_signal_ends_a_run_at_once_and_keeps_its_checkpoint() {
        let folder = Folder::with_golden(&["model_ufo.safetensors"]);
        let line = format!("finetune model_ufo.safetensors {SMALL} --steps 8 --set checkpoint_every=2 -o run");
        let mut running = Paused::at("update 5", engine_command(&folder, &line), &[]);
        running.signal(Signal::Int);
        running.wait_for("a second signal ends it at once\n");
        running.signal(Signal::Term);
        assert_eq!(running.end().code, Some(143));
        let ended = engine(&folder, "finetune --resume run");
        assert!(ended.stdout.starts_with("8 updates done"), "{ended:#?}");
    }

    /// Outside the training loop nothing would save a checkpoint, and nobody must be told so.
    #[test]
    fn a_signal_ends_a_merge_on_the_way_in_at_once() {
        let folder = Folder::with_golden(&["ms.ckpt"]);
        blackbox::program("vlmerge");
        let line = format!("finetune ms.ckpt --merge interpolate:0.5 {SMALL} --steps 2 -o run");
        for (signal, code) in [(Signal::Int, 130), (Signal::Term, 143)] {
            let running = Paused::at("merge", engine_command(&folder, &line), &[]);
            running.signal(signal);
            let ended = running.end();
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{ended:#?}");
            assert!(!ended.stderr.contains("saves a checkpoint"), "{ended:#?}");
            assert_eq!(folder.names(), ["ms.ckpt"], "no half of a run is left");
        }
    }

    #[test]
    fn a_signal_before_training_brings_the_earlier_run_back() {
        let folder = Folder::with_golden(&["ms.ckpt"]);
        blackbox::program("vlmerge");
        let line = format!("finetune ms.ckpt --merge interpolate:0.5 {SMALL} --steps 1 -o run");
        engine(&folder, &format!("{line} --quiet")).done();
        let (config, last) = (folder.read("run/config.toml"), folder.read("run/last.safetensors"));
        let running = Paused::at("merge", engine_command(&folder, &format!("{line} --force --seed 5")), &[]);
        running.signal(Signal::Term);
        assert_eq!(running.end().code, Some(143));
        assert_eq!((folder.read("run/config.toml"), folder.read("run/last.safetensors")), (config, last));
        assert!(!folder.path("run/.earlier-run").exists());
    }

    #[test]
    fn a_signal_after_training_ends_the_program_at_once() {
        let folder = Folder::with_golden(&["model_ufo.safetensors"]);
        let line = format!("finetune model_ufo.safetensors {SMALL} --steps 2 -o run");
        let running = Paused::at("samples", engine_command(&folder, &line), &[]);
        running.signal(Signal::Int);
        let ended = running.end();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(130), ""), "{ended:#?}");
        assert!(!ended.stderr.contains("saves a checkpoint"), "{ended:#?}");
        let result: Value = serde_json::from_slice(&folder.read("run/result.json")).expect("JSON");
        assert_eq!((&result["status"], &result["step"]), (&"finished".into(), &2.into()));
        assert!(folder.path("run/last.safetensors").exists() && !folder.path("run/samples.json").exists());
    }

    #[test]
    fn a_run_under_nohup_survives_a_hangup() {
        let folder = Folder::with_golden(&["model_ufo.safetensors"]);
        let line = format!("finetune model_ufo.safetensors {SMALL} --steps 4 -o run");
        let mut running = Paused::at("update 2", engine_command(&folder, &line), &[Signal::Hup]);
        running.signal(Signal::Hup);
        running.go_on();
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.stdout.starts_with("4 updates done"), "{ended:#?}");
    }

    #[test]
    fn a_full_disk_fails_the_save_and_not_the_checkpoint_before_it() {
        let folder = Folder::with_golden(&["model_ufo.safetensors"]);
        let line =
            format!("finetune model_ufo.safetensors {SMALL} --steps 12 --set eval_every=12 --set checkpoint_every=4");
        engine(&folder, &format!("{line} -o whole --quiet")).done();
        let ended = interrupted(&folder, &format!("{line} -o run"), Signal::Hup, 5);
        assert_eq!(ended.code, Some(129), "{ended:#?}");
        let before = folder.read("run/last.safetensors");
        // No file may grow beyond 64 KiB (of 512 bytes): enough for a line of metrics, not for weights.
        let program = blackbox::program("engine");
        let limited = format!("ulimit -f 128; exec {} finetune --resume run --quiet", program.display());
        let mut command = Command::new("sh");
        command.args(["-c", &limited]).current_dir(folder.path(""));
        let ran = blackbox::Ran::of(command, &limited);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:#?}");
        assert!(ran.stderr.contains("cannot save the checkpoint of step "), "{ran:#?}");
        assert!(ran.stderr.contains("is still there"), "{ran:#?}");
        assert_eq!(folder.read("run/last.safetensors"), before);
        engine(&folder, "finetune --resume run --quiet").done();
        assert_eq!(curve(&folder.path("run")), curve(&folder.path("whole")));
    }
}
