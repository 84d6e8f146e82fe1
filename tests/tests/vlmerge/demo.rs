//! The README's first command.

use std::process::Command;

use blackbox::{Folder, Ran, program};

#[test]
fn the_demo_shows_every_command_and_leaves_its_files_if_asked() {
    let folder = Folder::new();
    program("vlmerge");
    program("engine");
    let demo = || {
        let mut command = Command::new(program("fixtures"));
        command.args(["demo", "--keep", "files", "--steps", "3"]).current_dir(folder.path("."));
        Ran::of(command, "fixtures demo --keep files --steps 3")
    };
    let printed = demo().done();
    for command in ["inspect ms.ckpt", "interpolate", "arithmetic", "diff", "convert"] {
        assert!(printed.contains(&format!("\n$ vlmerge {command}")), "{command}: {printed}");
    }
    for command in ["grams small.ckpt", "finetune regmean.safetensors", "predict vqa run/best.safetensors"] {
        assert!(printed.contains(&format!("\n$ engine {command}")), "{command}: {printed}");
    }
    assert!(printed.lines().count() < 200, "{printed}");
    assert!(printed.lines().all(|line| line.chars().count() <= 100), "{printed}");
    // A line break inside quotes would be part of the question.
    assert!(printed.contains("'what color is the shape?'"), "{printed}");
    let own = printed.lines().filter(|line| line.starts_with(['$', '#']) || line.starts_with("      "));
    for line in own {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let training = printed.lines().filter(|line| line.starts_with("3/3 ") || line.starts_with("after 3 updates: "));
    assert_eq!(training.count(), 2, "the progress of the training: {printed}");
    for part in ["equal: ", "different: ", "made by vlmerge", "Done in "] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    folder.vlmerge("inspect files/merged.ckpt").done();
    let again = demo();
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""));
    assert_eq!(again.stderr, "fixtures: files: the folder isn't empty; name a new one\n");
}

#[test]
fn a_dash_is_no_file_of_fixtures() {
    let folder = Folder::new();
    for words in [&["checkpoint", "-o", "-"][..], &["grams", "-o", "-"], &["demo", "--keep", "-"]] {
        let mut command = Command::new(program("fixtures"));
        command.args(words).current_dir(folder.path("."));
        let ran = Ran::of(command, "fixtures");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:#?}");
        assert!(ran.stderr.contains("it can't be standard input or output"), "{ran:#?}");
    }
    assert!(folder.names().is_empty());
}
