//! One method with other parameters for some layers, parts or names.

use std::collections::HashMap;

use formats::layout::Part;
use formats::show_name;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::jobs::{Job, Merge};
use crate::methods::{self, Method, Runs, Span};

/// Parameters for the merges it matches. What isn't given matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Layers as text: `6`, `6-11`, `6-` for all from 6 on, and lists of these: `0-2, 11`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// A regular expression that the merged tensor's name must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<NamePattern>,
    pub parameters: Map<String, Value>,
}

impl Rule {
    pub fn matches(&self, merge: &Merge) -> bool {
        self.layers.as_ref().is_none_or(|layers| merge.layer.is_some_and(|layer| layers.contain(layer)))
            && (self.parts.is_empty() || self.parts.contains(&merge.part))
            && self.names.as_ref().is_none_or(|names| names.regex.is_match(&merge.name))
    }

    /// The rule once for every layer range and part it lists, each of which must match something.
    fn each(&self) -> Vec<Rule> {
        let layers: Vec<Option<Layers>> = match &self.layers {
            Some(layers) => layers.each().map(Some).collect(),
            None => vec![None],
        };
        let by_layers = layers.into_iter().map(|layers| Rule { layers, ..self.clone() });
        let by_part = self.parts.iter().map(|&part| Rule { parts: vec![part], ..self.clone() });
        by_layers.chain(by_part).collect()
    }

    /// What it selects, as it is written in a recipe.
    fn selectors(&self) -> String {
        let layers = self.layers.as_ref().map(|layers| format!("layers = \"{}\"", layers.text));
        let parts: Vec<String> = self.parts.iter().map(|part| format!("\"{part}\"")).collect();
        let parts = (!parts.is_empty()).then(|| format!("parts = [{}]", parts.join(", ")));
        let names = self.names.as_ref().map(|names| format!("names = \"{}\"", show_name(names.regex.as_str())));
        layers.into_iter().chain(parts).chain(names).collect::<Vec<_>>().join(", ")
    }
}

/// Whether every rule, with every layer range and part in it, matches one of the merges that it could change.
///
/// # Errors
/// The first rule that doesn't, by its number and what it selects.
pub fn check_rules<'m>(rules: &[Rule], merges: impl IntoIterator<Item = &'m Merge>) -> Result<(), String> {
    let merges: Vec<&Merge> = merges.into_iter().collect();
    let changed: Vec<&Merge> = merges.iter().copied().filter(|merge| !merge.is_one_expert()).collect();
    for (number, rule) in rules.iter().enumerate() {
        let idle = rule.each().into_iter().find(|each| !changed.iter().any(|merge| each.matches(merge)));
        let Some(idle) = idle else { continue };
        let selectors = match idle.selectors() {
            selectors if selectors.is_empty() => String::new(),
            selectors => format!(" ({selectors})"),
        };
        let why = match merges.iter().any(|merge| idle.matches(merge)) {
            true => "changes nothing: each tensor it matches has one expert, which is taken as it is",
            false => "matches none of the tensors that are merged",
        };
        return Err(format!("rule {}{selectors} {why}", number + 1));
    }
    Ok(())
}

/// A set of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layers {
    text: String,
    /// First and last, both included.
    ranges: Vec<(usize, usize)>,
}

impl Layers {
    fn contain(&self, layer: usize) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&layer))
    }

    /// Each range as a set of its own.
    fn each(&self) -> impl Iterator<Item = Layers> {
        self.text
            .split(',')
            .zip(&self.ranges)
            .map(|(text, &range)| Layers { text: text.trim().into(), ranges: vec![range] })
    }
}

impl TryFrom<String> for Layers {
    type Error = String;

    fn try_from(text: String) -> Result<Layers, String> {
        let number = |digits: &str| {
            digits
                .trim()
                .parse::<usize>()
                .map_err(|_| format!("'{text}' is no list of layers, such as 6-11 or 0, 3, 8-"))
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let range = match part.split_once('-') {
                None => (number(part)?, number(part)?),
                Some((first, "")) => (number(first)?, usize::MAX),
                Some((first, last)) if last.trim().is_empty() => (number(first)?, usize::MAX),
                Some((first, last)) => (number(first)?, number(last)?),
            };
            if range.0 > range.1 {
                return Err(format!("'{}' ends before it begins", part.trim()));
            }
            ranges.push(range);
        }
        Ok(Layers { text, ranges })
    }
}

impl From<Layers> for String {
    fn from(layers: Layers) -> String {
        layers.text
    }
}

/// A compiled regular expression that compares and prints as its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    regex: Regex,
}

