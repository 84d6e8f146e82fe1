//! A progress bar on stderr, where someone watches.

use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::Context;

/// A bar over `bytes`, or none when stderr is no terminal or `--quiet` was given.
pub fn bar(context: &Context, what: &'static str, bytes: u64) -> ProgressBar {
    if context.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    // indicatif draws nothing by itself where stderr is no terminal.
    ProgressBar::new(bytes).with_style(style).with_message(what)
}
