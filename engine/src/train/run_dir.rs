//! A run's folder: what is in it, and how a checkpoint gets there whole or not at all.
//!
//! | | |
//! |---|---|
//! | `config.toml` | the resolved configuration |
//! | `checkpoints/step-00001000/` | `weights.safetensors`, `optimizer.safetensors`, `state.json` of one step |
//! | `last.safetensors` | the newest checkpoint's weights |
//! | `best.safetensors` | the weights of the best evaluation so far |
//! | `merged.safetensors` | what `--merge` made of the checkpoint |
//! | `merge.toml` | the recipe that `--merge` carried out, where it was one |
//! | `bad_batch.safetensors` | the batch that made a loss or gradient infinite |
//!
//! and what [`crate::report::run_files`] lists.
//!
//! A checkpoint is written under a name that nobody reads, every file is flushed to the disk, and one rename makes it
//! count; only then is the one before it removed. So weights and optimizer are always of the same step, and a full disk
//! or a crash leaves the last complete checkpoint as it was.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use formats::write::{sync_folder, write_file_durably};
use formats::{shell_path, show_path};
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::recorder::TENSORBOARD;
use super::resolve::Layers;
use crate::report::metrics_log::METRICS;
use crate::report::run_files::{CONFIG, RESULT, SAMPLE_IMAGES, SAMPLES};
use crate::trainer::Trainer;

pub const LAST: &str = "last.safetensors";
pub const BEST: &str = "best.safetensors";
pub const BAD_BATCH: &str = "bad_batch.safetensors";
pub const MERGED: &str = "merged.safetensors";
pub const MERGE_RECIPE: &str = "merge.toml";
/// Where the run that is to be replaced waits until the new one has begun.
const ASIDE: &str = ".earlier-run";
/// What becomes of it then.
const REPLACED: &str = ".replaced-run";
pub const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

/// Held by the process that trains in a folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] Option<File>);

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Updates done.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Where the loader is: the epoch, counted from 0, and batches done in it.
    pub epoch: u64,
    pub batch: u64,
    pub seed: u64,
    /// Training examples; where this differs, the data set is another.
    pub examples: u64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// The last evaluation.
    pub metrics: Option<serde_json::Map<String, serde_json::Value>>,
    /// An evaluation at this step was interrupted, or not begun.
    pub evaluation_due: bool,
    /// Seconds of training so far, over all sittings.
    pub seconds: f64,
}

/// An evaluation that no later one has surpassed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    pub metric: String,
    pub value: f64,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    pub state: State,
    pub weights: PathBuf,
    pub optimizer: PathBuf,
}

impl RunDir {
    /// Makes a folder for a new run.
    ///
    /// # Errors
    /// It holds a run already and `force` is not given, or it can't be made. With `force`, what the earlier run left is
    /// set aside until the new one's first checkpoint is saved, or [`RunDir::give_up`] brings it back. Nothing else that
    /// may be there is touched.
    pub fn create(path: &Path, force: bool) -> Result<RunDir> {
        let run = RunDir::check(path, force)?;
        let shown = show_path(path);
        if run.path(ASIDE).exists() {
            // An attempt before this one ended without a checkpoint, and without a word: killed, or out of memory.
            run.give_up().with_context(|| format!("{shown}: cannot bring back the run in {ASIDE}"))?;
        }
        if run.first_of_a_run().is_some() {
            let aside = run.path(ASIDE);
            fs::create_dir(&aside)
                .and_then(|()| run.move_run(&run.0, &aside))
                .inspect_err(|_| {
                    let _ = run.move_run(&aside, &run.0).and_then(|()| fs::remove_dir(&aside));
                })
                .with_context(|| format!("{shown}: cannot set the earlier run aside"))?;
        }
        fs::create_dir_all(run.path(CHECKPOINTS)).with_context(|| format!("{shown}: cannot make the run's folder"))?;
        Ok(run)
    }

