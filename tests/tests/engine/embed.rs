//! `engine embed`

use fixtures::compare::absolute_difference;
use safetensors::SafeTensors;

use crate::models::{copy, draw, folder, spec, write};

#[test]
fn rows_belong_to_paths_and_texts() {
    let folder = folder();
    for number in 0..5 {
        draw(&folder, &format!("p/{number}.png"), number);
    }
    draw(&folder, "alone.png", 3);
    folder.write("texts.txt", "a dog on a beach\n\na cat\na dog on a beach\n");
    let words = ["embed", "ms.ckpt", "--images", "p", "alone.png", "--texts", "texts.txt", "-o", "out.safetensors"];
    let said = folder.engine(&[&words[..], &["--batch-size", "4"]].concat()).done();
    assert!(said.starts_with("embeddings of 6 images and 4 texts written to out.safetensors"), "{said}");
    let tensors = folder.tensors("out.safetensors");
    let (images, texts) = (&tensors["images"], &tensors["texts"]);
    assert_eq!((&images.shape[..], &texts.shape[..]), (&[6, 24][..], &[4, 24][..]));
    let (images, texts) = (images.values(), texts.values());
    let row = |values: &[f32], row: usize| values[row * 24..][..24].to_vec();
    let near = |values: &[f32], a, b| absolute_difference(&row(values, a), &row(values, b)).unwrap() < 1e-5;
    assert!(near(&images, 3, 5) && !near(&images, 0, 1), "p/3.png and alone.png are one picture");
    assert!(near(&texts, 0, 3) && !near(&texts, 0, 2) && !near(&texts, 1, 2));
    let bytes = folder.read("out.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let paths: Vec<String> = serde_json::from_str(&metadata["paths"]).unwrap();
    assert_eq!(paths, ["p/0.png", "p/1.png", "p/2.png", "p/3.png", "p/4.png", "alone.png"]);
    let texts: Vec<String> = serde_json::from_str(&metadata["texts"]).unwrap();
    assert_eq!(texts, ["a dog on a beach", "", "a cat", "a dog on a beach"]);
    assert!(metadata["engine.checkpoint"].contains("content_digest"));
    // A merged checkpoint's words are the same whoever asks: one text at a time, or all.
    let again = [&words[..], &["--batch-size", "1", "--force"]].concat();
    folder.engine(&again).done();
    let alone = folder.tensors("out.safetensors")["images"].values();
    assert!(absolute_difference(&images, &alone).unwrap() < 1e-5);
}

#[test]
fn broken_pictures_are_named_and_left_out_until_there_are_too_many() {
    let folder = folder();
    for number in 0..119 {
        draw(&folder, &format!("p/{number:03}.png"), number);
    }
    folder.write("p/broken.png", &folder.read("p/000.png")[..60]);
    let words = ["embed", "ms.ckpt", "--images", "p", "-o", "out.safetensors"];
    let (said, notes) = folder.engine(&words).noted();
    assert!(said.starts_with("embeddings of 119 images and 0 texts"), "{said}");
    assert!(matches!(&notes[..], [note] if note.starts_with("left out: p/broken.png: broken PNG image")), "{notes:?}");
    assert_eq!(folder.tensors("out.safetensors")["images"].shape, [119, 24]);
    std::fs::remove_file(folder.path("out.safetensors")).unwrap();
    folder.write("p/empty.png", "");
    let said = folder.engine_refuses(&words);
    assert!(said.starts_with("2 of 121 images can't be read, which is more than 1 %; the first is p/"), "{said}");
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let folder = folder();
    copy(&folder, "photo.png", "a.png");
    std::fs::create_dir(folder.path("empty")).unwrap();
    folder.write("p.png", "x");
    folder.write("none.txt", "");
    folder.write("latin.txt", b"caf\xe9\n");
    let mut small = spec();
    small.vocab_size = 64;
    write(&folder, "small.ckpt", &small);
    folder.write("texts.txt", "a dog\n");
    for (words, reason) in [
        (vec!["embed", "ms.ckpt", "--images", "empty"], "empty: there are no images"),
        (vec!["embed", "ms.ckpt", "--images", "nothing"], "nothing: cannot read: no such file or directory"),
        (vec!["embed", "ms.ckpt", "--images", "p.png"], "p.png: not a JPEG, PNG, WebP, GIF or BMP image"),
        (vec!["embed", "ms.ckpt", "--texts", "none.txt"], "none.txt: it has no text"),
        (vec!["embed", "ms.ckpt", "--texts", "latin.txt"], "latin.txt: line 1 is not UTF-8 text"),
        (vec!["embed", "small.ckpt", "--texts", "texts.txt"], "is beyond the model's vocabulary of 64"),
        (vec!["embed", "ms.ckpt", "--images", "a.png", "--image-size", "50"], "no multiple of the patch size 16"),
    ] {
        let said = folder.engine_refuses(&[words.clone(), vec!["-o", "out.safetensors"]].concat());
        assert!(said.contains(reason), "{words:?}: {said}");
    }
    let said = folder.engine_refuses(&["embed", "ms.ckpt", "--images", "a.png", "-o", "ms.ckpt", "--force"]);
    assert!(said.contains("this output is also an input"), "{said}");
    assert_eq!(folder.engine(&["embed", "ms.ckpt", "-o", "out.safetensors"]).code, Some(2));
}

#[test]
fn long_texts_are_cut_and_counted() {
    let folder = folder();
    folder.write("texts.txt", format!("a dog\n{}\n", "a dog on a beach ".repeat(2000)));
    let (_, notes) = folder.engine(&["embed", "ms.ckpt", "--texts", "texts.txt", "-o", "out.safetensors"]).noted();
    assert_eq!(notes, ["1 of 2 texts was longer than 12 tokens and cut"]);
    assert_eq!(folder.tensors("out.safetensors")["texts"].shape, [2, 24]);
}

/// A photograph with its camera's orientation mark is embedded as the same picture without one, turned upright.
#[test]
fn photographs_are_turned_upright() {
    let folder = folder();
    copy(&folder, "turned.jpg", "photos/marked.jpg");
    let upright = image::open(folder.path("photos/marked.jpg")).unwrap().rotate90();
    upright.save(folder.path("photos/upright.png")).unwrap();
    folder.engine(&["embed", "ms.ckpt", "--images", "photos", "--device", "cpu", "-o", "out.safetensors"]).done();
    let images = folder.tensors("out.safetensors")["images"].values();
    let (marked, upright) = images.split_at(images.len() / 2);
    assert_eq!(marked, upright);
}
