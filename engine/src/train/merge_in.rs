//! `--merge`: what `vlmerge` does, on the way into a run.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use formats::grams::GramRecord;
use formats::show_path;
use toml::de::DeTable;

use super::interrupt::{self, Ended, Undo};
use super::resolve::Error;
use super::run_dir::{MERGE_RECIPE, checkpoint_at};
use crate::tasks::Task;

/// How to merge the experts of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Merge {
    /// `interpolate:RATIO`
    Interpolate { ratio: f64 },
    /// `arithmetic:LAMBDA:SEED`
    Arithmetic { lambda: String, base: PathBuf },
    /// `regmean:GRAMS`
    RegMean { grams: PathBuf },
    /// A command of `vlmerge`, its name first. The checkpoint stands for the word `{}`, or else is the first file that is
    /// merged: it comes after the name or, of a method with a base, after that.
    Words(Vec<String>),
    /// A recipe file, as `vlmerge merge --recipe` takes it. The checkpoint stands for its input with that role.
    Recipe(PathBuf),
}

/// The commands of `vlmerge` that merge.
const METHODS: [&str; 7] = ["interpolate", "arithmetic", "regmean", "soup", "slerp", "ties", "dare"];
/// Of these, those that take one checkpoint and therefore one `--root`.
const OF_ONE_CHECKPOINT: [&str; 3] = ["interpolate", "arithmetic", "regmean"];
/// Of these, those whose first file is what the models were trained from.
const BASE_FIRST: [&str; 2] = ["ties", "dare"];
/// Stands for the checkpoint among the words.
const CHECKPOINT: &str = "{}";
/// Options of these commands that name a file.
const FILE_OPTIONS: [&str; 3] = ["--base", "--grams", "--layout"];
/// Options of these commands that have another value.
const VALUE_OPTIONS: [&str; 14] = [
    "--ratio",
    "--lambda",
    "--task",
    "--root",
    "--base-root",
    "--emit",
    "--weights",
    "--t",
    "--density",
    "--seed",
    "--non-diag-scale",
    "--ridge",
    "--on-singular",
    "--threads",
];
/// What `--merge` takes, for messages.
const FORMS: &str = "it is interpolate:RATIO, arithmetic:LAMBDA:SEED, regmean:GRAMS, a command of vlmerge in quotes such \
                     as \"arithmetic --base seed.ckpt --lambda 0.75\", or a recipe file that ends in .toml";

impl Merge {
    /// The same with the weights of a run where its folder is named. With it, lines that say which were taken.
    ///
    /// # Errors
    /// A folder without such weights.
    pub fn with_files_of_runs(self) -> Result<(Merge, Vec<String>)> {
        let mut notes = Vec::new();
        let mut file_of = |path: &Path| -> Result<PathBuf> {
            let (file, note) = checkpoint_at(path)?;
            notes.extend(note.map(|note| format!("--merge: {note}")));
            Ok(file)
        };
        let merge = match self {
            Merge::Arithmetic { lambda, base } => Merge::Arithmetic { lambda, base: file_of(&base)? },
            Merge::Words(mut words) => {
                for (word, start) in files_in(&words) {
                    let path = Path::new(&words[word][start..]);
                    let is_checkpoint = is_positional(&words, (word, start))
                        || words[word].starts_with("--base=")
                        || words[word - 1] == "--base";
                    // Words are text; a path that is none can't have been typed.
                    if is_checkpoint
                        && path.is_dir()
                        && let Some(file) = file_of(path)?.to_str()
                    {
                        words[word].replace_range(start.., file);
                    }
                }
                Merge::Words(words)
            }
            other => other,
        };
        Ok((merge, notes))
    }

    /// The same with paths that hold from anywhere, where the files are there.
    #[must_use]
    pub fn absolute(self) -> Merge {
        let full = |path: PathBuf| path.canonicalize().unwrap_or(path);
        match self {
            Merge::Interpolate { ratio } => Merge::Interpolate { ratio },
            Merge::Arithmetic { lambda, base } => Merge::Arithmetic { lambda, base: full(base) },
            Merge::RegMean { grams } => Merge::RegMean { grams: full(grams) },
            Merge::Words(mut words) => {
                for (word, start) in files_in(&words) {
                    let there = Path::new(&words[word][start..]).canonicalize().ok();
                    // Words are text; a path that is none stays as it was typed.
                    if let Some(path) = there.as_deref().and_then(Path::to_str) {
                        let path = path.to_owned();
                        words[word].replace_range(start.., &path);
                    }
                }
                Merge::Words(words)
            }
            Merge::Recipe(path) => Merge::Recipe(full(path)),
        }
    }

