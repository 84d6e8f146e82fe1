//! Files that are there whole or not at all.
//!
//! A file is written under a temporary name in the folder of its target and renamed once it is whole, so
//! that a killed program leaves the older file, or none. Temporary files that are being written, and
//! [`TemporaryFolder`]s, are known to [`remove_unfinished`], which a signal handler calls.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{TempDir, TempPath};

use crate::standard::is_standard;
use crate::{Error, Result};

/// A file that gets its name when it is whole, in [`AtomicFile::finish`]. Dropped before that, it is deleted.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    // Dropped before `file`: once the lock is gone, the path may lead to another writer's file.
    temporary: Temporary,
    file: File,
    durable: bool,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `target`.
    ///
    /// # Errors
    /// The folder isn't there or can't be written to.
    pub fn create(target: &Path) -> Result<AtomicFile> {
        named(target)?;
        let mut prefix = OsString::from(".");
        prefix.push(target.file_name().unwrap_or_default());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        #[cfg(unix)]
        {
            // Like any new file: what the umask leaves of 0666.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        // The file is made and listed under one lock: an interrupt must not come in between.
        let mut unfinished = unfinished();
        let file = builder.tempfile_in(folder_of(target)).map_err(|e| Error::io(target, "write", e))?;
        let (file, path) = file.into_parts();
        unfinished.push(path.to_path_buf());
        Ok(AtomicFile { target: target.to_owned(), file, temporary: Temporary(Some(path)), durable: false })
    }

    /// As [`AtomicFile::create`], under the one temporary name `.NAME.part` that belongs to the target: what a
    /// killed program left there is written over, so that leftovers of large files don't pile up.
    ///
    /// # Errors
    /// Another program is writing this file; the folder can't be written to.
    pub fn exclusive(target: &Path) -> Result<AtomicFile> {
        named(target)?;
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(".part");
        let path = folder_of(target).join(name);
        let mut unfinished = unfinished();
        let file = loop {
            let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
            let file = file.map_err(|e| Error::io(target, "write", e))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(target, "another program is writing this file"));
                }
                // Some network file systems have no locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            // The writer before this one may have finished between the two: then this is its target.
            if leads_to(&path, &file).map_err(|e| Error::io(target, "write", e))? {
                break file;
            }
        };
        file.set_len(0).map_err(|e| Error::io(target, "write", e))?;
        unfinished.push(path.clone());
        let temporary = Temporary(Some(TempPath::try_from_path(path).map_err(|e| Error::io(target, "write", e))?));
        Ok(AtomicFile { target: target.to_owned(), file, temporary, durable: false })
    }

    /// Has [`AtomicFile::finish`] wait until the disk holds the file: for what can't be made again, as the
    /// weights of a training run.
    #[must_use]
    pub fn durable(mut self) -> AtomicFile {
        self.durable = true;
        self
    }

    /// The file under its temporary name.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in the place of whatever had it.
    ///
    /// # Errors
    /// The disk is full or the folder can't be written to; then the older file stays and the new one is deleted.
    pub fn finish(self) -> Result<()> {
        self.publish().map(drop)
    }

    /// As [`AtomicFile::finish`]. The file is still open, and so still locked if it was: a lock that ended before the
    /// rename would let another writer truncate what is then published.
    fn publish(self) -> Result<File> {
        let AtomicFile { target, file, temporary, durable } = self;
        let cannot = |e| Error::io(&target, "write", e);
        if durable {
            file.sync_all().map_err(cannot)?;
        }
        temporary.persist(&target).map_err(cannot)?;
        if durable {
            sync_folder(folder_of(&target)).map_err(cannot)?;
        }
        Ok(file)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file.
///
/// # Errors
/// The folder can't be written to, or the disk is full; then the older file stays, if there was one.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write(AtomicFile::create(path)?, path, bytes)
}

/// As [`write_file`], and waits until the disk holds it: for what can't be made again.
///
/// # Errors
/// As [`write_file`].
pub fn write_file_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    write(AtomicFile::create(path)?.durable(), path, bytes)
}

fn write(mut file: AtomicFile, path: &Path, bytes: &[u8]) -> Result<()> {
    file.write_all(bytes).map_err(|e| Error::io(path, "write", e))?;
    file.finish()
}

/// Waits until the disk holds the names in a folder.
///
/// # Errors
/// The folder can't be opened, or the disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder can't be opened as a file.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Refuses `-`, which means standard output: nothing can be renamed to that.
fn named(target: &Path) -> Result<()> {
    match is_standard(target) {
        true => Err(Error::file(target, "this can't be written to standard output: name a file")),
        false => Ok(()),
    }
}

