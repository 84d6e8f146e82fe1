//! A modality-specific checkpoint from a modality-agnostic one, the seed: the second stage of pre-training.

use std::collections::BTreeSet;

use formats::config::{Detected, ModelConfig, Variant};
use formats::layout::{Layout, Modality, Part};
use formats::{Checkpoint, Error, Result, TensorInfo, show_name};

use crate::jobs::{Job, Source, listed};

/// What a seed becomes.
#[derive(Clone, Debug)]
pub struct Spread {
    pub jobs: Vec<Job>,
    pub config: ModelConfig,
}

/// The jobs that give each part with experts in `variant` one for every modality, all of them copies of the seed's
/// weights: `v` and `l` in every layer, `vl` from vl start on. Everything else is copied, so that the result computes
/// what the seed does. `vl_start` is for seeds that don't say their own.
///
/// # Errors
/// The checkpoint has experts already, or no slot for them; its layout has no names for experts of these parts; vl
/// start is not known, beyond the layers, or not the seed's own; its record of its model contradicts its weights.
pub fn spread(checkpoint: &Checkpoint, layout: &Layout, variant: Variant, vl_start: Option<usize>) -> Result<Spread> {
    let path = checkpoint.path();
    let fault = |reason: String| Error::file(path, reason);
    let tensors = checkpoint.tensors();
    let detected = checkpoint.settled_config(layout)?;
    if variant == Variant::Ufo {
        return Err(fault("it has one set of weights already: --arch ufo would change nothing".into()));
    }
    if let Some(expert) = tensors.iter().find(|info| layout.parse_name(&info.name).is_some()) {
        let name = show_name(&expert.name);
        return Err(fault(format!(
            "it has experts already, such as '{name}': only a modality-agnostic model gets them"
        )));
    }
    let (target, names) = target(layout, tensors, variant).map_err(fault)?;
    let place = |name: &String| target.parse_slot(name).filter(|place| variant.has_experts(place.part));
    let layers: BTreeSet<usize> = names.iter().filter_map(|name| place(name)?.layer).collect();
    let Some(&last) = layers.last() else {
        let example = tensors.first().map(|info| show_name(&info.name)).unwrap_or_default();
        let layout = show_name(layout.name());
        return Err(fault(format!("none of its names, such as '{example}', gets experts in layout '{layout}'")));
    };
    let count = detected.config.layers.unwrap_or(0).max(last + 1);
    let has_vl = target.modalities().any(|modality| modality == Modality::VisionLanguage);
    let start = if has_vl { Some(start_of(&detected, vl_start, count).map_err(fault)?) } else { None };

    let mut jobs = Vec::new();
    for (tensor, (info, name)) in tensors.iter().zip(names).enumerate() {
        let own = match place(&name) {
            Some(place) => {
                let is_deep = place.layer.zip(start).is_some_and(|(layer, start)| layer >= start);
                let modalities = target.modalities().filter(|&m| m != Modality::VisionLanguage || is_deep);
                modalities.filter_map(|modality| target.expert_name(&name, modality)).collect()
            }
            None => vec![name],
        };
        jobs.extend(own.into_iter().map(|name| {
            let info = TensorInfo { name, ..info.clone() };
            Job { info, source: Source::Copy { checkpoint: 0, tensor } }
        }));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = jobs.iter().find(|job| !seen.insert(job.info.name.as_str())) {
        return Err(fault(format!("two of its tensors become '{}'", show_name(&twice.info.name))));
    }
    // What the seed's tokens attend to is recorded with the rest, so that the variant doesn't decide it.
    let config = ModelConfig {
        layout: Some(target.name().to_string()),
        variant: Some(variant),
        layers: Some(count),
        vl_start: start,
        ..detected.config
    };
    Ok(Spread { jobs, config })
}

/// The layout that the result has, and the tensors' names in it: the seed's own layout if that has names for the
/// experts, else the one it becomes.
fn target<'l>(
    layout: &'l Layout,
    tensors: &[TensorInfo],
    variant: Variant,
) -> Result<(&'l Layout, Vec<String>), String> {
    let without: Vec<String> =
        variant.parts().iter().filter(|&&part| !layout.has_experts_in(part)).map(|part| part.to_string()).collect();
    if without.is_empty() {
        return Ok((layout, tensors.iter().map(|info| info.name.clone()).collect()));
    }
    if let Some(becomes) = layout.becomes()
        && let Some(target) = Layout::by_name(becomes.layout())
    {
        let rename = |info: &TensorInfo| becomes.rename(&info.name).map_or_else(|| info.name.clone(), |(_, name)| name);
        return Ok((target, tensors.iter().map(rename).collect()));
    }
    let possible = Variant::ALL.into_iter().filter(|&other| other != Variant::Ufo);
    let possible: Vec<String> = possible
        .filter(|other| other.parts().iter().all(|&part: &Part| layout.has_experts_in(part)))
        .map(|other| format!("--arch {other}"))
        .collect();
    let hint = if possible.is_empty() { String::new() } else { format!("; it has for {}", possible.join(", ")) };
    Err(format!("layout '{}' has no names for experts in {}{hint}", show_name(layout.name()), listed(&without)))
}

/// First layer with a `vl` expert: the seed's own, or the one that was asked for where it doesn't say.
fn start_of(detected: &Detected, wish: Option<usize>, layers: usize) -> Result<usize, String> {
    let own = detected.config.vl_start;
    let evidence = detected.evidence.iter().find(|evidence| evidence.field == "vl_start" && !evidence.assumed);
    match (wish, own) {
        (Some(wish), _) if wish > layers => Err(format!("vl start {wish} is beyond its {layers} layers")),
        (Some(wish), Some(own)) if wish != own && evidence.is_some() => {
            let from = evidence.map(|evidence| evidence.from.as_str()).unwrap_or_default();
            Err(format!(
                "it processes text and image together from layer {own} on ({}): with vl start {wish} the result would \
                 compute something else",
                show_name(from)
            ))
        }
        (Some(start), _) | (None, Some(start)) => Ok(start),
        (None, None) => {
            Err(format!("no published model has {layers} layers: give the first with a vl expert (--vl-start)"))
        }
    }
}