    /// The files that it reads beside the checkpoint.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Merge::Interpolate { .. } => Vec::new(),
            Merge::Arithmetic { base: file, .. } | Merge::RegMean { grams: file } => vec![file.clone()],
            Merge::Words(words) => {
                files_in(words).into_iter().map(|(word, start)| PathBuf::from(&words[word][start..])).collect()
            }
            Merge::Recipe(path) => {
                let inputs = Recipe::read(path).map(|recipe| recipe.inputs).unwrap_or_default();
                inputs.into_iter().map(|input| input.path).chain([path.clone()]).collect()
            }
        }
    }

    /// The checkpoint that a recipe names; `None` for the other forms, which leave it to the run.
    ///
    /// # Errors
    /// The recipe can't be read.
    pub fn own_checkpoint(&self) -> Result<Option<PathBuf>, Error> {
        let Merge::Recipe(path) = self else { return Ok(None) };
        let inputs = Recipe::read(path)?.inputs;
        let first = inputs.iter().find(|input| input.role == "checkpoint").or(inputs.first());
        Ok(first.map(|input| input.path.clone()))
    }

    /// What can be told to be wrong before anything is done.
    ///
    /// # Errors
    /// It doesn't go with the run's task, root or checkpoint.
    pub fn check(&self, checkpoint: &Path, root: Option<&str>, task: Task) -> Result<(), Error> {
        let usage = |reason: &str| Err(Error::Usage(format!("--merge {self}: {reason}")));
        match self {
            Merge::Words(words) => {
                if uses_experts_of_task(words) && task == Task::ImgCls {
                    return usage("--experts used is for irtr, vqa and nlvr2, not for img_cls: leave it out");
                }
                if root.is_some() && !OF_ONE_CHECKPOINT.contains(&&*words[0]) {
                    return usage("several files are merged: give --root among these words");
                }
                if words.iter().filter(|word| *word == CHECKPOINT).count() > 1 {
                    return usage("{} stands for the checkpoint, and it is there more than once");
                }
                if BASE_FIRST.contains(&&*words[0])
                    && !words.iter().any(|word| word == CHECKPOINT)
                    && after_base(words).is_none()
                {
                    let reason = "it needs the checkpoint that the models were trained from, as in";
                    return usage(&format!("{reason} \"{} base.ckpt\"", words[0]));
                }
            }
            Merge::Recipe(path) => {
                if root.is_some() {
                    return usage("root is a key of the recipe's [[input]]: give it there, not as --root");
                }
                let there = checkpoint.canonicalize().ok();
                let same = |input: &Input| there.is_some() && input.path.canonicalize().ok() == there;
                let inputs = Recipe::read(path)?.inputs;
                if !inputs.iter().any(|input| input.role == "checkpoint" || same(input)) {
                    return usage(&format!("{} is not among the files that it merges", show_path(checkpoint)));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Merge::Interpolate { ratio } => write!(f, "interpolate:{ratio}"),
            Merge::Arithmetic { lambda, base } => write!(f, "arithmetic:{lambda}:{}", base.display()),
            Merge::RegMean { grams } => write!(f, "regmean:{}", grams.display()),
            Merge::Words(words) => {
                f.write_str(&shlex::try_join(words.iter().map(String::as_str)).map_err(|_| fmt::Error)?)
            }
            Merge::Recipe(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for Merge {
    type Err = String;

    fn from_str(text: &str) -> Result<Merge, String> {
        let number = |text: &str| match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(format!("'{text}' is no number")),
        };
        let first = text.split_whitespace().next().unwrap_or_default();
        if METHODS.contains(&first) || ["vlmerge", "merge"].contains(&first) {
            return words(text);
        }
        match text.split_once(':') {
            Some(("interpolate", ratio)) => Ok(Merge::Interpolate { ratio: number(ratio)? }),
            Some(("arithmetic", rest)) => match rest.split_once(':') {
                Some((lambda, base)) if !base.is_empty() => {
                    if !lambda.contains('=') {
                        number(lambda)?;
                    }
                    Ok(Merge::Arithmetic { lambda: lambda.into(), base: base.into() })
                }
                _ => Err("it also needs the seed checkpoint, as in arithmetic:0.75:seed.ckpt".into()),
            },
            Some(("regmean", grams)) if !grams.is_empty() => Ok(Merge::RegMean { grams: grams.into() }),
            _ if text.ends_with(".toml") => Ok(Merge::Recipe(text.into())),
            _ => Err(FORMS.into()),
        }
    }
}

/// A command of `vlmerge` as one would type it.
fn words(text: &str) -> Result<Merge, String> {
    let mut words = shlex::split(text).ok_or("a quote in it isn't closed")?;
    if words[0] == "vlmerge" {
        words.remove(0);
    }
    match words.first().map(String::as_str) {
        Some("merge") => match &words[1..] {
            [option, recipe] if option == "--recipe" => return Ok(Merge::Recipe(recipe.into())),
            _ => return Err("of a recipe, give the file alone, as --merge recipe.toml".into()),
        },
        Some(method) if METHODS.contains(&method) => {}
        _ => return Err(FORMS.into()),
    }
    let taken = |word: &&String| {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        name.starts_with("-o") || ["--output", "--force", "--json"].contains(&name)
    };
    match words.iter().find(taken) {
        Some(word) => Err(format!("{word}: the result goes to merged.safetensors in the run's folder: leave this out")),
        None => Ok(Merge::Words(words)),
    }
}

/// Where files stand among the words: which word, and where in it the path begins.
fn files_in(words: &[String]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 1;
    while let Some(word) = words.get(at) {
        match word.split_once('=') {
            Some((option, _)) if option.starts_with('-') => {
                if FILE_OPTIONS.contains(&option) {
                    found.push((at, option.len() + 1));
                }
            }
            _ if FILE_OPTIONS.contains(&word.as_str()) => {
                at += 1;
                if at < words.len() {
                    found.push((at, 0));
                }
            }
            _ if VALUE_OPTIONS.contains(&word.as_str()) => at += 1,
            _ if word == "--experts" => {
                // In some commands it may stand alone.
                at += usize::from(words.get(at + 1).is_some_and(|next| ["all", "used"].contains(&next.as_str())));
            }
            _ if word.starts_with('-') || word == CHECKPOINT => {}
            _ => found.push((at, 0)),
        }
        at += 1;
    }
    found
}

/// Whether what [`files_in`] found is no option's value.
fn is_positional(words: &[String], (word, start): (usize, usize)) -> bool {
    start == 0 && !FILE_OPTIONS.contains(&words[word - 1].as_str())
}

/// Where the word after the first file is, which is the base of the methods that have one.
fn after_base(words: &[String]) -> Option<usize> {
    files_in(words).into_iter().find(|&found| is_positional(words, found)).map(|(word, _)| word + 1)
}

/// The value that an option has among the words.
fn value_of<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let mut pairs = words.iter().zip(words.iter().skip(1).map(Some).chain([None]));
    pairs.find_map(|(word, next)| match word.strip_prefix(option) {
        Some("") => Some(next.map_or("", |next| next.as_str())),
        Some(rest) => rest.strip_prefix('='),
        None => None,
    })
}

/// Whether the words merge only the experts that a task uses, without saying the task.
fn uses_experts_of_task(words: &[String]) -> bool {
    value_of(words, "--experts") == Some("used") && value_of(words, "--task").is_none()
}

impl Merge {
    /// The arguments of `vlmerge`, so that the file holds the same numbers as by hand.
    fn arguments(&self, checkpoint: &Path, root: Option<&str>, task: Task, output: &Path) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        match self {
            Merge::Interpolate { ratio } => {
                arguments.extend(["interpolate".into(), checkpoint.into(), format!("--ratio={ratio}").into()]);
            }
            Merge::Arithmetic { lambda, base } => {
                arguments.extend(["arithmetic".into(), checkpoint.into(), "--base".into(), base.into()]);
                arguments.push(format!("--lambda={lambda}").into());
            }
            Merge::RegMean { grams } => {
                arguments.extend(["regmean".into(), checkpoint.into(), "--grams".into(), grams.into()]);
                arguments.extend(task_for_grams(grams, task)?);
            }
            Merge::Words(words) => {
                arguments.extend(words.iter().map(|word| match word == CHECKPOINT {
                    true => checkpoint.into(),
                    false => word.into(),
                }));
                if !words.iter().any(|word| word == CHECKPOINT) {
                    let base = if BASE_FIRST.contains(&&*words[0]) { after_base(words) } else { None };
                    arguments.insert(base.unwrap_or(1), checkpoint.into());
                }
                let says_experts = value_of(words, "--task").is_some() || value_of(words, "--experts") == Some("all");
                if uses_experts_of_task(words) {
                    arguments.extend(["--task".into(), task.to_string().into()]);
                } else if words[0] == "regmean"
                    && !says_experts
                    && let Some(grams) = value_of(words, "--grams")
                {
                    arguments.extend(task_for_grams(Path::new(grams), task)?);
                }
            }
            Merge::Recipe(path) => {
                let rewritten = output.with_file_name(MERGE_RECIPE);
                let text = Recipe::read(path)?.with_paths(checkpoint);
                formats::write::write_file(&rewritten, text.as_bytes())?;
                arguments.extend(["merge".into(), "--recipe".into(), rewritten.into()]);
            }
        }
        let has_root = matches!(self, Merge::Words(words) if value_of(words, "--root").is_some());
        if let Some(root) = root.filter(|_| !has_root) {
            arguments.extend(["--root".into(), root.into()]);
        }
        arguments.extend(["-o".into(), output.into(), "--force".into()]);
        Ok(arguments)
    }

    /// Merges into `output` by running `vlmerge`, the one given or the one found beside this program or on the search
    /// path. `root`: where in the checkpoint's file the tensors are. Returns what it warned of, a line each.
    ///
    /// # Errors
    /// There is no `vlmerge`, or it fails: its own message, as [`Error::Usage`] where it was called wrongly.
    pub fn run(
        &self,
        vlmerge: Option<&Path>,
        checkpoint: &Path,
        root: Option<&str>,
        task: Task,
        output: &Path,
    ) -> Result<Vec<String>> {
        let arguments = self.arguments(checkpoint, root, task, output)?;
        let program = vlmerge.map_or_else(beside_us, Path::to_owned);
        let (status, stderr) = match run_program(Command::new(&program).args(&arguments)) {
            Ok(ran) => ran,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
                "--merge runs vlmerge, which is neither beside this program nor on the search path: install it, or merge \
                 first and give the merged file"
            ),
            Err(e) => return Err(e).with_context(|| format!("--merge: cannot run {}", show_path(&program))),
        };
        if let Some(ended) = Ended::by(status) {
            return Err(anyhow::Error::new(ended).context("--merge"));
        }
        let mut said = String::from_utf8_lossy(&stderr).into_owned();
        if let Merge::Recipe(path) = self {
            // Lines are where they were in the user's own file.
            said = said.replace(&show_path(&output.with_file_name(MERGE_RECIPE)), &show_path(path));
        }
        if status.code() == Some(2) {
            // What clap says before it shows the usage.
            let lines = said.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim);
            let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
            return Err(Error::Usage(format!("--merge: {}", lines.join(" ").trim_start_matches("error: "))).into());
        }
        let lines = said.lines().map(|line| line.trim_start_matches("vlmerge: ").to_owned()).filter(|l| !l.is_empty());
        let lines: Vec<String> = lines.collect();
        if status.success() {
            return Ok(lines);
        }
        match lines.is_empty() {
            true => bail!("--merge: vlmerge ended with {status}"),
            false => bail!("--merge: {}", lines.join("; ")),
        }
    }
}

