//! `engine search`

use blackbox::{Folder, Tensor, Tensors};
use serde_json::Value;

use crate::models::{draw, folder, spec, write};

const INDEX: &str = "p/.engine-search.safetensors";
const QUERY: [&str; 6] = ["search", "ms.ckpt", "--images", "p", "--query", "a dog on a beach"];

fn pictures(count: u32) -> Folder {
    let folder = folder();
    for number in 0..count {
        draw(&folder, &format!("p/{number}.png"), number);
    }
    folder
}

/// The report of a search, and what it noted.
#[track_caller]
fn search(folder: &Folder, more: &[&str]) -> (Value, Vec<String>) {
    let (text, notes) = folder.engine(&[&QUERY[..], more, &["--json"]].concat()).noted();
    (serde_json::from_str(&text).unwrap(), notes)
}

fn read_now(report: &Value) -> u64 {
    report["index"]["read_now"].as_u64().unwrap()
}

fn paths(report: &Value) -> Vec<&str> {
    report["results"].as_array().unwrap().iter().map(|hit| hit["path"].as_str().unwrap()).collect()
}

#[test]
fn the_order_is_that_of_the_embeddings() {
    let folder = pictures(12);
    let (report, _) = search(&folder, &["--top", "5"]);
    folder.write("query.txt", "a dog on a beach\n");
    folder.engine(&["embed", "ms.ckpt", "--images", "p", "--texts", "query.txt", "-o", "e.safetensors"]).done();
    let tensors = folder.tensors("e.safetensors");
    let query = tensors["texts"].values();
    let names = (0..12).map(|number| format!("p/{number}.png"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    let images = tensors["images"].values();
    let scores = images.chunks(24).map(|image| image.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>());
    let mut expected: Vec<(f32, String)> = scores.zip(names).collect();
    expected.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    for (hit, (score, name)) in report["results"].as_array().unwrap().iter().zip(&expected) {
        assert_eq!(hit["path"], *name, "{report} {expected:?}");
        assert!((hit["score"].as_f64().unwrap() - f64::from(*score)).abs() < 1e-4, "{report} {expected:?}");
    }
    assert_eq!(report["results"].as_array().unwrap().len(), 5);
    // For people: a line each.
    let text = folder.engine(&QUERY).done();
    assert_eq!(text.lines().count(), 10);
    assert!(text.lines().next().unwrap().ends_with(&expected[0].1), "{text}");
}

#[test]
fn only_what_changed_is_read_again() {
    let folder = pictures(6);
    let (first, notes) = search(&folder, &[]);
    assert_eq!((read_now(&first), &notes[..]), (6, &["6 images read; the index has 6".to_string()][..]));
    let written = folder.read(INDEX);
    let (second, notes) = search(&folder, &[]);
    assert_eq!((read_now(&second), notes), (0, vec![]));
    assert_eq!((&second["results"], folder.read(INDEX) == written), (&first["results"], true));

    draw(&folder, "p/below/new.png", 99);
    draw(&folder, "p/3.png", 1000);
    std::fs::remove_file(folder.path("p/0.png")).unwrap();
    let (third, notes) = search(&folder, &[]);
    assert_eq!(notes, ["2 images read, 1 removed that no longer exist; the index has 6"]);
    let mut found = paths(&third);
    found.sort_unstable();
    assert_eq!(found, ["p/1.png", "p/2.png", "p/3.png", "p/4.png", "p/5.png", "p/below/new.png"]);
    // As if it had been made anew.
    std::fs::remove_file(folder.path(INDEX)).unwrap();
    let (fresh, _) = search(&folder, &[]);
    assert_eq!((read_now(&fresh), paths(&fresh)), (6, paths(&third)));
}

#[test]
fn another_checkpoint_needs_another_index() {
    let folder = pictures(4);
    search(&folder, &[]);
    let ms = folder.read("ms.ckpt");
    let mut other = spec();
    other.seed = 1;
    write(&folder, "ms.ckpt", &other);
    let (report, notes) = search(&folder, &[]);
    assert_eq!(read_now(&report), 4);
    assert!(notes[0].ends_with("the index was rebuilt: it was made with another checkpoint"), "{notes:?}");
    // The same contents at another time are the same checkpoint.
    folder.write("ms.ckpt", folder.read("ms.ckpt"));
    let (report, notes) = search(&folder, &[]);
    assert_eq!((read_now(&report), notes), (0, vec![]));
    folder.write("ms.ckpt", ms);
    assert_eq!(read_now(&search(&folder, &[]).0), 4);
    let (report, notes) = search(&folder, &["--image-size", "64"]);
    assert_eq!(read_now(&report), 4);
    assert!(notes.iter().any(|note| note.ends_with("it was made with another --image-size")), "{notes:?}");
}

#[test]
fn a_damaged_index_is_made_anew() {
    let folder = pictures(3);
    let (first, _) = search(&folder, &[]);
    let good = folder.read(INDEX);
    for damaged in [&b""[..], b"not an index", &good[..good.len() - 5], &good[..40]] {
        folder.write(INDEX, damaged);
        let (report, notes) = search(&folder, &[]);
        assert!(notes[0].contains("the index was rebuilt: it is damaged ("), "{notes:?}");
        assert_eq!((read_now(&report), &report["results"]), (3, &first["results"]));
        assert_eq!(folder.read(INDEX), good);
    }
}

#[test]
fn other_files_are_not_overwritten() {
    let folder = pictures(2);
    let mut tensors = Tensors::new();
    tensors.insert("w".into(), Tensor::f32(&[1], &[1.0]));
    blackbox::write(&folder.path("weights.safetensors"), &tensors);
    let said = folder.engine_refuses(&[&QUERY[..], &["--index", "weights.safetensors"]].concat());
    assert!(said.contains("weights.safetensors: this is no search index (it holds something else)"), "{said}");
    let said = folder.engine_refuses(&[&QUERY[..], &["--index", "ms.ckpt"]].concat());
    assert!(said.contains("let its name end in .safetensors"), "{said}");
    let said = folder.engine_refuses(&[&QUERY[..], &["--html", "ms.ckpt", "--force"]].concat());
    assert!(said.contains("this output is also an input"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_to() {
    use std::os::unix::fs::PermissionsExt;
    let folder = pictures(2);
    let place = folder.path("p");
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    let read_only = std::fs::write(folder.path("p/probe"), "").is_err();
    if read_only {
        let said = folder.engine_refuses(&QUERY);
        assert!(said.contains("the index can't be written here") && said.contains("--index FILE"), "{said}");
    }
    let (report, _) = search(&folder, &["--index", "elsewhere.safetensors"]);
    assert_eq!(read_now(&report), 2);
    let (report, _) = search(&folder, &["--index", "elsewhere.safetensors"]);
    assert_eq!(read_now(&report), 0);
    assert!(!folder.path(INDEX).exists());
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = folder.engine_refuses(&[&QUERY[..], &["--index", "no/folder.safetensors"]].concat());
    assert!(said.contains("the index can't be written here") && said.contains("--index FILE"), "{said}");
}

#[test]
fn broken_pictures_are_known_and_not_tried_again() {
    let folder = pictures(3);
    folder.write("p/broken.png", &folder.read("p/0.png")[..60]);
    let (first, notes) = search(&folder, &[]);
    assert_eq!((read_now(&first), first["index"]["images"].as_u64()), (4, Some(3)));
    assert!(notes[1].starts_with("cannot read broken.png: broken PNG image"), "{notes:?}");
    let (second, notes) = search(&folder, &[]);
    assert_eq!((read_now(&second), notes.len()), (0, 1));
    assert_eq!(second["index"]["unreadable"][0]["path"], "p/broken.png");
    for number in 0..3 {
        std::fs::remove_file(folder.path(format!("p/{number}.png"))).unwrap();
    }
    let said = folder.engine(&QUERY).failed();
    assert!(said.starts_with("p: none of its 1 images can be read, such as broken.png: "), "{said}");
}

#[test]
fn the_page_stands_alone() {
    let folder = pictures(3);
    let words = [&QUERY[..4], &["--query", "a <b>dog</b> & a cat", "--html", "out.html", "--top", "2"]].concat();
    let (_, _) = folder.engine(&words).noted();
    let page = String::from_utf8(folder.read("out.html")).unwrap();
    assert_eq!(page.matches("src=\"data:image/jpeg;base64,").count(), 2);
    assert!(page.contains("a &lt;b&gt;dog&lt;/b&gt; &amp; a cat") && !page.contains("<b>dog"));
    assert!(!page.contains("://") && !page.contains("src=\"p/"), "loads something");
    let said = folder.engine_refuses(&words);
    assert!(said.contains("out.html: the file exists already; --force replaces it"), "{said}");
}

#[test]
fn what_cannot_be_searched() {
    let folder = pictures(1);
    std::fs::create_dir(folder.path("empty")).unwrap();
    for (words, reason) in [
        (vec!["search", "ms.ckpt", "--images", "p", "--query", " "], "--query is empty"),
        (vec!["search", "ms.ckpt", "--images", "empty", "--query", "x"], "empty: there are no images"),
        (vec!["search", "ms.ckpt", "--images", "none", "--query", "x"], "none: cannot list: no such file"),
        (vec!["search", "none.ckpt", "--images", "p", "--query", "x"], "none.ckpt: cannot open"),
    ] {
        let said = folder.engine_refuses(&words);
        assert!(said.contains(reason), "{words:?}: {said}");
    }
}
