//! PyTorch's container with a zip directory that lies.

use formats::Dtype;

use crate::files::{Entry, View, Zip, state_dict, torch_zip};
use crate::harness::{Outcome, open};

/// A good checkpoint of two tensors, `a` and `b`.
fn good() -> Zip {
    let object = state_dict(|p| {
        p.str("a").tensor(Dtype::F32, "0", &[2]).str("b").tensor(Dtype::F32, "1", &[2]);
    });
    let mut zip = Zip::torch(&object, &[("0", &[1; 8]), ("1", &[2; 8])]);
    zip.entries.push(Entry::new("archive/byteorder", b"little"));
    zip
}

fn lie(tell: impl FnOnce(&mut Zip)) -> Outcome {
    let mut zip = good();
    tell(&mut zip);
    open(&zip.build())
}

#[test]
fn the_good_one_opens() {
    let opened = lie(|_| ()).opened();
    assert_eq!(opened.tensors[1].2, [2; 8]);
}

#[test]
fn compressed_entries_are_refused() {
    for method in [8, 9, 12, 14, 93, 95, 98, 99, 1, 0xffff] {
        lie(|zip| zip.entry("archive/data/1").method = method).refused(&["zip entry 'archive/data/1'", "compressed"]);
        lie(|zip| zip.entry("archive/data.pkl").method = method).refused(&["zip entry 'archive/data.pkl'"]);
    }
    // A bomb: deflated, 20 bytes that claim four gigabytes.
    lie(|zip| {
        let entry = zip.entry("archive/data/1");
        (entry.method, entry.size) = (8, Some(u32::MAX - 1));
    })
    .refused(&["zip entry 'archive/data/1'", "compressed"]);
}

#[test]
fn stored_entries_of_two_sizes_are_refused() {
    for size in [0, 7, 9, 1 << 20, u32::MAX] {
        lie(|zip| zip.entry("archive/data/1").size = Some(size)).refused(&["hostile.bin"]);
        lie(|zip| zip.entry("archive/data/1").compressed = Some(size)).refused(&["hostile.bin"]);
        lie(|zip| zip.entry("archive/data.pkl").size = Some(size)).refused(&["hostile.bin"]);
    }
}

#[test]
fn entries_past_the_end_are_refused() {
    for size in [1000, 1 << 20, i32::MAX as u32, u32::MAX - 1] {
        for name in ["archive/data/1", "archive/data.pkl", "archive/byteorder"] {
            lie(|zip| {
                let entry = zip.entry(name);
                (entry.size, entry.compressed) = (Some(size), Some(size));
            })
            .refused(&["hostile.bin", &format!("zip entry '{name}'")]);
        }
    }
    for start in [1, 1000, 1 << 30, u32::MAX - 1, u32::MAX] {
        lie(|zip| zip.entry("archive/data/1").start = Some(start)).refused(&["hostile.bin"]);
    }
}

#[test]
fn overlapping_entries_are_refused() {
    // Both at the same place; one within another; many over one, in the manner of 42.zip.
    lie(|zip| {
        let start = 0;
        zip.entry("archive/data/1").start = Some(start);
        let size = zip.entry("archive/data.pkl").data.len() as u32;
        let entry = zip.entry("archive/data/1");
        (entry.size, entry.compressed) = (Some(size), Some(size));
    })
    .refused(&["hostile.bin", "overlap"]);
    lie(|zip| {
        let object = zip.entry("archive/data.pkl").data.len() as u32;
        // The local header of the first storage.
        let start = 30 + "archive/data.pkl".len() as u32 + object;
        let entry = zip.entry("archive/data/1");
        (entry.start, entry.absent) = (Some(start), true);
    })
    .refused(&["hostile.bin", "overlap"]);
    let bomb = |count: usize| {
        let mut zip = good();
        let start = 30 + "archive/data.pkl".len() as u32 + zip.entry("archive/data.pkl").data.len() as u32;
        zip.entries.extend((2..count).map(|key| Entry {
            data: vec![1; 8],
            start: Some(start),
            absent: true,
            ..Entry::new(&format!("archive/data/{key}"), b"")
        }));
        open(&zip.build())
    };
    bomb(3).refused(&["overlap"]);
    bomb(50_000).refused(&["overlap"]);
}

#[test]
fn entries_in_the_directory_are_refused() {
    // A tensor made of the directory itself: two readers could disagree about what the file is.
    lie(|zip| {
        let entry = zip.entry("archive/byteorder");
        (entry.size, entry.compressed) = (Some(40), Some(40));
        entry.name = b"archive/data/9".to_vec();
    })
    .refused(&["hostile.bin", "overlap", "archive/data/9"]);
}

