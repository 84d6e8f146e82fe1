//! Distances as text for a terminal.

use std::collections::BTreeSet;

use formats::layout::Layout;
use merge_cli::distance::{Distance, Pair, PartGroup, Scope, Space};

use super::{Args, Index, Metric, index, layer_name, space_name};
use crate::text;

/// Columns of a terminal that tables keep to.
const WIDTH: usize = text::WIDTH;

pub fn render(args: &Args, layout: &Layout, distances: &[Distance]) -> String {
    let mut out = format!("{} ({})", formats::show_path(&args.ms), layout.name());
    if let Some(base) = &args.base {
        out += &format!(", modality vectors from {}", formats::show_path(base));
    }
    out += &format!("\n\nOverall, TSSD of the top {}%\n", args.top_k);
    let index = index(distances);
    out += &overall(distances, &index);
    for space in spaces(distances) {
        for metric in Metric::ALL {
            out += &format!("\n{}\n", metric.title(space, args.top_k));
            out += &by_layer(distances, &index, space, metric);
        }
    }
    out += "\nSmaller L2, SSD and TSSD and a larger cosine mean closer experts, which\n";
    out += "predicts a better merge.\n";
    if let Some(plot) = &args.plot {
        out += &format!("Heat maps: {}\n", formats::show_path(plot));
    }
    out
}

fn overall(distances: &[Distance], index: &Index) -> String {
    let rows: Vec<Pair> = pairs(distances);
    let count = |&pair: &Pair| index.get(&(Space::Weights, pair, Scope::Overall)).map_or(0, |found| found.elements);
    let counts = text::Columns {
        title: String::new(),
        columns: vec![text::Column {
            heading: "elements".into(),
            cells: rows.iter().map(|pair| text::thousands(count(pair))).collect(),
        }],
    };
    let of_space = |space: Space| {
        let cells = |metric: Metric| {
            let value = |&pair: &Pair| shown(index.get(&(space, pair, Scope::Overall)), metric);
            rows.iter().map(value).collect()
        };
        let column = |metric: Metric| text::Column { heading: metric.to_string(), cells: cells(metric) };
        let columns = Metric::ALL.into_iter().map(column).collect();
        text::Columns { title: space_name(space).into(), columns }
    };
    let groups: Vec<text::Columns> =
        std::iter::once(counts).chain(spaces(distances).into_iter().map(of_space)).collect();
    let labels: Vec<String> = rows.iter().map(Pair::to_string).collect();
    text::grouped("pair", &labels, &groups, WIDTH)
}

/// One metric: a row for each layer, columns for each pair's parts.
fn by_layer(distances: &[Distance], index: &Index, space: Space, metric: Metric) -> String {
    let layers = layers(distances);
    let of_pair = |pair: Pair| {
        let mut columns = Vec::new();
        for part in parts(distances).into_iter().map(Some).chain([None]) {
            let layer_scope = |&layer: &Option<usize>| match part {
                Some(part) => Scope::LayerPart { layer, part },
                None => Scope::Layer { layer },
            };
            let all = part.map_or(Scope::Overall, |part| Scope::Part { part });
            let scopes = layers.iter().map(layer_scope).chain([all]);
            let cells = scopes.map(|scope| shown(index.get(&(space, pair, scope)), metric)).collect();
            columns.push(text::Column { heading: part.map_or("all", short_name).into(), cells });
        }
        text::Columns { title: pair.to_string(), columns }
    };
    let groups: Vec<text::Columns> = pairs(distances).into_iter().map(of_pair).collect();
    let labels: Vec<String> = layers.iter().map(|&layer| layer_name(layer)).chain(["all".into()]).collect();
    text::grouped("layer", &labels, &groups, WIDTH)
}

fn short_name(part: PartGroup) -> &'static str {
    match part {
        PartGroup::Attention => "attn",
        PartGroup::Mlp => "mlp",
        PartGroup::Norms => "norms",
        PartGroup::Other => "other",
    }
}

/// A value in a cell: `·` where there is no such pair, `–` where the value doesn't exist.
fn shown(distance: Option<&&Distance>, metric: Metric) -> String {
    match distance.map(|found| metric.of(&found.metrics)) {
        None => "·".into(),
        Some(None) => "–".into(),
        Some(Some(value)) => metric.shown(value),
    }
}

/// What there is, in order.
pub fn spaces(distances: &[Distance]) -> Vec<Space> {
    distances.iter().map(|found| found.space).collect::<BTreeSet<_>>().into_iter().collect()
}

pub fn pairs(distances: &[Distance]) -> Vec<Pair> {
    distances.iter().map(|found| found.pair).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The layers, then what stands outside them, if anything does.
pub fn layers(distances: &[Distance]) -> Vec<Option<usize>> {
    let of = |found: &Distance| match found.scope {
        Scope::Layer { layer } => Some(layer),
        _ => None,
    };
    let mut layers: Vec<Option<usize>> = distances.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect();
    layers.sort_by_key(|layer| layer.unwrap_or(usize::MAX));
    layers
}

pub fn parts(distances: &[Distance]) -> Vec<PartGroup> {
    let of = |found: &Distance| match found.scope {
        Scope::Part { part } => Some(part),
        _ => None,
    };
    distances.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect()
}
