//! Event files that TensorBoard reads: scalars only.
//!
//! A file is a sequence of records (length, its checksum, data, its checksum; little-endian, CRC-32C masked as
//! TensorFlow does it), each a protocol buffer `tensorflow.Event`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use formats::show_path;
use prost::Message;

use super::metrics_log::Line;

/// An event file being written.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Starts a file in `folder`, which is made if it isn't there; TensorBoard shows all event files of a folder as one
    /// run. A run that goes on after `resumed` steps tells TensorBoard to forget what an earlier file has beyond them.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn create(folder: &Path, resumed: Option<u64>) -> Result<TensorBoard> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", show_path(folder)))?;
        let mut number = 0;
        let (path, file) = loop {
            // TensorBoard reads the files in the order of their names.
            let path = folder.join(format!("events.out.tfevents.{now:010}.engine.{}.{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                file => break (path.clone(), file.with_context(|| cannot_write(&path))?),
            }
        };
        let mut board = TensorBoard { path, file };
        board.write(Event { file_version: Some("brain.Event:2".into()), ..Event::now(0) })?;
        if let Some(step) = resumed {
            let session_log = Some(SessionLog { status: SessionLog::START });
            board.write(Event { session_log, ..Event::now(step + 1) })?;
        }
        Ok(board)
    }

    /// Adds the values of a line, each under its name; TensorBoard groups names by what stands before a `/`.
    ///
    /// # Errors
    /// It can't be written.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let value = |(name, &value): (&String, &f64)| Value { tag: name.clone(), simple_value: Some(value as f32) };
        let summary = Some(Summary { value: line.values.iter().map(value).collect() });
        self.write(Event { summary, ..Event::now(line.step) })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&data);
        record.extend(masked_crc(&data).to_le_bytes());
        self.file.write_all(&record).with_context(|| cannot_write(&self.path))
    }
}

/// A checksum of data that has checksums in it is prone to be 0: it is rotated and moved.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written", show_path(path))
}

/// `tensorflow.Event`, the fields used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

impl Event {
    fn now(step: u64) -> Event {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Event { wall_time, step: step as i64, ..Event::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// A member of a `oneof`: written even where it is 0.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl SessionLog {
    const START: i32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a folder's files in the order of their names, with checksums verified.
    fn events(folder: &Path) -> Vec<Event> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut events = Vec::new();
        for path in paths {
            let bytes = std::fs::read(path).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let crc = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap());
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                assert_eq!(crc(&rest[8..]), masked_crc(&rest[..8]));
                let data = &rest[12..12 + length];
                assert_eq!(crc(&rest[12 + length..]), masked_crc(data));
                events.push(Event::decode(data).unwrap());
                rest = &rest[16 + length..];
            }
        }
        events
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 zeros have the CRC-32C 0x8a9136aa; masked by hand.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x6d55_1522u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_byte_by_byte() {
        let event = Event {
            wall_time: 1.0,
            step: 300,
            summary: Some(Summary { value: vec![Value { tag: "lr".into(), simple_value: Some(0.0) }] }),
            ..Event::default()
        };
        let double = [9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        let step = [16, 0xac, 2];
        let summary = [42, 11, 10, 9, 10, 2, b'l', b'r', 21, 0, 0, 0, 0];
        assert_eq!(event.encode_to_vec(), [&double[..], &step, &summary].concat());
    }

    #[test]
    fn lines_become_events() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a/tensorboard");
        let mut board = TensorBoard::create(&folder, None).unwrap();
        board.append(&Line::new(1, 0.0).with("loss", 2.5).with("val/top_1", f64::NAN)).unwrap();
        let mut board = TensorBoard::create(&folder, Some(0)).unwrap();
        board.append(&Line::new(1, 0.0).with("loss", 2.0)).unwrap();
        let events = events(&folder);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let values = &events[1].summary.as_ref().unwrap().value;
        assert_eq!((events[1].step, values[0].tag.as_str(), values[0].simple_value), (1, "loss", Some(2.5)));
        assert!(values[1].simple_value.unwrap().is_nan());
        assert_eq!(events[3].session_log, Some(SessionLog { status: SessionLog::START }));
        assert_eq!(events[4].summary.as_ref().unwrap().value[0].simple_value, Some(2.0));
        assert!(events.iter().all(|event| event.wall_time > 1.7e9));
    }
}
