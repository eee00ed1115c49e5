//! Finished batches on disk, first in first out, bounded.
//!
//! Files `<number>.spool`, each: magic `TPSP`, version (u16, little endian), two zero bytes; then records of
//! length (u32), xxh3-64 of the payload (u64), payload (an encoded event batch). A file is deleted when its
//! last batch is *acknowledged*, so a crash repeats batches and never loses one that reached the disk;
//! repeats carry the same message id. A torn or corrupt tail ends its file: what follows in that file is lost
//! and counted. Data is synced when a file is closed and when the agent drains, not after each record.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tapio_schemas::wire::{EventBatchView, MESSAGE_BYTES_MAX, Unpacker};
use xxhash_rust::xxh3::xxh3_64;

use crate::outbox::Frame;

const MAGIC: [u8; 4] = *b"TPSP";
const VERSION: u16 = 1;
const FILE_HEADER_BYTES: u64 = 8;
const RECORD_HEADER_BYTES: u64 = 12;
/// Left free on the disk: a page for the file's own growth, so that a record is written whole or not begun.
const DISK_RESERVE_BYTES: u64 = 64 << 10;
/// First number of a new spool: leaves room below, for what must be sent before everything that is there.
const FIRST_NUMBER: u64 = 1 << 32;

/// A spool that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "spool {path}: cannot {action}: {source}; check permissions and free space, or set `backlog.spool` to 0"
)]
pub struct SpoolError {
    /// File or directory.
    path: PathBuf,
    /// What was tried.
    action: &'static str,
    /// Why it failed.
    source: io::Error,
}

/// The spool of one agent; owned by its outbox.
pub struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    file_bytes_max: u64,
    /// Not read to the end, oldest first. The first may be open for reading, the last for writing.
    files: VecDeque<SpoolFile>,
    /// Read to the end, their last batches not acknowledged yet.
    unacknowledged: VecDeque<SpoolFile>,
    writer: Option<File>,
    reader: Option<Reader>,
    bytes: u64,
    /// What the file system had free when it was last asked.
    disk_free: u64,
    lost_events: u64,
    /// Held as long as the spool is open; the kernel gives it back when the process ends, however it ends.
    _lock: File,
}

struct SpoolFile {
    number: u64,
    bytes: u64,
    /// Events not read yet.
    events: u64,
    /// Batches read and not yet acknowledged.
    pending: u64,
}

struct Reader {
    number: u64,
    file: File,
}

