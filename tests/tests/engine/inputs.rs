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

/// An address space that holds the program and little more.
#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_said_in_one_line() {
    let folder = folder();
    copy(&folder, "photo.png", "a.png");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -v 4000000; exec \"$0\" \"$@\""]).arg(blackbox::program("engine"));
    // 65,537 tokens: a table of their pairs takes 17 GB.
    command.args(["predict", "img_cls", "ms.ckpt", "--image", "a.png", "--image-size", "4096", "--device", "cpu"]);
    command.current_dir(folder.path(""));
    let said = blackbox::Ran::of(command, "engine predict").failed();
    assert!(said.starts_with("out of memory: lower --batch-size or --image-size"), "{said}");
}
