//! Files from before PyTorch 1.6 whose pickles, keys or counts lie.

use formats::Dtype;

use crate::files::{View, done, legacy, legacy_head, legacy_with_keys, pickle, state_dict};
use crate::harness::{Outcome, open};

fn good() -> Vec<u8> {
    state_dict(|p| {
        p.str("a").tensor(Dtype::F32, "10", &[2]).str("b").tensor(Dtype::F32, "11", &[2]);
    })
}

#[test]
fn the_good_one_opens() {
    let opened = open(&legacy(&good(), &["11", "10"], &[(2, &[2; 8]), (2, &[1; 8])])).opened();
    assert_eq!(opened.tensors[0].2, [1; 8]);
    assert_eq!(opened.tensors[1].2, [2; 8]);
}

#[test]
fn another_magic_number_is_a_pickle_by_itself() {
    let mut file = legacy(&good(), &["10", "11"], &[(2, &[1; 8]), (2, &[2; 8])]);
    file[4] ^= 1;
    let opened = open(&file).opened();
    assert!(opened.tensors.is_empty() && opened.globals.is_empty());
}

#[test]
fn other_protocol_versions_are_refused() {
    for protocol in [&b"M\xe8\x03"[..], b"N", b"]", b"J\xff\xff\xff\xff", b"X\x04\0\0\x001001"] {
        let mut file = legacy_head();
        let at = file.windows(3).position(|w| w == b"M\xe9\x03").unwrap();
        file.splice(at..at + 3, protocol.iter().copied());
        open(&file).refused(&["hostile.bin", "protocol version"]);
    }
}

#[test]
fn a_list_of_keys_that_is_none_is_refused() {
    for keys in [&b"N."[..], b"}.", b"K\x01.", b"](]e.", b"]NaG\0\0\0\0\0\0\0\0a."] {
        let file = legacy_with_keys(&good(), &[b"\x80\x02", keys].concat(), &[(2, &[1; 8]), (2, &[2; 8])]);
        open(&file).refused(&["hostile.bin", "storage keys"]);
    }
    open(&legacy_with_keys(&good(), b"", &[])).refused(&["hostile.bin", "storage keys"]);
    open(&legacy_with_keys(&good(), b"garbage", &[])).refused(&["hostile.bin", "storage keys"]);
}

#[test]
fn keys_that_stand_twice_or_belong_to_nothing_are_refused() {
    let storages: &[(u64, &[u8])] = &[(2, &[1; 8]), (2, &[2; 8])];
    open(&legacy(&good(), &["10", "10"], storages)).refused(&["hostile.bin", "storage '10' is listed twice"]);
    open(&legacy(&good(), &["10", "12"], storages)).refused(&["hostile.bin", "storage '12' is listed"]);
    // A key as a number and as text.
    let keys = pickle(|p| done(p.empty_list().mark().int(10).str("10").appends()));
    open(&legacy_with_keys(&good(), &keys, storages)).refused(&["listed twice"]);
    // Escaped where it is shown.
    open(&legacy(&good(), &["\u{1b}[31m\n"], storages)).refused(&["storage '\\u{1b}[31m\\n'"]);
}

#[test]
fn storages_that_are_not_listed_are_refused() {
    open(&legacy(&good(), &["10"], &[(2, &[1; 8])])).refused(&["tensor 'b'", "storage '11' is not in the file"]);
    open(&legacy(&good(), &[], &[])).refused(&["tensor 'a'", "storage '10' is not in the file"]);
}

#[test]
fn counts_that_lie_are_refused() {
    for count in [3, 4, 1 << 32, 1 << 61, 1 << 62, 1 << 63, u64::MAX / 4, u64::MAX - 1, u64::MAX] {
        let file = legacy(&good(), &["10", "11"], &[(count, &[1; 8]), (2, &[2; 8])]);
        open(&file).refused(&["hostile.bin"]);
        let file = legacy(&good(), &["10", "11"], &[(2, &[1; 8]), (count, &[2; 8])]);
        open(&file).refused(&["hostile.bin", "cut short or damaged"]);
    }
    for count in [0, 1] {
        let file = legacy(&good(), &["10", "11"], &[(2, &[1; 8]), (count, &[2; 8])]);
        open(&file).refused(&["hostile.bin", "tensor 'b'", "cut short or damaged"]);
    }
}

#[test]
fn classes_that_disagree_about_a_storage_stay_within_bounds() {
    let object = state_dict(|p| {
        for (name, class, elements) in [("a", "FloatStorage", 2), ("b", "DoubleStorage", 1), ("c", "ByteStorage", 8)] {
            p.str(name);
            View { class, storage: elements, shape: &[elements], ..View::default() }.push(p);
        }
    });
    for count in [1, 2, 8] {
        let outcome = open(&legacy(&object, &["0"], &[(count, &[1; 8])]));
        if let Outcome::Opened(opened) = outcome {
            assert!(opened.tensors.iter().all(|(_, _, bytes)| bytes == &[1; 8]));
        }
    }
}

#[test]
fn views_of_storages_that_lie_are_refused() {
    // ("storage", class, root key, location, root's length, (view key, offset, length))
    let file = |offset: i64, length: i64, elements: i64, root: i64| {
        let object = state_dict(|p| {
            p.str("w").global("torch._utils", "_rebuild_tensor_v2").mark().mark().str("storage");
            p.global("torch", "FloatStorage").str("0").str("cpu").int(root);
            p.mark().str("v").int(offset).int(length).tuple().tuple().persistent_id().int(0);
            p.mark().int(elements).tuple().mark().int(1).tuple().bool(false).none().tuple().reduce();
        });
        open(&legacy(&object, &["0"], &[(4, &[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])]))
    };
    assert_eq!(file(1, 2, 2, 4).opened().tensors[0].2, [1, 1, 1, 1, 2, 2, 2, 2]);
    for (offset, length) in [(1, 4), (4, 1), (1 << 40, 2), (1 << 61, 2), (1 << 62, 1 << 62), (0, 1 << 61)] {
        file(offset, length, 2, 4).refused(&["hostile.bin", "tensor 'w'"]);
    }
    for (offset, length) in [(-1, 2), (i64::MIN, 2), (0, -1), (i64::MAX, i64::MAX)] {
        file(offset, length, 2, 4).refused(&["hostile.bin", "tensor 'w'", "not a count"]);
    }
    // An empty tensor in a view at the end of all addresses.
    for offset in [(1 << 62) - 1, 1 << 61, (1 << 61) - 1] {
        file(offset, 0, 0, 4).opened();
    }
    let _ = file(0, 2, 2, i64::MAX);
    let _ = file(0, 2, 2, -1);
}

#[test]
fn systems_that_are_none_are_little_endian() {
    for system in [&b"\x80\x02N."[..], b"\x80\x02}.", b"\x80\x02](NNNe.", b"\x80\x02}X\x0d\0\0\0little_endian]s."] {
        let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
        file.extend_from_slice(system);
        let whole = legacy(&good(), &["10", "11"], &[(2, &[1; 8]), (2, &[2; 8])]);
        file.extend_from_slice(&whole[legacy_head().len()..]);
        assert_eq!(open(&file).opened().tensors[1].2, [2; 8]);
    }
}
