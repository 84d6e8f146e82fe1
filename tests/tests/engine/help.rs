//! Help, completions, `-` and `--quiet`.

use std::process::{Command, Stdio};

use blackbox::{Folder, Ran};

use crate::models::{copy, draw, folder};
use crate::{engine, engine_command, rejected};

/// The help of a command at 80 columns.
fn help(folder: &Folder, command: &str) -> String {
    let mut shown = engine_command(folder, &format!("{command} --help"));
    shown.env("COLUMNS", "80");
    Ran::of(shown, &format!("engine {command} --help")).done()
}

/// Every command and subcommand, as the help lists them; the program itself is `""`.
fn commands(folder: &Folder) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut at = 0;
    while at < found.len() {
        let outer = found[at].clone();
        let help = help(folder, &outer);
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // A description that goes on in the next line is indented further.
        let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help");
        found.extend(names.map(|name| format!("{outer} {name}").trim().to_owned()));
        at += 1;
    }
    found
}

#[test]
fn help_fits_80_columns_and_breaks_between_words() {
    let folder = Folder::new();
    let commands = commands(&folder);
    for command in ["finetune", "data build", "data inspect", "predict nlvr2", "bench train", "completions"] {
        assert!(commands.iter().any(|name| name == command), "{command} is in {commands:?}");
    }
    for command in commands {
        let narrow = help(&folder, &command);
        for line in narrow.lines() {
            // One word that is longer can't be helped.
            assert!(line.chars().count() <= 80 || !line.trim().contains(' '), "{command}: {line}");
        }
        let mut wide = engine_command(&folder, &format!("{command} --help"));
        wide.env("COLUMNS", "100");
        let wide = Ran::of(wide, "engine --help, wider").done();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&narrow), words(&wide), "{command}: the same words at any width");
    }
}

/// A note that has line breaks of its own is broken again by a terminal that is narrower: a long line, a short one.
#[test]
fn notes_in_the_help_wrap_once() {
    let folder = Folder::new();
    for command in commands(&folder) {
        let help = help(&folder, &command);
        let Some((_, after)) = help.split_once("\nOptions:\n") else { continue };
        let notes = after.split("\n\n").filter(|part| !part.starts_with(' ') && !part.starts_with("Example"));
        for note in notes {
            let lines: Vec<&str> = note.trim_end().lines().collect();
            for pair in lines.windows(2) {
                let next = pair[1].split(' ').next().unwrap_or_default();
                let room = 80 - pair[0].chars().count();
                assert!(next.chars().count() + 1 > room, "{command}: a line is broken early: {note}");
            }
        }
    }
}

#[test]
fn examples_in_the_help_can_be_pasted() {
    let folder = Folder::new();
    for command in commands(&folder) {
        let help = help(&folder, &command);
        let Some((_, examples)) = help.split_once("\nExample") else { continue };
        let examples = examples.split_once(":\n").expect("a heading").1.split("\n\n").next().unwrap();
        let joined = examples.replace("\\\n", " ");
        for example in joined.lines() {
            let typed = example.strip_prefix("  ").unwrap_or_else(|| panic!("{command}: {example}"));
            assert!(!typed.starts_with(' '), "{command}: a line of its own that continues another: {example}");
            let first = typed.split(' ').next().unwrap_or_default();
            assert!(["engine", "vlmerge", "echo"].contains(&first), "{command}: {example}");
        }
        folder.write("examples.sh", joined);
        let mut bash = Command::new("bash");
        bash.args(["-n", "examples.sh"]).current_dir(folder.path("."));
        Ran::of(bash, "bash -n examples.sh").done();
    }
}

#[test]
fn completions_know_commands_and_options() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = engine(&folder, &format!("completions {shell}")).done();
        for word in ["engine", "finetune", "predict", "nlvr2", "activation-checkpointing"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        folder.write(shell, script);
    }
    rejected(&folder, "completions tcsh");
    let mut bash = Command::new("bash");
    bash.args(["-n", "bash"]).current_dir(folder.path("."));
    Ran::of(bash, "bash -n").done();
}

/// Runs a line with this on standard input; what it writes to standard output need not be text.
fn piped(folder: &Folder, line: &str, input: &[u8]) -> std::process::Output {
    use std::io::Write;
    let mut command = engine_command(folder, line);
    let mut running =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("engine runs");
    running.stdin.take().expect("a pipe").write_all(input).expect("engine reads");
    running.wait_with_output().expect("an end")
}

