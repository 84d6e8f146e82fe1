//! safetensors files whose header lies.

use crate::files::safetensors;
use crate::harness::{Opened, open};

/// The one tensor `a`, with its fields as given, and eight bytes of data.
fn tensor(dtype: &str, shape: &str, offsets: &str) -> Vec<u8> {
    safetensors(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), &[7; 8])
}

fn refused(header: &str, data: &[u8], parts: &[&str]) -> String {
    open(&safetensors(header, data)).refused(&[&["hostile.bin"], parts].concat())
}

fn opened(header: &str, data: &[u8]) -> Opened {
    open(&safetensors(header, data)).opened()
}

#[test]
fn the_good_one_opens() {
    let opened = open(&tensor("F32", "[2]", "[0,8]")).opened();
    assert_eq!(opened.tensors, [("a".to_owned(), vec![2], vec![7; 8])]);
    // Every header length, those that look like the start of a pickle too.
    for padding in 0..2000 {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}{}"#, " ".repeat(padding));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.bin");
        std::fs::write(&path, safetensors(&header, &[7; 8])).unwrap();
        let format = formats::open(&path).unwrap().format();
        assert_eq!(format, formats::Format::Safetensors, "a header of {} bytes", header.len());
    }
}

#[test]
fn header_lengths_that_lie_are_refused() {
    let good = tensor("F32", "[2]", "[0,8]");
    let header = good.len() as u64 - 16;
    for length in [0, 1, header - 1, header + 1, header + 8, header + 9, 1 << 20, 100_000_000, 100_000_001, 1 << 40] {
        let mut file = good.clone();
        file[..8].copy_from_slice(&u64::to_le_bytes(length));
        open(&file).refused(&["hostile.bin"]);
    }
    for length in [u64::MAX, u64::MAX - 7, u64::MAX - 8, 1 << 63] {
        let mut file = good.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        open(&file).refused(&["hostile.bin", "the format allows 100000000"]);
    }
    // A hundred megabytes of header in a file that has them, as a hole.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    for length in [100_000_000u64, 100_000_001] {
        std::fs::write(&path, [&length.to_le_bytes()[..], b"{"].concat()).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(8 + length).unwrap();
        crate::harness::open_path(&path).refused(&["hostile.bin"]);
    }
}

#[test]
fn headers_that_are_no_json_are_refused() {
    for header in
        ["{}}", "{\"a\"", "{\"a\":}", "{\"a\":1}", "{\"a\":{}}", "{a:1}", "{\"a\":[]}", "{1:{}}", "{\"\\ud800\":{}}"]
    {
        refused(header, &[], &["header can't be read"]);
    }
    for header in ["{", "[]", "null", "\"text\"", " {}", ""] {
        refused(header, &[], &[]);
    }
    let mut file = safetensors("{\"xx\":1}", &[]);
    file[10] = 0xff;
    open(&file).refused(&["hostile.bin", "not UTF-8"]);
    // An empty header is a file without tensors.
    assert!(opened("{}", &[]).tensors.is_empty());
    refused("{}", &[1], &["1 bytes follow the last tensor"]);
}

#[test]
fn deep_json_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for levels in [200, 1_000_000] {
            let nest = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            refused(&format!("{{\"a\":{nest}}}"), &[], &["header can't be read"]);
            refused(&format!("{{\"__metadata__\":{nest}}}"), &[], &["header can't be read"]);
            refused(&format!("{{\"__metadata__\":{{\"k\":{nest}}}}}"), &[], &["header can't be read"]);
            // In a field that the format doesn't have.
            let header = format!(r#"{{"a":{{"x":{nest},"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
            let _ = open_any(&header);
            // Never closed.
            refused(&format!("{{\"a\":{}", open.repeat(levels)), &[], &["header can't be read"]);
        }
    }
}

fn open_any(header: &str) -> crate::harness::Outcome {
    open(&safetensors(header, &[7; 8]))
}

#[test]
fn names_that_stand_twice_are_refused() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let other = r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    refused(&format!("{{\"a\":{entry},\"a\":{other}}}"), &[0; 8], &["'a'", "twice"]);
    refused(&format!("{{\"a\":{entry},\"\\u0061\":{other}}}"), &[0; 8], &["'a'", "twice"]);
    refused(&format!("{{\"__metadata__\":{{}},\"a\":{entry},\"__metadata__\":{{}}}}"), &[0; 4], &["twice"]);
    refused(r#"{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4], &["'a'"]);
}

