//! Help, completions, and manners towards terminals, pipes and full disks.

use std::io::Read;
use std::process::Stdio;

use blackbox::{Folder, Ran};

/// Every command, as `vlmerge --help` lists them.
fn commands(folder: &Folder) -> Vec<String> {
    let help = folder.vlmerge("--help").done();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that goes on in the next line is indented further.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let folder = Folder::new();
    let commands = commands(&folder);
    for command in ["inspect", "convert", "interpolate", "arithmetic", "diff", "completions"] {
        assert!(commands.iter().any(|name| name == command), "{command} is in {commands:?}");
    }
    for command in commands {
        let help = folder.vlmerge(&format!("{command} --help")).done();
        assert!(help.contains("\nExamples:\n") && help.contains(&format!("  vlmerge {command} ")), "{help}");
        // clap doesn't wrap the usage line, whose words are no text.
        assert!(help.lines().all(|line| line.starts_with("Usage: ") || line.chars().count() <= 80), "{help}");
        assert_eq!(folder.vlmerge(&format!("help {command}")).done(), help);
    }
}

/// Examples can be pasted as they are: a line that goes on ends in `\`, and notes are wrapped once, by hand.
#[test]
fn examples_do_not_break_when_pasted() {
    let folder = Folder::new();
    for command in commands(&folder) {
        let help = folder.vlmerge(&format!("{command} --help")).done();
        let (_, notes) = help.split_once("\nExamples:\n").unwrap();
        let examples: Vec<&str> = notes.lines().take_while(|line| !line.is_empty()).collect();
        for (line, next) in examples.iter().zip(examples.iter().skip(1).map(|line| Some(*line)).chain([None])) {
            let goes_on = next.is_some_and(|next| next.starts_with("   "));
            assert_eq!(line.ends_with(" \\"), goes_on, "{command}: {line}");
            assert!(line.starts_with("  vlmerge ") || line.starts_with("      "), "{command}: {line}");
        }
    }
}

#[test]
fn version() {
    assert_eq!(Folder::new().vlmerge("--version").done(), format!("vlmerge {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_commands_and_options() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = folder.vlmerge(&format!("completions {shell}")).done();
        for word in ["vlmerge", "interpolate", "arithmetic", "ratio", "experts", "irtr"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        folder.write(shell, script);
    }
    folder.rejects("completions tcsh");
    // Of the three, only bash is on every machine.
    let mut bash = std::process::Command::new("bash");
    bash.args(["-n", "bash"]).current_dir(folder.path("."));
    Ran::of(bash, "bash -n").done();
}

#[test]
fn wrong_usage() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    for line in [
        "",
        "frobnicate",
        "inspect",
        "inspect ms.ckpt --no-such-option",
        "interpolate ms.ckpt -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5",
        "interpolate ms.ckpt --ratio nan -o out.ckpt",
        "interpolate ms.ckpt --ratio inf -o out.ckpt",
        "interpolate ms.ckpt --ratio half -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5 --experts used -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5 --task vqa -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5 --experts some -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5 --experts used --task sleep -o out.ckpt",
        "interpolate ms.ckpt --ratio 0.5 --threads 0 -o out.ckpt",
        "arithmetic ms.ckpt --lambda 0.5 -o out.ckpt",
        "arithmetic ms.ckpt --base ms.ckpt -o out.ckpt",
        "convert ms.ckpt",
        "convert ms.ckpt --dtype f8 -o out.ckpt",
        "diff ms.ckpt",
    ] {
        folder.rejects(line);
    }
}

/// `vlmerge inspect x | head`: a reader that leaves is no failure, and neither is nobody on stderr.
#[test]
fn readers_that_leave() {
    let folder = Folder::with_golden(&["ms.ckpt", "seed.ckpt"]);
    for (line, code) in [("inspect ms.ckpt --json", 0), ("diff ms.ckpt seed.ckpt --all", 1), ("inspect nope", 1)] {
        let mut running = folder.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(running.stdout.take());
        let mut said = String::new();
        running.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(code), "{line}");
        assert!(said.is_empty() || line == "inspect nope", "{line}: {said}");
    }
    let mut running = folder.command("inspect nope").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stderr.take());
    assert_eq!(running.wait().unwrap().code(), Some(1), "stderr closed");
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_printed() {
    let folder = Folder::with_golden(&["ms.ckpt"]);
    let full = std::fs::File::create("/dev/full").unwrap();
    let ran = folder.command("inspect ms.ckpt").stdout(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.starts_with("vlmerge: cannot print: ") && said.lines().count() == 1, "{said}");
}
