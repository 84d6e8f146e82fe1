//! A recipe as a TOML file that people write, and that `vlmerge recipe` prints.
//!
//! ```toml
//! method = "interpolate"
//! output = "merged.safetensors"
//!
//! [[input]]
//! role = "checkpoint"
//! file = "ms.ckpt"
//!
//! [parameters]
//! ratio = 0.5
//!
//! [[rule]]
//! layers = "6-11"
//! parts = ["mlp"]
//! ratio = 0.3
//! ```

use std::fmt::Write;
use std::path::Path;

use formats::Error;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::methods;
use crate::recipe::{Recipe, RecipeInput};
use crate::ruled::Rule;

/// A recipe read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFile {
    pub recipe: Recipe,
    /// Where to write, if the file says so.
    pub output: Option<String>,
}

/// Files beyond this are refused unread: a recipe is a page of text, with perhaps a layout in it.
pub const MAX_BYTES: usize = 4 << 20;

/// Reads a recipe.
///
/// # Errors
/// What is wrong and on which line: no TOML, an unknown method, key or parameter, a value of the
/// wrong type.
pub fn read(text: &str, path: &Path) -> formats::Result<RecipeFile> {
    parse(text).map_err(|complaint| Error::file(path, complaint.at_line(text)))
}

struct Complaint {
    at: usize,
    reason: String,
}

impl Complaint {
    fn at_line(&self, text: &str) -> String {
        let before = &text.as_bytes()[..self.at.min(text.len())];
        format!("line {}: {}", before.iter().filter(|&&byte| byte == b'\n').count() + 1, self.reason)
    }
}

type Key<'i, 't> = &'t Spanned<std::borrow::Cow<'i, str>>;

fn complain<T>(at: usize, reason: impl Into<String>) -> Result<T, Complaint> {
    Err(Complaint { at, reason: reason.into() })
}

fn parse(text: &str) -> Result<RecipeFile, Complaint> {
    if text.len() > MAX_BYTES {
        return complain(0, format!("{} bytes are no recipe: at most {MAX_BYTES} are read", text.len()));
    }
    let table = DeTable::parse(text).map_err(|e| Complaint {
        at: e.span().map_or(0, |span| span.start),
        reason: e.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let table = table.get_ref();
    let Some(method) = table.get("method") else {
        return complain(0, format!("it names no method: method = one of {}", methods::NAMES.join(", ")));
    };
    let method_at = method.span().start;
    let method = string(method)?;
    let Some(known) = methods::parameter_names(&method) else {
        return complain(method_at, unknown("method", &method, methods::NAMES));
    };
    let mut file = RecipeFile { recipe: Recipe::new(&method, Map::new()), output: None };
    let mut parameters_at = method_at;
    const KEYS: &[&str] = &["method", "output", "layout", "tool", "version", "input", "parameters", "rule"];
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "method" => {}
            "output" => file.output = Some(string(value)?),
            "layout" => file.recipe.layout = Some(string(value)?),
            "tool" => file.recipe.tool = string(value)?,
            "version" => file.recipe.version = string(value)?,
            "input" => file.recipe.inputs = tables(value)?.into_iter().map(input).collect::<Result<_, _>>()?,
            "parameters" => {
                parameters_at = key.span().start;
                let Some(table) = value.get_ref().as_table() else {
                    return complain(value.span().start, "parameters must be a table: [parameters]");
                };
                for (key, value) in table {
                    check_parameter(key, &method, known)?;
                    file.recipe.parameters.insert(key.get_ref().to_string(), json(value)?);
                }
            }
            "rule" => {}
            other => return complain(key.span().start, unknown("key", other, KEYS)),
        }
    }
    check_build(&method, &file.recipe.parameters, parameters_at)?;
    if let Some(value) = table.get("rule") {
        for table in tables(value)? {
            let (rule, at) = rule(table, &method, known)?;
            let mut own = file.recipe.parameters.clone();
            own.extend(rule.parameters.clone());
            check_build(&method, &own, at)?;
            file.recipe.rules.push(rule);
        }
    }
    Ok(file)
}

fn check_build(method: &str, parameters: &Map<String, Value>, at: usize) -> Result<(), Complaint> {
    methods::check_parameters(method, parameters).map_err(|reason| Complaint { at, reason })
}

fn input(table: &DeTable<'_>) -> Result<RecipeInput, Complaint> {
    let mut input = RecipeInput::default();
    const KEYS: &[&str] = &["role", "file", "root", "content_digest"];
    let mut at = usize::MAX;
    for (key, value) in table {
        at = at.min(key.span().start);
        match key.get_ref().as_ref() {
            "role" => input.role = string(value)?,
            "file" => input.name = string(value)?,
            "root" => input.root = string(value)?,
            "content_digest" => input.content_digest = string(value)?,
            other => return complain(key.span().start, unknown("key of an input", other, KEYS)),
        }
    }
    if input.name.is_empty() || input.role.is_empty() {
        return complain(if at == usize::MAX { 0 } else { at }, "an input needs a role and a file");
    }
    Ok(input)
}

