//! Pictures of every kind, and some that are none.

use crate::models::{copy, folder, huge, picture};

#[test]
fn pictures_of_every_kind_are_read() {
    let folder = folder();
    let kinds = [
        "grey.jpg",
        "cmyk.jpg",
        "progressive.jpg",
        "one_bit.png",
        "palette_alpha.png",
        "grey_alpha16.png",
        "moving.gif",
        "moving.webp",
        "lossless.webp",
        "plain.bmp",
        // 1 × 1, 2 × 250 and 20,000 × 3 pixels.
        "tiny.png",
        "tall.png",
        "wide.png",
    ];
    for kind in kinds {
        copy(&folder, kind, &format!("pictures/{kind}"));
    }
    folder.engine(&["embed", "ms.ckpt", "--images", "pictures", "-o", "out.safetensors"]).done();
    let images = &folder.tensors("out.safetensors")["images"];
    assert_eq!(images.shape, [kinds.len(), 24]);
    for row in images.values().chunks(24) {
        let length: f32 = row.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{row:?}");
    }
    // An animation is its first frame.
    let ran = folder.engine(&["predict", "img_cls", "ms.ckpt", "--image", "pictures/moving.gif", "--json"]).done();
    assert!(ran.contains("\"probability\""), "{ran}");
}

#[test]
fn pictures_that_are_none_say_why() {
    let folder = folder();
    folder.write("huge.bmp", huge());
    folder.write("empty.jpg", "");
    folder.write("text.png", "a picture of a dog");
    let photo = std::fs::read(picture("plain.jpg")).unwrap();
    folder.write("cut.jpg", &photo[..photo.len() / 2]);
    for (file, reason) in [
        ("huge.bmp", "huge.bmp: 20000×20000 pixels"),
        ("empty.jpg", "empty.jpg: no image: empty"),
        ("text.png", "text.png: not a JPEG, PNG, WebP, GIF or BMP image"),
        ("cut.jpg", "cut.jpg: broken JPEG image: cut short"),
    ] {
        let said = folder.engine_refuses(&["predict", "img_cls", "ms.ckpt", "--image", file]);
        assert!(said.contains(reason), "{said}");
    }
    let said = folder.engine_refuses(&["predict", "img_cls", "ms.ckpt", "--image", "."]);
    assert!(said.starts_with(".: cannot read"), "{said}");
}

/// An address space that holds the program and nothing more.
#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_said_in_one_line() {
    let folder = folder();
    copy(&folder, "photo.png", "a.png");
    let engine = blackbox::program("engine");
    let mut command = std::process::Command::new("sh");
    let line = "ulimit -v 4000000; exec \"$0\" \"$@\"";
    command.args(["-c", line]).arg(&engine).current_dir(folder.path(""));
    // A batch of 4096 pictures of 1536 pixels is 116 GB.
    command.args(["embed", "ms.ckpt", "--images"]).args(vec!["a.png"; 4096]);
    command.args(["--batch-size", "4096", "--image-size", "1536", "-o", "out.safetensors"]);
    let said = blackbox::Ran::of(command, "engine embed").failed();
    assert!(said.starts_with("out of memory: lower --batch-size or --image-size"), "{said}");
    assert!(!folder.path("out.safetensors").exists());
}
