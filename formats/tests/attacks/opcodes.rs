//! The stack machine's opcodes with lengths, slots, marks and codes that lie.

use crate::files::{done, pickle, state_dict, torch_zip, with_hyper_parameters};
use crate::harness::open;

/// A pickle of protocol 2 from the bytes after its mark.
fn raw(bytes: &[u8]) -> Vec<u8> {
    [b"\x80\x02", bytes].concat()
}

/// Refused, alone and within a zip, for a reason that is the pickle's.
fn refused(bytes: &[u8], reason: &str) {
    open(bytes).refused(&["hostile.bin", "pickle: byte", reason]);
    open(&torch_zip(bytes, &[])).refused(&["hostile.bin", "pickle: byte", reason]);
}

#[test]
fn giant_lengths_are_judged_before_anything_is_allocated() {
    for op in [b'X', b'T', b'B', 0x8b] {
        for length in [2, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            refused(&raw(&[&[op][..], &length.to_le_bytes(), b"a"].concat()), "cut short or damaged");
        }
    }
    for op in [0x8d, 0x8e, 0x96] {
        for length in [2, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 8, u64::MAX] {
            refused(&raw(&[&[op][..], &length.to_le_bytes(), b"a"].concat()), "cut short or damaged");
        }
    }
    for op in [0x8c, b'U', b'C', 0x8a] {
        refused(&raw(&[op, 255, b'a']), "cut short or damaged");
    }
}

#[test]
fn every_opcode_cut_off_is_an_error() {
    for op in 0..=255u8 {
        for tail in [&b""[..], b"\0", b"\0\0\0", b"1"] {
            let outcome = open(&raw(&[&[op], tail].concat()));
            // STOP with nothing on the stack is one as well.
            outcome.refused(&["hostile.bin", "pickle"]);
        }
    }
}

#[test]
fn every_opcode_on_an_empty_stack_ends() {
    for op in 0..=255u8 {
        let _ = open(&raw(&[&[op][..], b"\0\0\0\0\0\0\0\0\n1\n1\n."].concat()));
        let _ = open(&raw(&[b"(", &[op][..], b"\0\0\0\0\0\0\0\0\n1\n1\n."].concat()));
        // Behind a mark, that what lies before it isn't reached.
        let _ = open(&raw(&[b"]](", &[op][..], b"\0\0\0\0\0\0\0\0\n1\n1\n."].concat()));
    }
    refused(&raw(b"."), "empty stack");
    refused(&raw(b"0."), "empty stack");
    refused(&raw(b"R."), "empty stack");
    refused(&raw(b"a."), "empty stack");
    refused(&raw(b"N\x86."), "more values than are on the stack");
    refused(&raw(b"NN(\x86."), "more values than are on the stack");
    refused(&raw(b"](NR."), "empty stack");
}

#[test]
fn marks_are_paired() {
    refused(&raw(b"t."), "no mark");
    refused(&raw(b"1."), "no mark");
    refused(&raw(b"Nt."), "no mark");
    refused(&raw(b"(."), "empty stack");
    refused(&raw(b"N(."), "empty stack");
    refused(&raw(b"(N."), "values left on the stack");
    refused(&raw(b"NN."), "values left on the stack");
    refused(&raw(b"(Nd."), "a key without a value");
    refused(&raw(b"}(Nu."), "a key without a value");
    refused(&raw(b"(o."), "without a class");
    // POP takes a mark: CPython's machine does.
    open(&raw(b"N(0.")).opened();
    open(&raw(b"N(1.")).opened();
}

#[test]
fn values_in_the_wrong_place_are_errors() {
    refused(&raw(b"NNa."), "no list");
    refused(&raw(b"N(Ne."), "no list");
    refused(&raw(b"NNNs."), "no dict");
    refused(&raw(b"NNb."), "no object");
    refused(&raw(b"NN\x93."), "not text");
}

#[test]
fn long_integers_of_any_length_are_read() {
    let mut huge = vec![0x8b];
    huge.extend_from_slice(&1_000_000u32.to_le_bytes());
    huge.extend_from_slice(&[0x7f; 1_000_000]);
    let opened = open(&with_hyper_parameters(|p| done(p.raw(&huge)))).opened();
    assert_eq!(opened.hyper_parameters.unwrap()["__omitted__"], "beyond 64 bits");
    // As a shape, an offset, a key of a state dict.
    let object = state_dict(|p| done(p.raw(&huge).int(1)));
    open(&torch_zip(&object, &[])).opened();
    // Text of many digits; Python itself refuses more than 4300.
    let digits = [b"L", "9".repeat(60_000).as_bytes(), b"L\n"].concat();
    open(&with_hyper_parameters(|p| done(p.raw(&digits)))).opened();
    // Zero bytes are the number 0.
    let opened = open(&with_hyper_parameters(|p| done(p.raw(b"\x8a\x00")))).opened();
    assert_eq!(opened.hyper_parameters.unwrap(), 0);
}