    /// Refuses a folder that [`RunDir::create`] would refuse, before any work is done.
    pub fn check(path: &Path, force: bool) -> Result<RunDir> {
        let run = RunDir(path.to_owned());
        let shown = show_path(path);
        if path.exists() && !path.is_dir() {
            bail!("{shown}: this is a file: give a folder for the run");
        }
        match run.first_of_a_run() {
            _ if force => Ok(run),
            None => Ok(run),
            Some(name) if [CONFIG, CHECKPOINTS, ASIDE].contains(&&*name) => bail!(
                "{shown}: this folder already holds a run: --resume {} continues it, --force replaces it, or choose \
                 another folder",
                shell_path(path)
            ),
            Some(name) => bail!(
                "{shown}: {name} in this folder has the name of a run's file: --force replaces it, or choose another folder"
            ),
        }
    }

    /// The folder of a run to go on with.
    ///
    /// # Errors
    /// There is no run in it.
    pub fn open(path: &Path) -> Result<RunDir> {
        let run = RunDir(path.to_owned());
        if !run.path(CONFIG).is_file() {
            bail!("{}: there is no run to resume: no {CONFIG} in this folder", show_path(path));
        }
        Ok(run)
    }

    /// Keeps other processes from training in this folder, as long as the lock is held.
    ///
    /// # Errors
    /// Another process holds it.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let Ok(file) = File::options().create(true).append(true).open(&path) else {
            // What can't be written here will be said by what has to be.
            return Ok(Lock(None));
        };
        match lock_soon(&file, || std::thread::sleep(BETWEEN_ATTEMPTS)) {
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another process is training in this folder", show_path(&self.0))
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) | Ok(()) => Ok(Lock(Some(file))),
        }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The first entry of the folder that is a run's.
    fn first_of_a_run(&self) -> Option<String> {
        let entries = fs::read_dir(&self.0).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| of_a_run(name.as_ref()) || name == ASIDE).collect();
        // What shows it best comes first.
        names.sort_by_key(|name| (![CONFIG, CHECKPOINTS, ASIDE].contains(&&**name), name.clone()));
        names.into_iter().next()
    }

    /// The new run has begun: what was set aside for it goes.
    fn settle(&self) -> io::Result<()> {
        let replaced = self.path(REPLACED);
        absent_is_fine(fs::remove_dir_all(&replaced))?;
        // In two steps, so that half of it is never brought back.
        absent_is_fine(fs::rename(self.path(ASIDE), &replaced))?;
        absent_is_fine(fs::remove_dir_all(&replaced))
    }

    /// Where the run is that this one replaces, as long as it is there.
    pub fn earlier(&self) -> Option<PathBuf> {
        Some(self.path(ASIDE)).filter(|aside| aside.exists())
    }

    /// Removes what this run has left, and brings back the one before it, if there was any.
    pub fn give_up(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if !of_a_run(&entry.file_name()) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        let aside = self.path(ASIDE);
        if !aside.exists() {
            return Ok(());
        }
        self.move_run(&aside, &self.0)?;
        fs::remove_dir(aside)
    }

    fn move_run(&self, from: &Path, to: &Path) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            if of_a_run(&name) {
                fs::rename(from.join(&name), to.join(&name))?;
            }
        }
        Ok(())
    }

    /// Whether a file is the run's: one that replacing the run would remove.
    pub fn would_replace(&self, file: &Path) -> bool {
        let (Ok(folder), Ok(file)) = (self.0.canonicalize(), file.canonicalize()) else { return false };
        let first = file.strip_prefix(folder).ok().and_then(|inner| inner.components().next());
        first.is_some_and(|first| of_a_run(first.as_os_str()) || first.as_os_str() == ASIDE)
    }

    /// Writes `config.toml`.
    pub fn save_config(&self, config: &Config) -> Result<()> {
        let text = config.to_toml().map_err(|reason| anyhow::anyhow!("{}: {reason}", show_path(&self.path(CONFIG))))?;
        let header =
            "# The resolved configuration of this run. `engine finetune --config` on this file repeats it.\n\n";
        Ok(write_file_durably(&self.path(CONFIG), format!("{header}{text}").as_bytes())?)
    }

    /// Reads `config.toml`.
    pub fn config(&self) -> Result<Config> {
        let mut layers = Layers::default();
        // Every value is in the file, so what its preset says today doesn't matter.
        layers.file(&self.path(CONFIG), true)?;
        Ok(layers.config()?)
    }

    /// Saves a checkpoint and removes those before it.
    ///
    /// # Errors
    /// Something can't be written; then nothing of this checkpoint is left, and earlier ones are as they were.
    pub fn save(&self, trainer: &dyn Trainer, state: &State, metadata: &[(String, String)]) -> Result<()> {
        let folder = self.path(CHECKPOINTS);
        let name = self.free_name(state.step)?;
        let (partial, target) = (folder.join(format!(".{name}.partial")), folder.join(&name));
        self.write(trainer, state, metadata, &partial, &target).map_err(|e| {
            let _ = fs::remove_dir_all(&partial);
            let usable = match self.newest() {
                Ok(Some(saved)) => format!("the checkpoint of step {} is still there", saved.state.step),
                _ => "there is no earlier checkpoint".into(),
            };
            e.context(format!("{}: cannot save the checkpoint of step {} ({usable})", show_path(&self.0), state.step))
        })?;
        // From here on the checkpoint counts. What can't be tidied up now is tidied up the next time.
        let _ = self.settle();
        if let Ok(names) = self.checkpoint_names() {
            for old in names.iter().filter(|&old| *old != name) {
                let _ = fs::remove_dir_all(folder.join(old));
            }
        }
        let last = self.path(LAST);
        link(&target.join(WEIGHTS), &last).with_context(|| format!("{}: cannot be written", show_path(&last)))
    }

    fn write(
        &self,
        trainer: &dyn Trainer,
        state: &State,
        metadata: &[(String, String)],
        partial: &Path,
        target: &Path,
    ) -> Result<()> {
        absent_is_fine(fs::remove_dir_all(partial))?;
        fs::create_dir_all(partial)?;
        trainer.save_weights(&partial.join(WEIGHTS), metadata)?;
        trainer.save_optimizer(&partial.join(OPTIMIZER))?;
        let state = serde_json::to_string_pretty(state)? + "\n";
        write_file_durably(&partial.join(STATE), state.as_bytes())?;
        fs::rename(partial, target)?;
        if let Some(folder) = target.parent() {
            sync_folder(folder)?;
        }
        Ok(())
    }

    /// Writes the weights that an evaluation found best.
    ///
    /// # Errors
    /// They can't be written; then the best before them are as they were.
    pub fn save_best(&self, trainer: &dyn Trainer, metadata: &[(String, String)]) -> Result<()> {
        let best = self.path(BEST);
        trainer.save_weights(&best, metadata).with_context(|| {
            format!("{}: cannot save the best weights (earlier ones are as they were)", show_path(&self.0))
        })
    }

    /// The newest complete checkpoint, if there is any.
    ///
    /// # Errors
    /// The folder can't be read, or a state file is damaged.
    pub fn newest(&self) -> Result<Option<Saved>> {
        let Some(name) = self.checkpoint_names()?.pop() else { return Ok(None) };
        let folder = self.path(CHECKPOINTS).join(name);
        let path = folder.join(STATE);
        let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", show_path(&path)))?;
        let state = serde_json::from_str(&text).with_context(|| format!("{}: no state of a run", show_path(&path)))?;
        Ok(Some(Saved { state, weights: folder.join(WEIGHTS), optimizer: folder.join(OPTIMIZER) }))
    }

    /// A name for a checkpoint of this step, later in order than others of the same step: a rename can't replace a
    /// folder, and the older one has to stay until the newer one counts.
    fn free_name(&self, step: u64) -> Result<String> {
        let same =
            self.checkpoint_names()?.iter().filter_map(|name| order(name)).filter(|&(other, _)| other == step).max();
        Ok(match same {
            None => format!("step-{step:08}"),
            Some((_, again)) => format!("step-{step:08}-{}", again + 1),
        })
    }

    /// Names of complete checkpoints, oldest first.
    fn checkpoint_names(&self) -> Result<Vec<String>> {
        let folder = self.path(CHECKPOINTS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("{}: cannot be read", show_path(&folder))),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(|| format!("{}: cannot be read", show_path(&folder)))?.file_name();
            names.extend(name.to_str().map(str::to_owned));
        }
        names.retain(|name| order(name).is_some());
        names.sort_by_key(|name| order(name));
        Ok(names)
    }
}

