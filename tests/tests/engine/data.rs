//! `engine data`: a data set from a download, looked into, trained on.

use serde_json::{Value, json};

use crate::models::{draw, folder};
use crate::{engine, failed};

/// easy-VQA's layout, with 24 training and 6 test images.
fn download(folder: &blackbox::Folder) {
    let colours = ["red", "blue", "teal"];
    for (split, count) in [("train", 24), ("test", 6)] {
        let mut questions = Vec::new();
        for image in 0..count {
            draw(folder, &format!("easy/data/{split}/images/{image}.png"), image);
            let colour = colours[image as usize % colours.len()];
            questions.push(json!(["what color is the circle?", colour, image]));
            questions.push(json!([format!("is there a {colour} shape?"), "yes", image]));
        }
        let questions = Value::from(questions).to_string();
        folder.write(&format!("easy/data/{split}/questions.json"), questions);
    }
    folder.write("easy/data/answers.txt", "red\nblue\nteal\nyes\nno\n");
}

#[test]
fn a_data_set_is_built_looked_into_and_trained_on() {
    let folder = folder();
    download(&folder);
    let said = engine(&folder, "data build easy-vqa easy -o arrows").done();
    for line in ["images of train: 22 matched", "images of val: 2 matched", "images of test: 6 matched"] {
        assert!(said.contains(line), "{said}");
    }
    // What is there already is kept.
    let before = folder.read("arrows/easy_vqa_train.arrow");
    let said = engine(&folder, "data build easy-vqa easy -o arrows").done();
    assert!(said.contains("was there") && !said.contains(" built"), "{said}");
    assert_eq!(folder.read("arrows/easy_vqa_train.arrow"), before);

    let report: Value = serde_json::from_str(&engine(&folder, "data inspect arrows --json").done()).expect("JSON");
    let sets = report["sets"].as_array().expect("sets");
    let vqa = sets.iter().find(|set| set["task"] == "vqa").expect("a VQA set");
    assert_eq!((&vqa["name"], &vqa["labels"]), (&"easy_vqa".into(), &json!(["red", "blue", "teal", "yes", "no"])));
    let examples = |split: &str| {
        let splits = vqa["splits"].as_array().expect("splits");
        splits.iter().find(|found| found["name"] == split).expect("the split")["examples"].clone()
    };
    assert_eq!((examples("train"), examples("val"), examples("test")), (44.into(), 4.into(), 12.into()));

    let fit = "--quiet finetune --preset easy-vqa --data arrows --batch-size 4 --steps 2 --set samples=1 -o run";
    engine(&folder, fit).done();
    let table = engine(&folder, "--quiet eval run/last.safetensors --task vqa --data arrows --split test").done();
    assert!(table.contains("12 questions, 12 with answers"), "{table}");
}

#[test]
fn what_cannot_be_built_or_looked_into() {
    let folder = folder();
    let none = failed(&folder, "--quiet data build coco nowhere -o arrows");
    assert!(none.starts_with("nowhere: cannot open"), "{none}");
    std::fs::create_dir(folder.path("empty")).unwrap();
    let wrong = failed(&folder, "--quiet data build easy-vqa empty -o arrows");
    assert!(wrong.starts_with("empty: no easy-VQA here"), "{wrong}");
    let empty = failed(&folder, "data inspect empty");
    assert!(empty.starts_with("empty: no data set") && empty.ends_with("it is empty"), "{empty}");
    assert!(!folder.path("arrows").exists());
}

/// A JSONL set for VQA with a question for each of these answers.
fn questions(folder: &blackbox::Folder, file: &str, answers: &[&str]) {
    let mut lines = String::new();
    for (number, answer) in answers.iter().enumerate() {
        draw(folder, &format!("set/{number}.png"), number as u32);
        lines += &json!({ "image": format!("{number}.png"), "question": "what is it?", "answer": answer }).to_string();
        lines.push('\n');
    }
    folder.write(&format!("set/{file}"), lines);
}

