//! What a file says of how it came about, after a training too.

mod support;

use support::Folder;

const RUN: &str = "task = \"vqa\"\ncheckpoint = \"merged.safetensors\"\nlr = 1e-4\n";

/// A merged file, and the same after a training as `engine` writes it.
fn trained() -> Folder {
    let folder = Folder::new();
    let names = ["v", "l"].map(|m| format!("transformer.blocks.0.mlp.{m}.fc1.weight"));
    let tensors = names.each_ref().map(|name| (name.as_str(), &[2][..], &[1.0f32, 2.0][..]));
    folder.safetensors("ms.safetensors", &tensors);
    folder.ok(&["interpolate", "ms.safetensors", "--ratio", "0.25", "-o", "merged.safetensors"]);
    let merged = folder.open("merged.safetensors");
    let recipe = merged.metadata()["vlmerge.recipe"].as_str();
    let metadata = [
        ("vlmerge.recipe", recipe),
        ("engine.run", RUN),
        ("engine.step", "120"),
        ("engine.task", "vqa"),
        ("engine.version", "0.1.0"),
        ("engine.vqa_score", "0.5"),
        ("engine.labels.vqa", "[\"yes\"]"),
    ];
    let slot = "transformer.blocks.0.mlp.fc1.weight";
    folder.safetensors_saying("tuned.safetensors", &[(slot, &[2], &[3.0, 4.0])], &metadata);
    folder
}

#[test]
fn a_trained_file_shows_its_whole_history() {
    let folder = trained();
    let text = folder.ok(&["inspect", "tuned.safetensors"]);
    let (before, history) = text.split_once("\ntrained by engine 0.1.0\n").expect(&text);
    assert!(!before.contains("made by"), "the merge didn't make the file: {text}");
    let (training, merge) = history.split_once("\nfrom a file made by vlmerge ").expect(&text);
    for part in ["task ", "vqa", "step ", "120", "vqa_score", "checkpoint ", "merged.safetensors"] {
        assert!(training.contains(part), "{part}: {training}");
    }
    assert!(merge.contains("interpolate") && merge.contains("ratio") && merge.contains("ms.safetensors"), "{merge}");
    let report = folder.json(&["inspect", "tuned.safetensors"]);
    assert_eq!([&report["recipe"]["tool"], &report["recipe"]["method"]], ["engine", "training"]);
    assert_eq!(report["recipe"]["parameters"]["of"]["method"], "interpolate");
    // A file that is only merged is as it was.
    assert!(folder.ok(&["inspect", "merged.safetensors"]).contains("\nmade by vlmerge"));
}

#[test]
fn a_trained_file_has_no_recipe_to_run_again() {
    let folder = trained();
    folder.ok(&["convert", "tuned.safetensors", "-o", "tuned.ckpt"]);
    for file in ["tuned.safetensors", "tuned.ckpt"] {
        let output = folder.run(&["recipe", file]);
        assert_eq!(output.status.code(), Some(1));
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let expected = format!("vlmerge: {file}: it was trained, which no recipe repeats: its history is printed\n");
        assert_eq!(stderr, expected);
        assert!(stdout.lines().all(|line| line.starts_with('#')), "{stdout}");
        let at = |part: &str| stdout.find(part).unwrap_or_else(|| panic!("{part}: {stdout}"));
        assert!(
            at("# Trained by engine 0.1.0") < at("step 120") && at("step 120") < at("method = \"interpolate\""),
            "{stdout}"
        );
        std::fs::write(folder.path("again.toml"), &stdout).unwrap();
        let error = folder.error(&["merge", "--recipe", "again.toml", "-o", "again.safetensors"]);
        assert!(error.contains("it names no method"), "{error}");
    }
}

/// Nor has a file that was changed after the merge, or made without one.
#[test]
fn what_only_comes_from_a_merge_is_not_presented_as_one() {
    let folder = trained();
    folder.ok(&["convert", "merged.safetensors", "--dtype", "f16", "-o", "half.safetensors"]);
    let output = folder.run(&["recipe", "half.safetensors"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("it was last changed by 'vlmerge convert', which no recipe repeats"), "{stderr}");
    // Another container is the same result.
    folder.ok(&["convert", "merged.safetensors", "-o", "merged.ckpt"]);
    assert!(folder.ok(&["recipe", "merged.ckpt"]).contains("\nmethod = \"interpolate\"\n"));
}

/// A merge of trained files is no training, and says how its inputs were made.
#[test]
fn a_merge_after_a_training_is_the_last_step() {
    let folder = trained();
    folder.ok(&["soup", "tuned.safetensors", "merged.safetensors", "-o", "soup.safetensors"]);
    let soup = folder.open("soup.safetensors");
    for (key, is_kept) in [
        ("engine.step", false),
        ("engine.run", false),
        ("engine.vqa_score", false),
        ("engine.task", true),
        ("engine.labels.vqa", true),
    ] {
        assert_eq!(soup.metadata().contains_key(key), is_kept, "{key}");
    }
    let text = folder.ok(&["inspect", "soup.safetensors"]);
    let places = ["\nmade by vlmerge", "\nfrom a file trained by engine", "\nfrom a file made by vlmerge"];
    let places = places.map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}")));
    assert!(places.is_sorted(), "{text}");
    let toml = folder.ok(&["recipe", "soup.safetensors"]);
    assert!(toml.contains("# The file was itself made by engine 0.1.0: training."), "{toml}");
    std::fs::write(folder.path("again.toml"), toml).unwrap();
    folder.ok(&["merge", "--recipe", "again.toml", "-o", "again.safetensors"]);
    assert!(
        std::fs::read(folder.path("again.safetensors")).unwrap()
            == std::fs::read(folder.path("soup.safetensors")).unwrap()
    );
}

/// Equal names and shapes don't make equal models: what tokens attend to stands in the record alone.
#[test]
fn models_that_compute_differently_are_no_soup() {
    let folder = Folder::new();
    let slot = "transformer.blocks.0.mlp.fc1.weight";
    for (name, attends) in [("a", "to-all"), ("b", "within-modality"), ("c", "to-all")] {
        let record = format!("{{\"layout\": \"vl-merging\", \"attends\": \"{attends}\"}}");
        let metadata = [("vlmerge.config", record.as_str())];
        folder.safetensors_saying(&format!("{name}.safetensors"), &[(slot, &[2], &[3.0, 4.0])], &metadata);
    }
    let error = folder.error(&["soup", "a.safetensors", "b.safetensors", "-o", "soup.safetensors"]);
    assert!(
        error.contains("b.safetensors: attends is within-modality (the file's record of its model), but to-all"),
        "{error}"
    );
    folder.ok(&["soup", "a.safetensors", "c.safetensors", "-o", "soup.safetensors"]);
}
