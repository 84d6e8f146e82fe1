//! Where results go, and what may not be overwritten.

use std::fs;
use std::path::PathBuf;

use blackbox::{Folder, read, write_sharded};

use crate::models::{edited, small};

#[test]
fn existing_files_need_force() {
    let folder = edited(|_| ());
    for container in ["safetensors", "ckpt"] {
        let output = format!("out.{container}");
        folder.write(&output, "precious");
        let line = format!("interpolate ms.safetensors --ratio 0.5 -o {output}");
        assert_eq!(folder.refuses(&line), format!("{output}: the file exists already; --force replaces it"));
        folder.vlmerge(&format!("{line} --force")).done();
        assert!(folder.read(&output).len() > 500);
        assert_eq!(folder.names(), ["ms.safetensors".to_string(), output.clone()].as_slice(), "no other file");
        fs::remove_file(folder.path(output)).unwrap();
    }
}

/// Under any spelling, with or without `--force`.
#[test]
fn an_output_that_is_an_input() {
    let folder = edited(|_| ());
    fs::create_dir(folder.path("sub")).unwrap();
    let mut outputs = vec!["ms.safetensors", "./ms.safetensors", "sub/../ms.safetensors"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("ms.safetensors", folder.path("link.safetensors")).unwrap();
        fs::hard_link(folder.path("ms.safetensors"), folder.path("hard.safetensors")).unwrap();
        outputs.extend(["link.safetensors", "hard.safetensors"]);
    }
    for output in outputs {
        for line in [
            format!("interpolate ms.safetensors --ratio 0.5 -o {output} --force"),
            format!("convert ms.safetensors -o {output} --force"),
            format!("convert ms.safetensors -o {output}"),
        ] {
            assert_eq!(folder.refuses(&line), format!("{output}: this output is also an input: choose another name"));
        }
    }
}

#[test]
fn an_output_that_is_the_base_or_a_shard() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    let refusal = folder.refuses("arithmetic ms.ckpt --base seed.ckpt --lambda 1 -o seed.ckpt --force");
    assert_eq!(refusal, "seed.ckpt: this output is also an input: choose another name");
    let folder = Folder::new();
    write_sharded(&folder.path("."), &small());
    let shard = "model-00001-of-00002.safetensors";
    let refusal = folder.refuses(&format!("interpolate model.safetensors.index.json --ratio 0.5 -o {shard} --force"));
    assert_eq!(refusal, format!("{shard}: this output is also an input: choose another name"));
}

#[test]
fn outputs_that_cannot_be() {
    let folder = edited(|_| ());
    fs::create_dir(folder.path("folder.ckpt")).unwrap();
    for (output, reason) in [
        ("out", "which format? name the output .safetensors, or .ckpt, .pth, .pt or .bin for PyTorch"),
        ("out.zip", "which format?"),
        (".safetensors", "which format?"),
        ("nowhere/out.ckpt", "there is no folder nowhere"),
        ("ms.safetensors/out.ckpt", "there is no folder ms.safetensors"),
        ("folder.ckpt", "this is a folder"),
    ] {
        for force in ["", "--force"] {
            let refusal = folder.refuses(&format!("interpolate ms.safetensors --ratio 0.5 -o {output} {force}"));
            assert!(refusal.starts_with(&format!("{output}: {reason}")), "{refusal}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_to() {
    let folder = edited(|_| ());
    let locked = unwritable(&folder);
    let output = locked.join("out.ckpt");
    for name in ["out.ckpt", "out.safetensors"] {
        let output = locked.join(name);
        let refusal = folder.refuses(&format!("interpolate ms.safetensors --ratio 0.5 -o {}", output.display()));
        assert!(refusal.starts_with(&format!("{}: cannot write: ", output.display())), "{refusal}");
    }
    assert!(!output.exists());
}

/// Permissions don't bind root, who gets a folder that nobody can make files in.
#[cfg(unix)]
fn unwritable(folder: &Folder) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let locked = folder.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let candidates = [locked, "/proc/self".into(), "/sys".into(), "/dev/fd".into()];
    let fails = |path: &PathBuf| path.is_dir() && fs::write(path.join("probe"), "").is_err();
    candidates.into_iter().find(fails).expect("a folder that can't be written to")
}

/// A limit on file sizes stands for a full disk: writing starts, and fails half-way.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    use std::process::Command;

    use blackbox::Ran;

    let folder = Folder::with_golden(&["ms.ckpt"]);
    let program = folder.command("").get_program().to_owned();
    for (output, old) in
        [("new.ckpt", false), ("new.safetensors", false), ("old.ckpt", true), ("old.safetensors", true)]
    {
        if old {
            folder.write(output, "precious");
        }
        let before = folder.contents();
        // 50 KB or 100 KB, by the shell's idea of a block; the result has 500 KB.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f 100; exec \"$@\"", "sh"]).arg(&program).current_dir(folder.path("."));
        command.args(["interpolate", "ms.ckpt", "--ratio", "0.5", "-o", output, "--force"]);
        let said = Ran::of(command, &format!("vlmerge writing {output}")).failed();
        assert_eq!(said, format!("{output}: cannot write: file too large"));
        assert!(folder.contents() == before, "{output}: files are as they were: {:?}", folder.names());
    }
}

/// A new file gets the permissions that the user's umask says, not those of a private temporary file.
#[cfg(unix)]
#[test]
fn permissions_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    let folder = edited(|_| ());
    let program = folder.command("").get_program().to_owned();
    for (umask, mode) in [("022", 0o644), ("027", 0o640)] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]).arg(&program).current_dir(folder.path("."));
        command.args(["interpolate", "ms.safetensors", "--ratio", "0.5", "-o", "out.ckpt", "--force"]);
        blackbox::Ran::of(command, umask).done();
        assert_eq!(fs::metadata(folder.path("out.ckpt")).unwrap().permissions().mode() & 0o777, mode, "{umask}");
    }
}

#[test]
fn names_with_spaces_and_other_scripts() {
    let folder = edited(|_| ());
    let mut command = folder.command("interpolate ms.safetensors --ratio 0.5 -o");
    command.arg("ein Modell – 模型.safetensors");
    let printed = blackbox::Ran::of(command, "a long name").done();
    assert!(printed.starts_with("ein Modell – 模型.safetensors: 8 tensors"), "{printed}");
    assert_eq!(read(&folder.path("ein Modell – 模型.safetensors")).len(), 8);
}

/// `--quiet` is for scripts: the exit status is the answer, and what a command is for is still printed.
#[test]
fn quiet_prints_no_summary_on_stdout_either() {
    let folder = edited(|_| ());
    let line = "interpolate ms.safetensors --ratio 0.5 -o out.safetensors --force";
    assert_eq!(folder.vlmerge(&format!("{line} --quiet")).done(), "");
    assert!(folder.vlmerge(line).done().starts_with("out.safetensors: 8 tensors"));
    assert_eq!(folder.json(&format!("{line} -q"))["tensors"], 8);
    assert_eq!(folder.vlmerge("diff out.safetensors out.safetensors -q").done(), "");
    for asked in ["inspect out.safetensors -q", "recipe out.safetensors -q", "distance ms.safetensors -q"] {
        assert!(!folder.vlmerge(asked).done().is_empty(), "{asked}");
    }
    assert!(folder.refuses("interpolate ms.safetensors --ratio 0.5 -o out.safetensors -q").contains("--force"));
}