const EVAL: &str = "eval ms.ckpt --device cpu --task";

#[test]
fn a_training_file_is_not_evaluated_as_a_test_split() {
    let folder = folder();
    questions(&folder, "pets_train.jsonl", &["a", "b"]);
    folder.write("names.json", r#"["a", "b", "c", "d", "e"]"#);
    let wrong =
        failed(&folder, &format!("--quiet {EVAL} vqa --data set/pets_train.jsonl --split test --answers names.json"));
    assert!(
        wrong.starts_with("set/pets_train.jsonl: no split 'test' for vqa; its name says that it is 'train'"),
        "{wrong}"
    );
    let table = engine(&folder, &format!("--quiet {EVAL} vqa --data set/pets_train.jsonl --answers names.json")).done();
    assert!(table.starts_with("pets train\n"), "{table}");
}

#[test]
fn true_answers_that_the_head_cannot_give_are_counted() {
    let folder = folder();
    questions(&folder, "val.jsonl", &["a", "b", "x", "a", "y"]);
    folder.write("names.json", r#"["a", "b", "c", "d", "e"]"#);
    let line = format!("--quiet {EVAL} vqa --data set --answers names.json");
    let table = engine(&folder, &line).done();
    let said = "40.0 % of the true answers (2 of 5) are none of the head's labels; 40.0 % of the questions (2 of 5) have \
                no true answer among them.\n";
    assert!(table.ends_with(said), "{table}");
    let report: Value = serde_json::from_str(&engine(&folder, &format!("{line} --json")).done()).expect("JSON");
    let val = &report["splits"]["val"];
    assert_eq!((&val["true_answers"], &val["true_answers_outside_labels"]), (&5.into(), &2.into()));
    // Where the head can give all of them there is nothing to say.
    questions(&folder, "val.jsonl", &["a", "b"]);
    assert!(!engine(&folder, &line).done().contains("true answers"));
}

/// `ms.ckpt` has a head for four classes without names.
#[test]
fn a_head_without_names_is_compared_by_number() {
    let folder = folder();
    let mut lines = String::new();
    for label in 0..3 {
        draw(&folder, &format!("set/{label}.png"), label);
        lines += &format!("{{\"image\": \"{label}.png\", \"label\": {label}}}\n");
    }
    folder.write("set/val.jsonl", &lines);
    let (table, notes) = engine(&folder, &format!("{EVAL} img_cls --data set")).noted();
    assert!(table.contains("top-1 accuracy") || table.contains("top-1"), "{table}");
    assert!(notes.iter().any(|note| note.contains("it doesn't name the 4 labels of its head")), "{notes:?}");
    folder.write("set/val.jsonl", lines.replace("\"label\": 2", "\"label\": 7"));
    let beyond = failed(&folder, &format!("--quiet {EVAL} img_cls --data set"));
    assert!(beyond.contains("its head has 4 labels, and val names 8"), "{beyond}");
}

#[test]
fn broken_images_are_told_with_file_and_line() {
    let folder = folder();
    questions(&folder, "val.jsonl", &["a"; 4]);
    folder.write("set/2.png", "no image");
    folder.write("names.json", r#"["a", "b", "c", "d", "e"]"#);
    let line = format!("{EVAL} vqa --data set --answers names.json");
    let stopped = engine(&folder, &line);
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    let told = "val.jsonl line 3: not a JPEG, PNG, WebP, GIF or BMP image";
    assert!(stopped.stderr.contains(&format!("engine: skipped a broken row of val: {told}\n")), "{stopped:?}");
    assert!(stopped.stderr.contains(&format!("engine: {told}; 1 of 4 rows are broken, more than 1 %")), "{stopped:?}");
    let (table, notes) = engine(&folder, &format!("{line} --max-broken 0.25")).noted();
    assert!(table.contains("3 questions, 3 with answers"), "{table}");
    assert!(notes.contains(&"val: 1 of 4 rows were broken and skipped".into()), "{notes:?}");
}

#[test]
fn a_submission_leaves_out_as_many_broken_rows_as_are_allowed() {
    let folder = folder();
    questions(&folder, "val.jsonl", &["a"; 4]);
    folder.write("set/2.png", "no image");
    folder.write("names.json", r#"["a", "b", "c", "d", "e"]"#);
    let line = "predict vqa ms.ckpt --device cpu --data set --split val --answers names.json -o out.json";
    let refused = failed(&folder, &format!("--quiet {line}"));
    assert!(refused.contains("1 of 4 rows are broken, more than 1 %: repair them, or allow more with --max-broken"));
    let (said, notes) = engine(&folder, &format!("{line} --max-broken 0.25")).noted();
    assert!(said.starts_with("3 answers to val (1 question has none: its row is broken)"), "{said}");
    assert!(notes.iter().any(|note| note.contains("val.jsonl line 3: not a JPEG")), "{notes:?}");
    // Of those that are broken in the file itself, too.
    let lines = String::from_utf8(folder.read("set/val.jsonl")).expect("UTF-8");
    folder.write("set/val.jsonl", lines.replace("2.png", "none.png"));
    let (said, _) = engine(&folder, &format!("{line} --max-broken 0.25 --force")).noted();
    assert!(said.starts_with("3 answers to val"), "{said}");
}

#[test]
fn a_download_of_images_is_not_taken_for_classes() {
    let folder = folder();
    for (number, name) in ["train2014", "val2014"].into_iter().enumerate() {
        draw(&folder, &format!("coco/{name}/1.png"), number as u32);
    }
    let refused = failed(&folder, "--quiet finetune ms.ckpt --data coco --steps 1 -o run");
    assert!(refused.ends_with("they need not be classes: if they are, --task img_cls says so"), "{refused}");
    assert!(!folder.path("run").exists());
}

/// All of a set may be broken, but then there is nothing to train on.
#[test]
fn a_training_set_without_a_usable_example_ends_the_run() {
    let folder = folder();
    questions(&folder, "train.jsonl", &["a"; 4]);
    (0..4).for_each(|number| folder.write(&format!("set/{number}.png"), "no image"));
    let fit = "finetune --task vqa --data set --no-validation --set max_broken=1 --set samples=0 --batch-size 2 --steps 2 \
               -o run --device cpu --config small.toml";
    folder.write("small.toml", "[model]\nlayers = 1\nvl_start = 1\nhidden_size = 24\nheads = 3\nimage_size = 32\n");
    let ended = engine(&folder, fit);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("train: none of its 4 examples can be used: train.jsonl line "), "{ended:#?}");
}

/// ImageFolder's layout, from looking into it to a trained model.
#[test]
fn a_folder_for_each_class_is_trained_on() {
    let folder = folder();
    for (number, class) in ["cat", "dog", "cat", "dog", "cat"].into_iter().enumerate() {
        draw(&folder, &format!("pets/train/{class}/{number}.png"), number as u32);
        draw(&folder, &format!("pets/val/{class}/{number}.png"), number as u32);
    }
    let report: Value =
        serde_json::from_str(&engine(&folder, "data inspect pets --images --json").done()).expect("JSON");
    let set = &report["sets"][0];
    assert_eq!((&set["task"], &set["labels"]), (&"img_cls".into(), &json!(["cat", "dog"])));
    assert_eq!((&set["splits"][0]["name"], &set["splits"][0]["examples"]), (&"train".into(), &5.into()));
    let fit = "--quiet finetune --task img_cls --data pets --batch-size 4 --steps 1 --set samples=1 -o run --device cpu \
               --config small.toml";
    folder.write("small.toml", "[model]\nlayers = 1\nvl_start = 1\nhidden_size = 24\nheads = 3\nimage_size = 32\n");
    engine(&folder, fit).done();
    let table = engine(&folder, "--quiet eval run/last.safetensors --data pets --device cpu").done();
    assert!(table.starts_with("val\n"), "{table}");
}
