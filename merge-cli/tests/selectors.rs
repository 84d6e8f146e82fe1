//! What is selected is merged, and a selector that selects nothing is said.

mod support;

use support::{Folder, example_layout, values};

const SLOTS: [&str; 2] = ["transformer.blocks.0.mlp.fc1.weight", "transformer.blocks.1.mlp.fc1.weight"];

/// Two layers of one weight each, the second with a `vl` expert; and the seed, which has no second layer: where one
/// expert is taken as it is, no base is asked for.
fn small() -> Folder {
    let folder = Folder::new();
    let experts: [(&str, &[f32]); 5] = [
        ("transformer.blocks.0.mlp.v.fc1.weight", &[2.0, 4.0]),
        ("transformer.blocks.0.mlp.l.fc1.weight", &[8.0, -2.0]),
        ("transformer.blocks.1.mlp.v.fc1.weight", &[1.0, 1.0]),
        ("transformer.blocks.1.mlp.l.fc1.weight", &[3.0, 3.0]),
        ("transformer.blocks.1.mlp.vl.fc1.weight", &[0.1, -7.3]),
    ];
    folder.safetensors("ms.safetensors", &experts.map(|(name, values)| (name, &[2][..], values)));
    folder.safetensors("seed.safetensors", &[(SLOTS[0], &[2], &[1.0, 1.0])]);
    folder.safetensors("whole_seed.safetensors", &[(SLOTS[0], &[2], &[1.0, 1.0]), (SLOTS[1], &[2], &[5.0, 5.0])]);
    folder
}

/// DESIGN 5: where a task uses one expert, it has weight 1, whatever the method's ratio, λ or weights.
#[test]
fn the_only_expert_is_not_scaled_by_any_method() {
    let folder = small();
    let merged = |arguments: &str| {
        let words: Vec<&str> = arguments.split(' ').chain(["-o", "out.safetensors", "--force", "--quiet"]).collect();
        folder.ok(&words);
        let out = folder.open("out.safetensors");
        SLOTS.map(|name| values(&out, name).iter().map(|&x| x as f32).collect::<Vec<f32>>())
    };
    let as_it_is = vec![0.1f32, -7.3];
    for task in ["vqa", "nlvr2"] {
        for base in ["seed.safetensors", "whole_seed.safetensors"] {
            let arithmetic = format!("arithmetic ms.safetensors --base {base} --experts used --task {task}");
            // 1 + ½(1 + 7), 1 + ½(3 − 3)
            let formula = [vec![5.0, 1.0], as_it_is.clone()];
            assert_eq!(merged(&format!("{arithmetic} --lambda 0.5")), formula);
            assert_eq!(merged(&format!("{arithmetic} --lambda v=0.5,l=0.5")), formula);
            // ½(½(1 + 2) + 8), ½(½(1 + 4) − 2)
            let sequential = [vec![4.75, 0.25], as_it_is.clone()];
            assert_eq!(merged(&format!("{arithmetic} --lambda 0.5 --sequential")), sequential);
            std::fs::write(
                folder.path("recipe.toml"),
                format!(
                    "method = \"arithmetic\"\n[[input]]\nrole = \"checkpoint\"\nfile = \"ms.safetensors\"\n\
                     [[input]]\nrole = \"base\"\nfile = \"{base}\"\n[parameters]\nlambda = 3.0\n\
                     experts = \"used\"\ntask = \"{task}\"\n[[rule]]\nlayers = 0\nlambda = 0.5\n"
                ),
            )
            .unwrap();
            assert_eq!(merged("merge --recipe recipe.toml"), formula);
            for method in ["ties --density 0.5 --lambda 0.3", "dare --density 0.5 --lambda 0.3"] {
                let [_, deep] = merged(&format!("{method} {base} ms.safetensors --experts used --task {task}"));
                assert_eq!(deep, as_it_is, "{method}");
            }
        }
        for method in ["interpolate --ratio 0.3", "slerp --t 0.3", "soup --weights 2,3 --no-normalize"] {
            let [_, deep] = merged(&format!("{method} ms.safetensors --experts used --task {task}"));
            assert_eq!(deep, as_it_is, "{method}");
        }
    }
    // With others it is scaled like them.
    let [_, deep] = merged("arithmetic ms.safetensors --base whole_seed.safetensors --lambda 0.5");
    assert!((f64::from(deep[0]) - (5.0 + 0.5 * (-4.0 - 2.0 - 4.9))).abs() < 1e-6, "{deep:?}");
}