impl Spool {
    /// Opens `dir`, made when missing, with what an earlier run left.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or another process uses it.
    pub fn open(dir: &Path, bytes_max: u64, file_bytes_max: u64) -> Result<Self, SpoolError> {
        fs::create_dir_all(dir).map_err(|e| fail(dir, "create it", e))?;
        let lock = lock(dir)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| fail(dir, "list it", e))? {
            let entry = entry.map_err(|e| fail(dir, "list it", e))?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|n| n.strip_suffix(".spool")) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            let bytes = entry.metadata().map_err(|e| fail(&entry.path(), "stat it", e))?.len();
            let events = count_events(&entry.path());
            files.push(SpoolFile { number, bytes, events, pending: 0 });
        }
        files.sort_unstable_by_key(|f| f.number);
        let disk_free = disk_free(dir);
        Ok(Self {
            disk_free,
            dir: dir.to_owned(),
            bytes_max,
            file_bytes_max,
            bytes: files.iter().map(|f| f.bytes).sum(),
            files: files.into(),
            unacknowledged: VecDeque::new(),
            writer: None,
            reader: None,
            lost_events: 0,
            _lock: lock,
        })
    }

    /// True when no batch waits to be read.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Events that wait to be read.
    pub fn events(&self) -> u64 {
        self.files.iter().map(|f| f.events).sum()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes allowed on disk: as configured, or what there is and what the disk still has room for.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.min(self.bytes + self.disk_free.saturating_sub(DISK_RESERVE_BYTES))
    }

    /// Events that were written and could not be read back, since the last call.
    pub fn take_lost_events(&mut self) -> u64 {
        std::mem::take(&mut self.lost_events)
    }

    /// True when a batch of `bytes` still fits.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes as u64 + RECORD_HEADER_BYTES + FILE_HEADER_BYTES <= self.bytes_max()
    }

    /// Asks the file system how much it has free. Others write to it, too.
    pub fn look_at_disk(&mut self) {
        self.disk_free = disk_free(&self.dir);
    }

    /// Appends a batch of `events`; the caller has asked [`Spool::has_room`].
    ///
    /// # Errors
    /// When the disk refuses; the batch is not kept.
    pub fn append(&mut self, payload: &[u8], events: u64) -> Result<(), SpoolError> {
        let full = self.files.back().is_some_and(|f| f.bytes >= self.file_bytes_max);
        if full {
            self.sync()?;
            self.writer = None;
        }
        let number = self.files.back().map_or(0, |f| f.number);
        let (number, writer) = match &mut self.writer {
            Some(writer) => (number, writer),
            None => {
                let last = self.files.iter().chain(&self.unacknowledged).map(|f| f.number).max();
                let number = last.map_or(FIRST_NUMBER, |n| n + 1);
                let file = create(&self.dir.join(file_name(number)))?;
                self.files.push_back(SpoolFile { number, bytes: FILE_HEADER_BYTES, events: 0, pending: 0 });
                self.bytes += FILE_HEADER_BYTES;
                (number, self.writer.insert(file))
            }
        };
        if let Err(error) = write_record(writer, payload) {
            // A torn record ends the file for readers, so nothing more goes into it.
            self.writer = None;
            return Err(fail(&self.dir.join(file_name(number)), "write to it", error));
        }
        let size = payload.len() as u64 + RECORD_HEADER_BYTES;
        self.bytes += size;
        if let Some(file) = self.files.back_mut() {
            file.bytes += size;
            file.events += events;
        }
        Ok(())
    }

    /// Reads the next batch; it stays on disk until [`Spool::acknowledge`].
    pub fn next(&mut self) -> Option<Frame> {
        while let Some(number) = self.files.front().map(|f| f.number) {
            match self.read_from(number) {
                Ok(Some(frame)) => {
                    if let Some(file) = self.files.front_mut() {
                        file.events = file.events.saturating_sub(frame.events);
                        file.pending += 1;
                    }
                    return Some(frame);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a spool file ends before its time"),
            }
            self.finish_front();
        }
        None
    }

    /// A batch read from file `number` has been acknowledged; the file goes with its last one.
    pub fn acknowledge(&mut self, number: u64) {
        for file in self.unacknowledged.iter_mut().chain(self.files.iter_mut()) {
            if file.number == number {
                file.pending = file.pending.saturating_sub(1);
            }
        }
        self.remove_acknowledged();
    }

    /// At the end of a run: leaves on disk exactly `unsent`, in this order, and then what was not read.
    ///
    /// # Errors
    /// When the disk refuses; what is on disk then repeats some batches.
    pub fn settle(&mut self, unsent: &[Frame]) -> Result<(), SpoolError> {
        self.sync()?;
        self.writer = None;
        self.trim_front()?;
        if !unsent.is_empty() {
            let first = self.files.iter().chain(&self.unacknowledged).map(|f| f.number).min();
            let path = self.dir.join(file_name(first.map_or(FIRST_NUMBER, |n| n - 1)));
            let mut file = create(&path)?;
            for frame in unsent {
                write_record(&mut file, &frame.payload).map_err(|e| fail(&path, "write to it", e))?;
            }
            file.sync_all().map_err(|e| fail(&path, "sync it", e))?;
        }
        for file in &mut self.unacknowledged {
            file.pending = 0;
        }
        self.remove_acknowledged();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        let path = self.dir.join(file_name(self.files.back().map_or(0, |f| f.number)));
        match &self.writer {
            Some(file) => file.sync_all().map_err(|e| fail(&path, "sync it", e)),
            None => Ok(()),
        }
    }

    /// Cuts off what has been read of the first file, so that the next run does not repeat it.
    fn trim_front(&mut self) -> Result<(), SpoolError> {
        let (Some(mut reader), Some(front)) = (self.reader.take(), self.files.front()) else { return Ok(()) };
        let path = self.dir.join(file_name(front.number));
        let part = path.with_extension("part");
        let copied = File::create(&part).and_then(|mut file| {
            file.write_all(&file_header())?;
            io::copy(&mut reader.file, &mut file)?;
            file.sync_all()?;
            fs::rename(&part, &path)
        });
        copied.map_err(|e| fail(&path, "shorten it", e))
    }

    fn read_from(&mut self, number: u64) -> Result<Option<Frame>, SpoolError> {
        let path = self.dir.join(file_name(number));
        if self.reader.as_ref().is_none_or(|r| r.number != number) {
            let file = open_to_read(&path).map_err(|e| fail(&path, "open it", e))?;
            self.reader = Some(Reader { number, file });
        }
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        let payload = read_record(&mut reader.file).map_err(|e| fail(&path, "read from it", e))?;
        let Some(payload) = payload else { return Ok(None) };
        let not_a_batch = || fail(&path, "read from it", io::Error::other("a record is not a batch"));
        Frame::from_payload(payload, Some(number)).map(Some).ok_or_else(not_a_batch)
    }

    fn finish_front(&mut self) {
        if let Some(mut file) = self.files.pop_front() {
            self.lost_events += std::mem::take(&mut file.events);
            self.reader = None;
            if self.files.is_empty() {
                self.writer = None;
            }
            self.unacknowledged.push_back(file);
        }
        self.remove_acknowledged();
    }

    fn remove_acknowledged(&mut self) {
        while self.unacknowledged.front().is_some_and(|f| f.pending == 0) {
            let Some(file) = self.unacknowledged.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(file.bytes);
            let path = self.dir.join(file_name(file.number));
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a spool file that was sent");
            }
        }
    }
}

