//! `vlmerge completions`

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, Report};

pub fn run(shell: Shell) -> Result<Report> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vlmerge", &mut script);
    Ok(Report { stdout: String::from_utf8(script)?, success: true })
}