#[test]
fn a_dash_is_standard_input_or_output_and_never_a_file() {
    let folder = folder();
    draw(&folder, "a.png", 3);
    folder.write("texts.txt", "a dog\na cat\n");
    engine(&folder, "--quiet embed ms.ckpt --images a.png --texts texts.txt -o e.safetensors").done();
    let ended = piped(&folder, "embed ms.ckpt --images a.png --texts - -o -", b"a dog\na cat\n");
    let said = String::from_utf8(ended.stderr).expect("text");
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(said.starts_with("engine: embeddings of 1 image and 2 texts written to standard output"), "{said}");
    assert_eq!(ended.stdout, folder.read("e.safetensors"));

    let named = engine(&folder, "--quiet predict img_cls ms.ckpt --image a.png").done();
    let read = piped(&folder, "--quiet predict img_cls ms.ckpt --image -", &folder.read("a.png"));
    assert_eq!(String::from_utf8(read.stdout).expect("text"), named);
    let labels =
        piped(&folder, "--quiet predict img_cls ms.ckpt --image a.png --answers -", b"[\"a\",\"b\",\"c\",\"d\"]");
    assert!(labels.status.success(), "{}", String::from_utf8_lossy(&labels.stderr));

    let page = engine(&folder, "--quiet search ms.ckpt --images . --query dog --html -").done();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"), "{page}");

    for (line, reason) in [
        ("eval - --data toy", "CHECKPOINT: -: it can't be standard input or output"),
        ("eval ms.ckpt --data -", "--data -: it can't be standard input or output"),
        ("embed ms.ckpt --images - -o e.safetensors", "--images -: it can't be"),
        ("finetune ms.ckpt -o -", "--output -: it can't be"),
        ("data build coco . -o -", "--output -: it can't be"),
        ("predict nlvr2 ms.ckpt --left - --right - --text x", "both can't be standard input"),
        ("eval ms.ckpt --data toy --details - --submission -", "both can't be standard output"),
        ("embed ms.ckpt --images a.png -o - --json", "both can't be standard output"),
    ] {
        let said = rejected(&folder, line);
        assert!(said.contains(reason) && said.contains("Usage: engine "), "{line}: {said}");
    }
    assert!(!folder.names().contains(&"-".to_owned()), "{:?}", folder.names());
}

#[test]
fn names_on_standard_input_are_those_of_every_split() {
    let folder = folder();
    draw(&folder, "set/a.png", 3);
    for split in ["val", "test"] {
        let line = "{\"image\": \"a.png\", \"question\": \"what is it?\", \"answer\": \"b\"}\n";
        folder.write(&format!("set/{split}.jsonl"), line);
    }
    let line = "eval ms.ckpt --task vqa --data set --split val --split test --device cpu --answers -";
    let ended = piped(&folder, line, b"[\"a\",\"b\",\"c\",\"d\",\"e\"]");
    let said = String::from_utf8(ended.stdout).expect("text");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(said.starts_with("val\n") && said.contains("\ntest\n"), "{said}");
}

#[test]
fn quiet_leaves_results_and_no_summaries() {
    let folder = folder();
    copy(&folder, "photo.png", "a.png");
    folder.write("texts.txt", "a dog\n");
    let embed = "embed ms.ckpt --texts texts.txt --force -o e.safetensors";
    assert_eq!(engine(&folder, &format!("--quiet {embed}")).done(), "");
    assert!(engine(&folder, &format!("--quiet {embed} --json")).done().contains("\"texts\": 1"));
    assert!(engine(&folder, embed).done().starts_with("embeddings of 0 images and 1 text written to e.safetensors"));
    assert!(engine(&folder, "--quiet predict img_cls ms.ckpt --image a.png").done().contains(" %  label "));
    let grams = "--quiet grams ms.ckpt --task irtr --samples 2 -o g.safetensors";
    assert_eq!(engine(&folder, grams).done(), "");
}

#[test]
fn tables_fit_80_columns() {
    let folder = folder();
    for number in 0..4 {
        draw(&folder, &format!("set/images_of_a_download/{number}.png"), number);
    }
    for split in ["train", "val", "test"] {
        let row = |number: u32| {
            format!("{{\"image\":\"images_of_a_download/{number}.png\",\"caption\":\"a picture, number {number}\"}}\n")
        };
        folder.write(&format!("set/{split}.jsonl"), (0..4).map(row).collect::<String>());
    }
    for line in [
        "bench train --device cpu --size tiny --image-size 32 --batch-size 2 --steps 1 --preset irtr-coco-base-384",
        "selftest --device cpu --size tiny --image-sizes 64 --batch-size 1 --seconds 0.01",
        "data inspect toy",
        "data inspect set",
    ] {
        let said = engine(&folder, &format!("--quiet {line}")).done();
        for shown in said.lines() {
            assert!(shown.chars().count() <= 80, "{line}: {shown}");
        }
    }
}

#[test]
fn a_path_with_a_blank_is_quoted_in_commands_to_paste() {
    let folder = folder();
    let words = ["finetune", "--steps", "1", "--device", "cpu", "--set", "samples=0", "-o", "my run"];
    let ran = folder.engine(&words);
    assert!(ran.stdout.contains("1 update done\n"), "{ran:#?}");
    assert!(ran.stdout.contains("engine report 'my run' -o report.html\n"), "{ran:#?}");
    let again = folder.engine(&words).failed();
    assert!(again.contains("--resume 'my run' continues it"), "{again}");
    let words = ["grams", "ms.ckpt", "--task", "irtr", "--samples", "1", "--device", "cpu", "-o", "my g.safetensors"];
    let (said, _) = folder.engine(&words).noted();
    assert!(said.starts_with("32 gram matrices of 1 example (toy val, irtr) written to my g.safetensors"), "{said}");
    assert!(said.contains("vlmerge regmean --grams 'my g.safetensors' -o merged.safetensors\n"), "{said}");
}
