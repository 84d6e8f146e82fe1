//! `vlmerge init`

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use formats::config::Variant;
use formats::show_name;
use merge_cli::Run;
use merge_cli::init::{Init, Initialised, init};
use serde_json::json;

use super::resize::left_out;
use super::{Context, Note, derived_recipe, layout_for, write_noting};
use crate::Report;
use crate::cli::{JsonArg, LayoutArg, OutputArgs, RootArg};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge init beit_base_patch16_224_pt22k.pth --arch ufo -o seed_init.safetensors
  vlmerge init beit_base_patch16_224_pt22k_ft22k.pth --arch all_moe --image-size 384 -o ms_init.ckpt

The result has what a BEiT can give: blocks, patch embedding, class and mask token, final norm and
the position table, whose text rows are zero. Text embeddings and heads are training's to begin.")]
pub struct Args {
    /// The BEiT, as published (names bare under 'model') or with 'transformer.' before each name.
    pub beit: PathBuf,
    /// Which parts of a layer get experts: none, norms, attention, feed-forward, or all.
    #[arg(long, value_name = "ARCH", value_parser = variant())]
    pub arch: Variant,
    /// Side of the images in pixels, a multiple of the patch size.
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub image_size: u32,
    /// Give the vision weights to the other experts too; without, there are only vision experts.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set)]
    pub share_vision: bool,
    /// First layer with a 'vl' expert [default: 10 of 12, 21 of 24].
    #[arg(long, value_name = "LAYER", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub vl_start: Option<u32>,
    /// The longest text that the position table shall have distances for [default: 196].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub max_text_len_of_initckpt: Option<u32>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    let checkpoint = formats::open_root(&args.beit, args.root.root.as_deref())?;
    let layout = layout_for(&args.layout, &checkpoint)?;
    let wish = Init {
        variant: args.arch,
        image_size: args.image_size as usize,
        vl_start: args.vl_start.map(|layer| layer as usize),
        share_vision: args.share_vision,
        text_len: args.max_text_len_of_initckpt.map(|tokens| tokens as usize),
    };
    let made = init(&checkpoint, &layout, &wish)?;
    let parameters = json!({
        "arch": args.arch,
        "image_size": args.image_size,
        "share_vision": args.share_vision,
        "vl_start": made.config.vl_start,
        "max_text_len_of_initckpt": made.config.max_text_len_of_initckpt,
    });
    let notes = notes(&made, args);
    let run = Run {
        jobs: made.jobs,
        method: None,
        recipe: derived_recipe("init", parameters, &checkpoint)?,
        config: serde_json::to_string(&made.config).ok(),
        metadata: Default::default(),
        threads: context.threads,
        checkpoints: vec![("checkpoint", &checkpoint)],
    };
    write_noting(run, None, || notes, &args.output, args.json.json, context).map(|(report, _)| report)
}

fn notes(made: &Initialised, args: &Args) -> Vec<Note> {
    let config = &made.config;
    let experts = match (args.arch, args.share_vision, config.vl_start) {
        (Variant::Ufo, ..) => "one set of weights".to_string(),
        (_, false, _) => "vision experts alone".to_string(),
        (_, true, start) => match start.filter(|&start| config.layers.is_some_and(|layers| start < layers)) {
            Some(start) => format!("vision weights for l too, and for vl from layer {start} on"),
            None => "vision weights for l too".to_string(),
        },
    };
    let layers = config.layers.unwrap_or(0);
    let (from, to) = made.patches;
    let table = format!(
        "{}: {from} × {from} patches → {to} × {to}, {:?}, text rows zero",
        show_name(&made.table.name),
        made.table.shape
    );
    vec![
        Note { key: "config", value: json!(config), text: format!("{}, {layers} layers: {experts}", args.arch) },
        Note { key: "patches", value: json!({"from": from, "to": to}), text: table },
        left_out("dropped", &made.dropped, "tensor", " without a place in a vision-language model"),
        left_out("dropped_buffers", &made.buffers, "index buffer", ""),
    ]
}

fn variant() -> impl TypedValueParser<Value = Variant> {
    PossibleValuesParser::new(["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"])
        .try_map(|name| name.parse::<Variant>())
}
