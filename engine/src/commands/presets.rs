//! `engine presets`

use anyhow::Result;
use engine::train::presets::{PRESETS, preset};
use serde_json::json;

use super::usage;
use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine presets
  engine presets vqa-base-480
  engine presets vqa-base-480 > mine.toml && engine finetune merged.safetensors --config mine.toml")]
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
            PRESETS.iter().map(|preset| format!("{:width$}  {}\n", preset.name, preset.about())).collect()
        }
    };
    Ok(Report::done(text))
}
