//! Distances as heat maps.

use std::collections::BTreeSet;

use formats::layout::Modality;
use merge_cli::distance::{Distance, Pair, PartGroup, Scope, Space};
use merge_cli::plot::{Figure, Map, Panel};

use super::table::{layers, pairs, parts, spaces};
use super::{Args, Metric, file_name, index, layer_name};

/// A map for each metric and, side by side, space; in each a panel of layers × parts for every pair.
pub fn figure(args: &Args, distances: &[Distance]) -> Figure {
    let (layers, parts) = (layers(distances), parts(distances));
    let index = index(distances);
    let cell = |space, pair, layer, part, metric: Metric| {
        let found = index.get(&(space, pair, Scope::LayerPart { layer, part }))?;
        let value = metric.of(&found.metrics);
        Some((value.unwrap_or(f64::NAN), value.map_or_else(|| "–".into(), |value| metric.shown(value))))
    };
    let panel = |space, pair, metric: Metric| {
        let overall = index.get(&(space, pair, Scope::Overall)).and_then(|found| metric.of(&found.metrics));
        let overall = overall.map_or_else(|| "–".into(), |value| metric.shown(value));
        let places = layers.iter().flat_map(|&layer| parts.iter().map(move |&part| (layer, part)));
        let cells = places.map(|(layer, part)| cell(space, pair, layer, part, metric)).collect();
        Panel { title: format!("{pair} (overall {overall})"), cells }
    };
    let map = |(metric, space): (Metric, Space)| Map {
        title: metric.title(space, args.top_k),
        quantity: metric.to_string(),
        range: metric.range(args.top_k),
        dark_is_large: metric != Metric::Cosine,
        panels: pairs(distances).into_iter().map(|pair| panel(space, pair, metric)).collect(),
    };
    let spaces = spaces(distances);
    let order = Metric::ALL.into_iter().flat_map(|metric| spaces.iter().map(move |&space| (metric, space)));
    Figure {
        title: format!("How far apart the experts of {} are", file_name(&args.ms)),
        notes: notes(args, distances),
        maps: order.map(map).collect(),
        y_axis: "layer".into(),
        x_axis: "part".into(),
        rows: layers.into_iter().map(layer_name).collect(),
        columns: parts.iter().map(PartGroup::to_string).collect(),
    }
}

fn notes(args: &Args, distances: &[Distance]) -> Vec<String> {
    let pairs = pairs(distances);
    let modalities: BTreeSet<Modality> = pairs.iter().flat_map(|&Pair(a, b)| [a, b]).collect();
    let legend = modalities.iter().map(|modality| match modality {
        Modality::Vision => "v: vision",
        Modality::Language => "l: language",
        Modality::VisionLanguage => "vl: vision and language",
    });
    let legend = legend.collect::<Vec<_>>().join(", ");
    let mut notes = vec![
        "Light is close, dark is far apart: the closer experts are, the better merging them is expected to go.".into(),
        format!("Experts: {legend}. Number in each cell: the distance over all weights of that layer's part."),
    ];
    if let Some(base) = &args.base {
        notes.push(format!("Modality vectors: expert − {}.", file_name(base)));
    }
    let cells = distances.iter().filter(|found| matches!(found.scope, Scope::LayerPart { .. })).count();
    if cells < spaces(distances).len() * pairs.len() * layers(distances).len() * parts(distances).len() {
        notes.push("Empty: no such pair of experts in this layer.".into());
    }
    notes
}