/// Attempts at a lock after the first.
const ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// Locks a file, and waits a little if it can't: [`is_training`] in another process holds the lock for an instant.
fn lock_soon(file: &File, mut wait: impl FnMut()) -> Result<(), TryLockError> {
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => wait(),
            done => return done,
        }
    }
    file.try_lock()
}

/// Whether a process trains in the run of this folder; `None` where the file system can't tell. A process on another
/// machine isn't seen where the file system is not shared.
pub fn is_training(folder: &Path) -> Option<bool> {
    let file = match File::open(folder.join(LOCK)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    // The lock that is taken here is given back at once, with the file.
    match file.try_lock_shared() {
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// The checkpoint file that a path means: the path itself or, of a run's folder, its best weights, else its last. With
/// it, for a folder, a line that says which file was taken.
///
/// # Errors
/// It is a folder without such weights.
pub fn checkpoint_at(path: &Path) -> Result<(PathBuf, Option<String>)> {
    if !path.is_dir() {
        return Ok((path.to_owned(), None));
    }
    let shown = show_path(path);
    let (best, last) = (path.join(BEST), path.join(LAST));
    if best.is_file() {
        let note = format!("{}: the best weights of this run are taken", show_path(&best));
        return Ok((best, Some(note)));
    }
    if last.is_file() {
        let note = format!("{}: the last weights of this run are taken, as it has no {BEST}", show_path(&last));
        return Ok((last, Some(note)));
    }
    match path.join(CONFIG).is_file() {
        true => bail!("{shown}: this run has no weights yet: neither {BEST} nor {LAST}"),
        false => bail!("{shown}: this folder holds no run (no {CONFIG}): give a checkpoint file or a run's folder"),
    }
}

/// Makes a folder for a run, the first of `run`, `run-2`, `run-3`, … that isn't there yet. That it is made here makes it
/// this run's: of two programs that start at once, each gets a folder of its own.
///
/// # Errors
/// No folder can be made in `within`.
pub fn make_free(within: &Path) -> Result<PathBuf> {
    for number in 1u64.. {
        let path = within.join(if number == 1 { "run".to_owned() } else { format!("run-{number}") });
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("{}: cannot make the run's folder", show_path(&path))),
        }
    }
    bail!("{}: there is no number left for a run's folder", show_path(within))
}

/// Whether an entry of a run's folder is the run's.
fn of_a_run(name: &OsStr) -> bool {
    let names = [
        CONFIG,
        LAST,
        BEST,
        BAD_BATCH,
        MERGED,
        MERGE_RECIPE,
        RESULT,
        METRICS,
        SAMPLES,
        CHECKPOINTS,
        SAMPLE_IMAGES,
        TENSORBOARD,
    ];
    name.to_str().is_some_and(|name| names.contains(&name))
}

/// The step in a checkpoint's name, and which of the same step it is.
fn order(name: &str) -> Option<(u64, u64)> {
    let rest = name.strip_prefix("step-")?;
    match rest.split_once('-') {
        None => Some((rest.parse().ok()?, 0)),
        Some((step, again)) => Some((step.parse().ok()?, again.parse().ok()?)),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes `to` another name of the file `from`, or a copy where file systems have one name a file.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = to.with_extension("linking");
    absent_is_fine(fs::remove_file(&temporary))?;
    fs::hard_link(from, &temporary).or_else(|_| fs::copy(from, &temporary).map(|_| ()))?;
    fs::rename(&temporary, to)
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    fn state(step: u64) -> State {
        State { step, steps: 10, seed: 3, seconds: 0.1 + 0.2, ..State::default() }
    }

    fn contents(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn a_checkpoint_is_found_again_and_replaces_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(&folder.path().join("run"), false).unwrap();
        assert_eq!(run.newest().unwrap(), None);
        run.save(&Fake::new(1), &state(2), &[]).unwrap();
        let mut state = state(100_000_000);
        state.best = Some(Best { step: 2, metric: "accuracy".into(), value: 0.1 });
        run.save(&Fake::new(2), &state, &[]).unwrap();
        let saved = run.newest().unwrap().expect("a checkpoint");
        assert_eq!(saved.state, state);
        assert_eq!(contents(&saved.weights), contents(&run.path(LAST)));
        assert_eq!(run.checkpoint_names().unwrap(), ["step-100000000"]);
        let fake = Fake::restored(&saved.weights, &saved.optimizer).unwrap();
        assert_eq!(fake, Fake::new(2));
    }

    #[test]
    fn a_failed_save_leaves_the_checkpoint_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        run.save(&Fake::new(1), &state(4), &[]).unwrap();
        for failing in [Fake::new(2).failing_weights(), Fake::new(2).failing_optimizer()] {
            for step in [4, 8] {
                let error = format!("{:#}", run.save(&failing, &state(step), &[]).unwrap_err());
                assert!(error.contains(&format!("cannot save the checkpoint of step {step}")), "{error}");
                assert!(error.contains("(the checkpoint of step 4 is still there)"), "{error}");
                assert!(error.ends_with("No space left on device"), "{error}");
                let saved = run.newest().unwrap().expect("the checkpoint before");
                assert_eq!(saved.state.step, 4);
                let fake = Fake::restored(&saved.weights, &saved.optimizer).unwrap();
                assert_eq!(fake, Fake::new(1));
                let left: Vec<_> = fs::read_dir(run.path(CHECKPOINTS)).unwrap().collect();
                assert_eq!(left.len(), 1, "nothing half-written stays");
            }
        }
    }

    #[test]
    fn what_a_crash_left_unfinished_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        run.save(&Fake::new(1), &state(4), &[]).unwrap();
        let partial = run.path(CHECKPOINTS).join(".step-00000008.partial");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(WEIGHTS), "half").unwrap();
        assert_eq!(run.newest().unwrap().unwrap().state.step, 4);
        run.save(&Fake::new(2), &state(8), &[]).unwrap();
        assert_eq!(run.newest().unwrap().unwrap().state.step, 8);
    }

    #[test]
    fn saving_a_step_again_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        run.save(&Fake::new(1), &state(4), &[]).unwrap();
        run.save(&Fake::new(2), &state(4), &[]).unwrap();
        let saved = run.newest().unwrap().unwrap();
        let fake = Fake::restored(&saved.weights, &saved.optimizer).unwrap();
        assert_eq!(fake, Fake::new(2));
    }

    #[test]
    fn a_folder_that_holds_a_run_needs_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("run");
        let run = RunDir::create(&path, false).unwrap();
        run.save_config(&Config::default()).unwrap();
        run.save(&Fake::new(1), &state(4), &[]).unwrap();
        fs::write(run.path("notes.txt"), "mine").unwrap();
        let error = RunDir::create(&path, false).unwrap_err().to_string();
        assert!(error.contains("already holds a run: --resume "), "{error}");
        assert!(run.newest().unwrap().is_some());
        let run = RunDir::create(&path, true).unwrap();
        assert_eq!(run.newest().unwrap(), None);
        assert!(!run.path(LAST).exists() && !run.path(CONFIG).exists());
        assert_eq!(contents(&run.path("notes.txt")), b"mine");
        // The new one comes to nothing: the earlier one is back.
        let new = Config { steps: Some(7), epochs: None, ..Config::default() };
        run.save_config(&new).unwrap();
        run.give_up().unwrap();
        assert_eq!(run.newest().unwrap().unwrap().state.step, 4);
        assert_eq!(run.config().unwrap(), Config::default());
        // It is killed, and so is the next one: the earlier one is still what waits.
        for _ in 0..2 {
            RunDir::create(&path, true).unwrap().save_config(&new).unwrap();
            assert!(RunDir::create(&path, false).is_err());
        }
        let run = RunDir::create(&path, true).unwrap();
        assert!(run.would_replace(&run.path(ASIDE).join(LAST)));
        run.give_up().unwrap();
        assert_eq!(run.newest().unwrap().unwrap().state.step, 4);
        // It comes to a checkpoint.
        let run = RunDir::create(&path, true).unwrap();
        assert!(run.earlier().is_some());
        run.save(&Fake::new(2), &state(1), &[]).unwrap();
        assert_eq!(run.earlier(), None);
        run.give_up().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the notes alone");
    }

    #[test]
    fn names_of_a_runs_files_are_not_taken_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let merged = folder.path().join(MERGED);
        fs::write(&merged, "mine").unwrap();
        let error = RunDir::create(folder.path(), false).unwrap_err().to_string();
        assert!(error.contains(": merged.safetensors in this folder has the name of a run's file"), "{error}");
        assert!(RunDir::check(folder.path(), true).unwrap().would_replace(&merged));
    }

    #[test]
    fn two_starts_at_once_take_two_folders() {
        let folder = tempfile::tempdir().unwrap();
        let together = std::sync::Barrier::new(8);
        let made: Vec<PathBuf> = std::thread::scope(|scope| {
            let start = || {
                together.wait();
                make_free(folder.path()).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let different: std::collections::BTreeSet<_> = made.iter().collect();
        assert_eq!(different.len(), 8, "{made:?}");
        assert!(made.contains(&folder.path().join("run")) && made.contains(&folder.path().join("run-8")), "{made:?}");
        assert!(make_free(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_runs_folder_stands_for_its_best_weights_or_its_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = checkpoint_at(path).unwrap_err().to_string();
        assert!(error.ends_with("this folder holds no run (no config.toml): give a checkpoint file or a run's folder"));
        let run = RunDir::create(path, false).unwrap();
        run.save_config(&Config::default()).unwrap();
        let error = checkpoint_at(path).unwrap_err().to_string();
        assert!(error.ends_with("this run has no weights yet: neither best.safetensors nor last.safetensors"));
        run.save(&Fake::new(1), &state(4), &[]).unwrap();
        let (file, note) = checkpoint_at(path).unwrap();
        assert_eq!(file, path.join(LAST));
        assert!(
            note.unwrap()
                .ends_with("last.safetensors: the last weights of this run are taken, as it has no best.safetensors")
        );
        run.save_best(&Fake::new(1), &[]).unwrap();
        let (file, note) = checkpoint_at(path).unwrap();
        assert_eq!(file, path.join(BEST));
        assert!(note.unwrap().ends_with("best.safetensors: the best weights of this run are taken"));
        // A file is what it is.
        assert_eq!(checkpoint_at(&path.join(CONFIG)).unwrap(), (path.join(CONFIG), None));
        assert_eq!(checkpoint_at(Path::new("no/such")).unwrap(), (PathBuf::from("no/such"), None));
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        let lock = run.lock().unwrap();
        let error = run.lock().unwrap_err().to_string();
        assert!(error.ends_with("another process is training in this folder"), "{error}");
        drop(lock);
        run.lock().unwrap();
    }

    #[test]
    fn a_look_at_a_run_does_not_keep_it_from_being_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        drop(run.lock().unwrap());
        let file = || File::options().append(true).open(run.path(LOCK)).unwrap();
        // What `is_training` of another process holds.
        let look = file();
        look.try_lock_shared().unwrap();
        let mut look = Some(look);
        let trainer = file();
        lock_soon(&trainer, || drop(look.take())).unwrap();
        let mut waits = 0;
        let refused = lock_soon(&file(), || waits += 1);
        assert!(matches!(refused, Err(TryLockError::WouldBlock)));
        assert_eq!(waits, ATTEMPTS);
    }

    #[test]
    fn a_file_is_no_folder_and_an_empty_folder_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(RunDir::create(&file, true).unwrap_err().to_string().ends_with("give a folder for the run"));
        let error = RunDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("there is no run to resume: no config.toml in this folder"), "{error}");
    }

    #[test]
    fn the_configuration_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), false).unwrap();
        let config =
            Config { preset: Some("default".into()), lr: 1.0 / 3.0, steps: Some(3), epochs: None, ..Config::default() };
        run.save_config(&config).unwrap();
        assert_eq!(RunDir::open(folder.path()).unwrap().config().unwrap(), config);
    }
}
