//! What signals do: a training loop saves a checkpoint and ends, anything else cleans up and ends at once.

use engine::train::interrupt;

use crate::say;

/// To be called once, before any file is written.
pub fn prepare(quiet: bool) {
    let heeded = move |signal| {
        let heeded = interrupt::heard(signal);
        if !heeded {
            interrupt::undo_all();
        } else if !quiet {
            say(format_args!(
                "stopping: the run saves a checkpoint after this update; a second signal ends it at once"
            ));
        }
        heeded
    };
    if let Err(e) = formats::signals::prepare(heeded) {
        say(format_args!("Ctrl-C may leave a temporary file behind: {e}"));
    }
}
