//! `engine` from the outside: what it prints, what it writes, and how it ends.

mod architecture;
mod data;
mod device;
mod embed;
mod finetune;
mod grams;
mod help;
mod init;
mod inputs;
mod models;
mod outputs;
mod predict;
mod runs;
mod search;

use std::process::Command;

use blackbox::{Folder, Ran, program};

/// A command line of `engine`, its words apart by spaces.
fn engine_command(folder: &Folder, line: &str) -> Command {
    let mut command = Command::new(program("engine"));
    command.args(line.split_whitespace()).current_dir(folder.path(""));
    command
}

#[track_caller]
fn engine(folder: &Folder, line: &str) -> Ran {
    Ran::of(engine_command(folder, line), &format!("engine {line}"))
}

/// Runs what must fail with one line, which is returned without the program's name.
#[track_caller]
fn failed(folder: &Folder, line: &str) -> String {
    let ran = engine(folder, line);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:#?}");
    let said = ran.stderr.strip_prefix("engine: ").and_then(|line| line.strip_suffix('\n'));
    let said = said.unwrap_or_else(|| panic!("not a line of engine's: {ran:#?}"));
    assert!(!said.is_empty() && !said.chars().any(char::is_control), "not one clean line: {ran:#?}");
    said.to_owned()
}

/// Runs what is wrong usage, and returns all that it says.
#[track_caller]
fn rejected(folder: &Folder, line: &str) -> String {
    let ran = engine(folder, line);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:#?}");
    ran.stderr
}