/// A rule and where it starts.
fn rule(table: &DeTable<'_>, method: &str, known: &[&str]) -> Result<(Rule, usize), Complaint> {
    let mut rule = Rule::default();
    let mut start = usize::MAX;
    for (key, value) in table {
        let at = key.span().start;
        start = start.min(at);
        let fault = |reason: String| Complaint { at, reason };
        match key.get_ref().as_ref() {
            "layers" => {
                // A single layer may be a number.
                let text = match json(value)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                rule.layers = Some(text.try_into().map_err(fault)?);
            }
            "parts" => {
                let list = match json(value)? {
                    Value::Array(list) => list,
                    one => vec![one],
                };
                for part in list {
                    rule.parts.push(part.as_str().unwrap_or_default().parse().map_err(fault)?);
                }
            }
            "names" => rule.names = Some(string(value)?.try_into().map_err(fault)?),
            other if methods::SHARED.contains(&other) => {
                return complain(at, format!("{other} holds for the whole merge: put it under [parameters]"));
            }
            other => {
                if !known.contains(&other) {
                    let keys: Vec<&str> = ["layers", "parts", "names"].iter().chain(known).copied().collect();
                    return complain(at, unknown(&format!("key of a rule of {method}"), other, &keys));
                }
                rule.parameters.insert(other.to_string(), json(value)?);
            }
        }
    }
    Ok((rule, if start == usize::MAX { 0 } else { start }))
}

fn check_parameter(key: Key<'_, '_>, method: &str, known: &[&str]) -> Result<(), Complaint> {
    let name = key.get_ref().as_ref();
    let known: Vec<&str> = known.iter().chain(methods::SHARED).copied().collect();
    match known.contains(&name) {
        true => Ok(()),
        false => complain(key.span().start, unknown(&format!("parameter of {method}"), name, &known)),
    }
}

/// "unknown key 'rato': did you mean 'ratio'?"
fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let nearest = known.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    match nearest {
        Some(near) if strsim::jaro_winkler(near, name) > 0.8 => {
            format!("unknown {what} '{name}': did you mean '{near}'?")
        }
        _ => format!("unknown {what} '{name}': it is one of {}", known.join(", ")),
    }
}

fn string(value: &Spanned<DeValue<'_>>) -> Result<String, Complaint> {
    match value.get_ref().as_str() {
        Some(text) => Ok(text.to_owned()),
        None => complain(value.span().start, "this must be text in quotes"),
    }
}

fn tables<'t, 'i>(value: &'t Spanned<DeValue<'i>>) -> Result<Vec<&'t DeTable<'i>>, Complaint> {
    let list = value.get_ref().as_array();
    let tables = list.map(|list| list.iter().map(|item| item.get_ref().as_table()).collect::<Option<Vec<_>>>());
    match tables {
        Some(Some(tables)) => Ok(tables),
        _ => complain(value.span().start, "this must be a list of tables, each under a [[heading]]"),
    }
}

fn json(value: &Spanned<DeValue<'_>>) -> Result<Value, Complaint> {
    let at = value.span().start;
    Ok(match value.get_ref() {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(value) => Value::from(*value),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Value::from(value),
            Err(_) => return complain(at, "this integer is too large"),
        },
        DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
            Ok(value) if value.is_finite() => Value::from(value),
            _ => return complain(at, "this must be a finite number"),
        },
        DeValue::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        DeValue::Table(table) => {
            let entry =
                |(key, value): (Key<'_, '_>, &Spanned<DeValue<'_>>)| Ok((key.get_ref().to_string(), json(value)?));
            Value::Object(table.iter().map(|(key, value)| entry((key, value))).collect::<Result<_, Complaint>>()?)
        }
        DeValue::Datetime(_) => return complain(at, "a date means nothing here"),
    })
}

/// A recipe as text that [`read`] reads back.
pub fn write(recipe: &Recipe) -> String {
    let by = comment(&recipe.tool_and_version());
    format!("# Made by {by}. Run it again: vlmerge merge --recipe THIS.toml -o OUT\n{}", body(recipe))
}

/// The steps that a file came about by, the newest first, as comments alone: a file that [`read`] refuses.
pub fn write_history(chain: &[Recipe]) -> String {
    let mut out = "# No recipe makes this file again. How it came about, the newest step first:\n".to_string();
    for step in chain {
        let verb = if step.is_training() { "Trained" } else { "Made" };
        out.push_str(&format!("#\n# {verb} by {}\n", comment(&step.tool_and_version())));
        if step.is_training() {
            let parameters = step.shown_parameters();
            parameters.for_each(|(name, value)| out.push_str(&format!("#   {} {}\n", comment(&name), comment(&value))));
            continue;
        }
        let mut step = step.clone();
        step.parameters.remove("of");
        for line in body(&step).lines().filter(|line| !line.is_empty()) {
            out.push_str(&format!("#   {}\n", comment(line)));
        }
    }
    out
}

