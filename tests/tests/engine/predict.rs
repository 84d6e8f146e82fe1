//! `engine predict`

use std::collections::BTreeSet;

use blackbox::Folder;
use serde_json::Value;

use crate::models::{copy, folder, spec, write};

const QUESTION: &str = "what colour is the cat?";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn pictures() -> Folder {
    let folder = folder();
    copy(&folder, "photo.png", "a.png");
    copy(&folder, "grey.jpg", "b.jpg");
    folder
}

#[test]
fn answers_come_with_their_names_the_likeliest_first() {
    let folder = pictures();
    folder.write("answers.txt", "yes\nno\nred\nblue\ntwo\n");
    folder.write("answers.json", r#"{"0": "yes", "1": "no", "2": "red", "3": "blue", "4": "two"}"#);
    let words =
        ["predict", "vqa", "ms.ckpt", "--image", "a.png", "--question", QUESTION, "--top", "3", "--device", "cpu"];
    let text = folder.engine(&[&words[..], &["--answers", "answers.txt"]].concat()).done();
    assert_eq!(text.lines().count(), 3, "{text}");
    let found = json(&folder.engine(&[&words[..], &["--answers", "answers.json", "--json"]].concat()).done());
    let answers = found["answers"].as_array().unwrap();
    let named: Vec<&str> = answers.iter().map(|answer| answer["answer"].as_str().unwrap()).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    for (line, name) in text.lines().zip(&named) {
        assert!(line.ends_with(&format!("%  {name}")), "{text} {named:?}");
    }
    let chances: Vec<f64> = answers.iter().map(|answer| answer["probability"].as_f64().unwrap()).collect();
    assert!(chances.is_sorted_by(|a, b| a >= b) && chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
    // Without names, the numbers; and it is said how to have names.
    let (text, notes) = folder.engine(&words).noted();
    assert!(text.lines().all(|line| line.contains("%  label ")), "{text}");
    assert!(matches!(&notes[..], [note] if note.contains("--answers FILE names them")), "{notes:?}");
}

#[test]
fn a_sentence_about_two_pictures_depends_on_their_order() {
    let folder = pictures();
    let run = |left: &str, right: &str| {
        let words = [
            "predict",
            "nlvr2",
            "ms.ckpt",
            "--left",
            left,
            "--right",
            right,
            "--text",
            "one picture is grey",
            "--json",
        ];
        json(&folder.engine(&words).done())
    };
    let (one, other) = (run("a.png", "b.jpg"), run("b.jpg", "a.png"));
    let truth = one["probability_true"].as_f64().unwrap();
    assert_eq!(one["answer"].as_bool().unwrap(), truth > 0.5);
    assert!((0.0..=1.0).contains(&truth) && one["probability_true"] != other["probability_true"], "{one} {other}");
}

#[test]
fn classes_add_up_to_one() {
    let folder = pictures();
    let found = json(&folder.engine(&["predict", "img_cls", "ms.ckpt", "--image", "a.png", "--json"]).done());
    let classes = found["classes"].as_array().unwrap();
    let sum: f64 = classes.iter().map(|class| class["probability"].as_f64().unwrap()).sum();
    assert!(classes.len() == 4 && (sum - 1.0).abs() < 1e-5, "{found}");
}

#[test]
fn a_submission_answers_every_question_once() {
    let folder = folder();
    let names = ["circle", "square", "red", "blue", "yes"];
    folder.write("answers.json", serde_json::to_string(&names).unwrap());
    let words = ["predict", "vqa", "ms.ckpt", "--data", "toy", "--split", "test", "-o", "out.json"];
    let words = [&words[..], &["--answers", "answers.json", "--batch-size", "8"]].concat();
    let said = folder.engine(&words).done();
    let found = json(&String::from_utf8(folder.read("out.json")).unwrap());
    let lines = found.as_array().unwrap();
    assert!(said.starts_with(&format!("{} answers to ", lines.len())), "{said}");
    let mut ids = BTreeSet::new();
    for line in lines {
        let line = line.as_object().unwrap();
        assert_eq!(line.keys().collect::<Vec<_>>(), ["question_id", "answer"]);
        assert!(names.contains(&line["answer"].as_str().unwrap()));
        assert!(ids.insert(line["question_id"].as_i64().unwrap()), "twice: {line:?}");
    }
    assert!(ids.len() > 10);
    let reason = folder.engine_refuses(&words);
    assert!(reason.contains("out.json: the file exists already; --force replaces it"), "{reason}");
    let reason = folder.engine_refuses(&["predict", "vqa", "ms.ckpt", "--data", "toy", "-o", "other.json"]);
    assert!(reason.contains("it doesn't name the answers") && reason.contains("--answers FILE"), "{reason}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = pictures();
    let mut headless = spec();
    headless.task_heads = Default::default();
    write(&folder, "seed.ckpt", &headless);
    folder.write("three.txt", "yes\nno\nred\n");
    folder.write("gaps.json", r#"{"yes": 0, "no": 2}"#);
    folder.write("broken.png", &folder.read("a.png")[..300]);
    let ask = |checkpoint: &'static str, image: &'static str, question: &'static str| {
        vec!["predict", "vqa", checkpoint, "--image", image, "--question", question]
    };
    for (words, reason) in [
        (ask("seed.ckpt", "a.png", QUESTION), "seed.ckpt: this checkpoint has no head for vqa; 'engine finetune"),
        (vec!["predict", "img_cls", "seed.ckpt", "--image", "a.png"], "no head for img_cls"),
        (
            vec!["predict", "nlvr2", "seed.ckpt", "--left", "a.png", "--right", "b.jpg", "--text", "x"],
            "no head for nlvr2",
        ),
        (
            [ask("ms.ckpt", "a.png", QUESTION), vec!["--answers", "three.txt"]].concat(),
            "three.txt: it names 3 labels, but the checkpoint's head for vqa has 5",
        ),
        ([ask("ms.ckpt", "a.png", QUESTION), vec!["--answers", "gaps.json"]].concat(), "gaps.json: label 1 is missing"),
        ([ask("ms.ckpt", "a.png", QUESTION), vec!["--answers", "none"]].concat(), "none: cannot read"),
        (ask("ms.ckpt", "a.png", "  "), "--question is empty"),
        (vec!["predict", "nlvr2", "ms.ckpt", "--left", "a.png", "--right", "b.jpg", "--text", ""], "--text is empty"),
        (ask("ms.ckpt", "none.png", QUESTION), "none.png: cannot read"),
        (ask("ms.ckpt", "broken.png", QUESTION), "broken.png: broken PNG image: cut short"),
        (ask("ms.ckpt", "three.txt", QUESTION), "three.txt: not a JPEG, PNG, WebP, GIF or BMP image"),
        (ask("none.ckpt", "a.png", QUESTION), "none.ckpt: cannot open"),
        (ask("a.png", "a.png", QUESTION), "a.png: "),
    ] {
        let said = folder.engine_refuses(&words);
        assert!(said.contains(reason), "{words:?}: {said}");
    }
    for words in [
        vec!["predict", "vqa", "ms.ckpt"],
        vec!["predict", "vqa", "ms.ckpt", "--image", "a.png"],
        vec!["predict", "vqa", "ms.ckpt", "--data", "toy"],
        [ask("ms.ckpt", "a.png", QUESTION), vec!["--top", "0"]].concat(),
        [ask("ms.ckpt", "a.png", QUESTION), vec!["--data", "toy", "-o", "x.json"]].concat(),
    ] {
        assert_eq!(folder.engine(&words).code, Some(2), "{words:?}");
    }
}

#[test]
fn a_long_question_is_cut_and_that_is_said() {
    let folder = pictures();
    let long = "why is the dog ".repeat(2500);
    let words = ["predict", "vqa", "ms.ckpt", "--image", "a.png", "--question", &long, "--json"];
    let (_, notes) = folder.engine(&words).noted();
    assert_eq!(notes, ["the text is longer than 12 tokens and is cut"]);
}
