//! `--merge`: what `vlmerge` does, on the way into a run.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use formats::grams::GramRecord;
use formats::show_path;

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
}

impl Merge {
    /// The same with a path that holds from anywhere, where the file is there.
    #[must_use]
    pub fn absolute(self) -> Merge {
        let full = |path: PathBuf| path.canonicalize().unwrap_or(path);
        match self {
            Merge::Interpolate { ratio } => Merge::Interpolate { ratio },
            Merge::Arithmetic { lambda, base } => Merge::Arithmetic { lambda, base: full(base) },
            Merge::RegMean { grams } => Merge::RegMean { grams: full(grams) },
        }
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Merge::Interpolate { ratio } => write!(f, "interpolate:{ratio}"),
            Merge::Arithmetic { lambda, base } => write!(f, "arithmetic:{lambda}:{}", base.display()),
            Merge::RegMean { grams } => write!(f, "regmean:{}", grams.display()),
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
            _ => Err("it is interpolate:RATIO, arithmetic:LAMBDA:SEED or regmean:GRAMS".into()),
        }
    }
}

impl Merge {
    /// The arguments of `vlmerge`, so that the file holds the same numbers as by hand.
    fn arguments(&self, checkpoint: &Path, task: Task, output: &Path) -> Result<Vec<OsString>> {
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
                let file = formats::open(grams)?;
                let record = GramRecord::from_metadata(file.metadata())
                    .map_err(|reason| formats::Error::file(grams, formats::show_name(&reason)))?;
                // Grams that don't say what they were recorded for, as the Python code's, are this task's.
                match (record.and_then(|record| record.task), task) {
                    (Some(_), _) => {}
                    (None, Task::ImgCls) => arguments.extend(["--experts".into(), "all".into()]),
                    (None, task) => arguments.extend(["--task".into(), task.to_string().into()]),
                }
            }
        }
        arguments.extend(["-o".into(), output.into(), "--force".into()]);
        Ok(arguments)
    }

    /// Merges into `output` by running `vlmerge`, the one given or the one found beside this program or on the search
    /// path. Returns what it warned of, a line each.
    ///
    /// # Errors
    /// There is no `vlmerge`, or it fails: its own message.
    pub fn run(&self, vlmerge: Option<&Path>, checkpoint: &Path, task: Task, output: &Path) -> Result<Vec<String>> {
        let arguments = self.arguments(checkpoint, task, output)?;
        let program = vlmerge.map_or_else(beside_us, Path::to_owned);
        let ran = Command::new(&program).args(&arguments).output();
        let ran = match ran {
            Ok(ran) => ran,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
                "--merge runs vlmerge, which is neither beside this program nor on the search path: install it, or merge \
                 first and give the merged file"
            ),
            Err(e) => return Err(e).with_context(|| format!("--merge: cannot run {}", show_path(&program))),
        };
        let said = String::from_utf8_lossy(&ran.stderr);
        let lines = said.lines().map(|line| line.trim_start_matches("vlmerge: ").to_owned()).filter(|l| !l.is_empty());
        let lines: Vec<String> = lines.collect();
        if ran.status.success() {
            return Ok(lines);
        }
        match lines.is_empty() {
            true => bail!("--merge: vlmerge ended with {}", ran.status),
            false => bail!("--merge: {}", lines.join("; ")),
        }
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
        assert_eq!(refused("soup"), "it is interpolate:RATIO, arithmetic:LAMBDA:SEED or regmean:GRAMS");
        assert_eq!(refused("regmean:"), "it is interpolate:RATIO, arithmetic:LAMBDA:SEED or regmean:GRAMS");
    }

    #[test]
    fn the_arguments_are_those_of_vlmerge() {
        let arguments = |merge: &str, task| {
            let merge: Merge = merge.parse().unwrap();
            let list = merge.arguments(Path::new("ms.ckpt"), task, Path::new("run/merged.safetensors")).unwrap();
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
            let list = merge.arguments(Path::new("ms.ckpt"), task, Path::new("o.safetensors")).unwrap();
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
        let error = merge.run(Some(missing), Path::new("ms"), Task::Vqa, Path::new("o")).unwrap_err().to_string();
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
        let run = |program: &Path| merge.run(Some(program), Path::new("ms"), Task::Vqa, Path::new("o"));
        let fails = script("fails", "echo 'vlmerge: ms: no experts' >&2; exit 1");
        assert_eq!(run(&fails).unwrap_err().to_string(), "--merge: ms: no experts");
        let warns = script("warns", "echo 'vlmerge: warning: 3 values became infinite' >&2");
        assert_eq!(run(&warns).unwrap(), ["warning: 3 values became infinite"]);
        let silent = script("silent", "exit 3");
        assert!(run(&silent).unwrap_err().to_string().starts_with("--merge: vlmerge ended with "));
    }
}