#[test]
fn a_directory_that_points_into_data_is_refused() {
    let length = good().build().len() as u32;
    for start in (0..length).step_by(7).chain([length, length + 1, u32::MAX - 1, u32::MAX]) {
        let outcome = lie(|zip| zip.directory_start = Some(start));
        if let Outcome::Opened(opened) = outcome {
            assert_eq!(opened.tensors.len(), 2, "directory at {start}");
        }
    }
    // A directory within a storage, which lists other entries.
    let inner = View::default().zip(&[("0", &[9; 8])]);
    let at = inner.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let end = inner.windows(4).position(|w| w == b"PK\x05\x06").unwrap();
    let mut zip = good();
    zip.entries.insert(0, Entry::new("archive/data/2", &inner));
    zip.directory_start = Some(30 + 14 + at as u32);
    zip.directory_size = Some((end - at) as u32);
    zip.count = Some(2);
    let outcome = open(&zip.build());
    outcome.refused(&["hostile.bin"]);
}

#[test]
fn counts_of_entries_that_lie_end() {
    for count in [0, 1, 2, 3, 5, 100, 0xfffe, 0xffff] {
        let outcome = lie(|zip| zip.count = Some(count));
        if let Outcome::Opened(opened) = outcome {
            assert_eq!(opened.tensors.len(), 2, "{count} entries");
        }
    }
    for size in [0, 1, 1 << 20, u32::MAX] {
        let _ = lie(|zip| zip.directory_size = Some(size));
    }
}

#[test]
fn zip64_records_that_lie_are_refused() {
    let start = {
        let bytes = good().build();
        bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64
    };
    let zip64 = |claims: (u64, u64, u64)| {
        lie(|zip| {
            (zip.count, zip.directory_size, zip.directory_start) = (Some(0xffff), Some(u32::MAX), Some(u32::MAX));
            zip.zip64 = Some(claims);
        })
    };
    assert_eq!(zip64((4, 300, start)).opened().tensors.len(), 2);
    // One entry less: the last, which holds no tensor.
    assert_eq!(zip64((3, 300, start)).opened().tensors.len(), 2);
    for count in [0, 1, 5, 1 << 32, 1 << 60, u64::MAX / 46, u64::MAX] {
        zip64((count, 300, start)).refused(&["hostile.bin"]);
    }
    for directory in [0, 1, start - 1, start + 1, 1 << 40, i64::MAX as u64, u64::MAX - 10, u64::MAX] {
        zip64((4, 300, directory)).refused(&["hostile.bin"]);
        zip64((4, u64::MAX, directory)).refused(&["hostile.bin"]);
        zip64((u64::MAX, u64::MAX, directory)).refused(&["hostile.bin"]);
    }
    // Sizes of one entry in a zip64 extra field.
    for size in [8, 9, 1 << 32, i64::MAX as u64, u64::MAX - 100, u64::MAX] {
        let outcome = lie(|zip| {
            let entry = zip.entry("archive/data/1");
            (entry.size, entry.compressed, entry.start) = (Some(u32::MAX), Some(u32::MAX), None);
            entry.extra = [&[1, 0, 16, 0][..], &size.to_le_bytes(), &size.to_le_bytes()].concat();
        });
        match size {
            8 => assert_eq!(outcome.opened().tensors.len(), 2),
            _ => drop(outcome.refused(&["hostile.bin"])),
        }
    }
    // Starts of one entry likewise.
    for start in [1, 1 << 32, i64::MAX as u64, u64::MAX - 10, u64::MAX] {
        lie(|zip| {
            let entry = zip.entry("archive/data/1");
            entry.start = Some(u32::MAX);
            entry.extra = [&[1, 0, 8, 0][..], &start.to_le_bytes()].concat();
        })
        .refused(&["hostile.bin"]);
    }
    // An extra field cut off, one that is longer than its room, one without content.
    for extra in [&[1, 0][..], &[1, 0, 16, 0, 1, 2], &[1, 0, 0xff, 0xff], &[1, 0, 0, 0], &[0xff; 7]] {
        let _ = lie(|zip| {
            let entry = zip.entry("archive/data/1");
            entry.size = Some(u32::MAX);
            entry.extra = extra.to_vec();
        });
    }
}

#[test]
fn a_zip64_directory_in_a_sparse_file_takes_no_memory() {
    use std::os::unix::fs::FileExt;
    // A terabyte of nothing, in which a directory of twenty billion entries would have room.
    let length = 1u64 << 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.bin");
    let zip = Zip {
        count: Some(0xffff),
        directory_size: Some(u32::MAX),
        directory_start: Some(u32::MAX),
        zip64: Some((20_000_000_000, 46 * 20_000_000_000, 21_000_000_000)),
        ..Zip::default()
    };
    let mut end = zip.build();
    // The locator's offset of the record, which `build` took to be at the start of the file.
    let locator = end.windows(4).position(|w| w == b"PK\x06\x07").unwrap();
    end[locator + 8..locator + 16].copy_from_slice(&length.to_le_bytes());
    let file = std::fs::File::create(&path).unwrap();
    file.write_all_at(b"PK\x03\x04", 0).unwrap();
    file.write_all_at(b"PK\x01\x02", 21_000_000_000).unwrap();
    file.write_all_at(&end, length).unwrap();
    let (error, peak) = crate::harness::watched("sparse zip64", move || {
        crate::harness::reset_peak();
        (formats::open(&path).err().map(|e| e.to_string()), crate::harness::peak())
    });
    assert!(error.unwrap().contains("hostile.bin"));
    assert!(peak < 64 << 20, "{} MiB", peak >> 20);
}

