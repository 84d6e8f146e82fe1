//! `vlmerge resize`, as a user runs it.

mod support;

use fixtures::layouts::VlmoPositions::Absolute;
use fixtures::layouts::{BeitPositions, beit, beit3, vlmo, vlmo_with};
use fixtures::{LightningOptions, ModelSpec, Size, StateDict, TensorSpec, Variant, write_lightning, write_safetensors};
use support::{Folder, all_values, furthest, golden, golden_size, names, shape, state_dict, values};

const TABLE: &str = "relative_position_bias_table";

#[test]
fn golden_table_for_twice_the_image() {
    let folder = Folder::new();
    let size = (2 * golden_size("image_size")).to_string();
    let report = folder.json(&["resize", &golden("ms.ckpt"), "--image-size", &size, "-o", "ms.safetensors"]);
    let ours = folder.open("ms.safetensors");
    let expected = formats::open(golden("expect_resize_2x.safetensors")).unwrap();
    assert_eq!(shape(&ours, TABLE), shape(&expected, TABLE));
    let difference = furthest(&values(&ours, TABLE), &values(&expected, TABLE));
    assert!(difference <= 1e-5, "{difference}");

    // Everything else as it was, but for the index buffers.
    let before = formats::open(golden("ms.ckpt")).unwrap();
    let dropped: Vec<&str> = report["dropped"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(dropped.contains(&"relative_position_index") && dropped.contains(&"mask_for_combining_temporal"));
    for name in names(&before).into_iter().filter(|name| *name != TABLE) {
        assert_eq!(ours.get(name).is_none(), dropped.contains(&name), "{name}");
        if ours.get(name).is_some() {
            assert_eq!(values(&ours, name), values(&before, name), "{name}");
        }
    }
    assert_eq!(names(&ours).len() + dropped.len(), names(&before).len());

    // What the file says of itself.
    let config = &folder.json(&["inspect", "ms.safetensors"])["config"];
    let patches = golden_size("image_size") / golden_size("patch_size");
    assert_eq!(config["image_size"], 2 * golden_size("image_size"));
    assert_eq!(config["image_grid"], 2 * patches);
    assert_eq!(config["max_text_len_of_initckpt"], golden_size("max_text_len_of_initckpt"));
    let table = &report["tables"][0];
    assert_eq!((&table["patches"]["from"], &table["patches"]["to"]), (&patches.into(), &(2 * patches).into()));
}

/// A relative table of 2 × 2 patches has a grid of 3 × 3, one of 3 × 3 patches of 5 × 5; literals from PyTorch 2.15.
#[test]
fn a_table_by_hand() {
    let folder = Folder::new();
    let grid = [1.0, -2.0, 3.0, 0.0, 5.0, -1.0, 2.0, 2.0, -4.0];
    // Three rows of the class token, five of texts and 2 · T0 with T0 = 8.
    let rows: Vec<f32> = grid.into_iter().chain((0..3 + 2 + 16).map(|row| 100.0 + row as f32)).collect();
    folder.safetensors(
        "two.safetensors",
        &[(TABLE, &[30, 1], &rows), ("transformer.patch_embed.proj.weight", &[1, 1, 4, 4], &[0.5; 16])],
    );
    let arguments = ["resize", "two.safetensors", "--layout", "vl-merging", "--image-size", "12"];
    let text_len = ["--max-text-len-of-initckpt", "8"];
    folder.ok(&[&arguments[..], &text_len, &["-o", "three.safetensors"]].concat());
    let resized = values(&folder.open("three.safetensors"), TABLE);
    #[rustfmt::skip]
    let expected = [
        1.457728, -0.802016, -2.672, 0.762976, 3.965376,
        0.423456, 0.595328, 0.932, 1.413392, 1.734272,
        -0.48, 2.372, 5.0, 1.688, -1.576,
        0.910464, 2.617232, 3.668, -0.307552, -3.776032,
        2.23808, 2.43776, 1.712, -1.99456, -4.864,
    ];
    assert!(furthest(&resized[..25], &expected) < 1e-6);
    assert!(resized[25..].iter().copied().eq((0..21).map(|row| 100.0 + row as f64)));

    // 46 are 3² + 5 + 2 · 16, but 5² + 5 + 2 · 8 too.
    folder.safetensors(
        "two.safetensors",
        &[(TABLE, &[46, 1], &[1.0; 46]), ("transformer.patch_embed.proj.weight", &[1, 1, 4, 4], &[0.5; 16])],
    );
    let error = folder.error(&[&arguments[..], &["-o", "other.safetensors"]].concat());
    assert!(
        error.contains("46 rows for image and text together") && error.contains("--max-text-len-of-initckpt"),
        "{error}"
    );
    let error = folder.error(&[&arguments[..], &["--max-text-len-of-initckpt", "9", "-o", "x.safetensors"]].concat());
    assert!(error.contains("2 × 9 + 5 for texts of 9 tokens leave none of a square image"), "{error}");
}

#[test]
fn every_layout_is_resized_and_resized_again() {
    let folder = Folder::new();
    let spec = ModelSpec::preset(Size::Nano, Variant::AllMoe);
    // Hidden size 16, 2 heads, 4 layers, 2 × 2 patches of 16 pixels, T0 = 16.
    type Case<'c> = (&'c str, StateDict, &'c str, [&'c [usize]; 3], usize);
    let cases: [Case; 7] = [
        ("vl-merging", spec.state_dict(), TABLE, [&[46, 8], &[86, 8], &[158, 8]], 7),
        ("vlmo", vlmo(&spec), TABLE, [&[46, 8], &[86, 8], &[158, 8]], 3),
        ("vlmo", vlmo_with(&spec, Absolute), "transformer.pos_embed", [&[1, 5, 16], &[1, 17, 16], &[1, 37, 16]], 0),
        ("beit3", beit3(&spec), "beit3.encoder.embed_positions.A.weight", [&[7, 16], &[19, 16], &[39, 16]], 0),
        (
            "beit",
            beit(&spec, BeitPositions::Shared),
            "rel_pos_bias.relative_position_bias_table",
            [&[12, 2], &[52, 2], &[124, 2]],
            1,
        ),
        (
            "beit",
            beit(&spec, BeitPositions::PerBlock),
            "blocks.3.attn.relative_position_bias_table",
            [&[12, 2], &[52, 2], &[124, 2]],
            4,
        ),
        ("beit", absolute_beit(&spec), "pos_embed", [&[1, 5, 16], &[1, 17, 16], &[1, 37, 16]], 0),
    ];
    for (layout, state_dict, table, shapes, buffers) in cases {
        folder.zip("2.pth", &state_dict, Some("model"));
        let report = folder.json(&["resize", "2.pth", "--image-size", "64", "-o", "4.pth", "--force"]);
        assert_eq!(report["dropped"].as_array().unwrap().len(), buffers, "{layout}");
        // Without buffers the file's own record must do.
        folder.ok(&["resize", "4.pth", "--image-size", "96", "-o", "6.safetensors", "--force"]);
        let files = ["2.pth", "4.pth", "6.safetensors"].map(|file| folder.open(file));
        assert_eq!(files.each_ref().map(|file| shape(file, table)), shapes);
        assert_eq!(files[1].root(), "model");
        assert_eq!(names(&files[1]).len(), state_dict.tensors.len() - buffers);
        for (file, w) in [("2.pth", 2), ("4.pth", 4), ("6.safetensors", 6)] {
            let inspected = folder.json(&["inspect", file]);
            assert_eq!(inspected["layout"], layout);
            let config = &inspected["config"];
            assert_eq!(
                (&config["image_grid"], &config["image_size"]),
                (&w.into(), &(16 * w).into()),
                "{layout} {file}"
            );
            assert_eq!(inspected["warnings"].as_array().unwrap().len(), 0, "{:?}", inspected["warnings"]);
        }
        let (before, after) = (values(&files[0], table), values(&files[1], table));
        let columns = *shapes[0].last().unwrap();
        let lead = if shapes[0].len() == 3 {
            1
        } else if layout == "beit3" {
            3
        } else {
            0
        } * columns;
        assert_eq!(before[..lead], after[..lead]);
        // Rows after the grid: three of the class token, and those of text.
        let others = if layout == "beit" { 3 } else { 37 } * columns;
        if lead == 0 {
            assert_eq!(before[before.len() - others..], after[after.len() - others..]);
        }
    }
}

