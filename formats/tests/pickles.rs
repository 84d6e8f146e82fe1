//! Plain values through three independent hands: our emitter, our machine, and `serde_pickle`.

use std::collections::BTreeMap;

use formats::pickle::{self, Document, Emitter, Id, Limits, Node};
use proptest::prelude::*;
use serde_pickle::{DeOptions, HashableValue, SerOptions, Value};

/// A plain Python value.
#[derive(Clone, Debug, PartialEq)]
enum Plain {
    None,
    Bool(bool),
    Int(i64),
    Float(u64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Plain>),
    Tuple(Vec<Plain>),
    /// In the order of the keys, which no two hands need to agree on.
    Dict(BTreeMap<Key, Plain>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Int(i64),
    Str(String),
    Tuple(Vec<Key>),
}

fn any_int() -> impl Strategy<Value = i64> {
    // Every width that has an opcode of its own, and its ends.
    prop_oneof![
        any::<i64>(),
        any::<i32>().prop_map(i64::from),
        any::<u16>().prop_map(i64::from),
        any::<u8>().prop_map(i64::from),
        (0u32..64, -1i64..=1).prop_map(|(shift, by)| (1i64 << shift).wrapping_add(by)),
        (0u32..64, -1i64..=1).prop_map(|(shift, by)| (-1i64 << shift).wrapping_add(by)),
    ]
}

fn any_key() -> impl Strategy<Value = Key> {
    let leaf = prop_oneof![any_int().prop_map(Key::Int), any::<String>().prop_map(Key::Str)];
    leaf.prop_recursive(2, 6, 3, |inner| prop::collection::vec(inner, 0..4).prop_map(Key::Tuple))
}

fn any_plain() -> impl Strategy<Value = Plain> {
    let leaf = prop_oneof![
        Just(Plain::None),
        any::<bool>().prop_map(Plain::Bool),
        any_int().prop_map(Plain::Int),
        any::<f64>().prop_filter("NaN has many forms", |v| !v.is_nan()).prop_map(|v| Plain::Float(v.to_bits())),
        any::<String>().prop_map(Plain::Str),
        "[a-z]{250,260}".prop_map(Plain::Str),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Plain::Bytes),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Plain::List),
            prop::collection::vec(inner.clone(), 0..8).prop_map(Plain::Tuple),
            prop::collection::btree_map(any_key(), inner, 0..8).prop_map(Plain::Dict),
        ]
    })
}

fn emit(p: &mut Emitter, value: &Plain) {
    match value {
        Plain::None => {
            p.none();
        }
        Plain::Bool(value) => {
            p.bool(*value);
        }
        Plain::Int(value) => {
            p.int(*value);
        }
        Plain::Float(bits) => {
            p.float(f64::from_bits(*bits));
        }
        Plain::Str(text) => {
            p.str(text);
        }
        Plain::Bytes(bytes) => {
            p.raw(b"B").raw(&(bytes.len() as u32).to_le_bytes()).raw(bytes);
        }
        Plain::List(items) => {
            p.empty_list().mark();
            items.iter().for_each(|item| emit(p, item));
            p.appends();
        }
        Plain::Tuple(items) => {
            p.mark();
            items.iter().for_each(|item| emit(p, item));
            p.tuple();
        }
        Plain::Dict(entries) => {
            p.empty_dict().mark();
            for (key, value) in entries {
                emit(p, &key.as_plain());
                emit(p, value);
            }
            p.set_items();
        }
    }
}

impl Key {
    fn as_plain(&self) -> Plain {
        match self {
            Key::Int(value) => Plain::Int(*value),
            Key::Str(text) => Plain::Str(text.clone()),
            Key::Tuple(items) => Plain::Tuple(items.iter().map(Key::as_plain).collect()),
        }
    }

    fn from_plain(value: Plain) -> Key {
        match value {
            Plain::Int(value) => Key::Int(value),
            Plain::Str(text) => Key::Str(text),
            Plain::Tuple(items) => Key::Tuple(items.into_iter().map(Key::from_plain).collect()),
            other => panic!("no key: {other:?}"),
        }
    }

    fn as_hashable(&self) -> HashableValue {
        match self {
            Key::Int(value) => HashableValue::I64(*value),
            Key::Str(text) => HashableValue::String(text.clone()),
            Key::Tuple(items) => HashableValue::Tuple(items.iter().map(Key::as_hashable).collect()),
        }
    }
}

