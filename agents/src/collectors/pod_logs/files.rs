//! The last bytes of a container's log: `<namespace>_<pod>_<uid>/<container>/<life>.log` below the directory of the kubelet.
//!
//! Pods may be allowed to write below that directory. So nothing that is a link is followed, and what is no plain file is
//! not read: otherwise whoever can place a link there could read every file of the machine.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use smol_str::{SmolStr, format_smolstr};

/// Bytes read of a container, over all of its files.
pub const BYTES_MAX: usize = 64 << 10;
/// Entries of a container's directory that are looked at.
const ENTRIES_MAX: usize = 256;

/// Why there are no bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unread {
    /// Not written yet, or removed already.
    #[error("{0} is not there")]
    Absent(SmolStr),
    /// A link, a pipe, or a name that leads elsewhere.
    #[error("{0} is not a plain file below the directory of the logs: links are not followed")]
    NotPlain(SmolStr),
    /// The directory of the logs of all containers cannot be opened.
    #[error("cannot open {path}: {error}")]
    Closed {
        /// Which directory.
        path: SmolStr,
        /// Why.
        error: Errno,
    },
    /// The machine says no.
    #[error("cannot read {path}: {error}")]
    Failed {
        /// Which file, below the directory of the logs.
        path: SmolStr,
        /// Why.
        error: Errno,
    },
}

/// Which life of which container.
#[derive(Debug, Clone, Copy)]
pub struct Life<'a> {
    /// Namespace of its pod.
    pub namespace: &'a str,
    /// Its pod.
    pub pod: &'a str,
    /// uid of the pod, as the machine knows it.
    pub uid: &'a str,
    /// Its name.
    pub container: &'a str,
    /// Number of the life, from zero.
    pub number: u32,
}

impl Life<'_> {
    fn directory(&self) -> SmolStr {
        format_smolstr!("{}_{}_{}/{}", self.namespace, self.pod, self.uid, self.container)
    }

    fn is_sound(&self) -> bool {
        let is_name = |name: &str| {
            // Of dots alone it leads to another directory.
            name.chars().any(|c| c != '.')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        };
        [self.namespace, self.pod, self.uid, self.container].iter().all(|name| is_name(name))
    }
}

/// The last bytes that this life has written, from the beginning of an entry on: of the file that is written to, and of
/// the one before it when the log was rotated shortly before. Files that were packed since are not read.
///
/// # Errors
/// [`Unread`].
pub fn last_bytes(logs: &Path, life: Life<'_>) -> Result<Vec<u8>, Unread> {
    let directory = life.directory();
    if !life.is_sound() {
        return Err(Unread::NotPlain(directory));
    }
    let closed = |error| Unread::Closed { path: SmolStr::new(logs.to_string_lossy()), error };
    let root = rustix::fs::open(logs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(closed)?;
    let within = open(root.as_fd(), &directory, OFlags::DIRECTORY).map_err(|e| unread(&directory, e))?;
    let name = format_smolstr!("{}.log", life.number);
    let Tail { mut bytes, is_cut } = match tail(within.as_fd(), &directory, &name, BYTES_MAX) {
        // Between the renaming of the full file and the making of the next one.
        Err(Unread::Absent(_)) => Tail::default(),
        other => other?,
    };
    // What is before the middle of a file is not the end of the one before it.
    if !is_cut && let Some(rotated) = newest_rotated(&within, &name) {
        match tail(within.as_fd(), &directory, &rotated, BYTES_MAX.saturating_sub(bytes.len())) {
            Ok(Tail { bytes: mut before, .. }) => {
                before.append(&mut bytes);
                bytes = before;
            }
            // What there is counts more than what was before it.
            Err(_) if !bytes.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    if bytes.is_empty() { Err(Unread::Absent(format_smolstr!("{directory}/{name}"))) } else { Ok(bytes) }
}

/// The end of a file.
#[derive(Default)]
struct Tail {
    /// From the beginning of an entry on.
    bytes: Vec<u8>,
    /// The file begins before them.
    is_cut: bool,
}

fn open(within: BorrowedFd<'_>, path: &str, more: OFlags) -> Result<OwnedFd, Errno> {
    // Without waiting: a pipe that stands there would never be opened.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(within, path, flags, Mode::empty(), resolve)
}

/// What an error at `path`, below the directory of the logs, means.
fn unread(path: &str, error: Errno) -> Unread {
    match error {
        Errno::NOENT => Unread::Absent(path.into()),
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NXIO => Unread::NotPlain(path.into()),
        error => Unread::Failed { path: path.into(), error },
    }
}

fn tail(within: BorrowedFd<'_>, directory: &str, name: &str, bytes_max: usize) -> Result<Tail, Unread> {
    let path = format_smolstr!("{directory}/{name}");
    let fd = open(within, name, OFlags::empty()).map_err(|error| unread(&path, error))?;
    let failed = |error: Errno| Unread::Failed { path: path.clone(), error };
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Unread::NotPlain(path));
    }
    let mut file = File::from(fd);
    let of_io = |error: std::io::Error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    // One byte more tells whether an entry begins where reading does.
    let from = size.saturating_sub(bytes_max as u64 + 1);
    file.seek(SeekFrom::Start(from)).map_err(of_io)?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(of_io)?;
    if from > 0 {
        let begins = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..begins);
    }
    Ok(Tail { bytes, is_cut: from > 0 })
}

/// `0.log.20260101-000000`: the newest of those that are not packed.
fn newest_rotated(directory: &OwnedFd, name: &str) -> Option<SmolStr> {
    let mut newest: Option<SmolStr> = None;
    for entry in Dir::read_from(directory).ok()?.take(ENTRIES_MAX).flatten() {
        let Ok(file) = entry.file_name().to_str() else { continue };
        let stamp = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default();
        let is_stamp = !stamp.is_empty() && stamp.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if is_stamp && newest.as_deref().is_none_or(|newest| newest < file) {
            newest = Some(file.into());
        }
    }
    newest
}
