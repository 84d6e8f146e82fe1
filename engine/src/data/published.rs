//! The splits that the Python code uses of the data sets that the paper is about.

use std::path::Path;

use super::Task;
use super::open::survey;

/// Splits, as [`super::open`] takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The code trains on this.
    pub train: &'static str,
    /// It chooses the best weights by this.
    pub val: &'static str,
    /// It records gram matrices on this, its whole validation data.
    pub grams: &'static str,
}

/// What the code uses of the data set at `path`, of several for the task the one named `preferred`; `None` where that is
/// none of the paper's.
pub fn published(path: &Path, task: Task, preferred: Option<&str>) -> Option<Published> {
    let found = survey(path).ok()?;
    let mut sets = found.iter().filter(|found| found.task == task).map(|found| found.set.as_str());
    let set = match preferred {
        Some(preferred) => sets.clone().find(|set| *set == preferred).or_else(|| sets.next())?,
        None => sets.next()?,
    };
    of(set, task)
}

fn of(set: &str, task: Task) -> Option<Published> {
    let named = |name: &str| set.split(['_', '-']).any(|part| part == name);
    let usual = |grams| Published { train: "train", val: "val", grams };
    match task {
        // Its validation data is the test split, and its training data has the validation split as well.
        Task::Irtr if named("f30k") => Some(Published { train: "train+val", val: "test", grams: "test" }),
        Task::Irtr if named("coco") => Some(usual("val")),
        // `train` takes in `trainable_val`, and `val` is `rest_val`.
        Task::Vqa if named("vqav2") => Some(usual("rest_val")),
        // It validates on both, and dev decides.
        Task::Nlvr2 if named("nlvr2") => Some(usual("dev+test1")),
        Task::ImgCls if named("imagenet") || named("imagenet1k") => Some(usual("val")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_splits_of_the_papers_data_sets() {
        let splits = |set, task| of(set, task).map(|splits| (splits.train, splits.val, splits.grams));
        assert_eq!(splits("f30k_caption_karpathy", Task::Irtr), Some(("train+val", "test", "test")));
        assert_eq!(splits("coco_caption_karpathy", Task::Irtr), Some(("train", "val", "val")));
        assert_eq!(splits("vqav2", Task::Vqa), Some(("train", "val", "rest_val")));
        assert_eq!(splits("nlvr2", Task::Nlvr2), Some(("train", "val", "dev+test1")));
        assert_eq!(splits("imagenet", Task::ImgCls), Some(("train", "val", "val")));
        assert_eq!((splits("toy", Task::Irtr), splits("f30k_caption_karpathy", Task::Vqa)), (None, None));
    }
}
