//! Small files that stand for large things: shared values that multiply when they are spelled
//! out, and opcodes that cost a byte and take many.

use formats::Dtype;
use formats::pickle::Emitter;

use crate::files::{done, legacy_with_keys, pickle, torch_zip, with_hyper_parameters};
use crate::harness::{Outcome, open};

/// Pushes nested lists, each holding ten times the one below it: 10^levels paths to `leaf`.
fn laughs(p: &mut Emitter, levels: usize, leaf: impl FnOnce(&mut Emitter)) {
    leaf(p);
    p.put(1000).raw(b"0");
    for level in 0..levels as u32 {
        p.empty_list().mark();
        (0..10).for_each(|_| done(p.get(1000 + level)));
        p.appends().put(1001 + level).raw(b"0");
    }
    p.get(1000 + levels as u32);
}

/// Pushes a list of `count` times the value in memo slot 1.
fn many(p: &mut Emitter, count: usize) {
    p.empty_list().mark().raw(&b"h\x01".repeat(count)).appends();
}

fn long_text() -> String {
    "x".repeat(1 << 18)
}

/// A zip with a pickle that `write` pushes under `state_dict`, and a storage of two f32.
fn as_state_dict(write: impl FnOnce(&mut Emitter)) -> Outcome {
    let object = pickle(|p| {
        p.empty_dict().mark().str("state_dict");
        write(p);
        p.set_items();
    });
    open(&torch_zip(&object, &[("0", &[0; 8])]))
}

#[test]
fn a_billion_laughs_in_the_state_dict() {
    for levels in [7, 30, 60] {
        as_state_dict(|p| laughs(p, levels, |p| done(p.str("ha")))).refused(&["hostile.bin", "ways"]);
        as_state_dict(|p| laughs(p, levels, |p| done(p.tensor(Dtype::F32, "0", &[2])))).refused(&["ways"]);
    }
}

#[test]
fn a_billion_laughs_in_hyper_parameters() {
    for levels in [9, 30, 60] {
        let opened = open(&with_hyper_parameters(|p| laughs(p, levels, |p| done(p.str("ha"))))).opened();
        assert!(opened.hyper_parameters.unwrap().to_string().contains("__omitted__"));
        assert_eq!(opened.tensors.len(), 1);
    }
    // The same by dicts, by tuples, by attributes of objects.
    type Nest = dyn Fn(&mut Emitter, u32);
    let nests: [&Nest; 4] = [
        &|p, inner| {
            p.empty_dict().mark();
            (0..10).for_each(|key| done(p.int(key).get(inner)));
            p.set_items();
        },
        &|p, inner| {
            p.mark();
            (0..10).for_each(|_| done(p.get(inner)));
            p.tuple();
        },
        &|p, inner| {
            p.global("m", "C").empty_tuple().reduce().empty_dict().mark();
            (0..10).for_each(|key| done(p.int(key).get(inner)));
            p.set_items().build();
        },
        &|p, inner| {
            p.global("m", "C").mark();
            (0..10).for_each(|_| done(p.get(inner)));
            p.tuple().reduce();
        },
    ];
    for nest in nests {
        let file = with_hyper_parameters(|p| {
            p.none().put(1000).raw(b"0");
            for level in 0..30 {
                nest(p, 1000 + level);
                p.put(1001 + level).raw(b"0");
            }
            p.get(1030);
        });
        assert!(open(&file).opened().hyper_parameters.unwrap().to_string().contains("__omitted__"));
    }
}

