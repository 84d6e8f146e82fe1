//! One method with other parameters for some layers, parts or names.

use std::collections::HashMap;

use formats::layout::Part;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::jobs::{Job, Merge, Source};
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
/// order: a later one overrides what an earlier one set.
pub struct Ruled {
    /// The distinct methods; the first has the parameters that no rule changes.
    variants: Vec<Box<dyn Method>>,
    /// By merged name; names that aren't here use the first.
    by_name: HashMap<String, usize>,
}

impl Ruled {
    /// # Errors
    /// Parameters that the method doesn't take, in words.
    pub fn new(method: &str, parameters: &Map<String, Value>, rules: &[Rule], jobs: &[Job]) -> Result<Ruled, String> {
        let mut seen = vec![parameters.clone()];
        let mut variants = vec![methods::build(method, parameters)?];
        let mut by_name = HashMap::new();
        for job in jobs {
            let Source::Merge(merge) = &job.source else { continue };
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
        self.of(merge).check(merge)
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.variants.iter().flat_map(|variant| variant.warnings()).collect();
        warnings.dedup();
        warnings
    }

    fn survey(&self, merge: &Merge, runs: &mut dyn Runs) -> formats::Result<Vec<f64>> {
        self.of(merge).survey(merge, runs)
    }

    fn merge_f32(&self, span: &Span, inputs: &[&[f32]], out: &mut [f32]) -> formats::Result<()> {
        self.of(span.merge).merge_f32(span, inputs, out)
    }

    fn merge_f64(&self, span: &Span, inputs: &[&[f64]], out: &mut [f64]) -> formats::Result<()> {
        self.of(span.merge).merge_f64(span, inputs, out)
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