impl PartialEq for NamePattern {
    fn eq(&self, other: &NamePattern) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl TryFrom<String> for NamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<NamePattern, String> {
        let one_line = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        Regex::new(&text).map(|regex| NamePattern { regex }).map_err(one_line)
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> String {
        pattern.regex.as_str().to_owned()
    }
}

/// The parameters of one merge: those of all, and over them those of the rules that match it, in their order.
pub fn parameters_of(merge: &Merge, parameters: &Map<String, Value>, rules: &[Rule]) -> Map<String, Value> {
    let mut own = parameters.clone();
    rules.iter().filter(|rule| rule.matches(merge)).for_each(|rule| own.extend(rule.parameters.clone()));
    own
}

/// A method whose parameters depend on the tensor. Where several rules match, all apply in their
/// order: a later one overrides what an earlier one set. An expert that is merged with no other is taken
/// as it is, whatever the method.
pub struct Ruled {
    /// The distinct methods; the first has the parameters that no rule changes.
    variants: Vec<Box<dyn Method>>,
    /// By merged name; names that aren't here use the first.
    by_name: HashMap<String, usize>,
}

impl Ruled {
    /// # Errors
    /// Parameters that the method doesn't take, or that apply to nothing; a rule that matches nothing, in words.
    pub fn new(method: &str, parameters: &Map<String, Value>, rules: &[Rule], jobs: &[Job]) -> Result<Ruled, String> {
        let merges: Vec<&Merge> = jobs.iter().filter_map(|job| job.source.merge()).collect();
        check_rules(rules, merges.iter().copied())?;
        let mut seen = vec![parameters.clone()];
        let mut variants = vec![methods::build(method, parameters)?];
        let mut by_name = HashMap::new();
        for merge in &merges {
            let own = parameters_of(merge, parameters, rules);
            let variant = match seen.iter().position(|known| *known == own) {
                Some(variant) => variant,
                None => {
                    variants.push(methods::build(method, &own)?);
                    seen.push(own);
                    seen.len() - 1
                }
            };
            by_name.insert(merge.name.clone(), variant);
        }
        let several: Vec<&Merge> = merges.into_iter().filter(|merge| !merge.is_one_expert()).collect();
        variants.iter().try_for_each(|variant| variant.check_all(&several))?;
        Ok(Ruled { variants, by_name })
    }

    fn of(&self, merge: &Merge) -> &dyn Method {
        let variant = self.by_name.get(&merge.name).copied().unwrap_or(0);
        &*self.variants[variant]
    }
}

impl Method for Ruled {
    fn name(&self) -> &'static str {
        self.variants[0].name()
    }

    fn parameters(&self) -> Map<String, Value> {
        self.variants[0].parameters()
    }

    fn whole_tensors(&self) -> bool {
        self.variants.iter().any(|variant| variant.whole_tensors())
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        match merge.is_one_expert() {
            true => Ok(()),
            false => self.of(merge).check(merge),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.variants.iter().flat_map(|variant| variant.warnings()).collect();
        warnings.dedup();
        warnings
    }

    fn survey(&self, merge: &Merge, runs: &mut dyn Runs) -> formats::Result<Vec<f64>> {
        match merge.is_one_expert() {
            true => Ok(Vec::new()),
            false => self.of(merge).survey(merge, runs),
        }
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        match inputs {
            [only] if span.merge.is_one_expert() => out.copy_from_slice(only),
            _ => self.of(span.merge).merge_f32(span, inputs, out)?,
        }
        Ok(())
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        match inputs {
            [only] if span.merge.is_one_expert() => out.copy_from_slice(only),
            _ => self.of(span.merge).merge_f64(span, inputs, out)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<Layers, String> {
        Layers::try_from(text.to_string())
    }

    #[test]
    fn layers_are_ranges_with_both_ends() {
        let found = |text: &str| (0..12).filter(|&layer| layers(text).unwrap().contain(layer)).collect::<Vec<_>>();
        assert_eq!(found("6"), [6]);
        assert_eq!(found("3-5"), [3, 4, 5]);
        assert_eq!(found("10-"), [10, 11]);
        assert_eq!(found("0, 8 - 9"), [0, 8, 9]);
        assert!(layers("six").is_err());
        assert!(layers("5-3").unwrap_err().contains("ends before it begins"));
        assert!(layers("").is_err());
    }

    #[test]
    fn rules_match_layer_part_and_name_together() {
        let merge = |name: &str, layer, part| Merge { name: name.into(), layer, part, inputs: Vec::new() };
        let rule = Rule {
            layers: Some(layers("6-").unwrap()),
            parts: vec![Part::Mlp],
            names: Some(NamePattern::try_from("fc1".to_string()).unwrap()),
            parameters: Map::new(),
        };
        assert!(rule.matches(&merge("blocks.7.mlp.fc1.weight", Some(7), Part::Mlp)));
        assert!(!rule.matches(&merge("blocks.5.mlp.fc1.weight", Some(5), Part::Mlp)));
        assert!(!rule.matches(&merge("blocks.7.mlp.fc2.weight", Some(7), Part::Mlp)));
        assert!(!rule.matches(&merge("blocks.7.attn.fc1", Some(7), Part::Attention)));
        assert!(!rule.matches(&merge("norm.fc1", None, Part::Mlp)));
        assert!(Rule::default().matches(&merge("anything", None, Part::Other)));
    }
}