/// What our machine read.
fn plain(doc: &Document, id: Id) -> Plain {
    let all = |items: &[Id]| items.iter().map(|&item| plain(doc, item)).collect();
    match doc.node(id) {
        Node::None => Plain::None,
        Node::Bool(value) => Plain::Bool(*value),
        Node::Int(value) => Plain::Int(*value),
        Node::Float(value) => Plain::Float(value.to_bits()),
        Node::Str(_) => Plain::Str(doc.str(id).unwrap().to_owned()),
        Node::Bytes(_) => Plain::Bytes(doc.bytes(id).unwrap().to_vec()),
        Node::List(items) => Plain::List(all(items)),
        Node::Tuple(items) => Plain::Tuple(all(items)),
        Node::Dict(entries) => Plain::Dict(
            entries.iter().map(|&(key, value)| (Key::from_plain(plain(doc, key)), plain(doc, value))).collect(),
        ),
        other => panic!("not plain: {other:?}"),
    }
}

/// What `serde_pickle` read.
fn from_oracle(value: Value) -> Plain {
    match value {
        Value::None => Plain::None,
        Value::Bool(value) => Plain::Bool(value),
        Value::I64(value) => Plain::Int(value),
        Value::F64(value) => Plain::Float(value.to_bits()),
        Value::String(text) => Plain::Str(text),
        Value::Bytes(bytes) => Plain::Bytes(bytes),
        Value::List(items) => Plain::List(items.into_iter().map(from_oracle).collect()),
        Value::Tuple(items) => Plain::Tuple(items.into_iter().map(from_oracle).collect()),
        Value::Dict(entries) => Plain::Dict(
            entries
                .into_iter()
                .map(|(key, value)| (Key::from_plain(from_oracle(key.into_value())), from_oracle(value)))
                .collect(),
        ),
        other => panic!("not plain: {other:?}"),
    }
}

fn to_oracle(value: &Plain) -> Value {
    match value {
        Plain::None => Value::None,
        Plain::Bool(value) => Value::Bool(*value),
        Plain::Int(value) => Value::I64(*value),
        Plain::Float(bits) => Value::F64(f64::from_bits(*bits)),
        Plain::Str(text) => Value::String(text.clone()),
        Plain::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Plain::List(items) => Value::List(items.iter().map(to_oracle).collect()),
        Plain::Tuple(items) => Value::Tuple(items.iter().map(to_oracle).collect()),
        Plain::Dict(entries) => {
            Value::Dict(entries.iter().map(|(key, value)| (key.as_hashable(), to_oracle(value))).collect())
        }
    }
}

fn read(bytes: &[u8]) -> (Document, u64) {
    pickle::read(&mut &bytes[..], bytes.len() as u64, Limits::default()).unwrap()
}

proptest! {
    #[test]
    fn what_we_emit_both_read(value in any_plain()) {
        let mut emitter = Emitter::new();
        emit(&mut emitter, &value);
        let bytes = emitter.finish();
        let (doc, length) = read(&bytes);
        prop_assert_eq!(length, bytes.len() as u64);
        prop_assert_eq!(plain(&doc, doc.root()), value.clone());
        let oracle = serde_pickle::value_from_slice(&bytes, DeOptions::new()).unwrap();
        prop_assert_eq!(from_oracle(oracle), value);
    }

    #[test]
    fn what_the_oracle_writes_we_read(value in any_plain()) {
        // Protocol 3, in which bytes are bytes; in protocol 2 they are a call of _codecs.encode.
        let bytes = serde_pickle::value_to_vec(&to_oracle(&value), SerOptions::new()).unwrap();
        let (doc, length) = read(&bytes);
        prop_assert_eq!(length, bytes.len() as u64);
        prop_assert_eq!(plain(&doc, doc.root()), value);
    }

    #[test]
    fn integers_of_any_length_agree(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut stream = vec![0x80, 2, 0x8a, bytes.len() as u8];
        stream.extend_from_slice(&bytes);
        stream.push(b'.');
        let (doc, _) = read(&stream);
        match serde_pickle::value_from_slice(&stream, DeOptions::new()).unwrap() {
            Value::I64(value) if bytes.len() <= 8 => prop_assert_eq!(doc.int(doc.root()), Some(value)),
            // Longer than eight bytes stays as it is written.
            _ => prop_assert_eq!(doc.big_int(doc.root()), Some(&bytes[..])),
        }
    }

    #[test]
    fn every_beginning_of_a_pickle_is_an_error(value in any_plain()) {
        let mut emitter = Emitter::new();
        emit(&mut emitter, &value);
        let bytes = emitter.finish();
        // A long one at a few places only.
        for length in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            prop_assert!(pickle::read(&mut &bytes[..length], length as u64, Limits::default()).is_err());
        }
    }

    #[test]
    fn random_opcodes_never_panic(bytes in prop::collection::vec(prop_oneof![
        prop::sample::select(b"()]}0129KMJXNRbcuestaodl.QqhjrpgIFSVLPTUGBC\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98".to_vec()),
        any::<u8>(),
        Just(0),
        Just(b'\n'),
    ], 0..200)) {
        if let Ok((doc, _)) = pickle::read(&mut &bytes[..], bytes.len() as u64, Limits::default()) {
            let text = serde_json::to_string(&doc.to_json(doc.root())).unwrap();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            doc.globals();
        }
    }
}