#[test]
fn metadata_is_text_by_text() {
    for value in ["1", "null", "true", "[]", "{}", "{\"a\":\"b\"}", "1e999"] {
        refused(&format!("{{\"__metadata__\":{{\"k\":{value}}}}}"), &[], &["header can't be read"]);
    }
    for value in ["1", "[]", "\"text\"", "null"] {
        refused(&format!("{{\"__metadata__\":{value}}}"), &[], &["header can't be read"]);
    }
    opened(r#"{"__metadata__":{"k":"v","":"\u0000\u001b[31m"}}"#, &[]);
}

#[test]
fn offsets_that_lie_are_refused() {
    for offsets in ["[0,7]", "[0,9]", "[1,8]", "[8,0]", "[8,8]", "[4,12]", "[0,0]", "[18446744073709551615,7]"] {
        open(&tensor("F32", "[2]", offsets)).refused(&["hostile.bin", "tensor 'a'"]);
    }
    // Numbers that are no counts.
    for offsets in
        ["[-1,7]", "[0.0,8.0]", "[0,8e0]", "[0]", "[0,8,8]", "[]", "8", "\"0,8\"", "[0,18446744073709551616]"]
    {
        open(&tensor("F32", "[2]", offsets)).refused(&["hostile.bin", "'a'"]);
    }
    // Past the end, with a shape that agrees.
    for (shape, end) in [("[3]", 12u64), ("[1073741824]", 1 << 32), ("[4611686018427387903]", u64::MAX - 3)] {
        let file = tensor("F32", shape, &format!("[0,{end}]"));
        open(&file).refused(&["hostile.bin", "tensor 'a'"]);
    }
}

#[test]
fn overlaps_gaps_and_leftovers_are_refused() {
    let two = |a: (u32, u32), b: (u32, u32), data: usize| {
        let entry = |(start, end): (u32, u32)| {
            format!(r#"{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start)
        };
        open(&safetensors(&format!("{{\"a\":{},\"b\":{}}}", entry(a), entry(b)), &vec![0; data]))
    };
    two((0, 4), (4, 8), 8).opened();
    two((4, 8), (0, 4), 8).opened();
    two((0, 4), (4, 4), 4).opened();
    two((0, 4), (3, 8), 8).refused(&["hostile.bin", "tensor 'b'", "overlaps"]);
    two((0, 4), (0, 4), 4).refused(&["hostile.bin", "overlaps"]);
    two((0, 8), (2, 4), 8).refused(&["hostile.bin", "overlaps"]);
    two((0, 8), (2, 2), 8).refused(&["hostile.bin", "overlaps"]);
    two((0, 4), (5, 8), 8).refused(&["hostile.bin", "tensor 'b'", "gap"]);
    two((1, 4), (4, 8), 8).refused(&["hostile.bin", "tensor 'a'", "gap"]);
    two((0, 4), (4, 8), 9).refused(&["hostile.bin", "1 bytes follow"]);
    two((0, 4), (4, 8), 7).refused(&["hostile.bin", "tensor 'b'", "cut short"]);
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in [
        "[4294967296,4294967296]",
        "[18446744073709551615]",
        "[18446744073709551615,18446744073709551615]",
        "[9223372036854775807,2]",
        "[0,9223372036854775807,9223372036854775807]",
        "[9223372036854775807,9223372036854775807,0]",
    ] {
        open(&tensor("F32", shape, "[0,8]")).refused(&["hostile.bin", "tensor 'a'"]);
        open(&tensor("F32", shape, "[0,0]")).refused(&["hostile.bin", "tensor 'a'", "overflows"]);
    }
    for shape in ["[-1]", "[2.0]", "2", "[\"2\"]", "null", "[18446744073709551616]", "[[2]]"] {
        open(&tensor("F32", shape, "[0,8]")).refused(&["hostile.bin", "'a'"]);
    }
    let ones = format!("[2{}]", ",1".repeat(500_000));
    open(&tensor("F32", &ones, "[0,8]")).refused(&["hostile.bin", "tensor 'a'", "dimensions"]);
    assert_eq!(open(&tensor("F32", "[]", "[0,4]")).refused(&["4 bytes follow"]).lines().count(), 1);
}

#[test]
fn dtypes_that_are_unknown_or_of_half_bytes_are_refused() {
    for dtype in ["F4", "F6_E2M3", "F6_E3M2", "F12", "f32", "float32", "", "\\u001b[31m", "\\n", "FloatStorage"] {
        open(&tensor(dtype, "[2]", "[0,8]")).refused(&["hostile.bin", "tensor 'a'", "dtype", "not known"]);
    }
    open(&tensor(&"F".repeat(1_000_000), "[2]", "[0,8]")).refused(&["hostile.bin", "tensor 'a'"]);
}

#[test]
fn long_names_do_not_hide_the_reason() {
    let name = "\\u001b".repeat(100_000);
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":"x"}}}}"#);
    refused(&header, &[], &["invalid type"]);
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}}}"#);
    refused(&header, &[], &["needs 8 bytes"]);
}

#[test]
fn many_tensors_take_memory_in_proportion() {
    let mut header = String::from("{");
    for number in 0..50_000 {
        header += &format!(r#""{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#);
    }
    header.pop();
    header.push('}');
    assert_eq!(opened(&header, &[]).tensors.len(), 1000);
    let texts: Vec<String> = (0..200_000).map(|key| format!("\"{key}\":\"\"")).collect();
    opened(&format!("{{\"__metadata__\":{{{}}}}}", texts.join(",")), &[]);
}