#[test]
fn a_rule_that_matches_nothing_is_named() {
    let folder = small();
    let recipe = |method: &str, rules: &str| {
        let text = format!(
            "method = \"interpolate\"\n[[input]]\nrole = \"checkpoint\"\nfile = \"ms.safetensors\"\n[parameters]\n\
             ratio = 0.5\n{method}\n[[rule]]\nratio = 0.25\n{rules}"
        );
        std::fs::write(folder.path("recipe.toml"), text).unwrap();
        ["merge", "--recipe", "recipe.toml", "-o", "out.safetensors"]
    };
    for (rules, expected) in [
        (
            "[[rule]]\nlayers = \"2-\"\nratio = 0.3",
            "rule 2 (layers = \"2-\") matches none of the tensors that are merged",
        ),
        ("[[rule]]\nparts = [\"attention\"]\nratio = 0.3", "rule 2 (parts = [\"attention\"]) matches none"),
        ("[[rule]]\nnames = \"fc3\"\nratio = 0.3", "rule 2 (names = \"fc3\") matches none"),
        // Each item of a list is a selector.
        ("[[rule]]\nlayers = \"0, 7\"\nratio = 0.3", "rule 2 (layers = \"7\") matches none"),
        ("[[rule]]\nparts = [\"mlp\", \"norm1\"]\nratio = 0.3", "rule 2 (parts = [\"norm1\"]) matches none"),
        (
            "[[rule]]\nlayers = 0\nratio = 0.3\n[[rule]]\nlayers = 1\nparts = [\"mlp\"]\nnames = \"fc2\"\nratio = 0.3",
            "rule 3 (layers = \"1\", parts = [\"mlp\"], names = \"fc2\") matches none",
        ),
    ] {
        let error = folder.error(&recipe("", rules));
        assert!(error.starts_with(&format!("recipe.toml: {expected}")), "{error}");
    }
    let used = "experts = \"used\"\ntask = \"vqa\"";
    let error = folder.error(&recipe(used, "[[rule]]\nlayers = 1\nratio = 0.3"));
    let expected =
        "rule 2 (layers = \"1\") changes nothing: each tensor it matches has one expert, which is taken as it is";
    assert_eq!(error, format!("recipe.toml: {expected}"));
    folder.ok(&recipe("", "[[rule]]\nlayers = \"0-\"\nparts = [\"mlp\"]\nnames = \"fc1\"\nratio = 0.3"));
}

#[test]
fn a_value_for_a_modality_that_is_not_merged_is_refused() {
    let folder = small();
    let arithmetic = ["arithmetic", "ms.safetensors", "--base", "whole_seed.safetensors", "-o", "o.safetensors"];
    for used in [&["--experts", "used", "--task", "irtr"][..], &["--experts", "used", "--task", "vqa"]] {
        let error = folder.error(&[&arithmetic[..], &["--lambda", "v=0.5,l=0.5,vl=0.5"], used].concat());
        assert_eq!(error, "lambda has a value for vl, and no vl expert is merged with others");
        let soup = ["soup", "ms.safetensors", "--weights", "v=1,l=1,vl=1", "-o", "o.safetensors"];
        let error = folder.error(&[&soup[..], used].concat());
        assert_eq!(error, "there is a weight for vl, and no vl expert is merged with others");
    }
    folder.ok(&[&arithmetic[..], &["--lambda", "v=0.5,l=0.5,vl=0.5"]].concat());
    folder.safetensors("a.safetensors", &[("w", &[1], &[1.0])]);
    let text = "method = \"soup\"\n[[input]]\nrole = \"model\"\nfile = \"a.safetensors\"\n\
                [[input]]\nrole = \"model\"\nfile = \"a.safetensors\"\n[parameters]\nweights = [1, 1, 1]\n";
    std::fs::write(folder.path("soup.toml"), text).unwrap();
    let error = folder.error(&["merge", "--recipe", "soup.toml", "-o", "out.safetensors"]);
    assert_eq!(error, "soup.toml: there are 3 weights for 2 models");
}

#[test]
fn a_rule_of_a_layout_that_matches_nothing_is_warned_of() {
    let folder = Folder::new();
    let names = ["vision", "language"].map(|m| format!("model.layers.0.self_attn.{m}_expert_dense.weight"));
    let tensors = names.each_ref().map(|name| (name.as_str(), &[1][..], &[1.0f32][..]));
    folder.safetensors("ms.safetensors", &tensors);
    std::fs::copy(example_layout(), folder.path("own.toml")).unwrap();
    let output = folder.run(&["soup", "ms.safetensors", "--experts", "--layout", "own.toml", "-o", "out.safetensors"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let expected = "vlmerge: warning: own.toml: the rule of mlp for 'model.layers.{layer}.mlp.{modality}_mlp.{mlp}.weight' \
                    matches no tensor of ms.safetensors\n";
    assert_eq!(stderr, expected);
}