/// Whether a path leads to an open file.
#[cfg(unix)]
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(not(unix))]
fn leads_to(_path: &Path, _file: &File) -> io::Result<bool> {
    Ok(true)
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file that is deleted unless it gets its final name.
#[derive(Debug)]
struct Temporary(Option<TempPath>);

impl Temporary {
    fn persist(mut self, target: &Path) -> io::Result<()> {
        let Some(path) = self.0.take() else { return Ok(()) };
        let mut unfinished = unfinished();
        unfinished.retain(|listed| *listed != *path);
        path.persist(target).map_err(|e| e.error)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        let mut unfinished = unfinished();
        unfinished.retain(|listed| *listed != *path);
        drop(path);
    }
}

/// A folder in the system's folder for temporary files. It is deleted with all that is in it when it is dropped, and by
/// [`remove_unfinished`].
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    folder: Option<TempDir>,
}

impl TemporaryFolder {
    /// Makes a folder.
    ///
    /// # Errors
    /// The system's folder for temporary files can't be written to.
    pub fn create() -> io::Result<TemporaryFolder> {
        // Made and listed under one lock, as a file is.
        let mut unfinished = unfinished();
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_owned();
        unfinished.push(path.clone());
        Ok(TemporaryFolder { path, folder: Some(folder) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        unfinished.retain(|listed| *listed != self.path);
        drop(self.folder.take());
    }
}

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes the temporary files of writers that haven't finished, and temporary folders: for a program that is about
/// to end without dropping them, as on Ctrl-C. From here on no writer can start or finish a file.
pub fn remove_unfinished() {
    let mut unfinished = unfinished();
    for path in unfinished.drain(..) {
        let _ = match path.is_dir() {
            true => std::fs::remove_dir_all(path),
            false => std::fs::remove_file(path),
        };
    }
    // Never unlocked: a file that another thread makes now would stay.
    std::mem::forget(unfinished);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.json");
        std::fs::write(&target, "older").unwrap();
        for make in [AtomicFile::create, AtomicFile::exclusive] {
            let mut file = make(&target).unwrap().durable();
            file.write_all(b"newer").unwrap();
            assert_ne!(std::fs::read(&target).unwrap(), b"newer");
            assert_eq!(names(folder.path()).len(), 2);
            file.finish().unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), b"newer");
            assert_eq!(names(folder.path()), ["a.json"]);
            std::fs::write(&target, "older").unwrap();
        }
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.json");
        for make in [AtomicFile::create, AtomicFile::exclusive] {
            let mut file = make(&target).unwrap();
            file.write_all(b"half").unwrap();
            drop(file);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn an_exclusive_file_has_one_writer_and_overwrites_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.arrow");
        std::fs::write(folder.path().join(".a.arrow.part"), "what a killed program left").unwrap();
        let mut file = AtomicFile::exclusive(&target).unwrap();
        let second = AtomicFile::exclusive(&target).unwrap_err().to_string();
        assert!(second.ends_with("a.arrow: another program is writing this file"), "{second}");
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.arrow"]);
    }

    #[test]
    fn an_exclusive_file_is_locked_until_it_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.arrow");
        let mut file = AtomicFile::exclusive(&target).unwrap();
        file.write_all(b"whole").unwrap();
        // What another writer opened before the rename.
        let opened = OpenOptions::new().write(true).open(folder.path().join(".a.arrow.part")).unwrap();
        let published = file.publish().unwrap();
        assert!(target.exists());
        assert!(matches!(opened.try_lock(), Err(TryLockError::WouldBlock)));
        drop(published);
        opened.try_lock().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_path_leads_to_a_file_until_the_file_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let (part, target) = (folder.path().join(".a.arrow.part"), folder.path().join("a.arrow"));
        let file = File::create(&part).unwrap();
        assert!(leads_to(&part, &file).unwrap());
        std::fs::rename(&part, &target).unwrap();
        assert!(!leads_to(&part, &file).unwrap(), "nothing is there");
        std::fs::write(&part, "of another writer").unwrap();
        assert!(!leads_to(&part, &file).unwrap());
        assert!(leads_to(&target, &file).unwrap());
    }

    /// Two writers of one file at once, each of which finishes every other time.
    #[cfg(unix)]
    #[test]
    fn two_exclusive_writers_publish_only_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.arrow");
        std::fs::write(&target, [0; 64]).unwrap();
        let write = || {
            for round in 0..500 {
                let mut file = match AtomicFile::exclusive(&target) {
                    Ok(file) => file,
                    Err(e) => {
                        let said = e.to_string();
                        assert!(said.ends_with("another program is writing this file"), "{said}");
                        continue;
                    }
                };
                file.write_all(&[1; 32]).unwrap();
                file.write_all(&[1; 32]).unwrap();
                if round % 2 == 0 {
                    file.finish().unwrap();
                }
                assert_eq!(std::fs::read(&target).unwrap().len(), 64);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(write);
            scope.spawn(write);
        });
        assert_eq!(names(folder.path()), ["a.arrow"]);
    }

    #[test]
    fn a_temporary_folder_goes_with_what_is_in_it() {
        let folder = TemporaryFolder::create().unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("a"), "").unwrap();
        assert!(unfinished().contains(&path), "a signal handler removes it");
        drop(folder);
        assert!(!path.exists() && !unfinished().contains(&path));
    }
}
