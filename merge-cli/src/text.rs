//! Numbers and columns for people.

/// Columns of a terminal that text is laid out for.
pub const WIDTH: usize = 80;

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a decimal unit: `944.1 MB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// `1 tensor`, `2 tensors`.
pub fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// `[768, 768]`, and `scalar` for no dimensions.
pub fn shape(shape: &[usize]) -> String {
    if shape.is_empty() { "scalar".into() } else { format!("{shape:?}") }
}

/// Whole numbers as ranges: `0–9, 11`.
pub fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => parts.push((n, n)),
        }
    }
    let shown = parts.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}–{b}") });
    shown.collect::<Vec<_>>().join(", ")
}

/// Rows as aligned columns, two spaces apart and indented by two; the columns in `right` are
/// aligned to the right. The last column isn't padded.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if right.contains(&column) { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str("  ");
            line.push_str(before);
            line.push_str(cell);
            line.push_str(after);
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A number in about six characters: `0.0213`, `12.35`, `4.1e-5`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if !value.is_finite() => value.to_string(),
        _ if !(0.001..1e5).contains(&size) => format!("{value:.1e}"),
        _ if size < 10.0 && value > 0.0 => format!("{value:.4}"),
        _ if size < 10.0 => format!("{value:.3}"),
        _ if size < 100.0 => format!("{value:.2}"),
        _ if size < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A number without the digits that only rounding left: `0.333`, `0.2`, `20`.
pub fn trimmed(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// Columns of a table that belong together, under one title.
pub struct Columns {
    pub title: String,
    pub columns: Vec<Column>,
}

pub struct Column {
    pub heading: String,
    pub cells: Vec<String>,
}

impl Columns {
    fn widths(&self) -> Vec<usize> {
        let width = |column: &Column| {
            let cells = column.cells.iter().chain([&column.heading]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        self.columns.iter().map(width).collect()
    }

    /// The headings, or a row of cells, each aligned to the right.
    fn line(&self, row: Option<usize>, widths: &[usize]) -> String {
        let text = |column: &Column| match row {
            None => column.heading.clone(),
            Some(row) => column.cells.get(row).cloned().unwrap_or_default(),
        };
        let cells = self.columns.iter().zip(widths).map(|(column, &width)| format!("{:>width$}", text(column)));
        cells.collect::<Vec<_>>().join(" ")
    }
}

/// A table of groups of columns after a column of `labels`. Groups that don't fit into `width` go into a further
/// table below.
pub fn grouped(heading: &str, labels: &[String], groups: &[Columns], width: usize) -> String {
    const GAP: usize = 3;
    let label_width = labels.iter().map(|label| label.chars().count()).chain([heading.chars().count()]).max();
    let label_width = label_width.unwrap_or(0);
    // Each group with the widths of its columns and its own.
    let measured = groups.iter().map(|group| {
        let widths = group.widths();
        let width = (widths.iter().sum::<usize>() + widths.len().saturating_sub(1)).max(group.title.chars().count());
        (group, widths, width)
    });
    let measured: Vec<_> = measured.collect();
    let mut out = String::new();
    let mut rest = measured.as_slice();
    while !rest.is_empty() {
        let mut used = 2 + label_width;
        let fitting = rest.iter().take_while(|(_, _, group)| {
            used += GAP + group;
            used <= width
        });
        let (now, later) = rest.split_at(fitting.count().max(1));
        rest = later;
        let mut line = |label: &str, text: &dyn Fn(&Columns, &[usize]) -> String| {
            let mut line = format!("  {label:label_width$}");
            for (group, widths, width) in now {
                line += &format!("{:GAP$}{:width$}", "", text(group, widths));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        };
        if now.iter().any(|(group, _, _)| !group.title.is_empty()) {
            line("", &|group, _| group.title.clone());
        }
        line(heading, &|group, widths| group.line(None, widths));
        for (row, label) in labels.iter().enumerate() {
            line(label, &|group, widths| group.line(Some(row), widths));
        }
    }
    out
}

/// At most `width` columns of a text, the last one `…` where more was cut.
pub fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width.saturating_sub(1)) {
        Some((at, last)) if at + last.len_utf8() < text.len() => format!("{}…", &text[..at]),
        _ => text.to_string(),
    }
}

/// Wraps words to `width` columns, lines after the first indented by `indent`. A name longer than a line goes on in the
/// next after one of its dots, and what is longer still is cut.
pub fn wrap(words: impl IntoIterator<Item = String>, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    let room = width.saturating_sub(indent).max(1);
    for word in words.into_iter().flat_map(|word| at_dots(&word, room)) {
        let word = cut(&word, room);
        let length = word.chars().count();
        if column > indent {
            if column + 1 + length > width {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.push_str(&word);
        column += length;
    }
    out
}

/// A word in pieces of at most `room` columns, as far as its dots allow: each as long as it can be.
fn at_dots(word: &str, room: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for part in word.split_inclusive('.') {
        let last =
            pieces.last_mut().filter(|last| last.is_empty() || last.chars().count() + part.chars().count() <= room);
        match last {
            Some(last) => last.push_str(part),
            None => pieces.push(part.to_owned()),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1234567), "1,234,567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(944_123_456), "944.1 MB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_string(), "10".into()], vec!["bcd".into(), "9".into()]];
        assert_eq!(table(&rows, &[1]), "  a    10\n  bcd   9\n");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.02134, 1.23456, -0.94123, 12.345, 123.45, 65432.1, 1e6, 4.12e-5, f64::NAN].map(short);
        let wanted = ["0", "0.0213", "1.2346", "-0.941", "12.35", "123.5", "65432", "1.0e6", "4.1e-5", "NaN"];
        assert_eq!(shown, wanted);
        assert_eq!([33.3 / 100.0, 0.2, 20.0, 0.0].map(trimmed), ["0.333", "0.2", "20", "0"]);
    }

    #[test]
    fn groups_of_columns_that_do_not_fit_go_below() {
        let column = |heading: &str, cell: &str| Column { heading: heading.into(), cells: vec![cell.into()] };
        let group =
            |title: &str| Columns { title: title.into(), columns: vec![column("a", "1.5"), column("longer", "2")] };
        let both = "        first        second\n  row     a longer     a longer\n  0     1.5      2   1.5      2\n";
        assert_eq!(grouped("row", &["0".into()], &[group("first"), group("second")], 40), both);
        let apart = "        first\n  row     a longer\n  0     1.5      2\n\
                     \x20       second\n  row     a longer\n  0     1.5      2\n";
        assert_eq!(grouped("row", &["0".into()], &[group("first"), group("second")], 30), apart);
    }

    #[test]
    fn long_lists_wrap() {
        let words = ["aaa", "bbb", "ccc"].map(String::from);
        assert_eq!(wrap(words, 2, 10), "aaa bbb\n  ccc");
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(cut("abcd", 4), "abcd");
        assert_eq!(cut("äbcde", 4), "äbc…");
        assert_eq!(cut("", 4), "");
        assert_eq!(wrap(["a".into(), "b".repeat(20)], 2, 10), "a\n  bbbbbbb…");
    }

    #[test]
    fn long_names_break_at_their_dots() {
        let names = ["is".to_string(), "aaa.bbb.ccc.d".into(), "x".into()];
        assert_eq!(wrap(names, 2, 10), "is\n  aaa.bbb.\n  ccc.d x");
        assert_eq!(wrap(["aaa.bbb".into()], 2, 10), "aaa.bbb");
    }
}