/// Runs a program to its end; a signal that ends this one before that ends it too. Returns its status and what it wrote
/// to stderr.
fn run_program(command: &mut Command) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = || -> Result<_> {
        let mut child = command.spawn()?;
        let stderr = child.stderr.take();
        let child = Arc::new(Mutex::new(child));
        let running = child.clone();
        let undo: Undo = Box::new(move || end(&mut running.lock().unwrap_or_else(PoisonError::into_inner)));
        Ok(((child, stderr), undo))
    };
    let ((child, stderr), _running) =
        interrupt::undoable(begin).map_err(|e| e.downcast::<std::io::Error>().unwrap_or_else(std::io::Error::other))?;
    formats::signals::pause_at("merge");
    let mut said = Vec::new();
    // Read without holding the program, so that it can be ended meanwhile.
    let read = stderr.map_or(Ok(0), |mut stderr| stderr.read_to_end(&mut said));
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
    read.map(|_| (status, said))
}

/// Ends a program so that it can tidy up, and waits for that.
fn end(child: &mut Child) -> std::io::Result<()> {
    #[cfg(unix)]
    if child.try_wait()?.is_none()
        && let Ok(id) = libc::pid_t::try_from(child.id())
    {
        // SAFETY: the program is our child and hasn't been waited for, so that the id is its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
    #[cfg(not(unix))]
    child.kill()?;
    child.wait().map(drop)
}

/// Grams that don't say what they were recorded for, as the Python code's, are this task's.
fn task_for_grams(grams: &Path, task: Task) -> Result<Vec<OsString>> {
    let file = formats::open(grams)?;
    let record = GramRecord::from_metadata(file.metadata())
        .map_err(|reason| formats::Error::file(grams, formats::show_name(&reason)))?;
    Ok(match (record.and_then(|record| record.task), task) {
        (Some(_), _) => Vec::new(),
        (None, Task::ImgCls) => vec!["--experts".into(), "all".into()],
        (None, task) => vec!["--task".into(), task.to_string().into()],
    })
}

/// What a run has to know of a recipe file. `vlmerge` checks the rest.
#[derive(Debug)]
struct Recipe {
    text: String,
    inputs: Vec<Input>,
    /// A layout's file, and where in the text it is named.
    layout: Option<(PathBuf, Range<usize>)>,
}

#[derive(Debug)]
struct Input {
    role: String,
    /// From anywhere.
    path: PathBuf,
    /// Of the value of `file`, in the recipe's text.
    span: Range<usize>,
}

impl Recipe {
    /// Files beyond this are refused unread: a recipe is a page of text, with perhaps a layout in it.
    const MAX_BYTES: u64 = 4 << 20;

    fn read(path: &Path) -> Result<Recipe, Error> {
        let shown = show_path(path);
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(Recipe::MAX_BYTES).read_to_string(&mut text));
        read.map_err(|e| Error::File(formats::Error::io(path, "read the recipe", e).to_string()))?;
        let wrong = |at: usize, reason: String| {
            let line = text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1;
            Error::File(format!("{shown}: line {line}: {reason}"))
        };
        let table = DeTable::parse(&text).map_err(|e| {
            let reason = e.message().split_whitespace().collect::<Vec<_>>().join(" ");
            wrong(e.span().map_or(0, |span| span.start), reason)
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let full = |file: &str| {
            let path = folder.join(file);
            path.canonicalize().unwrap_or(path)
        };
        let layout = table.get_ref().get("layout").and_then(|value| {
            let file = value.get_ref().as_str().filter(|text| !text.contains('\n'))?;
            Some((full(file), value.span())).filter(|(path, _)| path.is_file())
        });
        let listed = table.get_ref().get("input").and_then(|value| value.get_ref().as_array());
        let mut inputs = Vec::new();
        for item in listed.into_iter().flatten() {
            let text_of = |key: &str| {
                let value = item.get_ref().as_table().and_then(|table| table.get(key));
                value.and_then(|value| Some((value.get_ref().as_str()?.to_owned(), value.span())))
            };
            let (Some((role, _)), Some((file, span))) = (text_of("role"), text_of("file")) else {
                return Err(wrong(item.span().start, "an input needs a role and a file".into()));
            };
            inputs.push(Input { role, path: full(&file), span });
        }
        if inputs.is_empty() {
            return Err(wrong(0, "it has no [[input]]".into()));
        }
        Ok(Recipe { text: text.clone(), inputs, layout })
    }

    /// The recipe with paths that hold from anywhere, and `checkpoint` for its input with that role. Nothing else is
    /// changed, so that lines stay where they are.
    fn with_paths(&self, checkpoint: &Path) -> String {
        let inputs = self.inputs.iter().map(|input| match input.role.as_str() {
            "checkpoint" => (checkpoint, input.span.clone()),
            _ => (input.path.as_path(), input.span.clone()),
        });
        let mut changes: Vec<(&Path, Range<usize>)> = inputs.collect();
        changes.extend(self.layout.as_ref().map(|(path, span)| (path.as_path(), span.clone())));
        changes.sort_by_key(|(_, span)| std::cmp::Reverse(span.start));
        let mut text = self.text.clone();
        for (path, span) in changes {
            text.replace_range(span, &toml::Value::from(&*path.to_string_lossy()).to_string());
        }
        text
    }
}

/// The `vlmerge` in this program's folder, or the name alone for the search path.
fn beside_us() -> PathBuf {
    let name = format!("vlmerge{}", std::env::consts::EXE_SUFFIX);
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(&name)).filter(|path| path.is_file());
    beside.unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood() {
        assert_eq!("interpolate:0.5".parse(), Ok(Merge::Interpolate { ratio: 0.5 }));
        assert_eq!(
            "arithmetic:0.75:C:/seed.ckpt".parse(),
            Ok(Merge::Arithmetic { lambda: "0.75".into(), base: "C:/seed.ckpt".into() })
        );
        assert_eq!(
            "arithmetic:v=0.5,l=1:seed.ckpt".parse(),
            Ok(Merge::Arithmetic { lambda: "v=0.5,l=1".into(), base: "seed.ckpt".into() })
        );
        assert_eq!("regmean:g.pth".parse(), Ok(Merge::RegMean { grams: "g.pth".into() }));
        let refused = |text: &str| text.parse::<Merge>().expect_err(text);
        assert_eq!(refused("interpolate:half"), "'half' is no number");
        assert_eq!(refused("arithmetic:0.5"), "it also needs the seed checkpoint, as in arithmetic:0.75:seed.ckpt");
        assert_eq!(refused("average"), FORMS);
        assert_eq!(refused("regmean:"), FORMS);
        assert_eq!("mine/recipe.toml".parse(), Ok(Merge::Recipe("mine/recipe.toml".into())));
        assert_eq!("vlmerge merge --recipe r.toml".parse(), Ok(Merge::Recipe("r.toml".into())));
        assert!(refused("merge --recipe r.toml --force").contains("give the file alone"));
    }

    fn in_words(list: &[&str]) -> Merge {
        Merge::Words(list.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        let typed = r#"arithmetic --lambda 0.75 --base "my seed.ckpt" --sequential --layout=a\ b.toml"#;
        let merge: Merge = typed.parse().unwrap();
        let words = ["arithmetic", "--lambda", "0.75", "--base", "my seed.ckpt", "--sequential", "--layout=a b.toml"];
        assert_eq!(merge, in_words(&words));
        assert_eq!(merge.to_string().parse(), Ok(merge.clone()), "{merge}");
        assert_eq!(merge.files(), [Path::new("my seed.ckpt"), Path::new("a b.toml")]);
        let unclosed = "soup 'b.ckpt".parse::<Merge>().unwrap_err();
        assert_eq!(unclosed, "a quote in it isn't closed");
    }

    #[test]
    fn an_output_of_its_own_is_refused() {
        for own in ["-o x.ckpt", "-ox.ckpt", "--output x.ckpt", "--output=x.ckpt", "--force", "--json"] {
            let error = format!("interpolate --ratio 0.5 {own}").parse::<Merge>().unwrap_err();
            assert!(
                error.ends_with("goes to merged.safetensors in the run's folder: leave this out"),
                "{own}: {error}"
            );
        }
    }

    #[test]
    fn only_what_names_a_file_becomes_absolute() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seed.ckpt");
        std::fs::write(&file, "").unwrap();
        let (typed, full) = (folder.path().join("./seed.ckpt"), file.canonicalize().unwrap());
        let (typed, full) = (typed.to_str().unwrap(), full.to_str().unwrap());
        let dotted =
            format!("{}/../{}/seed.ckpt", folder.path().display(), folder.path().file_name().unwrap().display());
        let words = ["ties", &dotted, "{}", "--experts", "used", "--layout", "vlmo", "--density", "0.5"];
        let wanted = ["ties", full, "{}", "--experts", "used", "--layout", "vlmo", "--density", "0.5"];
        assert_eq!(in_words(&words).absolute(), in_words(&wanted));
        let with_equals = format!("--base={dotted}");
        let wanted = format!("--base={full}");
        assert_eq!(
            in_words(&["arithmetic", &with_equals, "--root", typed]).absolute(),
            in_words(&["arithmetic", &wanted, "--root", typed])
        );
    }

    #[test]
    fn a_runs_folder_is_merged_by_its_weights() {
        use super::super::run_dir::{BEST, LAST};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for (run, weights) in [("seed", BEST), ("other", LAST)] {
            std::fs::create_dir(path(run)).unwrap();
            std::fs::write(folder.path().join(run).join(weights), "").unwrap();
        }
        let (best, last) = (path("seed/best.safetensors"), path("other/last.safetensors"));
        let resolved = |typed: &str| typed.parse::<Merge>().unwrap().with_files_of_runs().unwrap();
        let (merge, notes) = resolved(&format!("arithmetic:0.75:{}", path("seed")));
        assert_eq!(merge, Merge::Arithmetic { lambda: "0.75".into(), base: best.clone().into() });
        assert_eq!(notes, [format!("--merge: {best}: the best weights of this run are taken")]);
        let (merge, notes) = resolved(&format!("ties {} {} --layout {}", path("seed"), path("other"), path("")));
        assert_eq!(merge, in_words(&["ties", &best, &last, "--layout", &path("")]));
        assert_eq!(notes.len(), 2);
        let (merge, _) = resolved(&format!("arithmetic --lambda 1 --base {}", path("seed")));
        assert_eq!(merge, in_words(&["arithmetic", "--lambda", "1", "--base", &best]));
        let (merge, _) = resolved(&format!("arithmetic --lambda 1 --base={}", path("other")));
        assert_eq!(merge, in_words(&["arithmetic", "--lambda", "1", &format!("--base={last}")]));
        let none: Merge = format!("soup {}", path("")).parse().unwrap();
        let error = none.with_files_of_runs().unwrap_err().to_string();
        assert!(error.contains("this folder holds no run"), "{error}");
    }

    #[test]
    fn the_checkpoint_stands_where_it_is_wanted_and_the_task_is_passed_on() {
        let arguments = |typed: &str, root, task| {
            let merge: Merge = typed.parse().unwrap();
            let list = merge.arguments(Path::new("ms.ckpt"), root, task, Path::new("o.safetensors")).unwrap();
            list.join(" ".as_ref()).into_string().unwrap()
        };
        assert_eq!(
            arguments("arithmetic --lambda 0.75 --base seed.ckpt --sequential --experts used", None, Task::Vqa),
            "arithmetic ms.ckpt --lambda 0.75 --base seed.ckpt --sequential --experts used --task vqa -o o.safetensors \
             --force"
        );
        assert_eq!(
            arguments("ties seed.ckpt {} --experts=used --task irtr", None, Task::Vqa),
            "ties seed.ckpt ms.ckpt --experts=used --task irtr -o o.safetensors --force"
        );
        // A base stays the first file; then comes the run's checkpoint.
        for (typed, wanted) in [
            ("ties base.ckpt b.ckpt", "ties base.ckpt ms.ckpt b.ckpt"),
            ("ties base.ckpt", "ties base.ckpt ms.ckpt"),
            ("dare --layout l.toml --density 0.5 base.ckpt", "dare --layout l.toml --density 0.5 base.ckpt ms.ckpt"),
            ("ties --experts all base.ckpt", "ties --experts all base.ckpt ms.ckpt"),
            ("dare base.ckpt --experts --density=0.5", "dare base.ckpt ms.ckpt --experts --density=0.5"),
            ("ties {} base.ckpt", "ties ms.ckpt base.ckpt"),
            ("soup b.ckpt", "soup ms.ckpt b.ckpt"),
        ] {
            assert_eq!(arguments(typed, None, Task::Vqa), format!("{wanted} -o o.safetensors --force"), "{typed}");
        }
        let merge: Merge = "ties --density 0.5".parse().unwrap();
        let error = merge.check(Path::new("ms.ckpt"), None, Task::Vqa).unwrap_err();
        let wanted = "it needs the checkpoint that the models were trained from, as in \"ties base.ckpt\"";
        assert!(matches!(&error, Error::Usage(text) if text.ends_with(wanted)), "{error}");
        assert_eq!(
            arguments("interpolate --ratio 0.5", Some("model.ema"), Task::Vqa),
            "interpolate ms.ckpt --ratio 0.5 --root model.ema -o o.safetensors --force"
        );
        assert_eq!(
            arguments("interpolate --ratio 0.5 --root=model", Some("model.ema"), Task::Vqa),
            "interpolate ms.ckpt --ratio 0.5 --root=model -o o.safetensors --force"
        );
        let merge: Merge = "interpolate --ratio 0.5 --experts used".parse().unwrap();
        let error = merge.check(Path::new("ms.ckpt"), None, Task::ImgCls).unwrap_err();
        assert!(matches!(&error, Error::Usage(text) if text.contains("not for img_cls: leave it out")), "{error}");
        let merge: Merge = "soup b.ckpt".parse().unwrap();
        assert!(merge.check(Path::new("ms.ckpt"), None, Task::ImgCls).is_ok());
        let error = merge.check(Path::new("ms.ckpt"), Some("model"), Task::Vqa).unwrap_err().to_string();
        assert!(error.ends_with("give --root among these words"), "{error}");
    }

    #[test]
    fn a_recipe_merges_the_runs_checkpoint_and_keeps_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        let text = "method = 'arithmetic'\n[[input]]\nrole = 'checkpoint' # this one\nfile = 'old.ckpt'\n[[input]]\n\
                    file = \"seed.ckpt\"\nrole = 'base'\n[parameters]\nlambda = 0.5\n";
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("seed.ckpt"), "").unwrap();
        let seed = folder.path().join("seed.ckpt").canonicalize().unwrap();
        let merge = Merge::Recipe(path.clone());
        assert_eq!(merge.own_checkpoint().unwrap(), Some(folder.path().join("old.ckpt")));
        let new = Path::new("/some/new.ckpt");
        merge.check(new, None, Task::Vqa).unwrap();
        let output = folder.path().join("merged.safetensors");
        let arguments = merge.arguments(new, None, Task::Vqa, &output).unwrap();
        assert_eq!(arguments[..2], ["merge", "--recipe"]);
        let written = std::fs::read_to_string(&arguments[2]).unwrap();
        let wanted = text.replace("'old.ckpt'", "\"/some/new.ckpt\"");
        assert_eq!(written, wanted.replace("seed.ckpt", seed.to_str().unwrap()));
        // Where no input is the checkpoint by its role, it has to be one of the files.
        std::fs::write(&path, text.replace("'checkpoint'", "'model'")).unwrap();
        let error = merge.check(new, None, Task::Vqa).unwrap_err().to_string();
        assert!(error.ends_with("/some/new.ckpt is not among the files that it merges"), "{error}");
        merge.check(&seed, None, Task::Vqa).unwrap();
        std::fs::write(&path, "method = 'soup'\n[[input]]\nrole = 'model'\n").unwrap();
        let error = merge.own_checkpoint().unwrap_err().to_string();
        assert!(error.ends_with("recipe.toml: line 2: an input needs a role and a file"), "{error}");
    }

    #[test]
    fn the_arguments_are_those_of_vlmerge() {
        let arguments = |merge: &str, task| {
            let merge: Merge = merge.parse().unwrap();
            let list = merge.arguments(Path::new("ms.ckpt"), None, task, Path::new("run/merged.safetensors")).unwrap();
            list.join(" ".as_ref()).into_string().unwrap()
        };
        assert_eq!(
            arguments("interpolate:0.5", Task::Vqa),
            "interpolate ms.ckpt --ratio=0.5 -o run/merged.safetensors --force"
        );
        assert_eq!(
            arguments("arithmetic:0.75:seed.ckpt", Task::Irtr),
            "arithmetic ms.ckpt --base seed.ckpt --lambda=0.75 -o run/merged.safetensors --force"
        );
    }

    #[test]
    fn grams_say_their_task_or_get_the_runs() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = |name: &str, metadata: &formats::write::Metadata, task| {
            let path = folder.path().join(name);
            let writer = formats::write::Writer::create(&path, Vec::new(), metadata).unwrap();
            writer.finish(metadata).unwrap();
            let merge = Merge::RegMean { grams: path };
            let list = merge.arguments(Path::new("ms.ckpt"), None, task, Path::new("o.safetensors")).unwrap();
            list[4..].join(" ".as_ref()).into_string().unwrap()
        };
        let plain = formats::write::Metadata::new();
        assert_eq!(arguments("a.safetensors", &plain, Task::Vqa), "--task vqa -o o.safetensors --force");
        assert_eq!(arguments("b.safetensors", &plain, Task::ImgCls), "--experts all -o o.safetensors --force");
        let record = GramRecord { task: Some("irtr".into()), ..GramRecord::default() };
        let recorded = [(formats::grams::GRAMS_KEY.to_owned(), record.to_json())].into();
        assert_eq!(arguments("c.safetensors", &recorded, Task::Vqa), "-o o.safetensors --force");
    }

    #[test]
    fn a_missing_program_is_named() {
        let merge = Merge::Interpolate { ratio: 0.5 };
        let missing = Path::new("/no/such/vlmerge");
        let error = merge.run(Some(missing), Path::new("ms"), None, Task::Vqa, Path::new("o")).unwrap_err().to_string();
        assert!(error.starts_with("--merge runs vlmerge, which is neither beside this program"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_the_program_says_is_passed_on() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let merge = Merge::Interpolate { ratio: 0.5 };
        let run = |program: &Path| merge.run(Some(program), Path::new("ms"), None, Task::Vqa, Path::new("o"));
        let fails = script("fails", "echo 'vlmerge: ms: no experts' >&2; exit 1");
        assert_eq!(run(&fails).unwrap_err().to_string(), "--merge: ms: no experts");
        let warns = script("warns", "echo 'vlmerge: warning: 3 values became infinite' >&2");
        assert_eq!(run(&warns).unwrap(), ["warning: 3 values became infinite"]);
        let mistyped = "printf 'error: unexpected argument --lamda found\\n\\n  tip: --lambda exists\\n\\nUsage: vlmerge\\n' >&2; exit 2";
        let error = run(&script("mistyped", mistyped)).unwrap_err();
        assert_eq!(error.to_string(), "--merge: unexpected argument --lamda found tip: --lambda exists");
        assert!(matches!(error.downcast_ref(), Some(Error::Usage(_))), "wrong usage here too");
        // As vlmerge ends after Ctrl-C, which both programs get.
        let interrupted = run(&script("interrupted", "exit 130")).unwrap_err();
        assert_eq!(interrupted.downcast_ref(), Some(&Ended { signal: 2 }), "{interrupted:#}");
        let killed = run(&script("killed", "kill -TERM $$")).unwrap_err();
        assert_eq!(killed.downcast_ref(), Some(&Ended { signal: 15 }), "{killed:#}");
        let silent = script("silent", "exit 3");
        assert!(run(&silent).unwrap_err().to_string().starts_with("--merge: vlmerge ended with "));
    }
}
