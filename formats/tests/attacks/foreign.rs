//! Things that aren't checkpoints at all.

use crate::files::{View, Zip};
use crate::harness::{open, open_path};

#[test]
fn files_of_other_kinds_are_named() {
    let tar = {
        let mut block = vec![0; 1024];
        block[..8].copy_from_slice(b"weights\0");
        block[257..262].copy_from_slice(b"ustar");
        block
    };
    for (bytes, reason) in [
        (&b""[..], "empty"),
        (b"Just some text.\nOn two lines.\n", "text file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n\n <?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "Zstandard"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"\x93NUMPY\x01\0v\0", "numpy"),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (&tar, "tar"),
        (b"\x7fELF\x02\x01\x01\0", "no known format"),
        (b"\0", "no known format"),
        (b"\x80", "no known format"),
        (b"\x80\x02", "cut short"),
        (b"PK", "text file"),
        (b"PK\x03\x04", "zip directory"),
        (b"PK\x05\x06", "zip directory"),
        (&[0; 4096], "no known format"),
        (&[0xff; 4096], "no known format"),
        (b"{", "no index"),
        (b"{\"a\": 1}", "no index"),
    ] {
        open(bytes).refused(&["hostile.bin", reason]);
    }
    open(&[b"PK\x03\x04", &[0; 4096][..]].concat()).refused(&["zip directory"]);
}

#[test]
fn paths_that_are_no_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    open_path(&folder.path().join("missing.ckpt")).refused(&["missing.ckpt", "cannot open"]);
    std::fs::create_dir(folder.path().join("folder.ckpt")).unwrap();
    open_path(&folder.path().join("folder.ckpt")).refused(&["folder.ckpt", "folder"]);
    std::fs::write(folder.path().join("file"), "x").unwrap();
    open_under_file(folder.path());
    open_path(&folder.path().join("nul\0byte")).refused(&["nul\\u{0}byte"]);
    open_path(&folder.path().join("x".repeat(300))).refused(&["cannot open"]);
    open_path(&folder.path().join("\u{1b}[31m\n")).refused(&["\\u{1b}[31m\\n"]);
}

/// A path below something that is no folder.
fn open_under_file(folder: &std::path::Path) {
    let error = formats::open(folder.join("file/below.ckpt")).unwrap_err().to_string();
    assert!(error.contains("below.ckpt: cannot open") && error.lines().count() == 1, "{error}");
}

#[cfg(unix)]
#[test]
fn pipes_sockets_and_devices_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.ckpt");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    open_path(&pipe).refused(&["pipe.ckpt", "not a regular file"]);
    let socket = folder.path().join("socket.ckpt");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    open_path(&socket).refused(&["socket.ckpt", "not a regular file"]);
    let link = folder.path().join("zero.ckpt");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    open_path(&link).refused(&["zero.ckpt", "not a regular file"]);
    let own = folder.path().join("loop.ckpt");
    std::os::unix::fs::symlink(&own, &own).unwrap();
    open_path(&own).refused(&["loop.ckpt", "cannot open"]);
    // A link to a checkpoint is one.
    let target = folder.path().join("target");
    std::fs::write(&target, View::default().zip(&[("0", &[0; 8])])).unwrap();
    let link = folder.path().join("link.ckpt");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    open_path(&link).opened();
}

#[test]
fn one_container_in_front_of_another_is_taken_for_the_first() {
    let zip = View::default().zip(&[("0", &[0; 8])]);
    // What stands first decides: a zip behind a pickle, behind text, behind a web page.
    open(&[b"\x80\x02}.", &zip[..]].concat()).opened();
    open(&[b"#!/bin/sh\n", &zip[..]].concat()).refused(&["hostile.bin"]);
    open(&[b"<html>", &zip[..]].concat()).refused(&["hostile.bin"]);
    // A zip in a zip's comment: the outer one's directory isn't at the end.
    let outer = Zip { comment: zip.clone(), ..Zip::torch(b"\x80\x02}.", &[]) };
    let _ = open(&outer.build());
    let _ = open(&[&zip[..], &zip].concat());
    let _ = open(&[&zip[..], &[0; 100]].concat());
}
