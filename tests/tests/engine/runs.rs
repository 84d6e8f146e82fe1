//! What a run may begin with, how long it is, and what its folder stands for.

use blackbox::{Folder, Ran};
use fixtures::{ModelSpec, TaskHeads, Variant};
use serde_json::Value;

use crate::models::{draw, folder, spec, write};
use crate::{engine, engine_command, failed, rejected};

/// For a run of one update.
const ONE: &str = "--steps 1 --batch-size 2 --device cpu --set samples=2 --set augment=none";

/// A data set of questions with these answers, in turn; its labels are in the order of how frequent they are.
fn questions(folder: &Folder, data: &str, splits: &[&str], answers: &[&str]) {
    std::fs::create_dir_all(folder.path(data)).expect("a folder");
    for (number, split) in splits.iter().enumerate() {
        let lines = answers.iter().enumerate().map(|(at, answer)| {
            let image = format!("{split}{at}.png");
            draw(folder, &format!("{data}/{image}"), (7 * number + at) as u32);
            format!("{{\"image\":\"{image}\",\"question\":\"what is it?\",\"answers\":[\"{answer}\"]}}\n")
        });
        folder.write(&format!("{data}/{split}.jsonl"), lines.collect::<String>());
    }
}

fn json(ran: Ran) -> Value {
    let printed = ran.done();
    serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"))
}

/// Runs `engine` with one more word, which may have spaces in it.
fn engine_with(folder: &Folder, line: &str, option: &str, value: &str) -> Ran {
    let mut command = engine_command(folder, line);
    command.args([option, value]);
    Ran::of(command, &format!("engine {line} {option} '{value}'"))
}

/// The rows of a head's last layer, weights and bias together.
fn rows(folder: &Folder, file: &str) -> Vec<Vec<f32>> {
    let tensors = folder.tensors(file);
    let (weight, bias) = (&tensors["vqa_classifier.3.weight"], &tensors["vqa_classifier.3.bias"]);
    let (width, weights) = (weight.shape[1], weight.values());
    let row = |(row, bias): (&[f32], f32)| row.iter().copied().chain([bias]).collect();
    weights.chunks_exact(width).zip(bias.values()).map(row).collect()
}

#[test]
fn a_head_of_other_labels_is_replaced_or_matched_by_name() {
    let folder = folder();
    questions(&folder, "first", &["train", "val"], &["red", "red", "red", "blue", "blue", "green"]);
    questions(&folder, "second", &["train", "val"], &["green", "green", "green", "grey", "grey", "red"]);
    // The checkpoint's five labels have no names, and the data three.
    let line = format!("finetune ms.ckpt --task vqa --data first {ONE}");
    let ran = engine(&folder, &format!("{line} -o first_run"));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let note =
        "ms.ckpt: its vqa head has 5 labels without names, and the data (train) have 3: a new head takes its place";
    assert!(ran.stderr.contains(note) && !ran.stderr.contains("newly initialised"), "{ran:#?}");
    let keep = failed(&folder, &format!("{line} --head keep -o refused"));
    assert!(keep.contains("5 labels without names") && keep.contains("--head match"), "{keep}");
    let had = rows(&folder, "first_run/last.safetensors");
    assert_eq!(had.len(), 3);

    // Red, blue, green then; green, grey, red now. Nothing is learned at this learning rate.
    let line = format!("finetune first_run --data second --lr 0 {ONE}");
    let keep = failed(&folder, &format!("{line} --head keep -o refused"));
    assert!(keep.contains("the label 'grey' of the data (train) is none of the 3 of its vqa head"), "{keep}");
    let ran = engine(&folder, &format!("{line} --head match -o matched"));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(
        ran.stderr.contains("2 of 3 labels keep their rows of its vqa head of 3, the others start anew"),
        "{ran:#?}"
    );
    let matched = rows(&folder, "matched/last.safetensors");
    assert_eq!((&matched[0], &matched[2]), (&had[2], &had[0]), "green and red");
    assert!(!had.contains(&matched[1]), "grey is new");
    let (before, after) = (folder.tensors("first_run/last.safetensors"), folder.tensors("matched/last.safetensors"));
    assert_eq!(before["vqa_classifier.0.weight"], after["vqa_classifier.0.weight"]);
    let table = engine(&folder, "eval matched --data second --device cpu --quiet").done();
    assert!(table.contains("6 questions"), "{table}");

    engine(&folder, &format!("{line} --quiet --head new -o new")).done();
    let new = folder.tensors("new/last.safetensors");
    assert_ne!(before["vqa_classifier.0.weight"], new["vqa_classifier.0.weight"]);
    // Fewer labels than the head names are no reason to drop it.
    questions(&folder, "third", &["train", "val"], &["red", "green", "red"]);
    engine(&folder, &format!("finetune first_run --data third --lr 0 {ONE} --quiet -o kept")).done();
    assert_eq!(rows(&folder, "kept/last.safetensors"), had);
}

