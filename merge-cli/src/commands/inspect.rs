//! `vlmerge inspect`: where a user starts.

use std::path::PathBuf;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use formats::layout::{Experts, Modality, Part, group};
use formats::write::PIECE;
use formats::{Checkpoint, config, parallel, show_name, show_path};
use indicatif::ProgressBar;
use merge_cli::Recipe;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, layout_for, one_standard_input};

use crate::cli::{JsonArg, LayoutArg, RootArg};
use crate::{Report, progress, text};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vlmerge inspect ms.ckpt
  vlmerge inspect ms.ckpt --keys --root optimizer_states
  vlmerge inspect merged.safetensors --json | jq .metadata")]
pub struct Args {
    /// The checkpoint: .ckpt, .pth, .safetensors or .safetensors.index.json; its content decides.
    pub file: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub keys: bool,
    /// Read every value and count NaN and infinite ones.
    #[arg(long)]
    pub scan: bool,
    /// Read every value and print the content digest that recipes record.
    #[arg(long)]
    pub digest: bool,
    #[command(flatten)]
    pub root: RootArg,
    #[command(flatten)]
    pub layout: LayoutArg,
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args, context: &Context) -> Result<Report> {
    one_standard_input([Some(args.file.as_path()), args.layout.path()].into_iter().flatten())?;
    let checkpoint = formats::open_root(&args.file, args.root.root.as_deref())?;
    // A layout that was asked for must be there; without one, any file can be looked at.
    let layout = match layout_for(&args.layout, &checkpoint, context) {
        Err(e) if args.layout.layout.is_some() => return Err(e),
        found => found.ok(),
    };
    let detected = layout.as_ref().map(|layout| checkpoint.config(layout)).unwrap_or_default();
    let mut warnings = detected.warnings.clone();
    let experts = match layout.as_ref().map(|layout| group(layout, checkpoint.tensors(), checkpoint.path())) {
        Some(Err(e)) => {
            warnings.push(e.to_string());
            None
        }
        found => found.and_then(Result::ok),
    };
    if let Some(experts) = &experts {
        let missing = experts.missing(checkpoint.tensors());
        if let Some(first) = missing.first() {
            let count = text::count(missing.len() as u64, "expert");
            warnings.push(format!("{count} missing though siblings are there, such as {}", show_name(first)));
        }
        if let Err(e) = experts.check_shapes(checkpoint.tensors(), checkpoint.path()) {
            warnings.push(e.to_string());
        }
    }
    let bar = match args.scan {
        true => progress::bar(context, "reading", checkpoint.tensors().iter().map(|info| info.bytes() as u64).sum()),
        false => ProgressBar::hidden(),
    };
    let scan = args.scan.then(|| scan(&checkpoint, context.threads, &bar)).transpose();
    bar.finish_and_clear();
    let scan = scan?;
    let digest = args.digest.then(|| formats::content_digest(&checkpoint, context.threads)).transpose()?;
    let view = View {
        args,
        checkpoint: &checkpoint,
        layout: layout.as_ref().map(|layout| layout.name()),
        detected: &detected,
        experts: experts.as_ref(),
        training: Training::of(&checkpoint),
        recipe: Recipe::history(checkpoint.metadata()),
        warnings,
        scan,
        digest,
    };
    let stdout = if args.json.json { serde_json::to_string_pretty(&view.json())? + "\n" } else { view.text() };
    Ok(Report { stdout, success: true })
}

struct View<'a> {
    args: &'a Args,
    checkpoint: &'a Checkpoint,
    layout: Option<&'a str>,
    detected: &'a config::Detected,
    experts: Option<&'a Experts<'a>>,
    training: Training,
    recipe: Option<Recipe>,
    warnings: Vec<String>,
    scan: Option<Vec<NonFinite>>,
    digest: Option<String>,
}

/// What a training run left in the file besides the weights.
#[derive(Debug, Default, Serialize)]
struct Training {
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global_step: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lightning: Option<String>,
    /// Parameters with optimizer state, for each optimizer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    optimizers: Vec<usize>,
    /// Every key at the file's top level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_level: Vec<String>,
}