#[test]
fn a_merged_model_keeps_its_recipe() {
    let folder = Folder::new();
    folder.zip("ms.pth", &beit3(&ModelSpec::preset(Size::Nano, Variant::AllMoe)), Some("model"));
    folder.ok(&["interpolate", "ms.pth", "--ratio", "0.25", "-o", "merged.safetensors"]);
    let said = folder.ok(&["resize", "merged.safetensors", "--image-size", "48", "-o", "resized.safetensors"]);
    assert!(
        said.contains("beit3.encoder.embed_positions.A.weight:\n    2 × 2 patches → 3 × 3, [7, 16] → [12, 16]"),
        "{said}"
    );
    let recipe = &folder.json(&["inspect", "resized.safetensors"])["recipe"];
    assert_eq!((&recipe["method"], &recipe["parameters"]["image_size"]), (&"resize".into(), &48.into()));
    assert_eq!(recipe["parameters"]["of"]["parameters"]["ratio"], 0.25);
}

#[test]
fn the_same_size_is_a_plain_copy() {
    let folder = Folder::new();
    let spec = ModelSpec::preset(Size::Nano, Variant::LnMoe);
    write_lightning(&folder.path("ms.ckpt"), &spec, &LightningOptions::default()).unwrap();
    let said = folder.ok(&["resize", "ms.ckpt", "--image-size", "32", "-o", "same.safetensors"]);
    assert!(said.contains("for images of 32 pixels already (2 × 2 patches): a plain copy"), "{said}");
    assert!(folder.ok(&["diff", "ms.ckpt", "same.safetensors"]).starts_with("equal"));
    let report = folder.json(&["resize", "ms.ckpt", "--image-size", "32", "-o", "same.safetensors", "--force"]);
    assert_eq!(report["dropped"].as_array().unwrap().len(), 0);
}