#[test]
fn numbers_that_are_none_are_errors() {
    for op in [&b"I"[..], b"L", b"F", b"p", b"g"] {
        for text in [&b"\n"[..], b"x\n", b"-\n", b"0x10\n", b"1e\n", b"\xff\n", b"--1\n", b"1 1\n"] {
            open(&raw(&[op, text, b"."].concat())).refused(&["hostile.bin", "number"]);
        }
    }
    refused(&raw(b"p99999999999999999999\n."), "number");
    refused(&raw(b"Np-1\n."), "number");
}

#[test]
fn lines_have_a_limit() {
    let long = "9".repeat(1 << 20);
    for op in ["I", "L", "F", "S'", "V", "P", "p", "g", "c", "i"] {
        refused(&raw(format!("{op}{long}\n").as_bytes()), "line of more than");
    }
}

#[test]
fn memo_slots_are_names_not_positions() {
    let top = u32::MAX.to_le_bytes();
    let opened = open(&with_hyper_parameters(|p| {
        p.int(7).raw(b"r").raw(&top).raw(b"0j").raw(&top);
    }));
    assert_eq!(opened.opened().hyper_parameters.unwrap(), 7);
    refused(&raw(b"j\xff\xff\xff\xff."), "read before it is written");
    refused(&raw(b"h\0."), "read before it is written");
    refused(&raw(b"g4294967295\n."), "read before it is written");
    refused(&raw(b"q\0."), "empty stack");
    refused(&raw(b"\x94."), "empty stack");
}

#[test]
fn unknown_codes_and_protocols_are_named() {
    refused(&raw(b"\xff."), "opcode 0xff is not known");
    refused(&raw(b"\0."), "opcode 0x00 is not known");
    refused(&raw(b"N\x80\x06."), "protocol 6 is not known");
    refused(&raw(b"N\x80\xff."), "protocol 255 is not known");
    open(&torch_zip(b"\x80\x06N.", &[])).refused(&["protocol 6 is not known"]);
    // By itself such a file isn't even taken for a pickle.
    open(b"\x80\x06N.").refused(&["hostile.bin", "no known format"]);
}

#[test]
fn frames_are_hints() {
    // A frame of no bytes, of more than the file, around half an opcode, within a string.
    for length in [0, 1, 3, u64::MAX, 1 << 40] {
        let framed = [b"\x80\x04\x95", &length.to_le_bytes()[..], b"]."].concat();
        open(&framed).opened();
        open(&torch_zip(&framed, &[])).opened();
    }
    refused(b"\x80\x04\x95\0\0", "cut short or damaged");
}

#[test]
fn the_extension_registry_and_outside_buffers_are_refused() {
    refused(&raw(b"\x82\x01."), "extension registry");
    refused(&raw(b"\x83\x01\x00."), "extension registry");
    refused(&raw(b"\x84\x01\x00\x00\x00."), "extension registry");
    refused(b"\x80\x05\x97.", "out-of-band");
    refused(b"\x80\x05N\x98.", "out-of-band");
}

#[test]
fn a_pickle_without_an_end_is_an_error() {
    refused(&raw(b"N"), "cut short");
    refused(&raw(b""), "cut short");
    // What follows the end is no part of it.
    open(&pickle(|p| done(p.none().raw(b".garbage")))).opened();
}

#[test]
fn broken_text_is_read_as_text() {
    // Not UTF-8; a lone surrogate, as Python writes it.
    for text in [&b"\xff\xfe"[..], b"\xed\xa0\x80"] {
        let opened = open(&with_hyper_parameters(|p| {
            p.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text);
        }));
        assert!(opened.opened().hyper_parameters.unwrap().is_string());
    }
    for text in [&b"V\\u\n"[..], b"V\\ud800\n", b"V\\U00110000\n", b"V\\\n", b"V\xff\n", b"S'\\x4'\n", b"S'\\'\n"] {
        let _ = open(&with_hyper_parameters(|p| done(p.raw(text))));
    }
    refused(&raw(b"Sx\n."), "without its quotes");
    refused(&raw(b"S'\n."), "without its quotes");
}
