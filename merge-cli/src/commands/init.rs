//! `vlmerge init`

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use formats::config::Variant;
use formats::layout::Layout;
use formats::{Checkpoint, show_name};
use merge_cli::init::{Init, Initialised, NewParts, init};
use merge_cli::seed::{Spread, spread};
use merge_cli::{Recipe, Run};
use serde_json::json;

use super::resize::left_out;
use super::{Context, Note, derived_recipe, kept_metadata, one_standard_input, recorded_layout, usage, write_noting};
use crate::cli::{JsonArg, LayoutArg, OutputArgs, RootArg};
use crate::{Report, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge init beit_base_patch16_224_pt22k.pth --arch ufo \\
      -o seed_init.safetensors
  vlmerge init beit.pth --arch all_moe --image-size 384 --seed 1 \\
      -o ms_init.ckpt
  vlmerge init seed.ckpt --arch all_moe -o ms_init.safetensors

From a BEiT: blocks, patch embedding, class and mask token, final norm and the
position table, whose text rows are zero, are its own. Text embeddings, token
types and pooler are new, drawn from N(0, 0.02) by --seed, so that 'engine
finetune' opens the result; --bare leaves them out. From a seed, a model with
one set of weights: each expert starts as a copy of the seed's weights and
everything else is kept, so that the result computes what the seed does.")]
pub struct Args {
    /// The BEiT, as published or with 'transformer.' before each name; or a seed, such as a merged
    /// checkpoint.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Which parts of a layer get experts: none, norms, attention, feed-forward, or all.
    #[arg(long, value_name = "ARCH", value_parser = variant())]
    pub arch: Variant,
    /// First layer with a 'vl' expert [default: a seed's own, or 10 of 12, 21 of 24].
    #[arg(long, value_name = "LAYER", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub vl_start: Option<u32>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
    #[command(flatten)]
    pub beit: BeitArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For a BEiT")]
pub struct BeitArgs {
    /// Side of the images in pixels, a multiple of the patch size [default: 224].
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub image_size: Option<u32>,
    /// Give the vision weights to the other experts too [default: true]; without, there are only
    /// vision experts.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub share_vision: Option<bool>,
    /// The longest text that the position table has distances for [default: 196].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub max_text_len_of_initckpt: Option<u32>,
    /// Tokens of a text, padding included [default: 40].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 16))]
    pub max_text_len: Option<u32>,
    /// Words of the text embeddings [default: 30522, BERT's].
    #[arg(long, value_name = "WORDS", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub vocab_size: Option<u32>,
    /// Seed of the new parts [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Leave out the new parts: write only what the BEiT gives.
    #[arg(long, conflicts_with_all = ["max_text_len", "vocab_size", "seed"])]
    pub bare: bool,
}

impl BeitArgs {
    /// An option that was given and means nothing for a seed, and why.
    fn given(&self) -> Option<(&'static str, &'static str)> {
        let size = "a seed keeps its own, which 'vlmerge resize' changes";
        let nothing_new = "a seed has these parts already";
        let options = [
            (self.image_size.is_some(), ("--image-size", size)),
            (self.share_vision.is_some(), ("--share-vision", "all experts get the seed's weights")),
            (self.max_text_len_of_initckpt.is_some(), ("--max-text-len-of-initckpt", "a seed keeps its table")),
            (self.max_text_len.is_some(), ("--max-text-len", nothing_new)),
            (self.vocab_size.is_some(), ("--vocab-size", nothing_new)),
            (self.seed.is_some(), ("--seed", nothing_new)),
            (self.bare, ("--bare", nothing_new)),
        ];
        options.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
    }
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    one_standard_input([Some(args.file.as_path()), args.layout.path()].into_iter().flatten())?;
    let checkpoint = formats::open_root(&args.file, args.root.root.as_deref())?;
    let mut recipe = derived_recipe("init", json!({"arch": args.arch}), &checkpoint)?;
    let layout = recorded_layout(&args.layout, &checkpoint, &mut recipe, context)?;
    match layout.has_experts() {
        true => from_seed(args, &checkpoint, &layout, recipe, context),
        false => from_beit(args, &checkpoint, &layout, recipe, context),
    }
}

fn from_beit(
    args: &Args,
    checkpoint: &Checkpoint,
    layout: &Layout,
    mut recipe: Recipe,
    context: &Context,
) -> Result<Report> {
    let (beit, usual) = (&args.beit, NewParts::default());
    let size = |given: Option<u32>, usual: usize| given.map_or(usual, |size| size as usize);
    let new = NewParts {
        seed: beit.seed.unwrap_or(usual.seed),
        vocab_size: size(beit.vocab_size, usual.vocab_size),
        max_text_len: size(beit.max_text_len, usual.max_text_len),
    };
    let wish = Init {
        variant: args.arch,
        image_size: size(beit.image_size, 224),
        vl_start: args.vl_start.map(|layer| layer as usize),
        share_vision: beit.share_vision.unwrap_or(true),
        text_len: beit.max_text_len_of_initckpt.map(|tokens| tokens as usize),
        new: (!beit.bare).then_some(new),
    };
    let made = init(checkpoint, layout, &wish)?;
    let parameters = [
        ("image_size", json!(wish.image_size)),
        ("share_vision", json!(wish.share_vision)),
        ("vl_start", json!(made.config.vl_start)),
        ("max_text_len_of_initckpt", json!(made.config.max_text_len_of_initckpt)),
    ];
    let of_new =
        [("seed", json!(new.seed)), ("vocab_size", json!(new.vocab_size)), ("max_text_len", json!(new.max_text_len))];
    let of_new = if beit.bare { vec![("bare", json!(true))] } else { of_new.to_vec() };
    recipe.parameters.extend(parameters.into_iter().chain(of_new).map(|(name, value)| (name.to_owned(), value)));
    let notes = notes(&made, &wish);
    let run = Run {
        jobs: made.jobs,
        method: None,
        recipe,
        config: serde_json::to_string(&made.config).ok(),
        metadata: Default::default(),
        threads: context.threads,
        checkpoints: vec![("checkpoint", checkpoint)],
    };
    write_noting(run, None, || notes, &args.output, args.json.json, context).map(|(report, _)| report)
}

fn from_seed(
    args: &Args,
    checkpoint: &Checkpoint,
    layout: &Layout,
    mut recipe: Recipe,
    context: &Context,
) -> Result<Report> {
    if let Some((option, why)) = args.beit.given() {
        usage(&format!("{option} is for a BEiT: {why}"))?
    }
    let Spread { jobs, config } = spread(checkpoint, layout, args.arch, args.vl_start.map(|layer| layer as usize))?;
    recipe.parameters.insert("vl_start".into(), json!(config.vl_start));
    let layers = text::count(config.layers.unwrap_or(0) as u64, "layer");
    let start = config.vl_start.filter(|&start| config.layers.is_some_and(|layers| start < layers));
    let deep = start.map(|start| format!(", and for vl from layer {start} on")).unwrap_or_default();
    let text = format!("{}, {layers}: the seed's weights for v and l{deep}", args.arch);
    let note = Note { key: "config", value: json!(config), text };
    let run = Run {
        jobs,
        method: None,
        recipe,
        config: serde_json::to_string(&config).ok(),
        metadata: kept_metadata(checkpoint),
        threads: context.threads,
        checkpoints: vec![("checkpoint", checkpoint)],
    };
    let root = run.usual_root();
    write_noting(run, root, || vec![note], &args.output, args.json.json, context).map(|(report, _)| report)
}

fn notes(made: &Initialised, wish: &Init) -> Vec<Note> {
    let config = &made.config;
    let experts = match (wish.variant, wish.share_vision, config.vl_start) {
        (Variant::Ufo, ..) => "one set of weights".to_string(),
        (_, false, _) => "vision experts alone".to_string(),
        (_, true, start) => match start.filter(|&start| config.layers.is_some_and(|layers| start < layers)) {
            Some(start) => format!("vision weights for l too, and for vl from layer {start} on"),
            None => "vision weights for l too".to_string(),
        },
    };
    let layers = text::count(config.layers.unwrap_or(0) as u64, "layer");
    let (from, to) = made.patches;
    let table = format!(
        "{} {:?}:\n    {from} × {from} patches → {to} × {to}, text rows zero",
        show_name(&made.table.name),
        made.table.shape,
    );
    let new = match wish.new {
        Some(new) => format!(
            "new, with seed {}: token types, pooler, text embeddings\n    of {} words and texts of {} tokens",
            new.seed,
            text::thousands(new.vocab_size as u64),
            new.max_text_len
        ),
        None => "bare: text embeddings, token types and pooler are left out".to_string(),
    };
    vec![
        Note { key: "config", value: json!(config), text: format!("{}, {layers}: {experts}", wish.variant) },
        Note { key: "patches", value: json!({"from": from, "to": to}), text: table },
        Note { key: "new", value: json!(made.new), text: new },
        left_out("dropped", &made.dropped, "tensor", " without a place in a vision-language model"),
        left_out("dropped_buffers", &made.buffers, "index buffer", ""),
    ]
}

fn variant() -> impl TypedValueParser<Value = Variant> {
    PossibleValuesParser::new(["ufo", "ln_moe", "attn_moe", "ffn_moe", "all_moe"])
        .try_map(|name| name.parse::<Variant>())
}