#[test]
fn a_folder_with_a_training_split_alone_can_be_trained_on() {
    let folder = folder();
    questions(&folder, "data", &["train"], &["red", "blue", "red", "blue"]);
    let line = format!("finetune ms.ckpt --data data {ONE} -o run");
    let missing = failed(&folder, &line);
    assert!(missing.contains("no split 'val' for vqa") && missing.contains("--no-validation"), "{missing}");
    let report = json(engine(&folder, &format!("{line} --no-validation --json --quiet")));
    assert_eq!(
        (&report["run"], &report["status"], &report["task"]),
        (&"run".into(), &"finished".into(), &"vqa".into())
    );
    assert_eq!((&report["best"], &report["validation_data"]), (&Value::Null, &"".into()));
    assert!(folder.path("run/last.safetensors").exists() && !folder.path("run/best.safetensors").exists());
    engine(&folder, "report run -o report.html").done();
    let ran = engine(&folder, "finetune --resume run");
    assert!(ran.stdout.starts_with("1 update done\nlast weights: run/last.safetensors\n"), "{ran:#?}");
    // Its last weights are what its folder stands for.
    let ran = engine(&folder, "eval run --data data --split train --device cpu");
    assert!(ran.stderr.contains("run/last.safetensors: the last weights of this run are taken"), "{ran:#?}");
    assert!(ran.code == Some(0) && ran.stdout.contains("4 questions"), "{ran:#?}");
}

#[test]
fn every_command_takes_a_runs_folder() {
    let folder = folder();
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red"]);
    engine(&folder, &format!("finetune ms.ckpt --data data {ONE} --quiet -o run")).done();
    draw(&folder, "images/a.png", 3);
    folder.write("texts", "a red square\n");
    let said = "run/best.safetensors: the best weights of this run are taken";
    for line in [
        "eval run --data data --device cpu",
        "predict vqa run --image images/a.png --question what? --device cpu",
        "predict vqa run --data data --split val -o answers.json --device cpu",
        "grams run --data data --device cpu -o grams.safetensors",
        "finetune run --data data --steps 1 --batch-size 2 --device cpu -o next",
        "finetune run --task irtr --data toy --steps 1 --batch-size 2 --set val_limit=4 --device cpu -o irtr",
    ] {
        let ran = engine(&folder, line);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert!(ran.stderr.contains(said), "{ran:#?}");
    }
    for line in [
        "embed irtr --images images --texts texts -o embeddings.safetensors --device cpu",
        "search irtr --images images --query red --device cpu",
    ] {
        let ran = engine(&folder, line);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert!(ran.stderr.contains("irtr/best.safetensors: the best weights of this run are taken"), "{ran:#?}");
    }
    for line in ["eval data --data data", "grams data -o g.safetensors --task vqa", "finetune data -o x --task vqa"] {
        let said = failed(&folder, line);
        assert!(said.starts_with("data: this folder holds no run (no config.toml): give a checkpoint"), "{said}");
    }
}

#[test]
fn the_task_is_asked_for_only_where_there_are_several() {
    let folder = folder();
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red"]);
    let line = "grams ms.ckpt --data data --device cpu -o grams.safetensors";
    assert!(engine(&folder, line).done().contains("(train, vqa)"));
    let table = engine(&folder, "eval ms.ckpt --data data --device cpu");
    assert!(!table.stderr.contains("--task"), "{table:#?}");
    folder.write("data/irtr_train.jsonl", "{\"image\":\"train0.png\",\"caption\":\"red\"}\n");
    for line in [
        "grams ms.ckpt --data data --device cpu -o again.safetensors",
        "eval ms.ckpt --data data --device cpu",
        "finetune ms.ckpt --data data --device cpu -o run",
    ] {
        let said = rejected(&folder, line);
        assert!(said.contains("data: there are data for irtr and vqa: say which with --task"), "{said}");
    }
    let toy = rejected(&folder, "grams ms.ckpt --device cpu -o again.safetensors");
    assert!(toy.contains("toy: there are data for irtr, vqa and nlvr2: say which with --task"), "{toy}");
}

#[test]
fn a_finished_run_goes_on_when_it_is_made_longer() {
    let folder = folder();
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red", "blue"]);
    engine(&folder, &format!("finetune ms.ckpt --data data {ONE} --quiet -o run")).done();
    let ran = engine(&folder, "finetune --resume run --steps 3");
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.stdout.starts_with("3 updates done"), "{ran:#?}");
    assert!(
        ran.stderr.contains("the run now has 3 updates in all, not 1: the schedule is one over 3 updates"),
        "{ran:#?}"
    );
    let ran = engine(&folder, "finetune --resume run --epochs 2");
    assert!(ran.stdout.starts_with("4 updates done"), "{ran:#?}");
    let shorter = rejected(&folder, "finetune --resume run --steps 2");
    assert!(shorter.contains("run: it shall have 2 updates in all, and 4 are done already"), "{shorter}");
    assert!(rejected(&folder, "finetune --resume run --lr 1").contains("cannot be used with"));
}

