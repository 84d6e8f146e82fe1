//! Name templates: text with placeholders, read in one direction and written in the other.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

/// Stands for a layer's number, from 0 up to and without [`MAX_LAYERS`].
pub const LAYER: &str = "layer";
/// Stands for a modality in the spelling of the layout.
pub const MODALITY: &str = "modality";
/// Layers from this number on are not taken for layers: no such model exists, and a number
/// from a file must not size anything.
pub const MAX_LAYERS: usize = 10_000;

/// Names longer than this match no template.
const MAX_NAME: usize = 1000;

/// A template such as `blocks.{layer}.attn.{modality}.{rest}`, compiled.
#[derive(Clone, Debug)]
pub struct Pattern {
    pieces: Vec<Piece>,
    regex: Regex,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Hole(String),
}

impl Pattern {
    /// Compiles a template whose placeholders stand for the regular expressions in `holes`.
    /// Errors are a reason in words, without the place.
    pub fn new(template: &str, holes: &BTreeMap<String, String>) -> Result<Pattern, String> {
        let pieces = parse(template)?;
        let mut source = String::from("^");
        let mut seen: Vec<&str> = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Text(text) => source.push_str(&regex::escape(text)),
                Piece::Hole(hole) => {
                    let Some(expression) = holes.get(hole) else {
                        return Err(format!("placeholder {{{hole}}} is not defined under [placeholders]"));
                    };
                    if seen.contains(&hole.as_str()) {
                        return Err(format!("placeholder {{{hole}}} stands twice in one template"));
                    }
                    seen.push(hole);
                    source.push_str(&format!("(?<{hole}>{expression})"));
                }
            }
        }
        source.push('$');
        let regex = compile(&source)?;
        Ok(Pattern { pieces, regex })
    }

    /// The placeholders, in order.
    pub fn holes(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Hole(hole) => Some(hole.as_str()),
            Piece::Text(_) => None,
        })
    }

    pub fn has_hole(&self, name: &str) -> bool {
        self.holes().any(|hole| hole == name)
    }

    /// The template as it was written.
    pub fn template(&self) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Hole(hole) => format!("{{{hole}}}"),
        };
        self.pieces.iter().map(piece).collect()
    }

    pub fn matches(&self, name: &str) -> bool {
        name.len() <= MAX_NAME && self.regex.is_match(name)
    }

    /// What each placeholder stands for in `name`, or `None` when the template doesn't fit.
    pub fn read<'n>(&self, name: &'n str) -> Option<Reading<'n>> {
        if name.len() > MAX_NAME {
            return None;
        }
        self.regex.captures(name).map(Reading)
    }

    /// The name with each placeholder replaced by `value` of it; `None` when one has none.
    pub fn write<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Option<String> {
        let mut name = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Hole(hole) => name.push_str(value(hole)?),
            }
        }
        Some(name)
    }
}

/// A name taken apart.
#[derive(Debug)]
pub struct Reading<'n>(regex::Captures<'n>);

impl<'n> Reading<'n> {
    pub fn get(&self, hole: &str) -> Option<&'n str> {
        self.0.name(hole).map(|found| found.as_str())
    }

    /// Where in the name a placeholder stands, in bytes.
    pub fn span(&self, hole: &str) -> Option<std::ops::Range<usize>> {
        self.0.name(hole).map(|found| found.range())
    }

    /// The layer, where the template has one.
    pub fn layer(&self) -> Option<usize> {
        self.get(LAYER)?.parse().ok()
    }
}

/// The expression behind `{layer}`: a decimal number below [`MAX_LAYERS`] without leading zeros.
pub fn layer_expression() -> String {
    "0|[1-9][0-9]{0,3}".to_string()
}

/// Compiles a regular expression of bounded size; the error is one line.
pub fn compile(source: &str) -> Result<Regex, String> {
    RegexBuilder::new(source).size_limit(1 << 20).build().map_err(|error| {
        let text = error.to_string();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("not a regular expression");
        last.trim().trim_start_matches("error: ").to_string()
    })
}

