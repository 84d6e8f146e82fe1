//! `-` on the command line: standard input and output in place of a file.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{ArgMatches, Command};
pub use formats::standard::is_standard;
use formats::write::{Container, TemporaryFolder};

use super::Context;
use crate::Report;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Input,
    Output,
}

/// The arguments that take `-`: a command, its argument, and what `-` means there.
const STREAMS: &[(&str, &str, Stream)] = &[
    ("embed", "texts", Stream::Input),
    ("embed", "output", Stream::Output),
    ("eval", "answers", Stream::Input),
    ("eval", "details", Stream::Output),
    ("eval", "submission", Stream::Output),
    ("grams", "output", Stream::Output),
    ("predict vqa", "image", Stream::Input),
    ("predict vqa", "answers", Stream::Input),
    ("predict vqa", "output", Stream::Output),
    ("predict nlvr2", "left", Stream::Input),
    ("predict nlvr2", "right", Stream::Input),
    ("predict img_cls", "image", Stream::Input),
    ("predict img_cls", "answers", Stream::Input),
    ("probe", "output", Stream::Output),
    ("report", "output", Stream::Output),
    ("search", "html", Stream::Output),
];

/// Refuses a path of `-` where it would be taken for a file of that name, and two arguments that share one stream.
///
/// # Errors
/// Wrong usage, in clap's words.
pub fn check_standard(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let (mut inner, mut given, mut name) = (&*command, matches, String::new());
    while let Some((sub, matches)) = given.subcommand() {
        let Some(found) = inner.find_subcommand(sub) else { break };
        (inner, given) = (found, matches);
        name = if name.is_empty() { sub.to_owned() } else { format!("{name} {sub}") };
    }
    let mut inner = inner.clone();
    check(&name, &inner, given).map_err(|reason| inner.error(ErrorKind::ValueValidation, reason))
}

fn check(name: &str, command: &Command, given: &ArgMatches) -> Result<(), String> {
    let mut taken: Vec<(Stream, String)> = Vec::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let path = ValueParser::path_buf().type_id();
        if argument.get_value_parser().type_id() != path {
            continue;
        }
        let Ok(Some(values)) = given.try_get_raw(id) else { continue };
        if !values.into_iter().any(|value| value == "-") {
            continue;
        }
        let shown = match argument.get_long() {
            Some(long) => format!("--{long} -"),
            None => format!("{}: -", id.to_uppercase()),
        };
        let stream = STREAMS.iter().find(|(of, argument, _)| *of == name && *argument == id);
        let Some((_, _, stream)) = stream else {
            return Err(format!(
                "{shown}: it can't be standard input or output; give a file or folder (./- is one named -)"
            ));
        };
        taken.push((*stream, shown));
    }
    for (stream, name) in [(Stream::Input, "standard input"), (Stream::Output, "standard output")] {
        let mut these = taken.iter().filter(|(of, _)| *of == stream).map(|(_, shown)| shown);
        if let (Some(first), Some(second)) = (these.next(), these.next()) {
            return Err(format!("{first} and {second}: both can't be {name}"));
        }
    }
    let json = given.try_get_one::<bool>("json").ok().flatten().is_some_and(|&json| json);
    match taken.iter().find(|(stream, _)| *stream == Stream::Output) {
        Some((_, shown)) if json => Err(format!("{shown} and --json: both can't be standard output")),
        _ => Ok(()),
    }
}

/// A file that a command writes, or standard output.
pub struct Target {
    output: PathBuf,
    /// What will go to standard output: a command that is interrupted or fails sends nothing.
    collected: Option<(TemporaryFolder, PathBuf)>,
}

impl Target {
    /// Any file. Refuses one as [`super::check_output`] does.
    pub fn text(output: &Path, force: bool, reads: &[&Path]) -> Result<Target> {
        if !is_standard(output) {
            super::check_output(output, force, reads)?;
            return Ok(Target { output: output.to_owned(), collected: None });
        }
        let folder = TemporaryFolder::create().context("a temporary folder for standard output")?;
        let path = folder.path().join("output");
        Ok(Target { output: output.to_owned(), collected: Some((folder, path)) })
    }

    /// A file of tensors: safetensors or a PyTorch file, by its name's ending; safetensors on standard output.
    pub fn tensors(output: &Path, force: bool, reads: &[&Path]) -> Result<Target> {
        if !is_standard(output) {
            Container::for_path(output)?;
        } else if std::io::stdout().is_terminal() {
            bail!("-o -: standard output is a terminal, which can't show tensors: redirect it, or give a file");
        }
        let mut target = Target::text(output, force, reads)?;
        if let Some((_, path)) = &mut target.collected {
            path.set_extension("safetensors");
        }
        Ok(target)
    }

    /// Where to write the file.
    pub fn path(&self) -> &Path {
        self.collected.as_ref().map_or(&self.output, |(_, path)| path)
    }

    /// To be called once the file is written: sends it to standard output, if that is where it belongs, and then says
    /// `summary` on stderr, else on stdout.
    pub fn finish(self, context: &Context, summary: impl Into<String>) -> Result<Report> {
        Ok(match self.send()? {
            false => context.summary(summary),
            true => {
                let summary = summary.into();
                summary.lines().for_each(|line| context.note(line));
                Report::done("")
            }
        })
    }

    /// Sends the file to standard output, if that is where it belongs; whether it does.
    pub fn send(&self) -> Result<bool> {
        let Some((_, path)) = &self.collected else { return Ok(false) };
        let copied = std::fs::File::open(path).and_then(|mut file| {
            let mut stdout = std::io::stdout().lock();
            std::io::copy(&mut file, &mut stdout)?;
            stdout.flush()
        });
        match copied {
            // A reader that has seen enough (`| head`) is no failure.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
            _ => Ok(true),
        }
    }
}

/// The output's name for people.
pub fn shown(output: &Path) -> String {
    if is_standard(output) { "standard output".into() } else { formats::show_path(output) }
}
