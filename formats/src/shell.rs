//! Paths inside commands that are printed to be pasted.

use std::path::Path;

use crate::error::is_mark;

/// A path as one word of a POSIX shell's command line: as it is where nothing in it means anything to a shell, else in
/// quotes. It never begins with `-`, so that no program takes it for an option.
///
/// Bytes that are no text, and characters that a terminal would act on or hide, are written as `$'\x1b'`, which bash,
/// zsh and ksh understand.
pub fn shell_path(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let word = match path.to_str() {
        Some(text) if text.chars().any(|c| c.is_control() || is_mark(c)) => escaped(bytes),
        Some(text) if !text.is_empty() && text.chars().all(is_plain) => text.to_owned(),
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")),
        None => escaped(bytes),
    };
    if bytes.starts_with(b"-") { format!("./{word}") } else { word }
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "/._-+:@%,".contains(c)
}

fn escaped(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => word.extend(['\\', char::from(byte)]),
            b' '..=b'~' => word.push(char::from(byte)),
            _ => word += &format!("\\x{byte:02x}"),
        }
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_command() {
        for (path, word) in [
            ("runs/vqa-1.0_b", "runs/vqa-1.0_b"),
            ("my run", "'my run'"),
            ("it's", r"'it'\''s'"),
            ("a$b", "'a$b'"),
            ("~x", "'~x'"),
            ("", "''"),
            ("größe", "größe"),
            ("-f", "./-f"),
            ("-my run", "./'-my run'"),
            ("a\nb'", r"$'a\x0ab\''"),
            ("a\u{202e}b", r"$'a\xe2\x80\xaeb'"),
        ] {
            assert_eq!(shell_path(Path::new(path)), word);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_a_path_back() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        for name in [&b"my run"[..], b"it's", b"a;rm -r b", b"$HOME", b"a\\b", b"-f", b"x\xff y", b"a\tb'\\", b"*?[a]"]
        {
            let word = shell_path(Path::new(OsStr::from_bytes(name)));
            let printed =
                std::process::Command::new("bash").args(["-c", &format!("printf %s {word}")]).output().unwrap();
            let read = printed.stdout.strip_prefix(b"./").unwrap_or(&printed.stdout);
            assert_eq!(read, name, "{word}");
        }
    }
}