#[test]
fn starts_without_a_folder_take_one_each() {
    let folder = folder();
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red"]);
    let line = format!("finetune ms.ckpt --data data {ONE} --quiet --json");
    let start = || engine_command(&folder, &line).stdout(std::process::Stdio::piped()).spawn().expect("engine runs");
    let mut runs: Vec<String> = [start(), start()]
        .into_iter()
        .map(|running| {
            let ended = running.wait_with_output().expect("an end");
            assert!(ended.status.success());
            let report: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
            report["run"].as_str().expect("a folder").to_owned()
        })
        .collect();
    runs.sort();
    assert_eq!(runs, ["run", "run-2"]);
}

#[test]
fn a_merge_on_the_way_in_takes_all_that_vlmerge_does() {
    let folder = Folder::new();
    let spec = ModelSpec { task_heads: TaskHeads::default(), ..spec() };
    write(&folder, "ms.ckpt", &spec);
    write(&folder, "my seed.ckpt", &ModelSpec { variant: Variant::Ufo, ..spec });
    std::fs::copy(folder.path("my seed.ckpt"), folder.path("seed.ckpt")).expect("a copy");
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red"]);
    folder.write(
        "recipe.toml",
        "method = \"interpolate\"\n[[input]]\nrole = \"checkpoint\"\nfile = \"ms.ckpt\"\n[parameters]\nratio = 0.5\n\
         [[rule]]\nlayers = \"0\"\nratio = 0.25\n",
    );
    blackbox::program("vlmerge");
    let run = |from: &str, merge: &str| {
        let line = format!("finetune {from} --data data {ONE} --quiet -o run --force");
        engine_with(&folder, &line, "--merge", merge).done();
        folder.tensors("run/merged.safetensors")
    };
    let by_hand = |line: &str| {
        folder.vlmerge(&format!("{line} -o merged.safetensors --force")).done();
        folder.tensors("merged.safetensors")
    };
    assert_eq!(
        run("ms.ckpt", "arithmetic --lambda 0.75 --base 'my seed.ckpt' --sequential --experts used"),
        by_hand("arithmetic ms.ckpt --lambda 0.75 --base seed.ckpt --sequential --experts used --task vqa")
    );
    let config = String::from_utf8(folder.read("run/config.toml")).expect("UTF-8");
    let seed = folder.path("my seed.ckpt").canonicalize().expect("there");
    assert!(config.contains(&*seed.to_string_lossy()), "it can be repeated from anywhere: {config}");
    engine(&folder, "finetune --config run/config.toml --quiet -o again").done();
    assert_eq!(
        run("ms.ckpt", "ties seed.ckpt {} --experts --density 0.5"),
        by_hand("ties seed.ckpt ms.ckpt --experts --density 0.5")
    );
    let recipe = by_hand("merge --recipe recipe.toml");
    assert_eq!(run("ms.ckpt", "recipe.toml"), recipe);
    assert_eq!(run("", "recipe.toml"), recipe);

    let refused =
        |merge: &str| engine_with(&folder, &format!("finetune ms.ckpt --data data {ONE} -o x"), "--merge", merge);
    for (merge, code, wanted) in [
        ("interpolate --ratio 0.5 -o mine.ckpt", 2, "the result goes to merged.safetensors in the run's folder"),
        ("interpolate --ration 0.5", 2, "--merge: unexpected argument '--ration' found"),
        ("interpolate", 2, "--merge: the following required arguments were not provided: --ratio"),
        ("arithmetic --lambda 0.5 --base no.ckpt", 1, "--merge: no.ckpt: "),
        ("no.toml", 1, "no.toml: cannot read the recipe"),
    ] {
        let ran = refused(merge);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{ran:#?}");
        assert!(ran.stderr.contains(wanted) && !folder.path("x").exists(), "{ran:#?}");
    }
    folder.write(
        "recipe.toml",
        "method = \"interpolate\"\n[[input]]\nrole = \"checkpoint\"\nfile = \"ms.ckpt\"\n[parameters]\nrato = 1\n",
    );
    let ran = refused("recipe.toml");
    assert!(ran.stderr.contains("recipe.toml: line 6: unknown parameter"), "{ran:#?}");
}

#[test]
fn a_checkpoint_is_read_from_the_root_that_is_asked_for() {
    let folder = folder();
    questions(&folder, "data", &["train", "val"], &["red", "blue", "red"]);
    let line = format!("finetune ms.ckpt --data data {ONE} --quiet");
    engine(&folder, &format!("{line} --root state_dict -o run")).done();
    // What the run saved has a root of its own.
    engine(&folder, "finetune --resume run --quiet").done();
    let missing = failed(&folder, &format!("{line} --root model.ema -o other"));
    assert!(missing.contains("ms.ckpt: there is no root 'model.ema'"), "{missing}");
    engine(&folder, &format!("{line} --root state_dict --merge interpolate:0.5 -o merged")).done();
}

#[test]
fn a_shape_for_a_checkpoint_is_refused() {
    let folder = folder();
    folder.write("shape.toml", "[model]\nlayers = 3\n");
    for (option, origin) in [("--set model.layers=3", "--set model.layers=3"), ("--config shape.toml", "shape.toml")] {
        let said = rejected(&folder, &format!("finetune ms.ckpt {option} -o run"));
        assert!(said.contains(&format!("{origin}: model settings are for a model that starts from scratch")), "{said}");
    }
}