#[test]
fn names_that_stand_twice_are_refused() {
    for name in ["archive/data/0", "archive/data.pkl", "archive/byteorder"] {
        lie(|zip| {
            let copy = zip.entry(name).clone();
            zip.entries.push(copy);
        })
        .refused(&["hostile.bin", "same name"]);
    }
    lie(|zip| zip.entries.push(Entry::new("other/data.pkl", b"\x80\x02N."))).refused(&["more than one data.pkl"]);
    lie(|zip| zip.entries.push(Entry::new("data.pkl", b"\x80\x02N."))).refused(&["more than one data.pkl"]);
}

#[test]
fn names_that_are_equal_as_text_are_refused() {
    lie(|zip| {
        for broken in [0xfe, 0xff] {
            zip.entries.push(Entry { name: [b"archive/data/", &[broken][..]].concat(), ..Entry::default() });
        }
    })
    .refused(&["hostile.bin", "same name"]);
}

#[test]
fn encrypted_entries_are_refused() {
    for flags in [1, 0x41, 0x2001] {
        lie(|zip| zip.entry("archive/data/1").flags = flags).refused(&["hostile.bin", "archive/data/1", "encrypted"]);
        lie(|zip| zip.entry("archive/data.pkl").flags = flags).refused(&["hostile.bin", "encrypted"]);
    }
}

#[test]
fn flags_and_checksums_that_lie_end() {
    for bit in 0..16 {
        let _ = lie(|zip| zip.entry("archive/data/1").flags = 1 << bit);
        let _ = lie(|zip| zip.entry("archive/data.pkl").flags = 1 << bit);
    }
    lie(|zip| zip.entry("archive/data.pkl").crc = Some(1)).refused(&["zip entry 'archive/data.pkl'", "can't be read"]);
}

#[test]
fn byte_orders_that_are_none_are_refused() {
    for order in [&b""[..], b"middle", b"LITTLE", b"\0", b"\xff\xfe", b"little\x1b[31m", &[b'x'; 100_000]] {
        lie(|zip| zip.entry("archive/byteorder").data = order.to_vec()).refused(&[
            "hostile.bin",
            "archive/byteorder",
            "neither 'little' nor 'big'",
        ]);
    }
    let opened = lie(|zip| zip.entry("archive/byteorder").data = b"big".to_vec()).opened();
    assert_eq!(opened.tensors.len(), 2);
}

#[test]
fn a_zip_that_is_no_checkpoint_is_named_so() {
    open(&Zip::default().build()).refused(&["hostile.bin"]);
    let zip = Zip { entries: vec![Entry::new("word/document.xml", b"<xml/>")], ..Zip::default() };
    open(&zip.build()).refused(&["hostile.bin", "without a data.pkl"]);
    let zip = Zip { entries: vec![Entry::new("archive/data.pkl/", b"")], ..Zip::default() };
    open(&zip.build()).refused(&["hostile.bin", "without a data.pkl"]);
}

#[test]
fn names_of_entries_are_escaped() {
    for name in ["archive/data/\u{1b}[31m", "archive/data/\n", "archive/data/\0", "archive/data/\u{202e}txt"] {
        lie(|zip| {
            let mut entry = Entry::new(name, b"x");
            entry.method = 8;
            zip.entries.push(entry);
        })
        .refused(&["hostile.bin", "zip entry 'archive/data/\\"]);
    }
    let long = format!("archive/data/{}", "x".repeat(60_000));
    lie(|zip| {
        let mut entry = Entry::new(&long, b"x");
        entry.flags = 1;
        zip.entries.push(entry);
    })
    .refused(&["encrypted"]);
}

#[test]
fn a_comment_full_of_end_records_ends() {
    // Each could start a reading of the whole directory, which fails at its last entry.
    let mut zip = good();
    zip.entries.extend((0..20_000).map(|n| Entry::new(&format!("archive/x{n}"), b"")));
    let bytes = zip.build();
    let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u32;
    let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
    record.extend_from_slice(&20_004u16.to_le_bytes());
    record.extend_from_slice(&20_004u16.to_le_bytes());
    record.extend_from_slice(&0u32.to_le_bytes());
    record.extend_from_slice(&directory.to_le_bytes());
    record.extend_from_slice(&[0; 2]);
    zip.comment = record.repeat(2900);
    let _ = open(&zip.build());
    let _ = lie(|zip| zip.comment = b"PK\x05\x06".repeat(16_000));
    let _ = lie(|zip| zip.comment = b"PK\x06\x07PK\x06\x06".repeat(8_000));
}

#[test]
fn many_entries_are_read_once_each() {
    let zip = torch_zip(&state_dict(|_| ()), &[]);
    assert!(open(&zip).opened().tensors.is_empty());
    let keys: Vec<String> = (0..30_000).map(|key| key.to_string()).collect();
    let storages: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &[][..])).collect();
    open(&torch_zip(&state_dict(|_| ()), &storages)).opened();
}