#[test]
fn long_text_many_times_in_hyper_parameters() {
    let text = long_text();
    let shapes: [&dyn Fn(&mut Emitter); 6] = [
        // As items, as keys, as a class's name, as an argument of a device, as part of a tuple key.
        &|p| many(p, 100_000),
        &|p| {
            p.empty_list().mark();
            (0..50_000).for_each(|_| done(p.empty_dict().get(1).none().raw(b"s")));
            p.appends();
        },
        &|p| {
            p.get(1).get(1).raw(b"\x93").put(1).raw(b"0");
            many(p, 100_000);
        },
        &|p| {
            p.get(1).get(1).raw(b"\x93)R").put(1).raw(b"0");
            many(p, 100_000);
        },
        &|p| {
            p.global("torch", "device").mark().raw(&b"h\x01".repeat(1000)).tuple().reduce().put(1).raw(b"0");
            many(p, 1000);
        },
        &|p| {
            p.empty_dict().mark();
            (0..50_000).for_each(|key| done(p.get(1).int(key).raw(b"\x86").none()));
            p.set_items();
        },
    ];
    for shape in shapes {
        let _ = open(&with_hyper_parameters(|p| {
            p.str(&text).put(1).raw(b"0");
            shape(p);
        }));
    }
}

#[test]
fn numpy_scalars_of_a_megabyte_in_hyper_parameters() {
    for text_form in [false, true] {
        open(&with_hyper_parameters(|p| {
            p.global("numpy.core.multiarray", "scalar");
            p.global("numpy", "dtype").mark().str("f8").tuple().reduce();
            match text_form {
                true => p.global("_codecs", "encode").mark().str(&long_text()).str("latin1").tuple().reduce(),
                false => p.str(&long_text()),
            };
            p.raw(b"\x86").reduce().put(1).raw(b"0");
            many(p, 50_000);
        }))
        .opened();
    }
}

#[test]
fn types_of_numpy_with_a_long_code() {
    let scalars = with_hyper_parameters(|p| {
        p.global("numpy.core.multiarray", "scalar");
        p.global("numpy", "dtype").mark().str(&"<".repeat(1 << 20)).tuple().reduce();
        p.str("x").raw(b"\x86").reduce().put(1).raw(b"0");
        many(p, 50_000);
    });
    open(&scalars).opened();
    let _ = as_state_dict(|p| {
        p.global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
        p.mark().int(1).mark().int(1).tuple();
        p.global("numpy", "dtype").mark().str(&"<".repeat(1 << 20)).tuple().reduce().bool(false).str("x");
        p.tuple().build().put(1).raw(b"0");
        many(p, 50_000);
    });
}

#[test]
fn values_after_the_limit_of_json_cost_nothing() {
    // Wide lists at every level that is still open when the limit is reached.
    open(&with_hyper_parameters(|p| {
        p.empty_list().put(1).mark().raw(&b"h\x01".repeat(500_000)).appends();
    }))
    .opened();
    // Wide lists at the level where depth ends, many of them.
    open(&with_hyper_parameters(|p| {
        p.none().put(1).raw(b"0");
        many(p, 100_000);
        p.put(1).raw(b"0");
        many(p, 100_000);
        p.raw(&b"\x85".repeat(39));
    }))
    .opened();
    // An object with half a million attributes, half a million times.
    open(&with_hyper_parameters(|p| {
        p.global("m", "C").empty_tuple().reduce().empty_dict().mark();
        p.raw(&b"NN".repeat(200_000)).set_items().build().put(1).raw(b"0");
        many(p, 200_000);
    }))
    .opened();
}

#[test]
fn long_keys_in_names_of_tensors() {
    // One long key for half a million values; long parts of a tuple in different keys.
    as_state_dict(|p| {
        p.str(&long_text()).put(1).raw(b"0").empty_dict().mark();
        p.raw(&b"h\x01N".repeat(300_000)).set_items();
    })
    .opened();
    let _ = as_state_dict(|p| {
        p.str(&long_text()).put(1).raw(b"0").empty_dict().mark();
        (0..50_000).for_each(|key| done(p.get(1).int(key).raw(b"\x86").none()));
        p.set_items();
    });
    // A long prefix for many names.
    as_state_dict(|p| {
        p.str(&"x".repeat(4000)).put(2).raw(b"0");
        p.tensor(Dtype::F32, "0", &[2]).put(1).raw(b"0");
        p.empty_dict().get(2);
        many(p, 300_000);
        p.raw(b"s");
    })
    .refused(&["ways"]);
    // A name that is too long in full.
    as_state_dict(|p| {
        p.empty_dict().str(&long_text()).tensor(Dtype::F32, "0", &[2]).raw(b"s");
    })
    .refused(&["name of more than"]);
}