impl Training {
    fn of(checkpoint: &Checkpoint) -> Training {
        let Some(document) = checkpoint.document() else { return Training::default() };
        let int = |key: &str| checkpoint.top_level(key).and_then(|(document, id)| document.int(id));
        let optimizer_key = ["optimizer_states", "optimizer", "optimizer_state_dict"];
        let found = optimizer_key.iter().find_map(|key| checkpoint.top_level(key));
        let optimizers = found.map(|(document, id)| {
            let states = document.sequence(id).map_or_else(|| vec![id], <[_]>::to_vec);
            let with_state =
                |&id: &_| document.get(id, "state").and_then(|state| document.entries(state)).map(|s| s.len());
            states.iter().filter_map(with_state).collect()
        });
        let root = document.root();
        let keys = document.entries(root).unwrap_or_default();
        // A file whose top level is the state dict itself has nothing else to show.
        let top_level = match checkpoint.root() {
            "top level" | "." => Vec::new(),
            _ => keys.iter().filter_map(|(key, _)| document.key_name(*key)).collect(),
        };
        Training {
            epoch: int("epoch"),
            global_step: int("global_step"),
            lightning: checkpoint
                .top_level("pytorch-lightning_version")
                .and_then(|(document, id)| document.str(id))
                .map(str::to_owned),
            optimizers: optimizers.unwrap_or_default(),
            top_level,
        }
    }
}

/// A tensor with values that are no numbers.
#[derive(Debug, Serialize)]
struct NonFinite {
    name: String,
    nan: u64,
    infinite: u64,
}

fn scan(checkpoint: &Checkpoint, threads: usize, bar: &ProgressBar) -> formats::Result<Vec<NonFinite>> {
    let found: Mutex<Vec<(usize, NonFinite)>> = Mutex::new(Vec::new());
    let tensors = checkpoint.tensors();
    parallel::for_each(threads, tensors.len(), |index, (bytes, values): &mut (Vec<u8>, Vec<f64>)| {
        let info = &tensors[index];
        let (mut nan, mut infinite) = (0, 0);
        let mut start = 0;
        while info.dtype.is_float() && start < info.elements() {
            let end = info.elements().min(start + PIECE);
            checkpoint.read(index, start..end, bytes)?;
            if formats::decode_f64(bytes, info.dtype, values) {
                nan += values.iter().filter(|v| v.is_nan()).count() as u64;
                infinite += values.iter().filter(|v| v.is_infinite()).count() as u64;
            }
            start = end;
        }
        if nan + infinite > 0 {
            let tensor = NonFinite { name: info.name.clone(), nan, infinite };
            found.lock().unwrap_or_else(PoisonError::into_inner).push((index, tensor));
        }
        bar.inc(info.bytes() as u64);
        Ok::<(), formats::Error>(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, tensor)| tensor).collect())
}

