//! Five containers, told apart by their contents.

use blackbox::{Folder, read, write_sharded};
use fixtures::{LightningOptions, Variant};

use crate::models::nano;

/// The same model in every container, under endings that say something else.
const CONTAINERS: [(&str, &str); 5] = [
    ("lightning.zip", "pytorch-zip"),
    ("state.safetensors", "pytorch-zip"),
    ("old.ckpt", "pytorch-legacy"),
    ("tensors.ckpt", "safetensors"),
    ("model.safetensors.index.json", "sharded-safetensors"),
];

fn in_every_container() -> Folder {
    let folder = Folder::new();
    let spec = nano(Variant::AllMoe);
    let state = spec.state_dict();
    fixtures::write_lightning(&folder.path("lightning.zip"), &spec, &LightningOptions::default()).unwrap();
    fixtures::write_zip(&folder.path("state.safetensors"), &state, Some("model")).unwrap();
    fixtures::write_legacy(&folder.path("old.ckpt"), &state, Some("module")).unwrap();
    fixtures::write_safetensors(&folder.path("tensors.ckpt"), &state).unwrap();
    write_sharded(&folder.path("."), &read(&folder.path("tensors.ckpt")));
    folder
}

#[test]
fn the_content_decides() {
    let folder = in_every_container();
    for ((name, format), root) in CONTAINERS.into_iter().zip(["state_dict", "model", "module", ".", "."]) {
        let seen = folder.json(&format!("inspect {name}"));
        assert_eq!((&seen["format"], &seen["root"]), (&format.into(), &root.into()), "{name}");
        assert_eq!(seen["config"]["variant"], "all_moe", "{name}");
    }
}

#[test]
fn every_container_merges_to_the_same_bits() {
    let folder = in_every_container();
    let mut results = CONTAINERS.map(|(name, _)| {
        let report = folder.json(&format!("interpolate {name} --ratio 0.3 -o out.safetensors --force"));
        (folder.tensors("out.safetensors"), report["recipe"]["inputs"][0]["content_digest"].clone(), name)
    });
    let (first, digest, _) = results[0].clone();
    assert!(first.len() > 50);
    for (tensors, other, name) in &mut results {
        assert!(*tensors == first, "{name}");
        assert_eq!(*other, digest, "{name}");
    }
}

#[test]
fn a_missing_or_wrong_shard_is_named() {
    let folder = in_every_container();
    let line = "interpolate model.safetensors.index.json --ratio 0.5 -o out.ckpt";
    folder.write("model-00002-of-00002.safetensors", "not a shard");
    let refusal = folder.refuses(line);
    assert!(refusal.starts_with("model-00002-of-00002.safetensors: "), "{refusal}");
    std::fs::remove_file(folder.path("model-00002-of-00002.safetensors")).unwrap();
    let refusal = folder.refuses(line);
    assert_eq!(refusal, "model-00002-of-00002.safetensors: cannot open: no such file or directory");
}

/// The folder is what people have; the message says which file in it to open.
#[test]
fn a_folder_of_shards() {
    let folder = in_every_container();
    let refusal = folder.refuses("inspect .");
    assert_eq!(refusal, ".: this is a folder; open model.safetensors.index.json inside it");
}
