//! Text for a terminal: how wide it is, lines that break between words, numbers with their units.

use indicatif::{ProgressState, ProgressStyle};
use terminal_size::{Width, terminal_size_of};

/// Columns of the terminal that standard output goes to; `None` where it goes elsewhere.
pub fn stdout_width() -> Option<usize> {
    terminal_size_of(std::io::stdout()).map(|(Width(columns), _)| columns.into())
}

/// Columns of the terminal that standard error goes to; `None` where it goes elsewhere.
pub fn stderr_width() -> Option<usize> {
    terminal_size_of(std::io::stderr()).map(|(Width(columns), _)| columns.into())
}

/// Breaks a line between words, so that none of the lines is wider than `width` unless a single word is. Lines after the
/// first are indented by `indent`.
pub fn wrapped(line: &str, indent: usize, width: usize) -> String {
    let start = line.len() - line.trim_start().len();
    let mut out = line[..start].to_owned();
    let mut column = start;
    // Spaces before the next word; those that align columns are kept within a line.
    let mut gap = 0;
    for word in line[start..].split(' ') {
        if !word.is_empty() {
            let length = word.chars().count();
            if gap > 0 && column + gap + length > width {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                out.push_str(&" ".repeat(gap));
                column += gap;
            }
            out.push_str(word);
            column += length;
            gap = 0;
        }
        gap += 1;
    }
    out
}

/// `1 image`, `2 images`.
pub fn count(n: impl TryInto<u64>, one: &str, many: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {}", if n == 1 { one } else { many })
}

/// `0.12 images/s`, `12.3 images/s`, `123 images/s`.
pub fn rate(per_second: f64, what: &str) -> String {
    let decimals = if per_second < 1.0 {
        2
    } else if per_second < 100.0 {
        1
    } else {
        0
    };
    format!("{per_second:.decimals$} {what}/s")
}

/// A learning rate: `0`, `1.00e-5`.
pub fn learning_rate(lr: f64) -> String {
    if lr == 0.0 { "0".into() } else { format!("{lr:.2e}") }
}

/// Columns for the message of a bar.
pub const MESSAGE: usize = 24;

/// The end of a text, which tells files of one data set apart, in at most `width` columns.
pub fn end_of(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(length - width + 1)).collect()
}

/// How a bar over things called `what` looks: a message of at most [`MESSAGE`] columns, the bar, how many are done, how
/// fast it goes, the time left. At 80 columns ten or more are the bar's.
pub fn bar_style(what: &'static str) -> ProgressStyle {
    let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&rate(state.per_sec(), what));
    };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {rate} {eta}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", rate)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};

    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("aaa bbb ccc", 2, 7), "aaa bbb\n  ccc");
        assert_eq!(wrapped("  aaa bbb", 4, 6), "  aaa\n    bbb");
        assert_eq!(wrapped("aaa  bbb   ccc", 0, 9), "aaa  bbb\nccc");
        assert_eq!(wrapped("longer-than-a-line b", 0, 5), "longer-than-a-line\nb");
        assert_eq!(wrapped("", 2, 5), "");
    }

    #[test]
    fn one_is_not_many() {
        let shown = [0u64, 1, 2].map(|n| count(n, "image", "images"));
        assert_eq!(shown, ["0 images", "1 image", "2 images"]);
    }

    #[test]
    fn a_rate_has_its_unit_and_a_learning_rate_of_nothing_no_exponent() {
        let shown = [0.123, 12.34, 1234.5].map(|value| rate(value, "images"));
        assert_eq!(shown, ["0.12 images/s", "12.3 images/s", "1234 images/s"]);
        assert_eq!([0.0, 1e-5].map(learning_rate), ["0", "1.00e-5"]);
    }

    /// A terminal of 80 columns that keeps what was written to it.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Columns80(pub Arc<Mutex<String>>);

    impl TermLike for Columns80 {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("no panic").push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_keeps_ten_cells_at_80_columns() {
        let terminal = Columns80::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(1_234_567), target).with_style(bar_style("images"));
        bar.set_message(end_of("coco_caption_karpathy_restval.arrow", MESSAGE));
        bar.set_position(1_234_566);
        bar.abandon();
        let shown = terminal.0.lock().expect("no panic").clone();
        assert!(shown.starts_with("…_karpathy_restval.arrow "), "{shown}");
        assert!(shown.matches(['█', '░']).count() >= 10 && shown.contains(" images/s "), "{shown}");
    }
}