#[test]
fn half_precision_is_rounded_once() {
    let folder = Folder::new();
    let spec = ModelSpec { dtype: formats::Dtype::F16, ..ModelSpec::preset(Size::Nano, Variant::Ufo) };
    write_safetensors(&folder.path("f16.safetensors"), &beit3(&spec)).unwrap();
    folder.ok(&["convert", "f16.safetensors", "--dtype", "f32", "-o", "f32.safetensors"]);
    for dtype in ["f16", "f32"] {
        folder.ok(&[
            "resize",
            &format!("{dtype}.safetensors"),
            "--image-size",
            "80",
            "-o",
            &format!("{dtype}r.safetensors"),
        ]);
    }
    folder.ok(&["convert", "f32r.safetensors", "--dtype", "f16", "-o", "f32r16.safetensors"]);
    assert!(folder.ok(&["diff", "f16r.safetensors", "f32r16.safetensors"]).starts_with("equal"));
}

/// 257² + 3 rows of 16 are more than the 2²⁰ elements that are written at a time.
#[test]
fn a_table_longer_than_a_piece() {
    let folder = Folder::new();
    let table = "beit3.encoder.embed_positions.A.weight";
    folder.zip("a.pth", &beit3(&ModelSpec::preset(Size::Nano, Variant::AllMoe)), Some("model"));
    folder.ok(&["resize", "a.pth", "--image-size", "4112", "-o", "b.pth"]);
    let (before, after) = (values(&folder.open("a.pth"), table), values(&folder.open("b.pth"), table));
    let expected = formats::position::resize_table(&before, 16, formats::layout::Grid { start: 3, side: 2 }, 257);
    assert!(expected.len() > 1 << 20 && furthest(&after, &expected) < 1e-8);
}

#[test]
fn threads_and_containers_change_nothing() {
    let folder = Folder::new();
    folder.zip("a.pth", &vlmo(&ModelSpec::preset(Size::Nano, Variant::AllMoe)), None);
    folder.ok(&["resize", "a.pth", "--image-size", "64", "-o", "1.safetensors", "--threads", "1"]);
    folder.ok(&["resize", "a.pth", "--image-size", "64", "-o", "4.safetensors", "--threads", "4"]);
    folder.ok(&["resize", "a.pth", "--image-size", "64", "-o", "4.ckpt"]);
    assert_eq!(
        std::fs::read(folder.path("1.safetensors")).unwrap(),
        std::fs::read(folder.path("4.safetensors")).unwrap()
    );
    assert_eq!(all_values(&folder.open("1.safetensors")), all_values(&folder.open("4.ckpt")));
}

