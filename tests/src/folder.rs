//! A folder to run programs in, and what came of running one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::program;
use crate::tensors::{Tensors, read};

/// Far longer than any run takes, on the slowest machine: only a program that hangs gets there.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A temporary folder, the working directory of every program run in it.
pub struct Folder(TempDir);

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    /// What was run.
    pub line: String,
    /// The exit status, `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Folder {
    #[expect(clippy::new_without_default, reason = "it makes a folder on disk")]
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    /// A folder with a copy of each of these golden files.
    pub fn with_golden(names: &[&str]) -> Folder {
        let folder = Folder::new();
        for name in names {
            let from = fixtures::golden().join(name);
            fs::copy(&from, folder.path(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        folder
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// The tensors of a safetensors file.
    pub fn tensors(&self, name: &str) -> Tensors {
        read(&self.path(name))
    }

    /// Everything in the folder by name, with the contents of files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.0.path()).expect("the temporary folder");
        let entries = entries.map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap_or_default())
        });
        entries.collect()
    }

    /// The names of everything in the folder.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the temporary folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// A command line of `vlmerge`, its words apart by spaces, to be run by other means than [`Folder::vlmerge`].
    pub fn command(&self, line: &str) -> std::process::Command {
        let mut command = std::process::Command::new(program("vlmerge"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command
    }

    /// Runs a command line of `vlmerge`, its words apart by spaces.
    #[track_caller]
    pub fn vlmerge(&self, line: &str) -> Ran {
        Ran::of(self.command(line), &format!("vlmerge {line}"))
    }

    /// Runs `engine` with these words, its working directory the folder.
    #[track_caller]
    pub fn engine(&self, words: &[&str]) -> Ran {
        let mut command = std::process::Command::new(program("engine"));
        command.args(words).current_dir(self.0.path());
        Ran::of(command, &format!("engine {}", words.join(" ")))
    }

    /// Runs what `engine` must refuse with one line, which is returned, and must leave the folder as it was.
    #[track_caller]
    pub fn engine_refuses(&self, words: &[&str]) -> String {
        self.unchanged(|| self.engine(words).failed())
    }

    /// Runs what must be refused with one line, which is returned, and must leave the folder as it was.
    #[track_caller]
    pub fn refuses(&self, line: &str) -> String {
        self.unchanged(|| self.vlmerge(line).failed())
    }

    /// Runs what is wrong usage; returns all that it says, and the folder must stay as it was.
    #[track_caller]
    pub fn rejects(&self, line: &str) -> String {
        self.unchanged(|| {
            let ran = self.vlmerge(line);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:#?}");
            ran.stderr
        })
    }

    /// Runs a command with `--json` and returns what it printed.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let printed = self.vlmerge(&format!("{line} --json")).done();
        serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{line} --json: {e}: {printed}"))
    }

    #[track_caller]
    fn unchanged<T>(&self, action: impl FnOnce() -> T) -> T {
        let before = self.contents();
        let result = action();
        let after = self.contents();
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "files in the folder");
        let changed: Vec<&String> = before.keys().filter(|&name| before[name] != after[name]).collect();
        assert!(changed.is_empty(), "changed: {changed:?}");
        result
    }
}

impl Ran {
    /// Runs a command to its end. `line` stands for it in messages.
    #[track_caller]
    pub fn of(command: std::process::Command, line: &str) -> Ran {
        let output = assert_cmd::Command::from_std(command).timeout(PATIENCE).output();
        let output = output.unwrap_or_else(|e| panic!("{line}: {e}"));
        let text = |bytes| String::from_utf8(bytes).unwrap_or_else(|e| panic!("{line}: prints no UTF-8: {e}"));
        Ran { line: line.into(), code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What it printed; it must have succeeded without a word on stderr.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:#?}");
        self.stdout
    }

    /// The one warning, without the program's name; it must have succeeded all the same.
    #[track_caller]
    pub fn warned(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.one_line(&format!("{}: warning: ", self.program()))
    }

    /// The one line on stderr, without the program's name; it must have failed and printed nothing else.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:#?}");
        self.one_line(&format!("{}: ", self.program()))
    }

    /// What it printed, and its lines on stderr without the program's name; it must have succeeded.
    #[track_caller]
    pub fn noted(self) -> (String, Vec<String>) {
        assert_eq!(self.code, Some(0), "{self:#?}");
        let start = format!("{}: ", self.program());
        let notes = self.stderr.lines().map(|line| match line.strip_prefix(&start) {
            Some(note) => note.to_owned(),
            None => panic!("no line of '{start}…': {self:#?}"),
        });
        (self.stdout.clone(), notes.collect())
    }

    fn program(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    #[track_caller]
    fn one_line(&self, start: &str) -> String {
        let line = self.stderr.strip_prefix(start).and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("no line of '{start}…': {self:#?}"));
        assert!(!line.is_empty() && !line.chars().any(char::is_control), "not one clean line: {self:#?}");
        line.to_owned()
    }
}
