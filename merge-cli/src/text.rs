//! Numbers and columns for people.

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

/// Wraps words to `width` columns, lines after the first indented by `indent`.
pub fn wrap(words: impl IntoIterator<Item = String>, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in words {
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
    fn long_lists_wrap() {
        let words = ["aaa", "bbb", "ccc"].map(String::from);
        assert_eq!(wrap(words, 2, 10), "aaa bbb\n  ccc");
    }
}