/// Text from a file that stays within one line of comment.
fn comment(text: &str) -> String {
    formats::show_name(text)
}

fn body(recipe: &Recipe) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &Value| {
        let _ = writeln!(out, "{key} = {}", toml_value(value));
    };
    line("method", &Value::from(recipe.method.as_str()));
    if let Some(layout) = &recipe.layout {
        line("layout", &Value::from(layout.as_str()));
    }
    for input in &recipe.inputs {
        out.push_str("\n[[input]]\n");
        for (key, text) in [
            ("role", &input.role),
            ("file", &input.name),
            ("root", &input.root),
            ("content_digest", &input.content_digest),
        ] {
            if !text.is_empty() {
                let _ = writeln!(out, "{key} = {}", toml_value(&Value::from(text.as_str())));
            }
        }
        if let Some(made_by) = &input.made_by {
            let (by, method) = (comment(&made_by.tool_and_version()), comment(&made_by.method));
            let _ = writeln!(out, "# The file was itself made by {by}: {method}.");
        }
    }
    let mut table = |heading: &str, entries: &mut dyn Iterator<Item = (String, Value)>| {
        let _ = write!(out, "\n{heading}\n");
        for (key, value) in entries.filter(|(_, value)| !value.is_null()) {
            let _ = writeln!(out, "{key} = {}", toml_value(&value));
        }
    };
    table("[parameters]", &mut recipe.parameters.clone().into_iter());
    for rule in &recipe.rules {
        let mut entries = Vec::new();
        entries.extend(rule.layers.clone().map(|layers| ("layers".to_string(), Value::from(String::from(layers)))));
        if !rule.parts.is_empty() {
            let parts = rule.parts.iter().map(|part| Value::from(part.to_string())).collect();
            entries.push(("parts".into(), Value::Array(parts)));
        }
        entries.extend(rule.names.clone().map(|names| ("names".to_string(), Value::from(String::from(names)))));
        entries.extend(rule.parameters.clone());
        table("[[rule]]", &mut entries.into_iter());
    }
    out
}

/// A value in TOML's inline form.
fn toml_value(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let entry = |(key, value): (&String, &Value)| format!("{} = {}", toml_key(key), toml_value(value));
            format!("{{ {} }}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        // JSON's numbers and booleans are TOML's.
        other => other.to_string(),
    }
}

fn toml_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if is_bare { key.to_owned() } else { toml::Value::String(key.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
method = \"interpolate\"
output = \"out.safetensors\"

[[input]]
role = \"checkpoint\"
file = \"ms.ckpt\"

[parameters]
ratio = 0.5
experts = \"all\"

[[rule]]
layers = \"6-11\"
parts = [\"mlp\"]
ratio = 0.3
";

    fn fault(text: &str) -> String {
        read(text, Path::new("r.toml")).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_it_says() {
        let file = read(TEXT, Path::new("r.toml")).unwrap();
        assert_eq!(file.output.as_deref(), Some("out.safetensors"));
        assert_eq!(file.recipe.method, "interpolate");
        assert_eq!(file.recipe.parameters["ratio"], 0.5);
        assert_eq!(file.recipe.inputs[0].name, "ms.ckpt");
        assert_eq!(file.recipe.rules[0].parameters["ratio"], 0.3);
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut recipe = read(TEXT, Path::new("r.toml")).unwrap().recipe;
        recipe.layout = Some("name = \"own\"\r\nrecognise = ['^\\d+\\.', \"\"\"a\"\"\"]\n# λ\t\u{1}\n".into());
        let again = read(&write(&recipe), Path::new("r.toml")).unwrap().recipe;
        assert_eq!(recipe, again);
    }

    #[test]
    fn typos_are_named_with_their_line() {
        assert_eq!(
            fault(&TEXT.replace("ratio = 0.5", "rato = 0.5")),
            "r.toml: line 9: unknown parameter of interpolate 'rato': did you mean 'ratio'?"
        );
        assert_eq!(
            fault(&TEXT.replace("\"interpolate\"", "\"interpolat\"")),
            "r.toml: line 1: unknown method 'interpolat': did you mean 'interpolate'?"
        );
        assert!(fault(&TEXT.replace("layers = ", "layer = ")).starts_with("r.toml: line 13: "));
        assert!(fault(&TEXT.replace("\"mlp\"", "\"mpl\"")).starts_with("r.toml: line 14: no part 'mpl'"));
        assert!(fault(&TEXT.replace("0.3", "\"much\"")).starts_with("r.toml: line 13: "));
        assert!(fault(&TEXT.replace("ratio = 0.5\n", "")).contains("ratio"));
        assert!(fault("method = ").starts_with("r.toml: line 1: "));
        assert!(fault("").contains("names no method"));
    }
}
