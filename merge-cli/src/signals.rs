//! What signals do: an interrupted merge cleans up and ends.

use crate::say;

/// To be called once, before any file is written.
pub fn prepare() {
    if let Err(e) = formats::signals::prepare(|_| false) {
        say(format_args!("Ctrl-C may leave a temporary file behind: {e}"));
    }
}
