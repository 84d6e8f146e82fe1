//! `engine completions`

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::Report;
use crate::cli::Cli;

pub fn run(shell: Shell) -> Result<Report> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "engine", &mut script);
    Ok(Report::done(String::from_utf8(script)?))
}
