//! Depth and cycles: what overflows the stack of a reader that recurses.

use formats::Dtype;
use formats::pickle::Emitter;

use crate::files::{done, pickle, state_dict, torch_zip, with_hyper_parameters};
use crate::harness::open;

/// Levels that overflow the stack of whoever recurses, and that a pickle may have.
const DEEP: usize = 50_000;
/// Levels that a pickle may not have: nothing but nesting takes more memory than it should.
const ABSURD: usize = 1_000_000;

/// `None` wrapped `levels` times, by the bytes before it and after it.
fn nested(levels: usize, before: &[u8], after: &[u8]) -> impl Fn(&mut Emitter) {
    let (before, after) = (before.repeat(levels), after.repeat(levels));
    move |p| {
        p.raw(&before).none().raw(&after);
    }
}

type Push = Box<dyn Fn(&mut Emitter)>;

fn ways_to_nest(levels: usize) -> Vec<(&'static str, Push)> {
    vec![
        ("lists", Box::new(nested(levels, b"]", b"a"))),
        ("lists by mark", Box::new(nested(levels, b"(", b"l"))),
        ("dicts", Box::new(nested(levels, b"}N", b"s"))),
        ("dicts by mark", Box::new(nested(levels, b"(N", b"d"))),
        ("tuples", Box::new(nested(levels, b"", b"\x85"))),
        ("sets", Box::new(nested(levels, b"\x8f(", b"\x90"))),
        ("frozensets", Box::new(nested(levels, b"(", b"\x91"))),
        ("persistent ids", Box::new(nested(levels, b"", b"Q"))),
        ("keys", Box::new(nested(levels, b"}", b"Ns"))),
        (
            "arguments",
            Box::new(move |p| {
                p.global("torch", "Size").put(1).raw(b"0");
                nested(levels, b"h\x01", b"\x85R")(p);
            }),
        ),
        (
            "functions",
            Box::new(move |p| {
                p.global("m", "f");
                p.raw(&b")R".repeat(levels));
            }),
        ),
        (
            "states",
            Box::new(move |p| {
                p.global("m", "C").put(1).raw(b"0");
                nested(levels, b"h\x01)R", b"b")(p);
            }),
        ),
        (
            "subclasses of list",
            Box::new(move |p| {
                p.global("m", "C").put(1).raw(b"0");
                nested(levels, b"h\x01)R", b"a")(p);
            }),
        ),
        (
            "ordered dicts",
            Box::new(move |p| {
                p.global("collections", "OrderedDict").put(1).raw(b"0");
                nested(levels, b"h\x01)RN", b"s")(p);
            }),
        ),
        (
            "parameters",
            Box::new(move |p| {
                p.global("torch._utils", "_rebuild_parameter").put(1).raw(b"0");
                nested(levels, b"h\x01", b"\x85R")(p);
            }),
        ),
    ]
}

#[test]
fn deep_hyper_parameters_open() {
    for (name, push) in ways_to_nest(DEEP) {
        println!("{name}");
        let opened = open(&with_hyper_parameters(push)).opened();
        assert_eq!(opened.tensors.len(), 1);
        assert!(opened.hyper_parameters.is_some());
    }
}

#[test]
fn deep_state_dicts_end() {
    for (name, push) in ways_to_nest(DEEP) {
        println!("{name}");
        let object = state_dict(|p| {
            p.str("w");
            push(p);
        });
        // Refused as too deep, or nothing that could hold a tensor.
        let _ = open(&torch_zip(&object, &[]));
        let _ = open(&pickle(push));
    }
}

#[test]
fn a_million_levels_end() {
    for push in [nested(ABSURD, b"]", b"a"), nested(ABSURD, b"}N", b"s"), nested(ABSURD, b"", b"\x85")] {
        let _ = open(&with_hyper_parameters(push));
    }
    let _ = open(&pickle(|p| done(p.global("m", "f").raw(&b")R".repeat(ABSURD)))));
}

#[test]
fn a_tensor_too_deep_is_refused_not_lost() {
    let object = state_dict(|p| {
        p.str("w").raw(&b"]".repeat(70)).tensor(Dtype::F32, "0", &[2]).raw(&b"a".repeat(70));
    });
    open(&torch_zip(&object, &[("0", &[0; 8])])).refused(&["hostile.bin", "nested deeper than 64 levels"]);
}

#[test]
fn cycles_end() {
    // A list that holds itself, a dict that holds itself, an object that is its own state, its
    // own argument's list, its own callable's argument, a state dict under itself.
    let cycles: Vec<(&str, Push)> = vec![
        ("list", Box::new(|p| done(p.empty_list().put(1).get(1).raw(b"a")))),
        ("dict", Box::new(|p| done(p.empty_dict().put(1).str("self").get(1).raw(b"s")))),
        ("wide list", Box::new(|p| done(p.empty_list().put(1).mark().raw(&b"h\x01".repeat(1000)).appends()))),
        ("state", Box::new(|p| done(p.global("m", "C").empty_tuple().reduce().put(1).get(1).build()))),
        (
            "attributes",
            Box::new(move |p| {
                p.global("m", "C").empty_tuple().reduce().put(1);
                p.empty_dict().str("self").get(1).raw(b"s").build();
            }),
        ),
        (
            "arguments",
            Box::new(move |p| {
                p.global("collections", "OrderedDict").empty_list().put(1).raw(b"\x85").reduce().put(2);
                p.get(1).get(2).raw(b"a0");
            }),
        ),
        (
            "module",
            Box::new(move |p| {
                p.global("m", "Net").empty_tuple().reduce().put(1).empty_dict().mark();
                p.str("_parameters").empty_dict().str("_buffers").empty_dict();
                p.str("_modules").empty_dict().str("child").get(1).raw(b"s").set_items().build();
            }),
        ),
        (
            "size",
            Box::new(move |p| {
                p.global("torch", "Size").empty_list().put(1).raw(b"\x85").reduce().put(2);
                p.get(1).get(2).raw(b"a0");
            }),
        ),
    ];
    for (name, push) in cycles {
        println!("{name}");
        let opened = open(&with_hyper_parameters(&push)).opened();
        assert_eq!(opened.tensors.len(), 1);
        let object = state_dict(|p| {
            p.str("cycle");
            push(p);
            p.str("w").tensor(Dtype::F32, "0", &[2]);
        });
        // As part of a state dict: the tensor beside the cycle is found once.
        let opened = open(&torch_zip(&object, &[("0", &[0; 8])])).opened();
        assert_eq!(opened.tensors.len(), 1);
        let _ = open(&pickle(push));
    }
}

#[test]
fn a_state_dict_in_itself_names_its_tensors_once() {
    let object = pickle(|p| {
        p.empty_dict().put(1).mark().str("state_dict").get(1);
        p.str("w").tensor(Dtype::F32, "0", &[2]).set_items();
    });
    let opened = open(&torch_zip(&object, &[("0", &[0; 8])])).opened();
    assert_eq!(opened.tensors.len(), 1);
    assert_eq!(opened.tensors[0].0, "w");
}