/// Two agents in one directory would send and delete each other's batches.
/// Bytes that the file system of `dir` still takes from us; unknown counts as plenty, then writing tells.
fn disk_free(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| fail(&path, "create it", e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "another agent uses this directory");
            Err(fail(dir, "use it", source))
        }
        Err(TryLockError::Error(error)) => Err(fail(&path, "lock it", error)),
    }
}

fn file_name(number: u64) -> String {
    format!("{number:020}.spool")
}

fn file_header() -> [u8; FILE_HEADER_BYTES as usize] {
    let mut header = [0u8; FILE_HEADER_BYTES as usize];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header
}

fn create(path: &Path) -> Result<File, SpoolError> {
    let mut file = File::create_new(path).map_err(|e| fail(path, "create it", e))?;
    file.write_all(&file_header()).map_err(|e| fail(path, "write its header", e))?;
    Ok(file)
}

fn open_to_read(path: &Path) -> io::Result<File> {
    let mut file = File::open(path)?;
    let mut header = [0u8; FILE_HEADER_BYTES as usize];
    file.read_exact(&mut header)?;
    if header != file_header() {
        return Err(io::Error::other("not a spool file of this version"));
    }
    Ok(file)
}

fn write_record(file: &mut File, payload: &[u8]) -> io::Result<()> {
    let mut record = Vec::with_capacity(payload.len() + RECORD_HEADER_BYTES as usize);
    record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    record.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    record.extend_from_slice(payload);
    // One write: a crash leaves at most one torn record.
    file.write_all(&record)
}

/// `None` at the end of the file.
fn read_record(file: &mut File) -> io::Result<Option<Bytes>> {
    let at = file.stream_position()?;
    let left = file.metadata()?.len().saturating_sub(at);
    if left == 0 {
        return Ok(None);
    }
    let mut header = [0u8; RECORD_HEADER_BYTES as usize];
    file.read_exact(&mut header)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if length > MESSAGE_BYTES_MAX || length as u64 > left {
        file.seek(SeekFrom::Start(at))?;
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "torn record"));
    }
    let mut payload = vec![0u8; length];
    file.read_exact(&mut payload)?;
    let mut sum = [0u8; 8];
    sum.copy_from_slice(&header[4..]);
    if xxh3_64(&payload) != u64::from_le_bytes(sum) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "checksum does not match"));
    }
    Ok(Some(payload.into()))
}

fn fail(path: &Path, action: &'static str, source: io::Error) -> SpoolError {
    SpoolError { path: path.to_owned(), action, source }
}

/// Events that [`Spool::next`] will find in a file.
fn count_events(path: &Path) -> u64 {
    let Ok(mut file) = open_to_read(path) else { return 0 };
    let (mut events, mut unpacker) = (0, Unpacker::default());
    while let Ok(Some(payload)) = read_record(&mut file) {
        let Ok(plain) = unpacker.unpack(&payload) else { break };
        let Ok(view) = EventBatchView::check(plain) else { break };
        events += view.len() as u64;
    }
    events
}

#[cfg(test)]
mod tests;
