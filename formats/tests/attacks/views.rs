//! Tensors whose storage, offset, shape or strides lie.

use formats::Dtype;
use formats::pickle::Emitter;

use crate::files::{Entry, View, Zip, done, pickle, state_dict, torch_zip};
use crate::harness::open;

const EIGHT: &[(&str, &[u8])] = &[("0", &[1, 2, 3, 4, 5, 6, 7, 8])];

#[test]
fn a_storage_that_is_not_there_is_refused() {
    View { key: "1", ..View::default() }.zip(EIGHT);
    let file = View { key: "1", ..View::default() }.zip(EIGHT);
    open(&file).refused(&["hostile.bin", "tensor 'w'", "storage '1' is not in the file"]);
    // Nor where a key looks like a path.
    for key in ["../data.pkl", "", "/etc/passwd", "0/", "./0"] {
        open(&View { key, ..View::default() }.zip(EIGHT)).refused(&["tensor 'w'", "is not in the file"]);
    }
    // An empty tensor needs none.
    let file = View { key: "1", storage: 0, shape: &[0], ..View::default() }.zip(EIGHT);
    assert_eq!(open(&file).opened().tensors[0].1, [0]);
}

#[test]
fn a_storage_longer_than_its_entry_is_refused() {
    for storage in [3, 1 << 31, 1 << 40, i64::MAX / 4, i64::MAX] {
        let file = View { storage, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["hostile.bin", "tensor 'w'", "storage"]);
    }
    for storage in [-1, i64::MIN] {
        let file = View { storage, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["tensor 'w'", "length is not a count"]);
    }
}

#[test]
fn a_view_past_the_end_is_refused() {
    let views: [(i64, &[i64], &[i64]); 12] = [
        (1, &[2], &[1]),
        (2, &[1], &[1]),
        (i64::MAX, &[1], &[1]),
        (i64::MAX, &[2], &[i64::MAX]),
        (0, &[3], &[1]),
        (0, &[2], &[2]),
        (0, &[2], &[i64::MAX]),
        (0, &[2, 2], &[1, 1]),
        (0, &[2, 2], &[i64::MAX, i64::MAX]),
        (0, &[2, 2, 2], &[i64::MAX, i64::MAX, i64::MAX]),
        (0, &[1, 3], &[0, 1]),
        (1, &[1, 1, 2], &[i64::MAX, i64::MAX, 1]),
    ];
    for (offset, shape, strides) in views {
        let file = View { offset, shape, strides, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["hostile.bin", "tensor 'w'", "reach past its storage '0'"]);
    }
}

#[test]
fn negative_numbers_are_refused() {
    let views: [(i64, &[i64], &[i64]); 6] = [
        (-1, &[2], &[1]),
        (i64::MIN, &[2], &[1]),
        (0, &[-1], &[1]),
        (0, &[i64::MIN], &[1]),
        (1, &[2], &[-1]),
        (1, &[2], &[i64::MIN]),
    ];
    for (offset, shape, strides) in views {
        let file = View { offset, shape, strides, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["tensor 'w'", "not a"]);
    }
}

#[test]
fn shapes_that_overflow_are_refused() {
    let big = 1 << 32;
    let shapes: [&[i64]; 9] = [
        &[i64::MAX],
        &[i64::MAX, 2],
        &[big, big],
        &[big, big, big],
        &[i64::MAX, i64::MAX],
        // A zero doesn't excuse what no tensor has: whoever computes strides would overflow.
        &[0, i64::MAX, i64::MAX],
        &[i64::MAX, i64::MAX, 0],
        &[big, 0, big],
        &[1 << 62, 1],
    ];
    for shape in shapes {
        // Expanded, so that the storage is long enough.
        let strides = vec![0; shape.len()];
        let file = View { shape, strides: &strides, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["hostile.bin", "tensor 'w'", "overflows"]);
    }
}

