//! `engine info`, `engine selftest`, `engine bench`.

use blackbox::Folder;
use serde_json::Value;

use crate::engine;

fn json(line: &str) -> Value {
    serde_json::from_str(&engine(&Folder::new(), line).done()).expect("JSON")
}

#[test]
fn the_cpu_computes_what_it_should() {
    let line = "--quiet selftest --device cpu --size tiny --image-sizes 64 --batch-size 1 --seconds 0.01 --json";
    let found = json(line);
    assert_eq!((&found["device"], &found["passed"]), (&"cpu".into(), &true.into()), "{found}");
    let parity = found["parity"].as_array().expect("a list");
    let seen: Vec<_> = parity.iter().map(|p| (p["variant"].as_str(), p["precision"].as_str())).collect();
    for variant in ["ufo", "ln_moe", "all_moe"] {
        for precision in ["f32", "bf16"] {
            assert!(seen.contains(&(Some(variant), Some(precision))), "{variant} in {precision}: {seen:?}");
        }
    }
    assert!(parity.iter().all(|p| p["worst"].as_f64() > Some(0.0)), "values are compared with others' values: {found}");
    let passes: Vec<_> = found["throughput"].as_array().expect("a list").iter().map(|t| &t["pass"]).collect();
    assert_eq!(passes, ["image encoder", "joint forward"]);
}

/// On a CPU with AMX bf16 is quicker, and there is nothing to warn of.
#[test]
fn slower_bf16_is_never_silent_and_info_names_what_the_cpu_has() {
    let found = json("info --json");
    let units = &found["cpu"]["bf16"];
    assert!(units.is_null() || ["AMX", "AVX512-BF16"].contains(&units.as_str().unwrap()), "{found}");
    let text = engine(&Folder::new(), "info").done();
    let cpu = text.lines().find(|line| line.starts_with("cpu ")).expect("a line on the CPU");
    assert!(cpu.contains("AMX") && cpu.contains(units.as_str().unwrap_or("neither AMX nor AVX512-BF16")), "{cpu}");
    let folder = Folder::with_golden(&["model_ufo.safetensors", "batch.safetensors"]);
    let line = "probe model_ufo.safetensors --batch batch.safetensors --device cpu -o out.safetensors --force";
    for precision in ["f32", "bf16"] {
        let stderr = engine(&folder, &format!("{line} --precision {precision}")).stderr;
        let warned = stderr.contains("warning: --precision bf16 is slower than f32 on this CPU");
        assert_eq!(warned, precision == "bf16" && units != "AMX", "{precision}, {units}: {stderr}");
    }
}

#[test]
fn a_card_that_is_not_there() {
    // Where there is one, there is nothing to see here.
    if json("info --json")["cuda"].get("cards").is_some() {
        return;
    }
    for line in ["selftest --device cuda", "bench train --device cuda:3", "--quiet selftest --device cuda --json"] {
        let ran = engine(&Folder::new(), line);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{line}");
        assert!(
            ran.stderr.starts_with("engine: no CUDA device: ") && ran.stderr.lines().count() == 1,
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_training_step_is_measured() {
    let line = "--quiet bench train --device cpu --size tiny --image-size 32 --batch-size 2 --steps 1 --json";
    for (preset, task) in [("irtr-coco-base-384", "irtr"), ("imagenet-base-224", "img_cls")] {
        let found = &json(&format!("{line} --preset {preset}"))[0];
        assert_eq!((&found["task"], &found["image_size"]), (&task.into(), &32.into()), "{found}");
        let (step, rate) =
            (found["step_s"].as_f64().expect("seconds"), found["images_per_s"].as_f64().expect("a rate"));
        assert!(step > 0.0 && (rate * step / 2.0 - 1.0).abs() < 1e-6, "{found}");
    }
}
