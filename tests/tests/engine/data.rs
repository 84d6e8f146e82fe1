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