#[test]
fn long_keys_at_the_top() {
    // Every look-up of a usual root passes half a million keys of a megabyte.
    let object = pickle(|p| {
        p.str(&long_text()).put(1).raw(b"0").empty_dict().mark();
        p.raw(&b"h\x01N".repeat(300_000)).set_items();
    });
    open(&object).opened();
}

#[test]
fn wide_values_that_hold_no_names_many_times() {
    let wide: [&dyn Fn(&mut Emitter); 6] = [
        // Keys that are no names; one key again and again; attributes behind an entry; pairs of
        // an OrderedDict in the way of Python 2; transient buffers of a module; a wide state.
        &|p| done(p.empty_dict().mark().raw(&b"]N".repeat(100_000)).set_items()),
        &|p| done(p.empty_dict().mark().raw(&b"NN".repeat(200_000)).set_items()),
        &|p| {
            p.global("m", "C").empty_tuple().reduce().none().none().raw(b"s");
            p.empty_dict().mark().raw(&b"NN".repeat(200_000)).set_items().build();
        },
        &|p| {
            p.none().none().raw(b"\x86").put(5).raw(b"0");
            p.global("collections", "OrderedDict").empty_list().mark().raw(&b"h\x05".repeat(200_000)).appends();
            p.raw(b"\x85").reduce();
        },
        &|p| {
            p.global("m", "Net").empty_tuple().reduce().empty_dict().mark();
            for group in ["_parameters", "_buffers", "_modules"] {
                p.str(group).empty_dict();
            }
            p.str("_non_persistent_buffers_set").str(&long_text()).put(5).raw(b"0");
            p.raw(b"\x8f").mark().raw(&b"h\x05".repeat(100_000)).raw(b"\x90");
            p.set_items().build();
        },
        &|p| {
            p.global("m", "C").empty_tuple().reduce().empty_dict().put(5).raw(b"0");
            p.mark().raw(&b"h\x05".repeat(200_000)).tuple().build();
        },
    ];
    for (number, push) in wide.iter().enumerate() {
        println!("{number}");
        let _ = as_state_dict(|p| {
            push(p);
            p.put(1).raw(b"0");
            many(p, 300_000);
        });
    }
}

#[test]
fn a_numpy_array_many_times() {
    for text_form in [false, true] {
        as_state_dict(|p| {
            p.global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
            p.mark().int(1).mark().int(1 << 18).tuple();
            p.global("numpy", "dtype").mark().str("u1").tuple().reduce().bool(false);
            match text_form {
                true => p.global("_codecs", "encode").mark().str(&long_text()).str("latin1").tuple().reduce(),
                false => p.str(&long_text()),
            };
            p.tuple().build().put(1).raw(b"0");
            many(p, 100_000);
        })
        .refused(&["ways"]);
    }
}

#[test]
fn a_tensor_with_a_long_storage_key_many_times() {
    let view = |p: &mut Emitter| {
        p.str(&long_text()).put(1).raw(b"0");
        p.global("torch._utils", "_rebuild_tensor_v2").mark();
        p.mark().str("storage").global("torch", "FloatStorage").get(1).str("cpu").int(2);
        p.tuple().put(2).persistent_id().int(0).mark().int(2).tuple().mark().int(1).tuple();
        p.bool(false).none().tuple().reduce().put(1).raw(b"0");
    };
    as_state_dict(|p| {
        view(p);
        many(p, 100_000);
    })
    .refused(&["hostile.bin", "key"]);
    // Old files look at every storage that is mentioned anywhere.
    let object = pickle(|p| {
        view(p);
        p.raw(&b"h\x02Q0".repeat(100_000)).none();
    });
    let _ = open(&crate::files::legacy(&object, &[], &[]));
    // And at every key that is listed.
    let keys = pickle(|p| {
        p.str(&long_text()).put(1).raw(b"0");
        many(p, 100_000);
    });
    open(&legacy_with_keys(&pickle(|p| done(p.none())), &keys, &[])).refused(&["hostile.bin"]);
}