/// Whether `name` can name a placeholder: lower-case letters, digits and `_`, a letter first.
pub fn is_placeholder(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn parse(template: &str) -> Result<Vec<Piece>, String> {
    if template.is_empty() {
        return Err("an empty template".to_string());
    }
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find(['{', '}']) {
        let (text, tail) = rest.split_at(open);
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_string()));
        }
        let close = tail.find('}').filter(|_| tail.starts_with('{'));
        let Some(close) = close else {
            return Err(format!("unbalanced '{}' in '{template}'", &tail[..1]));
        };
        let hole = &tail[1..close];
        if !is_placeholder(hole) {
            return Err(format!("'{{{hole}}}' is no placeholder: use lower-case letters, digits and '_'"));
        }
        pieces.push(Piece::Hole(hole.to_string()));
        rest = &tail[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_string()));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holes() -> BTreeMap<String, String> {
        let mut holes = BTreeMap::new();
        holes.insert(LAYER.to_string(), layer_expression());
        holes.insert("rest".to_string(), ".+".to_string());
        holes.insert("leaf".to_string(), "weight|bias".to_string());
        holes
    }

    #[test]
    fn reads_what_it_writes() {
        let pattern = Pattern::new("blocks.{layer}.mlp.{rest}", &holes()).unwrap();
        let reading = pattern.read("blocks.11.mlp.fc1.weight").unwrap();
        assert_eq!(reading.layer(), Some(11));
        assert_eq!(reading.get("rest"), Some("fc1.weight"));
        assert_eq!(reading.span("layer"), Some(7..9));
        assert_eq!(pattern.write(|hole| reading.get(hole)).as_deref(), Some("blocks.11.mlp.fc1.weight"));
        assert_eq!(pattern.write(|_| None), None);
        assert_eq!(pattern.template(), "blocks.{layer}.mlp.{rest}");
    }

    #[test]
    fn alternatives_stay_inside_their_placeholder_and_dots_are_dots() {
        let pattern = Pattern::new("a.b{layer}.{leaf}", &holes()).unwrap();
        assert!(pattern.matches("a.b0.weight"));
        assert!(pattern.matches("a.b10.bias"));
        for name in ["bias", "a.b0.weights", "axb0.weight", "a.b0.weight\n", "xa.b0.weight", ""] {
            assert!(!pattern.matches(name), "{name:?}");
        }
    }

    #[test]
    fn layers_are_bounded_and_canonical() {
        let pattern = Pattern::new("{layer}", &holes()).unwrap();
        for (name, layer) in [("0", Some(0)), ("9999", Some(9999)), ("10000", None), ("00", None), ("-1", None)] {
            assert_eq!(pattern.read(name).and_then(|reading| reading.layer()), layer, "{name}");
        }
        assert!(pattern.read("٣").is_none());
    }

    #[test]
    fn very_long_names_match_nothing() {
        let pattern = Pattern::new("{rest}", &holes()).unwrap();
        assert!(pattern.matches(&"x".repeat(MAX_NAME)));
        assert!(!pattern.matches(&"x".repeat(MAX_NAME + 1)));
        assert!(pattern.read(&"x".repeat(MAX_NAME + 1)).is_none());
    }

    #[test]
    fn says_what_is_wrong_with_a_template() {
        let error = |template: &str| Pattern::new(template, &holes()).unwrap_err();
        assert_eq!(error(""), "an empty template");
        assert_eq!(error("a{b"), "unbalanced '{' in 'a{b'");
        assert_eq!(error("a}b"), "unbalanced '}' in 'a}b'");
        assert_eq!(error("a{}b"), "'{}' is no placeholder: use lower-case letters, digits and '_'");
        assert_eq!(error("{nosuch}"), "placeholder {nosuch} is not defined under [placeholders]");
        assert_eq!(error("{rest}{rest}"), "placeholder {rest} stands twice in one template");
    }
}
