//! `vlmerge init` for `engine`: what it makes opens, trains and computes what it should.

use blackbox::Folder;
use serde_json::Value;

use crate::engine;

/// A BEiT has nothing for texts; what `init` makes of it is a whole model all the same.
#[test]
fn a_beit_does_not_stop_short_of_fine_tuning() {
    let folder = Folder::with_golden(&["beit_shared.ckpt", "config.json"]);
    let config: Value = serde_json::from_slice(&folder.read("config.json")).expect("JSON");
    let (size, start) = (&config["image_size"], &config["vl_start"]);
    for arch in ["ufo", "all_moe"] {
        let model = format!("{arch}.safetensors");
        folder
            .vlmerge(&format!("init beit_shared.ckpt --arch {arch} --image-size {size} --vl-start {start} -o {model}"))
            .done();
        let line =
            "--task vqa --data toy --batch-size 2 --steps 1 --device cpu --set val_limit=4 --set samples=1 --quiet";
        engine(&folder, &format!("finetune {model} {line} -o run_{arch}")).done();
        assert!(folder.path(format!("run_{arch}/last.safetensors")).is_file());
    }
    // The run's file shows the whole way: a training, after `init`.
    let text = folder.vlmerge("inspect run_ufo/last.safetensors").done();
    let (training, init) = text.split_once("\nfrom a file made by vlmerge").expect(&text);
    assert!(training.contains("\ntrained by engine") && init.contains("beit_shared.ckpt"), "{text}");
    // Trained again, the first training is still there.
    let line = "--task vqa --data toy --batch-size 2 --steps 1 --device cpu --set val_limit=4 --set samples=1 --quiet";
    engine(&folder, &format!("finetune run_ufo/last.safetensors {line} -o second")).done();
    let text = folder.vlmerge("inspect second/last.safetensors").done();
    let places = ["\ntrained by engine", "\nfrom a file trained by engine", "\nfrom a file made by vlmerge"];
    let places = places.map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}")));
    assert!(places.is_sorted(), "{text}");
}

/// Experts that are copies of a seed's weights compute what it does, bit for bit: the operations are the same. That tokens
/// of other models with such experts attend to others doesn't matter.
#[test]
fn a_seed_with_experts_computes_nothing_else() {
    let folder =
        Folder::with_golden(&["model_ufo.safetensors", "heads_ufo.safetensors", "batch.safetensors", "config.json"]);
    let config: Value = serde_json::from_slice(&folder.read("config.json")).expect("JSON");
    let start = &config["vl_start"];
    let probe = |model: &str| {
        let line = format!(
            "--quiet probe {model} --heads heads_ufo.safetensors --batch batch.safetensors --device cpu \
             -o out.safetensors --force"
        );
        engine(&folder, &line).done();
        folder.tensors("out.safetensors")
    };
    let wanted = probe("model_ufo.safetensors");
    assert!(wanted.contains_key("vl.cls_feats") && wanted.contains_key("text.cls_feats"), "{:?}", wanted.keys());
    for arch in ["ln_moe", "attn_moe", "ffn_moe", "all_moe"] {
        folder
            .vlmerge(&format!("init model_ufo.safetensors --arch {arch} --vl-start {start} -o ms.safetensors --force"))
            .done();
        let found = probe("ms.safetensors");
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{arch}");
        for (name, wanted) in &wanted {
            assert_eq!(found[name].values(), wanted.values(), "{arch}: {name}");
        }
    }
}