#[test]
fn tensors_of_shared_parts_many_times() {
    // Tensors of 64 dimensions with strides, by two bytes each.
    as_state_dict(|p| {
        let (shape, strides) = ([1; 64], [1; 64]);
        crate::files::View { shape: &shape, strides: &strides, ..Default::default() }.push(p);
        p.put(1).raw(b"0");
        many(p, 500_000);
    })
    .refused(&["ways"]);
    // Tensors that aren't read are listed too.
    as_state_dict(|p| {
        p.global("torch._utils", "_rebuild_sparse_tensor").empty_tuple().reduce().put(1).raw(b"0");
        many(p, 500_000);
    })
    .refused(&["ways"]);
}

#[test]
fn our_own_metadata_many_times() {
    for distinct in [false, true] {
        let object = pickle(|p| {
            p.str(&long_text()).put(1).raw(b"0").empty_dict().mark().str("vlmerge_metadata").empty_dict().mark();
            match distinct {
                true => (0..100_000).for_each(|key| done(p.str(&key.to_string()).get(1))),
                false => done(p.raw(&b"h\x01h\x01".repeat(100_000))),
            }
            p.set_items();
            p.str("state_dict").empty_dict().str("w").tensor(Dtype::F32, "0", &[2]).raw(b"s");
            p.set_items();
        });
        open(&torch_zip(&object, &[("0", &[0; 8])])).refused(&["hostile.bin", "vlmerge_metadata"]);
    }
}

#[test]
fn names_of_classes_many_times() {
    // A hundred long parts make ten thousand longer names.
    let part = "x".repeat(10_000);
    let file = with_hyper_parameters(|p| {
        for number in 0..300 {
            p.str(&format!("{part}{number}")).put(1000 + number).raw(b"0");
        }
        for module in 0..300 {
            for name in 0..300 {
                p.get(1000 + module).get(1000 + name).raw(b"\x930");
            }
        }
        p.none();
    });
    open(&file).refused(&["hostile.bin", "pickle"]);
    // Short enough one by one, too much together.
    let file = with_hyper_parameters(|p| {
        for number in 0..400 {
            p.str(&format!("{}{number}", &part[..900])).put(1000 + number).raw(b"0");
        }
        for module in 0..400 {
            for name in 0..400 {
                p.get(1000 + module).get(1000 + name).raw(b"\x930");
            }
        }
        p.none();
    });
    open(&file).refused(&["hostile.bin", "memory"]);
}

#[test]
fn cheap_opcodes_take_memory_in_proportion() {
    let count = 1_000_000;
    // Values, objects, marks, copies, memo slots: a byte or two each.
    for op in [&b"N"[..], b"]", b"\x8f", b")R", b"(", b"2", b"\x94", b"]\x94", b"\x85", b"Q", b"(NNNNl"] {
        println!("{op:?}");
        let object = pickle(|p| done(p.mark().global("m", "f").raw(&op.repeat(count / op.len())).raw(b"t")));
        let _ = open(&object);
    }
}

#[test]
fn shapes_of_a_million_dimensions() {
    let ones = b"K\x01".repeat(1_000_000);
    let shape = |p: &mut Emitter| done(p.mark().raw(&ones).tuple());
    as_state_dict(|p| {
        p.empty_dict().str("w").global("torch._utils", "_rebuild_tensor_v2").mark();
        p.mark().str("storage").global("torch", "FloatStorage").str("0").str("cpu").int(2).tuple().persistent_id();
        p.int(0);
        shape(p);
        shape(p);
        p.bool(false).none().tuple().reduce().raw(b"s");
    })
    .refused(&["tensor 'w'", "dimensions"]);
    as_state_dict(|p| {
        p.empty_dict().str("w").global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
        p.mark().int(1);
        shape(p);
        p.global("numpy", "dtype").mark().str("u1").tuple().reduce().bool(false).str("x").tuple().build().raw(b"s");
    })
    .refused(&["tensor 'w'", "dimensions"]);
}
