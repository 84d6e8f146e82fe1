//! Builds checkpoint files byte by byte, with every field open to lies.

use formats::pickle::Emitter;

/// A pickle from its bytes after the protocol mark and before the final `STOP`.
pub fn pickle(write: impl FnOnce(&mut Emitter)) -> Vec<u8> {
    let mut emitter = Emitter::new();
    write(&mut emitter);
    emitter.finish()
}

/// Ends a chain of pushes where a closure returns nothing.
pub fn done(_: &mut Emitter) {}

/// The pickle `{"state_dict": {…}}`; `write` puts keys and values.
pub fn state_dict(write: impl FnOnce(&mut Emitter)) -> Vec<u8> {
    pickle(|p| {
        p.empty_dict().mark().str("state_dict").empty_dict().mark();
        write(p);
        p.set_items().set_items();
    })
}

/// A PyTorch zip with a good tensor, and `hyper_parameters` that `write` pushes.
pub fn with_hyper_parameters(write: impl FnOnce(&mut Emitter)) -> Vec<u8> {
    let pickle = pickle(|p| {
        p.empty_dict().mark().str("hyper_parameters");
        write(p);
        p.str("state_dict").empty_dict().mark().str("good").tensor(formats::Dtype::F32, "0", &[2]).set_items();
        p.set_items();
    });
    torch_zip(&pickle, &[("0", &[0; 8])])
}

/// `_rebuild_tensor_v2` with every number as given, negative ones too.
pub struct View<'a> {
    pub class: &'a str,
    pub key: &'a str,
    pub storage: i64,
    pub offset: i64,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
}

impl Default for View<'_> {
    /// Two f32 in a storage of two.
    fn default() -> Self {
        View { class: "FloatStorage", key: "0", storage: 2, offset: 0, shape: &[2], strides: &[1] }
    }
}

impl View<'_> {
    pub fn push(&self, p: &mut Emitter) {
        p.global("torch._utils", "_rebuild_tensor_v2").mark();
        p.mark().str("storage").global("torch", self.class).str(self.key).str("cpu").int(self.storage);
        p.tuple().persistent_id().int(self.offset);
        for counts in [self.shape, self.strides] {
            p.mark();
            counts.iter().for_each(|&n| done(p.int(n)));
            p.tuple();
        }
        p.bool(false).ordered_dict().tuple().reduce();
    }

    /// A zip with this one tensor, `w`, over the storages given.
    pub fn zip(&self, storages: &[(&str, &[u8])]) -> Vec<u8> {
        torch_zip(
            &state_dict(|p| {
                p.str("w");
                self.push(p);
            }),
            storages,
        )
    }
}

/// A PyTorch zip: `archive/data.pkl` and `archive/data/<key>` for each storage.
pub fn torch_zip(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    Zip::torch(pickle, storages).build()
}

/// A zip file, entry by entry.
#[derive(Clone, Default)]
pub struct Zip {
    pub entries: Vec<Entry>,
    pub comment: Vec<u8>,
    /// What the end record claims, where it isn't the truth.
    pub count: Option<u16>,
    pub directory_size: Option<u32>,
    pub directory_start: Option<u32>,
    /// A zip64 end record and locator, with these claims: entries, directory size, directory start.
    pub zip64: Option<(u64, u64, u64)>,
}

/// One entry, and the lies told about it.
#[derive(Clone, Default)]
pub struct Entry {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: Option<u32>,
    pub size: Option<u32>,
    pub compressed: Option<u32>,
    /// Where the directory says that the entry starts.
    pub start: Option<u32>,
    /// Extra fields in the directory.
    pub extra: Vec<u8>,
    /// Not written: for directory entries that share another's bytes.
    pub absent: bool,
}

impl Entry {
    pub fn new(name: &str, data: &[u8]) -> Entry {
        Entry { name: name.into(), data: data.to_vec(), ..Entry::default() }
    }
}

impl Zip {
    pub fn torch(pickle: &[u8], storages: &[(&str, &[u8])]) -> Zip {
        let mut entries = vec![Entry::new("archive/data.pkl", pickle)];
        entries.extend(storages.iter().map(|(key, data)| Entry::new(&format!("archive/data/{key}"), data)));
        Zip { entries, ..Zip::default() }
    }

    /// The entry of a name, to tell lies about.
    pub fn entry(&mut self, name: &str) -> &mut Entry {
        self.entries.iter_mut().find(|entry| entry.name == name.as_bytes()).expect("an entry of this name")
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut directory = Vec::new();
        for entry in &self.entries {
            let start = entry.start.unwrap_or(out.len() as u32);
            let crc = entry.crc.unwrap_or_else(|| crc32(&entry.data));
            let size = entry.size.unwrap_or(entry.data.len() as u32);
            let compressed = entry.compressed.unwrap_or(entry.data.len() as u32);
            // What both kinds of header have in common.
            let mut common = Vec::new();
            for field in [20, entry.flags, entry.method, 0, 0x21] {
                common.extend_from_slice(&field.to_le_bytes());
            }
            for field in [crc, compressed, size] {
                common.extend_from_slice(&field.to_le_bytes());
            }
            common.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
            if !entry.absent {
                out.extend_from_slice(b"PK\x03\x04");
                out.extend_from_slice(&common);
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&entry.name);
                out.extend_from_slice(&entry.data);
            }
            directory.extend_from_slice(b"PK\x01\x02\x14\x00");
            directory.extend_from_slice(&common);
            directory.extend_from_slice(&(entry.extra.len() as u16).to_le_bytes());
            // Comment length, disk, internal and external attributes.
            directory.extend_from_slice(&[0; 10]);
            directory.extend_from_slice(&start.to_le_bytes());
            directory.extend_from_slice(&entry.name);
            directory.extend_from_slice(&entry.extra);
        }
        let start = out.len() as u32;
        out.extend_from_slice(&directory);
        if let Some((count, size, directory_start)) = self.zip64 {
            let record = out.len() as u64;
            out.extend_from_slice(b"PK\x06\x06");
            out.extend_from_slice(&44u64.to_le_bytes());
            out.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for field in [count, count, size, directory_start] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
            out.extend_from_slice(&record.to_le_bytes());
            out.extend_from_slice(&1u32.to_le_bytes());
        }
        let count = self.count.unwrap_or(self.entries.len() as u16);
        out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&self.directory_size.unwrap_or(directory.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.directory_start.unwrap_or(start).to_le_bytes());
        out.extend_from_slice(&(self.comment.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.comment);
        out
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// The first three pickles of a file from before PyTorch 1.6.
pub fn legacy_head() -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    out.extend(pickle(|p| {
        p.empty_dict().mark().str("protocol_version").int(1001).str("little_endian").bool(true).set_items();
    }));
    out
}

/// An old file: the object, the list of keys, then for each storage its count and bytes.
pub fn legacy(object: &[u8], keys: &[&str], storages: &[(u64, &[u8])]) -> Vec<u8> {
    let keys = pickle(|p| {
        p.empty_list().mark();
        keys.iter().for_each(|key| done(p.str(key)));
        p.appends();
    });
    legacy_with_keys(object, &keys, storages)
}

/// An old file whose list of keys is a pickle of one's own.
pub fn legacy_with_keys(object: &[u8], keys: &[u8], storages: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = legacy_head();
    out.extend_from_slice(object);
    out.extend_from_slice(keys);
    for (count, bytes) in storages {
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out
}

/// A safetensors file from its header's text and its data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}