#[test]
fn sizes_that_patches_do_not_tile() {
    let folder = Folder::new();
    folder.zip("a.pth", &beit3(&ModelSpec::preset(Size::Nano, Variant::AllMoe)), Some("model"));
    let error = |size: &str| folder.error(&["resize", "a.pth", "--image-size", size, "-o", "b.pth"]);
    assert_eq!(error("100"), "a.pth: patches of 16 pixels don't tile an image of 100: 96 and 112 would do");
    assert_eq!(error("8"), "a.pth: an image of 8 pixels is smaller than a patch of 16");
    for size in ["0", "-16", "65552", "x", "1e2"] {
        assert_eq!(
            folder.run(&["resize", "a.pth", "--image-size", size, "-o", "b.pth"]).status.code(),
            Some(2),
            "{size}"
        );
    }
    assert_eq!(
        error("65536"),
        "a.pth: tensor 'beit3.encoder.embed_positions.A.weight': a position table of [16777219, 16] is too large"
    );
    assert_eq!(
        folder.error(&["resize", "a.pth", "--image-size", "64", "-o", "a.pth"]),
        "a.pth: this output is also an input: choose another name"
    );
}

#[test]
fn files_that_cannot_be_resized() {
    let folder = Folder::new();
    let patch = ("beit3.vision_embed.proj.weight", &[16, 3, 16, 16][..]);
    let table = "beit3.encoder.embed_positions.A.weight";
    let error = |tensors: &[(&str, &[usize])]| {
        folder.zip("a.pth", &state_dict(tensors), None);
        folder.error(&["resize", "a.pth", "--layout", "beit3", "--image-size", "64", "-o", "b.pth"])
    };
    assert_eq!(error(&[patch]), "a.pth: it has none of the position tables of layout 'beit3'");
    assert_eq!(
        error(&[(table, &[7, 16])]),
        "a.pth: nothing in it tells the size of a patch (a layout's [shapes] patch_size says where it is)"
    );
    let no_table =
        |shape: &str| format!("a.pth: tensor '{table}': a position table is [rows, columns], this is {shape}");
    assert_eq!(error(&[patch, (table, &[112])]), no_table("[112]"));
    assert_eq!(error(&[patch, (table, &[2, 7, 16])]), no_table("[2, 7, 16]"));
    assert_eq!(error(&[patch, (table, &[])]), no_table("[]"));
    for shape in [[0, 16], [7, 0], [0, 0]] {
        assert_eq!(error(&[patch, (table, &shape)]), no_table(&format!("{shape:?}")));
    }
    for rows in [1, 2, 3, 5, 8] {
        let expected = format!("a.pth: tensor '{table}': it has {rows} rows, which no square image has");
        assert_eq!(error(&[patch, (table, &[rows, 16])]), expected);
    }
    let whole = TensorSpec {
        dtype: formats::Dtype::I64,
        init: fixtures::Init::Arange,
        ..state_dict(&[(table, &[7, 16])]).tensors.remove(0)
    };
    let mut tensors = state_dict(&[patch]);
    tensors.tensors.push(whole);
    folder.zip("a.pth", &tensors, None);
    let error = folder.error(&["resize", "a.pth", "--layout", "beit3", "--image-size", "64", "-o", "b.pth"]);
    assert_eq!(error, format!("a.pth: tensor '{table}': a position table of i64 can't be resized"));
}

/// BEiT as pre-trained with `--abs_pos_emb --disable_rel_pos_bias`.
fn absolute_beit(spec: &ModelSpec) -> StateDict {
    let mut beit = beit(spec, BeitPositions::Shared);
    let tokens = (spec.image_size / spec.patch_size).pow(2) + 1;
    beit.tensors.retain(|tensor| !tensor.name.starts_with("rel_pos_bias"));
    beit.tensors.extend(state_dict(&[("pos_embed", &[1, tokens, spec.hidden_size])]).tensors);
    beit
}