impl View<'_> {
    fn elements(&self) -> u64 {
        self.checkpoint.tensors().iter().map(|info| info.elements() as u64).sum()
    }

    fn json(&self) -> Value {
        let tensors: Vec<Value> = self
            .checkpoint
            .tensors()
            .iter()
            .map(|info| json!({"name": info.name, "dtype": info.dtype.name(), "shape": info.shape}))
            .collect();
        let mut report = json!({
            "file": self.checkpoint.path().to_string_lossy(),
            "bytes": self.checkpoint.file_bytes(),
            "format": self.checkpoint.format().name(),
            "root": self.checkpoint.root(),
            "layout": self.layout,
            "config": self.detected.config,
            "evidence": self.detected.evidence,
            "conflicts": self.detected.conflicts,
            "elements": self.elements(),
            "experts": self.experts.map(|experts| experts_json(experts)),
            "training": self.training,
            "warnings": self.warnings,
            "skipped": self.checkpoint.skipped().iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect::<Vec<_>>(),
            "recipe": self.recipe,
            "metadata": self.checkpoint.metadata(),
            "pickle_globals": self.checkpoint.document().map(|document| document.globals()).unwrap_or_default(),
            "hyper_parameters": self.checkpoint.hyper_parameters(),
            "tensors": tensors,
        });
        if let Some(scan) = &self.scan {
            report["scan"] = json!(scan);
        }
        if let Some(digest) = &self.digest {
            report["content_digest"] = json!(digest);
        }
        report
    }

    fn text(&self) -> String {
        let mut out = format!("{}\n", show_path(self.checkpoint.path()));
        out.push_str(&text::table(&self.summary(), &[]));
        self.parts(&mut out);
        self.layers(&mut out);
        self.configuration(&mut out);
        self.how_made(&mut out);
        self.classes(&mut out);
        self.oddities(&mut out);
        if self.args.keys {
            out.push_str("\ntensors\n");
            let rows: Vec<Vec<String>> = self
                .checkpoint
                .tensors()
                .iter()
                .map(|info| vec![show_name(&info.name), info.dtype.to_string(), text::shape(&info.shape)])
                .collect();
            out.push_str(&text::table(&rows, &[]));
        }
        out
    }

    fn summary(&self) -> Vec<Vec<String>> {
        let checkpoint = self.checkpoint;
        let config = &self.detected.config;
        let row = |what: &str, value: String| vec![what.to_string(), value];
        let mut rows =
            vec![row("format", format!("{}, {}", checkpoint.format(), text::bytes(checkpoint.file_bytes())))];
        if checkpoint.document().is_some() {
            let root = match checkpoint.root() {
                "." => "the whole file".to_string(),
                root => show_name(root),
            };
            let others: Vec<String> = self
                .training
                .top_level
                .iter()
                .filter(|key| *key != checkpoint.root())
                .take(12)
                .map(|key| show_name(key))
                .collect();
            let others =
                if others.is_empty() { String::new() } else { format!("  (beside it: {})", others.join(", ")) };
            // Indented to where the values start, for a terminal of 80 columns.
            let text = format!("{root}{others}");
            rows.push(row("root", text::wrap(text.split(' ').map(String::from), 12, text::WIDTH)));
        }
        let layout = match (self.layout, config.variant) {
            (Some(layout), Some(variant)) => {
                let what = if variant == config::Variant::Ufo { "modality-agnostic" } else { "modality-specific" };
                format!("{layout}, variant {variant} ({what})")
            }
            (Some(layout), None) => match self.experts.is_some_and(|experts| !experts.is_empty()) {
                true => format!("{layout}, modality-specific"),
                false => format!("{layout}, modality-agnostic"),
            },
            (None, _) => "unknown: its names match no rule (--layout FILE.toml gives rules)".into(),
        };
        rows.push(row("layout", layout));
        if let Some(layers) = config.layers {
            let start = config
                .vl_start
                .map(|start| format!(", text and image together from layer {start} on"))
                .unwrap_or_default();
            rows.push(row("layers", format!("{layers}{start}")));
        }
        let mut dtypes: BTreeMap<&str, usize> = BTreeMap::new();
        checkpoint.tensors().iter().for_each(|info| *dtypes.entry(info.dtype.name()).or_default() += 1);
        let dtypes: Vec<String> = dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        let dtypes = if dtypes.is_empty() { String::new() } else { format!("({})", dtypes.join(",\n")) };
        // A count stays on the line of its dtype.
        let words = std::iter::once(text::thousands(checkpoint.tensors().len() as u64));
        let words = words.chain(dtypes.lines().map(String::from));
        rows.push(row("tensors", text::wrap(words, 12, text::WIDTH)));
        let bytes = checkpoint.tensors().iter().map(|info| info.bytes() as u64).sum();
        rows.push(row("elements", format!("{}, {}", text::thousands(self.elements()), text::bytes(bytes))));
        let training = &self.training;
        let mut state = Vec::new();
        state.extend(training.epoch.map(|epoch| format!("epoch {epoch}")));
        state.extend(training.global_step.map(|step| format!("step {step}")));
        state.extend(training.lightning.as_ref().map(|version| format!("Lightning {}", show_name(version))));
        state.extend(
            training.optimizers.iter().map(|n| format!("optimizer state of {}", text::count(*n as u64, "parameter"))),
        );
        if !state.is_empty() {
            rows.push(row("training", state.join(", ")));
        }
        if let Some(digest) = &self.digest {
            rows.push(row("digest", digest.clone()));
        }
        rows
    }

    /// Parameters by part: experts by modality, then everything that is shared.
    fn parts(&self, out: &mut String) {
        let tensors = self.checkpoint.tensors();
        let mut parts: BTreeMap<(u8, String), (u64, u64)> = BTreeMap::new();
        let mut is_expert = vec![false; tensors.len()];
        for slot in self.experts.iter().flat_map(|experts| &experts.slots) {
            for &(modality, index) in &slot.experts {
                is_expert[index] = true;
                let entry = parts.entry((slot.part as u8, format!("{} {modality}", part_name(slot.part)))).or_default();
                *entry = (entry.0 + 1, entry.1 + tensors[index].elements() as u64);
            }
        }
        for (info, _) in tensors.iter().zip(&is_expert).filter(|(_, is_expert)| !**is_expert) {
            let key = match self.experts.and_then(|experts| experts.layout.parse_slot(&info.name)) {
                Some(place) => (place.part as u8, part_name(place.part).to_string()),
                None if self.experts.is_some_and(|experts| experts.layout.buffer(&info.name).is_some()) => {
                    (20, "buffers (derivable)".to_string())
                }
                None => (10, show_name(shared_group(&info.name))),
            };
            let entry = parts.entry(key).or_default();
            *entry = (entry.0 + 1, entry.1 + info.elements() as u64);
        }
        let total = self.elements().max(1) as f64;
        let mut rows = vec![["part", "tensors", "elements", "share"].map(String::from).to_vec()];
        // A file of an unknown layout can have thousands of groups.
        const SHOWN: usize = 40;
        for ((_, name), (count, elements)) in parts.iter().take(SHOWN) {
            let share = format!("{:.1}%", 100.0 * *elements as f64 / total);
            rows.push(vec![text::cut(name, 40), text::thousands(*count), text::thousands(*elements), share]);
        }
        out.push('\n');
        out.push_str(&text::table(&rows, &[1, 2, 3]));
        if parts.len() > SHOWN {
            out.push_str(&format!("  … and {} more\n", text::count((parts.len() - SHOWN) as u64, "group")));
        }
    }

    /// Which experts each run of equal layers has.
    fn layers(&self, out: &mut String) {
        let Some(experts) = self.experts.filter(|experts| !experts.is_empty()) else { return };
        let parts = [Part::Attention, Part::Mlp, Part::Norm1, Part::Norm2];
        let mut layers: BTreeMap<usize, BTreeMap<u8, Vec<Modality>>> = BTreeMap::new();
        for slot in &experts.slots {
            let Some(layer) = slot.layer else { continue };
            let seen = layers.entry(layer).or_default().entry(slot.part as u8).or_default();
            seen.extend(slot.experts.iter().map(|&(modality, _)| modality));
            seen.sort_unstable();
            seen.dedup();
        }
        let mut rows = vec![["layers", "attention", "mlp", "norm1", "norm2"].map(String::from).to_vec()];
        let mut groups: Vec<(Vec<usize>, Vec<String>)> = Vec::new();
        for (layer, found) in layers {
            let cell = |part: &Part| match found.get(&(*part as u8)) {
                Some(modalities) => modalities.iter().map(Modality::to_string).collect::<Vec<_>>().join(" "),
                None => "shared".into(),
            };
            let cells: Vec<String> = parts.iter().map(cell).collect();
            match groups.last_mut() {
                Some((numbers, last)) if *last == cells => numbers.push(layer),
                _ => groups.push((vec![layer], cells)),
            }
        }
        for (numbers, cells) in groups {
            rows.push(std::iter::once(text::ranges(&numbers)).chain(cells).collect());
        }
        out.push('\n');
        out.push_str(&text::table(&rows, &[]));
    }

    fn configuration(&self, out: &mut String) {
        if self.detected.evidence.is_empty() {
            return;
        }
        let mut rows = vec![["configuration", "value", "because"].map(String::from).to_vec()];
        for evidence in &self.detected.evidence {
            let assumed = if evidence.assumed { "assumed: " } else { "" };
            let because = format!("{assumed}{}", evidence.from);
            rows.push(vec![evidence.field.clone(), evidence.value.clone(), because]);
        }
        let widths = [0, 1].map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        let indent = widths[0] + widths[1] + 6;
        for row in &mut rows {
            row[2] = text::wrap(row[2].split(' ').map(String::from), indent, text::WIDTH);
        }
        out.push('\n');
        out.push_str(&text::table(&rows, &[]));
    }

    fn how_made(&self, out: &mut String) {
        let chain = self.recipe.clone().map(Recipe::chain).unwrap_or_default();
        for (number, step) in chain.iter().enumerate() {
            let verb = if step.is_training() { "trained" } else { "made" };
            let from = if number == 0 { "" } else { "from a file " };
            out.push_str(&format!("\n{from}{verb} by {}\n", show_name(&step.tool_and_version())));
            let mut rows = match step.is_training() {
                true => Vec::new(),
                false => vec![vec!["method".to_string(), show_name(&step.method)]],
            };
            rows.extend(step.shown_parameters().map(|(name, value)| vec![show_name(&name), show_name(&value)]));
            for input in &step.inputs {
                let digest: String = input.content_digest.chars().take(16).collect();
                let digest = format!("(content digest {}…)", show_name(&digest));
                rows.push(vec![show_name(&input.role), format!("{} {digest}", show_name(&input.name))]);
            }
            let indent = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0) + 4;
            for row in &mut rows {
                row[1] = text::wrap(row[1].split(' ').map(String::from), indent, text::WIDTH);
            }
            out.push_str(&text::table(&rows, &[]));
        }
    }

    fn classes(&self, out: &mut String) {
        let Some(document) = self.checkpoint.document() else { return };
        let globals = document.globals();
        let is_usual =
            |name: &str| name.starts_with("torch") || name.starts_with("collections.") || name.starts_with("builtins.");
        let (usual, others): (Vec<&String>, Vec<&String>) = globals.iter().partition(|name| is_usual(name));
        if globals.is_empty() {
            return;
        }
        out.push_str("\nclasses and functions named in the pickle (data here: nothing is run)\n  ");
        const SHOWN: usize = 60;
        let all = others.into_iter().chain(usual).map(|name| show_name(name));
        let mut words: Vec<String> = all.take(SHOWN).collect();
        if globals.len() > SHOWN {
            words.push(format!("… and {} more", globals.len() - SHOWN));
        }
        out.push_str(&text::wrap(words, 2, text::WIDTH));
        out.push('\n');
    }

    fn oddities(&self, out: &mut String) {
        let conflicts = self.detected.conflicts.iter();
        let mut lines: Vec<String> = conflicts
            .map(|conflict| format!("conflict (commands that build on it refuse the file): {}", show_name(conflict)))
            .chain(self.detected.config.unusual.iter().chain(&self.warnings).map(|warning| show_name(warning)))
            .collect();
        for (name, reason) in self.checkpoint.skipped() {
            lines.push(format!("'{}' is not read: {reason}", show_name(name)));
        }
        if let Some(scan) = &self.scan {
            for found in scan {
                lines.push(format!(
                    "'{}' has {} NaN and {} infinite values",
                    show_name(&found.name),
                    found.nan,
                    found.infinite
                ));
            }
            if scan.is_empty() {
                out.push_str("\nscan: every floating-point value is finite\n");
            }
        }
        if !lines.is_empty() {
            out.push_str("\nodd\n");
            for line in lines {
                out.push_str(&format!("  {}\n", text::wrap(line.split(' ').map(String::from), 2, text::WIDTH)));
            }
        }
    }
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Attention => "attention",
        Part::Mlp => "mlp",
        Part::Norm1 => "norm1",
        Part::Norm2 => "norm2",
        Part::Other => "other layers' parts",
    }
}

/// What a tensor outside the layers is counted under: its first name, or two where the first is a
/// container of everything.
fn shared_group(name: &str) -> &str {
    let mut dots = name.match_indices('.').map(|(at, _)| at);
    let first = dots.next();
    match first.map(|end| &name[..end]) {
        Some("transformer" | "model" | "module" | "beit3" | "visual" | "backbone") => {
            dots.next().map_or(name, |end| &name[..end])
        }
        Some(group) => group,
        None => name,
    }
}

fn experts_json(experts: &Experts) -> Value {
    let slots: Vec<Value> = experts
        .slots
        .iter()
        .map(|slot| {
            let modalities: Vec<String> = slot.experts.iter().map(|(modality, _)| modality.to_string()).collect();
            json!({"slot": slot.slot, "layer": slot.layer, "part": slot.part, "modalities": modalities})
        })
        .collect();
    json!({"vl_start": experts.vl_start(), "slots": slots})
}