#[test]
fn expanded_views_that_claim_terabytes_are_refused() {
    for count in [1 << 26, 1 << 40, 1 << 50] {
        let file = View { shape: &[count], strides: &[0], ..View::default() }.zip(EIGHT);
        open(&file).refused(&["hostile.bin", "tensor 'w'", "repeat so much"]);
    }
    // Many that are each within bounds.
    let object = state_dict(|p| {
        for number in 0..100 {
            p.str(&format!("w{number}"));
            View { shape: &[1 << 20], strides: &[0], ..View::default() }.push(p);
        }
    });
    open(&torch_zip(&object, EIGHT)).refused(&["repeat so much"]);
    // A modest one is read.
    let file = View { shape: &[3, 2], strides: &[0, 1], ..View::default() }.zip(EIGHT);
    let opened = open(&file).opened();
    assert_eq!(opened.tensors[0].2, [1, 2, 3, 4, 5, 6, 7, 8].repeat(3));
}

#[test]
fn strides_of_axes_of_length_one_do_not_count() {
    let views: [(&[i64], &[i64]); 4] = [
        (&[2, 1], &[1, i64::MAX]),
        (&[1, 2], &[i64::MAX, 1]),
        (&[1, 2, 1, 1], &[i64::MAX, 1, i64::MAX, i64::MAX]),
        (&[1, 1, 2], &[i64::MAX, i64::MAX, 1]),
    ];
    for (shape, strides) in views {
        let opened = open(&View { shape, strides, ..View::default() }.zip(EIGHT)).opened();
        assert_eq!(opened.tensors[0].2, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
    // Not contiguous, so that every step is taken.
    let view = View { shape: &[2, 1, 2], strides: &[0, i64::MAX, 1], ..View::default() };
    assert_eq!(open(&view.zip(EIGHT)).opened().tensors[0].2, [1, 2, 3, 4, 5, 6, 7, 8].repeat(2));
}

#[test]
fn empty_views_may_point_anywhere() {
    for (offset, strides) in [(0, 0), (i64::MAX, i64::MAX), (5, 1)] {
        let file = View { offset, shape: &[0], strides: &[strides], ..View::default() }.zip(EIGHT);
        assert!(open(&file).opened().tensors[0].2.is_empty());
    }
}

#[test]
fn dimensions_and_strides_agree_in_number() {
    let views: [(&[i64], &[i64]); 3] = [(&[2], &[]), (&[], &[1]), (&[1, 2], &[1])];
    for (shape, strides) in views {
        let file = View { shape, strides, ..View::default() }.zip(EIGHT);
        open(&file).refused(&["tensor 'w'", "dimensions"]);
    }
    let (shape, strides) = ([1; 65], [1; 65]);
    open(&View { shape: &shape, strides: &strides, ..View::default() }.zip(EIGHT)).refused(&["dimensions"]);
}

#[test]
fn storages_of_unknown_classes_are_refused() {
    for class in ["FooStorage", "system", "", "FloatTensor", "floatstorage"] {
        open(&View { class, ..View::default() }.zip(EIGHT)).refused(&["tensor 'w'", "storage class", "not known"]);
    }
}

#[test]
fn one_storage_under_many_classes_and_names_is_read_within_bounds() {
    let object = state_dict(|p| {
        for (class, elements) in [("FloatStorage", 2), ("DoubleStorage", 1), ("ByteStorage", 8), ("HalfStorage", 4)] {
            p.str(class);
            View { class, storage: elements, shape: &[elements], ..View::default() }.push(p);
        }
        for number in 0..1000 {
            p.str(&format!("w{number}"));
            View::default().push(p);
        }
    });
    let opened = open(&torch_zip(&object, EIGHT)).opened();
    assert!(opened.tensors.iter().all(|(_, _, bytes)| bytes == EIGHT[0].1));
    open(&View { class: "DoubleStorage", ..View::default() }.zip(EIGHT)).refused(&["cut short or damaged"]);
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    // The number 1 and the text "1"; a dotted key and a nested one; a list and a dict's items.
    let pairs: [&dyn Fn(&mut Emitter); 3] = [
        &|p| {
            p.int(1).tensor(Dtype::F32, "0", &[2]).str("1").tensor(Dtype::F32, "0", &[2]);
        },
        &|p| {
            p.str("a.b").tensor(Dtype::F32, "0", &[2]);
            p.str("a").empty_dict().str("b").tensor(Dtype::F32, "0", &[2]).raw(b"s");
        },
        &|p| {
            p.str("a").global("m", "C").empty_tuple().reduce();
            p.str("0").tensor(Dtype::F32, "0", &[2]).raw(b"s").tensor(Dtype::F32, "0", &[2]).raw(b"a");
        },
    ];
    for pair in pairs {
        open(&torch_zip(&state_dict(pair), EIGHT)).refused(&["hostile.bin", "two tensors have this name"]);
    }
    // One key set twice is one entry, as in Python: the last.
    let object = state_dict(|p| {
        p.str("w").tensor(Dtype::F64, "0", &[1]).str("w").tensor(Dtype::F32, "0", &[2]);
    });
    assert_eq!(open(&torch_zip(&object, EIGHT)).opened().tensors[0].1, [2]);
}

#[test]
fn descriptions_of_tensors_that_are_none_are_refused() {
    let broken: [&dyn Fn(&mut Emitter); 14] = [
        &|p| done(p.empty_tuple()),
        &|p| done(p.none()),
        &|p| done(p.mark().none().int(0).empty_tuple().empty_tuple().tuple()),
        &|p| done(p.mark().str("0").int(0).empty_tuple().empty_tuple().tuple()),
        &|p| done(p.mark().none().persistent_id().int(0).empty_tuple().empty_tuple().tuple()),
        &|p| done(p.mark().empty_tuple().persistent_id().int(0).empty_tuple().empty_tuple().tuple()),
        &|p| done(p.mark().mark().str("module").none().none().none().none().tuple().persistent_id().raw(b"NNNt")),
        &|p| done(p.mark().mark().str("storage").none().none().none().none().tuple().persistent_id().raw(b"NNNt")),
        &|p| {
            // The key is a list.
            p.mark().mark().str("storage").global("torch", "FloatStorage").empty_list().str("cpu").int(2);
            p.tuple().persistent_id().int(0).empty_tuple().empty_tuple().tuple();
        },
        &|p| {
            // The count is text.
            p.mark().mark().str("storage").global("torch", "FloatStorage").str("0").str("cpu").str("2");
            p.tuple().persistent_id().int(0).empty_tuple().empty_tuple().tuple();
        },
        &|p| {
            // The offset is a float.
            p.mark().mark().str("storage").global("torch", "FloatStorage").str("0").str("cpu").int(2);
            p.tuple().persistent_id().float(0.0).empty_tuple().empty_tuple().tuple();
        },
        &|p| {
            // The shape is a dict.
            p.mark().mark().str("storage").global("torch", "FloatStorage").str("0").str("cpu").int(2);
            p.tuple().persistent_id().int(0).empty_dict().empty_tuple().tuple();
        },
        &|p| {
            // The shape holds text.
            p.mark().mark().str("storage").global("torch", "FloatStorage").str("0").str("cpu").int(2);
            p.tuple().persistent_id().int(0).mark().str("2").tuple().mark().int(1).tuple().tuple();
        },
        &|p| {
            // An untyped storage, and a dtype that doesn't exist.
            p.mark().mark().str("storage").global("torch.storage", "UntypedStorage").str("0").str("cpu").int(8);
            p.tuple().persistent_id().int(0).mark().int(2).tuple().mark().int(1).tuple();
            p.bool(false).none().global("torch", "\u{1b}[31mfloat99").tuple();
        },
    ];
    for (number, push) in broken.iter().enumerate() {
        println!("{number}");
        let object = state_dict(|p| {
            p.str("w").global("torch._utils", "_rebuild_tensor_v2");
            push(p);
            p.reduce();
        });
        open(&torch_zip(&object, EIGHT)).refused(&["hostile.bin", "tensor 'w'"]);
    }
}

#[test]
fn parameters_around_parameters_end() {
    let object = state_dict(|p| {
        p.str("w");
        (0..10).for_each(|_| done(p.global("torch._utils", "_rebuild_parameter").mark()));
        p.tensor(Dtype::F32, "0", &[2]);
        (0..10).for_each(|_| done(p.bool(true).none().tuple().reduce()));
    });
    open(&torch_zip(&object, EIGHT)).refused(&["tensor 'w'", "parameter"]);
}

#[test]
fn numpy_arrays_that_lie_are_refused() {
    let array = |shape: &[i64], code: &str, data: &[u8], fortran: bool| {
        let object = pickle(|p| {
            p.empty_dict().str("a").global("numpy.core.multiarray", "_reconstruct").empty_tuple().reduce();
            p.mark().int(1).mark();
            shape.iter().for_each(|&d| done(p.int(d)));
            p.tuple().global("numpy", "dtype").mark().str(code).tuple().reduce().bool(fortran);
            p.raw(b"B").raw(&(data.len() as u32).to_le_bytes()).raw(data).tuple().build().raw(b"s");
        });
        open(&object)
    };
    for fortran in [false, true] {
        array(&[3], "f4", &[0; 8], fortran).refused(&["hostile.bin", "tensor 'a'", "numpy array"]);
        array(&[1], "f4", &[0; 8], fortran).refused(&["tensor 'a'", "numpy array"]);
        array(&[1 << 62, 1 << 62], "f4", &[0; 8], fortran).refused(&["tensor 'a'", "overflows"]);
        array(&[0, i64::MAX, i64::MAX], "f4", &[], fortran).refused(&["tensor 'a'", "overflows"]);
        array(&[i64::MAX], "u1", &[0; 8], fortran).refused(&["tensor 'a'"]);
        array(&[-2], "f4", &[0; 8], fortran).refused(&["tensor 'a'", "shape"]);
        assert_eq!(array(&[0, 3], "f4", &[], fortran).opened().tensors[0].1, [0, 3]);
        assert_eq!(array(&[], "f4", &[1, 2, 3, 4], fortran).opened().tensors[0].2, [1, 2, 3, 4]);
        assert_eq!(array(&[2, 0], ">c16", &[], fortran).opened().tensors[0].1, [2, 0]);
    }
    for code in ["O", "U4", "V16", "f3", "", "\u{1b}[31m", "<", "M8"] {
        assert_eq!(array(&[1], code, &[0; 8], false).opened().skipped.len(), 1);
    }
}

#[test]
fn a_sparse_file_costs_no_more_than_what_is_read() {
    // Two elements a gigabyte apart: a hole in a file costs nothing, and reading over it would.
    let elements = (1i64 << 30) / 4 + 1;
    let object = state_dict(|p| {
        p.str("w");
        View { storage: elements, shape: &[2], strides: &[elements - 1], ..View::default() }.push(p);
    });
    let zip = Zip { entries: vec![Entry::new("archive/data.pkl", &object)], ..Zip::default() };
    let length = (elements * 4) as u32;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    write_with_hole(&path, zip, "archive/data/0", length);
    let counted = std::fs::metadata(&path).unwrap().len();
    assert!(counted > 1 << 30);
    let (peak, bytes) = crate::harness::watched("sparse", move || {
        crate::harness::reset_peak();
        let checkpoint = formats::open(&path).unwrap();
        let mut bytes = Vec::new();
        checkpoint.read(0, 0..2, &mut bytes).unwrap();
        (crate::harness::peak(), bytes)
    });
    assert_eq!(bytes, [b"PKPK".as_slice(), b"KPKP"].concat());
    assert!(peak < 64 << 20, "{} MiB", peak >> 20);
}

/// A zip whose entry `name` is a hole with four bytes at each end.
fn write_with_hole(path: &std::path::Path, mut zip: Zip, name: &str, length: u32) {
    use std::os::unix::fs::FileExt;
    let before = zip.clone();
    let before = Zip { entries: before.entries, ..Zip::default() };
    let mut entry = Entry::new(name, b"");
    (entry.size, entry.compressed, entry.crc) = (Some(length), Some(length), Some(0));
    zip.entries.push(entry);
    let bytes = zip.build();
    // The data goes between the last local header and the directory.
    let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    zip.directory_start = Some(directory as u32 + length);
    let bytes = zip.build();
    drop(before);
    let file = std::fs::File::create(path).unwrap();
    file.write_all_at(&bytes[..directory], 0).unwrap();
    file.write_all_at(b"PKPK", directory as u64).unwrap();
    file.write_all_at(b"KPKP", u64::from(length) + directory as u64 - 4).unwrap();
    file.write_all_at(&bytes[directory..], u64::from(length) + directory as u64).unwrap();
}
