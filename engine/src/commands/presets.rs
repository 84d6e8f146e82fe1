//! `engine presets`

use anyhow::Result;
use engine::report::terminal::{stdout_width, wrapped};
use engine::train::presets::{PRESETS, Preset, preset};
use serde_json::json;

use super::usage;
use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine presets
  engine presets vqa-base-480
  engine presets vqa-base-480 > mine.toml && \\
      engine finetune merged.safetensors --config mine.toml")]
pub struct Args {
    /// The preset to print, as TOML [default: a list of them].
    pub name: Option<String>,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args) -> Result<Report> {
    let text = match (&args.name, args.json.json) {
        (Some(name), json) => {
            let found = preset(name).or_else(|reason| usage(&reason))?;
            match json {
                true => format!("{:#}\n", serde_json::to_value(found.text.parse::<toml::Table>()?)?),
                false => found.text.to_owned(),
            }
        }
        (None, true) => {
            let all = PRESETS.iter().map(|preset| json!({ "name": preset.name, "about": preset.about() }));
            format!("{:#}\n", all.collect::<serde_json::Value>())
        }
        (None, false) => {
            let width = PRESETS.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
            let line = |preset: &Preset| {
                let line = format!("{:width$}  {}", preset.name, preset.about());
                // Whole lines for `grep`; on a terminal, lines that break between words.
                stdout_width().map_or_else(|| line.clone(), |columns| wrapped(&line, width + 2, columns)) + "\n"
            };
            PRESETS.iter().map(line).collect()
        }
    };
    Ok(Report::done(text))
}
