//! What the name of an Arrow file says: data set, split, shard.

/// Splits as file names end, longer names first where one ends with another.
const SPLITS: [&str; 17] = [
    "trainable_val",
    "rest_val",
    "restval",
    "balanced_dev",
    "unbalanced_dev",
    "balanced_test1",
    "unbalanced_test1",
    "distinct",
    "test-dev",
    "test_dev",
    "validation",
    "valid",
    "test1",
    "train",
    "test",
    "val",
    "dev",
];

/// `conceptual_caption_train_12` → `conceptual_caption`, `train`, 12. The Python code's prefix `code224_` is no part of
/// the set's name; Hugging Face's shards, `train-00003-of-00010`, are shards too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub set: String,
    /// `None` where the name says nothing, as in `vg` and `sbu_3`.
    pub split: Option<String>,
    /// `None` where there is no number.
    pub shard: Option<u32>,
}

impl Named {
    /// Reads a file name without its ending.
    pub fn parse(stem: &str) -> Named {
        let stem = stem.strip_prefix("code224_").unwrap_or(stem);
        let (rest, shard) = match stem.rsplit_once('_').map(|(rest, number)| (rest, number.parse())) {
            Some((rest, Ok(number))) => (rest, Some(number)),
            _ => of_many(stem).map_or((stem, None), |(rest, number)| (rest, Some(number))),
        };
        let found = SPLITS.iter().filter_map(|split| {
            let set = rest.strip_suffix(split)?;
            match set.strip_suffix(['_', '-', '.']) {
                Some(set) => Some((set, *split)),
                None if set.is_empty() => Some(("", *split)),
                None => None,
            }
        });
        // The longest: `unbalanced_dev`, not `dev` of a set `x_unbalanced`.
        match found.max_by_key(|(_, split)| split.len()) {
            Some((set, split)) => Named { set: set.into(), split: Some(split.into()), shard },
            None => Named { set: rest.into(), split: None, shard },
        }
    }
}

/// `train-00003-of-00010` → `train`, 3.
fn of_many(stem: &str) -> Option<(&str, u32)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    count.parse::<u32>().ok()?;
    let (rest, shard) = rest.rsplit_once('-')?;
    Some((rest, shard.parse().ok()?))
}

/// A text file's bytes without the byte-order mark that some editors begin it with.
pub fn unmarked(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Splits that are read for `wanted`, of those that are there, as the Python code reads them: VQAv2's `train` takes in
/// `trainable_val`, and its `val` is then what remains, `rest_val`. `a+b` is both, as in COCO's `train+restval`; nothing
/// where one of the two isn't there.
pub fn splits_for(wanted: &str, have: &[&str]) -> Vec<String> {
    let parts: Vec<Vec<String>> = wanted.split('+').map(|wanted| one_split(wanted.trim(), have)).collect();
    if parts.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    let mut names = indexmap::IndexSet::new();
    names.extend(parts.into_iter().flatten());
    names.into_iter().collect()
}

fn one_split(wanted: &str, have: &[&str]) -> Vec<String> {
    let there = |splits: &[&str]| -> Vec<String> {
        splits.iter().filter(|split| have.contains(split)).map(|split| split.to_string()).collect()
    };
    let first = |splits: &[&str]| there(splits).into_iter().take(1).collect();
    match wanted {
        "train" => match there(&["train", "trainable_val"]) {
            // What only fills up a training split is none by itself.
            splits if splits.first().is_some_and(|split| split != "train") => Vec::new(),
            splits => splits,
        },
        "val" => first(&["rest_val", "val", "validation", "valid", "dev"]),
        "test" => first(&["test", "test1"]),
        other => there(&[other]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_python_code() {
        let parse = |stem| {
            let Named { set, split, shard } = Named::parse(stem);
            (set, split.unwrap_or_default(), shard.map_or(-1, i64::from))
        };
        let cases = [
            ("coco_caption_karpathy_restval", ("coco_caption_karpathy", "restval", -1)),
            ("vqav2_trainable_val", ("vqav2", "trainable_val", -1)),
            ("vqav2_val", ("vqav2", "val", -1)),
            ("vqav2_test-dev", ("vqav2", "test-dev", -1)),
            ("nlvr2_unbalanced_test1", ("nlvr2", "unbalanced_test1", -1)),
            ("conceptual_caption_train_12", ("conceptual_caption", "train", 12)),
            ("sbu_3", ("sbu", "", 3)),
            ("sbu_0", ("sbu", "", 0)),
            ("vg", ("vg", "", -1)),
            ("code224_vg", ("vg", "", -1)),
            ("code224_coco_caption_karpathy_val", ("coco_caption_karpathy", "val", -1)),
            ("train-00003-of-00010", ("", "train", 3)),
            ("captions-train", ("captions", "train", -1)),
            ("captions.valid", ("captions", "valid", -1)),
            ("train", ("", "train", -1)),
            ("retrain", ("retrain", "", -1)),
        ];
        for (stem, (set, split, shard)) in cases {
            assert_eq!(parse(stem), (set.to_string(), split.to_string(), shard), "{stem}");
        }
    }

    #[test]
    fn a_split_may_be_several_files() {
        let coco = ["train", "restval", "val", "test"];
        assert_eq!(splits_for("train", &coco), ["train"]);
        assert_eq!(splits_for("train+restval", &coco), ["train", "restval"]);
        assert_eq!(splits_for("val", &coco), ["val"]);
        let vqa = ["train", "val", "trainable_val", "rest_val", "test", "test-dev"];
        assert_eq!(splits_for("train", &vqa), ["train", "trainable_val"]);
        assert_eq!(splits_for("val", &vqa), ["rest_val"]);
        assert_eq!(splits_for("test-dev", &vqa), ["test-dev"]);
        assert_eq!(splits_for("train + rest_val", &vqa), ["train", "trainable_val", "rest_val"]);
        assert_eq!(splits_for("val", &["train", "dev", "test1"]), ["dev"]);
        assert_eq!(splits_for("test", &["train", "dev", "test1"]), ["test1"]);
        assert!(splits_for("train", &["restval", "val"]).is_empty());
        assert!(splits_for("", &coco).is_empty());
        assert!(splits_for("train+restval", &["train", "val"]).is_empty(), "half of what was asked for");
        assert_eq!(splits_for("train+train", &coco), ["train"]);
    }
}
