//! A header's length is the file's first bytes, and some lengths look like the start of a pickle.

#[test]
fn a_length_that_looks_like_a_pickle_is_a_length() {
    let folder = tempfile::tempdir().unwrap();
    for length in [0x280usize, 0x380, 0x480, 0x580, 0x1_0280] {
        let mut header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
        header.resize(length, b' ');
        let mut file = (length as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(1.5f32.to_le_bytes());
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        let checkpoint = formats::open(&path).unwrap_or_else(|e| panic!("{length}: {e}"));
        let mut values = Vec::new();
        checkpoint.read_f32(0, 0..1, &mut values).unwrap();
        assert_eq!(values, [1.5], "{length}");
    }
}
