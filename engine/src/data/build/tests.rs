//! Builders on small imitations of the official downloads.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::data::arrow::ArrowFile;
use crate::data::{Dataset, Example, Target, Task, open};

/// A folder with files in it.
struct Download(tempfile::TempDir);

impl Download {
    fn new() -> Download {
        Download(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Download {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn json(&self, name: &str, content: Value) -> &Download {
        self.file(name, content.to_string())
    }

    /// Images whose bytes are their names, so that one can see which is which.
    fn images(&self, names: &[&str]) -> &Download {
        for name in names {
            self.file(name, name.rsplit('/').next().unwrap());
        }
        self
    }

    fn build(&self, source: Source) -> (tempfile::TempDir, Report) {
        self.build_with(source, &Options::default())
    }

    fn build_with(&self, source: Source, options: &Options) -> (tempfile::TempDir, Report) {
        let out = tempfile::tempdir().unwrap();
        let report = build(source, self.0.path(), out.path(), options, &|_, _, _| ()).unwrap();
        (out, report)
    }

    fn error(&self, source: Source) -> String {
        let out = tempfile::tempdir().unwrap();
        let error = build(source, self.0.path(), out.path(), &Options::default(), &|_, _, _| ()).unwrap_err();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left");
        error.to_string()
    }
}

fn columns(path: &Path) -> Vec<(String, String)> {
    let file = ArrowFile::open(path).unwrap();
    file.schema().fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
}

fn files(report: &Report) -> Vec<(&str, usize, usize)> {
    report.files.iter().map(|file| (&*file.file, file.rows, file.texts)).collect()
}

/// Images with their captions, by image id.
fn captioned(path: &Path) -> Vec<(String, String, Vec<String>)> {
    let split = crate::data::own_split(path).unwrap_or_else(|| "train".into());
    let set = open(path, Task::Irtr, &split).unwrap();
    let mut found: Vec<_> = (0..set.images())
        .map(|index| {
            let image = set.image(index).unwrap();
            let captions = image.captions.iter().map(|caption| caption.to_string()).collect();
            (image.image_id.to_string(), String::from_utf8(image.image.into_owned()).unwrap(), captions)
        })
        .collect();
    found.sort();
    found
}

fn karpathy() -> Value {
    let image = |name: &str, split: &str, captions: &[&str]| {
        let sentences: Vec<Value> = captions.iter().map(|text| json!({"raw": text, "tokens": []})).collect();
        json!({"filename": name, "split": split, "sentences": sentences, "imgid": 0})
    };
    json!({"dataset": "coco", "images": [
        image("COCO_val2014_000000000002.jpg", "test", &["two", "zwei"]),
        image("COCO_train2014_000000000001.jpg", "train", &["one"]),
        image("COCO_val2014_000000000003.jpg", "restval", &["three"]),
        image("COCO_val2014_000000000004.jpg", "val", &["four"]),
        image("COCO_val2014_000000000005.jpg", "val", &["five"]),
    ]})
}

fn coco() -> Download {
    let download = Download::new();
    download.json("karpathy/dataset_coco.json", karpathy()).images(&[
        "train2014/COCO_train2014_000000000001.jpg",
        "train2014/COCO_train2014_000000000009.jpg",
        "train2014/readme.txt",
        "val2014/COCO_val2014_000000000002.jpg",
        "val2014/COCO_val2014_000000000003.jpg",
        "val2014/COCO_val2014_000000000004.jpg",
    ]);
    download
}

#[test]
fn coco_in_karpathys_splits() {
    let (out, report) = coco().build(Source::Coco);
    let name = |split| format!("coco_caption_karpathy_{split}.arrow");
    let expected =
        [("train", 1), ("val", 1), ("restval", 1), ("test", 2)].map(|(split, texts)| (name(split), 1, texts));
    assert_eq!(files(&report), expected.each_ref().map(|(name, rows, texts)| (name.as_str(), *rows, *texts)));
    let check = &report.checks[0];
    assert_eq!((check.matched, check.missing_count, check.unannotated), (4, 1, 1));
    assert_eq!(check.missing, ["COCO_val2014_000000000005.jpg"]);
    let path = out.path().join(name("test"));
    let expected = [("image", "Binary"), ("caption", "List(Utf8)"), ("image_id", "Utf8"), ("split", "Utf8")];
    assert_eq!(columns(&path), expected.map(|(name, kind)| (name.to_string(), kind.to_string())));
    let image = "COCO_val2014_000000000002.jpg".to_string();
    assert_eq!(captioned(&path), [(image.clone(), image, vec!["two".to_string(), "zwei".into()])]);
    assert_eq!(open(out.path(), Task::Irtr, "train").unwrap().images(), 1);
    let both = open(out.path(), Task::Irtr, "train+restval").unwrap();
    assert_eq!((both.images(), both.name()), (2, "coco_caption_karpathy train+restval"));
}

#[test]
fn flickr30k() {
    let download = Download::new();
    let images = json!({"images": [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a"}, {"raw": "b"}]},
        {"filename": "2.jpg", "split": "test", "sentences": [{"raw": "c"}]},
    ]});
    download.json("karpathy/dataset_flickr30k.json", images);
    download.images(&["flickr30k-images/1.jpg", "flickr30k-images/2.jpg"]);
    let (_, report) = download.build(Source::F30k);
    let names = ["train", "test"].map(|split| format!("f30k_caption_karpathy_{split}.arrow"));
    assert_eq!(files(&report), [(&*names[0], 1, 2), (&names[1], 1, 1)]);
    let note = report.notes.iter().find(|note| note.starts_with("f30k_caption_karpathy_val is not built"));
    assert!(note.is_some_and(|note| note.contains("there is nothing of it in")), "{:?}", report.notes);
}

#[test]
fn a_second_run_keeps_what_is_finished() {
    let download = coco();
    let (out, _) = download.build(Source::Coco);
    let again = |force| {
        let options = Options { force, ..Options::default() };
        build(Source::Coco, download.0.path(), out.path(), &options, &|_, _, _| ())
    };
    let test = out.path().join("coco_caption_karpathy_test.arrow");
    let bytes = fs::read(&test).unwrap();
    // As if the first run had been killed in the middle of this file.
    fs::remove_file(&test).unwrap();
    fs::write(out.path().join(".coco_caption_karpathy_test.arrow.part"), "half a file").unwrap();
    let report = again(false).unwrap();
    assert_eq!(report.files.iter().map(|file| file.kept).collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!(fs::read(&test).unwrap(), bytes, "the same bytes each time");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 4, "no temporary file is left");
    // Another image has come: the file that it belongs into isn't the same any more.
    download.images(&["val2014/COCO_val2014_000000000005.jpg"]);
    let error = again(false).unwrap_err().to_string();
    assert!(error.contains("_val.arrow: it is there already") && error.contains("--force"), "{error}");
    let report = again(true).unwrap();
    assert_eq!(report.files[1].rows, 2);
    fs::write(&test, "no Arrow file, whatever it is").unwrap();
    assert!(again(false).unwrap_err().to_string().contains("it can't be kept"));
}

#[test]
fn annotations_that_are_missing_or_fit_nothing() {
    let download = Download::new();
    assert!(download.error(Source::Coco).contains("dataset_coco.json: cannot read"));
    download.json("karpathy/dataset_coco.json", karpathy());
    assert!(download.error(Source::Coco).contains("there is no folder train2014"));
    download.images(&["train2014/other.jpg", "val2014/other.jpg"]);
    let error = download.error(Source::Coco);
    assert!(error.contains("none of the annotated images is there, such as COCO_val2014_000000000002.jpg"), "{error}");
    download.file("karpathy/dataset_coco.json", "{\"images\": [{}]}");
    assert!(download.error(Source::Coco).contains("missing field `filename`"));
}

#[test]
fn unreadable_images_are_left_out() {
    let download = coco();
    download.file("val2014/COCO_val2014_000000000002.jpg", "");
    let (_, report) = download.build(Source::Coco);
    assert_eq!(report.files[3].rows, 0);
    let check = report.checks.last().unwrap();
    assert_eq!((check.matched, check.missing_count), (3, 1));
    assert!(check.missing[0].ends_with("COCO_val2014_000000000002.jpg (it is empty)"), "{:?}", check.missing);
}

fn vqav2() -> Download {
    let download = Download::new();
    let question = |id: i64| json!({"image_id": id / 10, "question_id": id, "question": format!("question {id}?")});
    let answered = |id: i64, most: &str, people: &[(&str, usize)]| {
        let answers: Vec<Value> = people
            .iter()
            .flat_map(|(answer, count)| vec![json!({"answer": answer, "answer_confidence": "yes"}); *count])
            .collect();
        json!({"image_id": id / 10, "question_id": id, "multiple_choice_answer": most, "answers": answers})
    };
    // "yes" is the answer of nine questions, eight here and one in val; "2" of nine, one of them spelt out; "red" of eight.
    let train: Vec<i64> = (10..18).chain(20..28).chain(30..38).collect();
    let mut annotations = Vec::new();
    for id in &train {
        annotations.push(match id {
            10 => answered(10, "Yes", &[("yes", 1), ("red", 9)]),
            11 => answered(11, "yes", &[("yes", 2), ("2", 3), ("no idea", 5)]),
            20 => answered(20, "two", &[("2", 4), ("two", 6)]),
            30 => answered(30, "red", &[("red", 10)]),
            id if *id < 20 => answered(*id, "yes", &[("yes", 10)]),
            id if *id < 30 => answered(*id, "2", &[("2", 10)]),
            id => answered(*id, "red", &[("yes", 1), ("red", 9)]),
        });
    }
    let questions = |ids: &[i64]| json!({"questions": ids.iter().map(|id| question(*id)).collect::<Vec<_>>()});
    let val: Vec<i64> = vec![40, 50, 60];
    let val_annotations =
        [answered(40, "yes", &[("yes", 10)]), answered(50, "2", &[("2", 10)]), answered(99, "none", &[("none", 10)])];
    download
        .json("v2_OpenEnded_mscoco_train2014_questions.json", questions(&train))
        .json("v2_OpenEnded_mscoco_val2014_questions.json", questions(&val))
        .json("v2_OpenEnded_mscoco_test2015_questions.json", questions(&[70, 71, 80]))
        .json("v2_OpenEnded_mscoco_test-dev2015_questions.json", questions(&[71]))
        .json("v2_mscoco_train2014_annotations.json", json!({"annotations": annotations}))
        .json("v2_mscoco_val2014_annotations.json", json!({"annotations": val_annotations}))
        .images(&[
            "train2014/COCO_train2014_000000000001.jpg",
            "train2014/COCO_train2014_000000000002.jpg",
            "train2014/COCO_train2014_000000000003.jpg",
            "val2014/COCO_val2014_000000000004.jpg",
            "val2014/COCO_val2014_000000000005.jpg",
            "test2015/COCO_test2015_000000000007.jpg",
        ]);
    download
}

#[test]
fn vqav2_with_its_vocabulary() {
    let (out, report) = vqav2().build_with(Source::Vqav2, &Options { rest_rows: 1, ..Options::default() });
    let labels: Vec<String> =
        serde_json::from_slice(&fs::read(out.path().join("vqav2_answers.json")).unwrap()).unwrap();
    assert_eq!(labels, ["yes", "2"], "nine questions each; red has eight");
    let expected = [
        ("vqav2_train.arrow", 3, 23),
        ("vqav2_val.arrow", 2, 2),
        ("vqav2_trainable_val.arrow", 1, 1),
        ("vqav2_rest_val.arrow", 1, 1),
        ("vqav2_test.arrow", 1, 2),
        ("vqav2_test-dev.arrow", 1, 1),
        ("vqav2_answers.json", 2, 0),
    ];
    assert_eq!(files(&report), expected);
    let checks: Vec<_> =
        report.checks.iter().map(|check| (check.what.as_str(), check.matched, check.missing_count)).collect();
    assert!(checks.contains(&("questions of train with answers", 24, 0)), "{checks:?}");
    assert!(checks.contains(&("questions of val with answers", 2, 1)), "{checks:?}");
    assert!(checks.contains(&("images of test", 1, 1)), "{checks:?}");
    assert!(
        report.notes.iter().any(|note| note.starts_with("1 questions of train have no answer")),
        "{:?}",
        report.notes
    );
    let expected = [
        ("image", "Binary"),
        ("questions", "List(Utf8)"),
        ("answers", "List(List(Utf8))"),
        ("answer_labels", "List(List(Int64))"),
        ("answer_scores", "List(List(Float64))"),
        ("image_id", "Int64"),
        ("question_id", "List(Int64)"),
        ("split", "Utf8"),
    ];
    let found = columns(&out.path().join("vqav2_train.arrow"));
    assert_eq!(found, expected.map(|(name, kind)| (name.to_string(), kind.to_string())));

    let set = open(out.path(), Task::Vqa, "vqav2:train").unwrap();
    assert_eq!(set.len(), 24, "with trainable_val");
    let targets = |wanted: i64| {
        (0..set.len())
            .find_map(|index| match set.example(index).unwrap() {
                Example::Vqa { question_id, targets, image, image_id, question, .. } if question_id == wanted => {
                    assert_eq!(image_id, (wanted / 10).to_string());
                    assert_eq!(question, format!("question {wanted}?"));
                    assert!(image.ends_with(format!("{}.jpg", wanted / 10).as_bytes()));
                    Some(targets.to_vec())
                }
                _ => None,
            })
            .unwrap_or_default()
    };
    let target = |label, score| Target { label, score };
    assert_eq!(targets(10), [target(0, 0.3)]);
    assert_eq!(targets(11), [target(0, 0.6), target(1, 0.9)]);
    assert_eq!(targets(20), [target(1, 1.0)], "spelt out, it is none of the labels");
    assert_eq!(targets(30), [], "left out");
    assert_eq!(targets(31), [target(0, 0.3)]);

    let test = open(out.path(), Task::Vqa, "test").unwrap();
    assert!((0..2).all(|index| matches!(test.example(index).unwrap(), Example::Vqa { answered: false, .. })));
}

#[test]
fn scores_are_the_nearest_of_f64() {
    let (out, _) = vqav2().build(Source::Vqav2);
    let file = ArrowFile::open(&out.path().join("vqav2_train.arrow")).unwrap();
    let shown = format!("{:?}", file.columns(&["answer_scores"]).unwrap());
    assert!(shown.contains("0.3,") && !shown.contains("0.30000001"), "{shown}");
}

#[test]
fn nlvr2() {
    let download = Download::new();
    let line = |identifier: &str, label: &str| {
        json!({"sentence": format!("about {identifier}"), "label": label, "identifier": identifier, "directory": 7})
            .to_string()
    };
    let train = [line("train-1-0-0", "True"), line("train-2-0-0", "False"), line("train-1-0-1", "False")].join("\n");
    let dev = [line("dev-0-0-0", "True"), line("dev-9-0-0", "True")].join("\n");
    download
        .file("nlvr2/data/train.json", train)
        .file("nlvr2/data/dev.json", dev)
        .file("nlvr2/data/test1.json", line("test1-0-0-0", "False"))
        .file("nlvr2/data/balanced/balanced_dev.json", line("dev-0-0-0", "True"))
        .images(&["images/train/7/train-1-0-img0.png", "images/train/7/train-1-0-img1.png"])
        .images(&["images/train/7/train-2-0-img0.png", "images/train/7/train-2-0-img1.png"])
        .images(&["dev/dev-0-0-img0.png", "dev/dev-0-0-img1.png", "dev/dev-9-0-img0.png"])
        .images(&["test1/test1-0-0-img0.png", "test1/test1-0-0-img1.png"]);
    let (out, report) = download.build(Source::Nlvr2);
    let expected = [
        ("nlvr2_train.arrow", 2, 3),
        ("nlvr2_dev.arrow", 1, 1),
        ("nlvr2_test1.arrow", 1, 1),
        ("nlvr2_balanced_dev.arrow", 1, 1),
    ];
    assert_eq!(files(&report), expected);
    assert_eq!(report.notes.len(), 3, "{:?}", report.notes);
    assert_eq!(report.checks[1].missing, ["dev-9-0"]);
    let set = open(out.path(), Task::Nlvr2, "train").unwrap();
    let Example::Nlvr2 { left, right, sentence, label, identifier } = set.example(1).unwrap() else { panic!() };
    assert_eq!((&left[..], &right[..]), (&b"train-1-0-img0.png"[..], &b"train-1-0-img1.png"[..]));
    assert_eq!((sentence, label, identifier), ("about train-1-0-1", Some(false), "train-1-0"));
    download.file("nlvr2/data/dev.json", "{\"sentence\": 1}");
    assert!(download.error(Source::Nlvr2).contains("dev.json: line 1: not as expected"));
}

#[test]
fn visual_genome() {
    let download = Download::new();
    let region = |image: i64, phrase: &str, x: i64| json!({"region_id": 1, "image_id": image, "phrase": phrase, "x": x, "y": 2, "width": 3, "height": 4});
    let described = json!([
        {"id": 1, "regions": [region(1, "a cat", 5), region(1, "its tail", 6)]},
        {"id": 20, "regions": [region(20, "a dog", 7)]},
        {"id": 30, "regions": [region(30, "nowhere", 7)]},
    ]);
    download.json("annotations/region_descriptions.json", described).images(&[
        "images/VG_100K/1.jpg",
        "images/VG_100K_2/20.jpg",
        "images/VG_100K_2/21.jpg",
    ]);
    let (out, report) = download.build(Source::Vg);
    assert_eq!(files(&report), [("vg.arrow", 2, 3)]);
    assert_eq!((&report.checks[0].missing[..], report.checks[0].unannotated), (&["30.jpg".to_string()][..], 1));
    let found = captioned(out.path());
    assert_eq!(found[0], ("1".to_string(), "1.jpg".into(), vec!["a cat".to_string(), "its tail".into()]));
    let names: Vec<String> = columns(&out.path().join("vg.arrow")).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["image", "caption", "width", "height", "x", "y", "image_id"]);
    let file = ArrowFile::open(&out.path().join("vg.arrow")).unwrap();
    let shown = format!("{:?}", file.columns(&["x"]).unwrap());
    assert!(shown.contains('5') && shown.contains('6') && shown.contains('7'));
}

#[test]
fn conceptual_captions_and_sbu_in_several_files() {
    let download = Download::new();
    let pairs: Vec<Value> =
        (0..7).map(|number| json!([format!("images_train/0000/{number:07}"), format!("caption {number}")])).collect();
    download
        .json("train_annot.json", json!(pairs))
        .json("val_annot.json", json!([["x/y/0000100", "in val"]]))
        .json("annot.json", json!(pairs))
        .images(&["images_val/0000/0000100", "images_train/0001/0000009"]);
    for number in 0..5 {
        download.images(&[&format!("images_train/0000/{number:07}")]);
    }
    let options = Options { shard_rows: 2, ..Options::default() };
    let (out, report) = download.build_with(Source::Gcc, &options);
    let names: Vec<_> =
        files(&report).into_iter().map(|(name, rows, _)| (name.trim_end_matches(".arrow"), rows)).collect();
    let train = |number| format!("conceptual_caption_train_{number}");
    let train = [train(0), train(1), train(2)];
    assert_eq!(names, [("conceptual_caption_val_0", 1), (&*train[0], 2), (&train[1], 2), (&train[2], 1)]);
    assert_eq!((report.checks[1].matched, report.checks[1].missing_count, report.checks[1].unannotated), (5, 2, 1));
    let found = captioned(out.path());
    assert_eq!(found.len(), 5);
    assert_eq!(found[4], ("0000004".to_string(), "0000004".into(), vec!["caption 4".to_string()]));
    let (out, report) = download.build_with(Source::Sbu, &options);
    assert_eq!(report.files.len(), 3);
    assert_eq!(captioned(out.path()), found);
}

#[test]
fn imagenet_in_folders_or_with_a_list() {
    let download = Download::new();
    download
        .images(&[
            "train/n01/n01_1.JPEG",
            "train/n01/n01_2.JPEG",
            "train/n02/n02_1.JPEG",
            "val/n02/a.JPEG",
            "val/n03/b.JPEG",
        ])
        .file("LOC_synset_mapping.txt", "n01 tench, Tinca tinca\nn02 goldfish");
    let (out, report) = download.build(Source::Imagenet);
    assert_eq!(
        files(&report),
        [("imagenet_train_0.arrow", 3, 0), ("imagenet_val_0.arrow", 1, 0), ("imagenet_classes.json", 2, 0)]
    );
    assert_eq!(report.checks[1].unannotated, 1);
    let set = open(out.path(), Task::ImgCls, "val").unwrap();
    assert_eq!(set.labels(), ["tench, Tinca tinca", "goldfish"]);
    assert!(matches!(set.example(0).unwrap(), Example::ImgCls { label: 1, image_id: "a.JPEG", .. }));

    let download = Download::new();
    download
        .images(&["ILSVRC/Data/CLS-LOC/train/n01/1.JPEG", "ILSVRC/Data/CLS-LOC/train/n02/2.JPEG"])
        .images(&["ILSVRC/Data/CLS-LOC/val/v_1.JPEG"])
        .file("LOC_val_solution.csv", "ImageId,PredictionString\nv_1,n02 1 2 3 4\nv_2,n01 1 2 3 4\n");
    let (out, report) = download.build(Source::Imagenet);
    assert_eq!((report.checks[1].matched, &report.checks[1].missing[..]), (1, &["v_2".to_string()][..]));
    let set = open(out.path(), Task::ImgCls, "val").unwrap();
    assert!(matches!(set.example(0).unwrap(), Example::ImgCls { label: 1, .. }));
    download.file("LOC_val_solution.csv", "ImageId,PredictionString\nv_1,n09 1 2 3 4\n");
    assert!(download.error(Source::Imagenet).contains("class n09 of v_1 is none of the training part"));
}

#[test]
fn easy_vqa_with_captions() {
    let download = Download::new();
    let questions = json!([
        ["what is the red shape?", "circle", 0],
        ["is there a blue shape?", "no", 0],
        ["is there a triangle?", "no", 3],
        ["what color is the shape?", "teal", 9],
    ]);
    download
        .file("data/answers.txt", "circle\nno\nyes\nteal\n")
        .json("data/train/questions.json", questions)
        .json("data/test/questions.json", json!([["what is the red shape?", "circle", 0], ["is it?", "maybe", 1]]))
        .images(&["data/train/images/0.png", "data/train/images/3.png", "data/train/images/9.png"])
        .images(&["data/test/images/0.png", "data/test/images/1.png"]);
    let (out, report) = download.build(Source::EasyVqa);
    let expected = [
        ("easy_vqa_train.arrow", 2, 3),
        ("easy_vqa_caption_train.arrow", 1, 4),
        ("easy_vqa_val.arrow", 1, 1),
        ("easy_vqa_caption_val.arrow", 1, 2),
        ("easy_vqa_test.arrow", 1, 1),
        ("easy_vqa_caption_test.arrow", 1, 4),
        ("easy_vqa_caption_distinct.arrow", 1, 4),
        ("easy_vqa_answers.json", 4, 0),
    ];
    assert_eq!(files(&report), expected);
    assert!(report.notes.iter().any(|note| note.starts_with("1 answers are not in answers.txt")), "{:?}", report.notes);
    // What is built says the same as what it was built from.
    let (built, direct) =
        (open(out.path(), Task::Vqa, "train").unwrap(), open(download.0.path(), Task::Vqa, "train").unwrap());
    assert_eq!((built.len(), built.labels()), (direct.len(), direct.labels()));
    for index in 0..built.len() {
        assert_eq!(built.example(index).unwrap(), direct.example(index).unwrap());
    }
    assert_eq!(open(out.path(), Task::Irtr, "val").unwrap().image(0).unwrap().captions[0], "a teal shape");
}
