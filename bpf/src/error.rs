//! What can go wrong, and what to do about it.

use std::io;

use aya::{BtfError, EbpfError, maps::MapError, programs::ProgramError};

/// Said wherever the kernel refuses for lack of rights.
pub(crate) const PERMISSION_HINT: &str =
    "run as root or with CAP_BPF and CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN)";

/// Why the programs cannot run, or the ring cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("bad configuration of the kernel programs: {0}")]
    Config(String),
    #[error(
        "the kernel offers no type information at {path}: {source}; use a kernel built with CONFIG_DEBUG_INFO_BTF, \
         which the distributions ship since about Linux 5.8"
    )]
    NoBtf { path: &'static str, source: BtfError },
    #[error("the kernel refused {syscall} for {what}: {source}; {PERMISSION_HINT}")]
    NotPermitted { syscall: &'static str, what: String, source: io::Error },
    #[error("cannot load the kernel programs: {0}; ring buffers need Linux 5.8 or newer")]
    Load(Box<EbpfError>),
    #[error(
        "the compiled kernel programs have no map {0}: the crate was built from mixed sources, build it again"
    )]
    MissingMap(&'static str),
    #[error("cannot read map {map}: {source}")]
    Map { map: &'static str, source: MapError },
    #[error("the ring has a reader already: take it once, right after loading")]
    ReaderTaken,
    #[error("{syscall} failed for the ring reader: {source}")]
    Reader { syscall: &'static str, source: io::Error },
}

impl BpfError {
    /// Loading as a whole failed: told apart by whether rights or the kernel are missing.
    pub(crate) fn from_load(error: EbpfError) -> Self {
        let refused = match &error {
            EbpfError::MapError(MapError::CreateError { name, io_error, .. }) => {
                Some(("BPF_MAP_CREATE", format!("map {name}"), io_error))
            }
            EbpfError::BtfError(BtfError::LoadError { io_error, .. }) => {
                Some(("BPF_BTF_LOAD", "the programs' own types".to_owned(), io_error))
            }
            _ => None,
        };
        match refused {
            Some((syscall, what, io_error)) if io_error.kind() == io::ErrorKind::PermissionDenied => {
                Self::NotPermitted { syscall, what, source: copy(io_error) }
            }
            _ => Self::Load(Box::new(error)),
        }
    }
}

/// What to tell of one program that the kernel did not take, in one line.
pub(crate) fn program_failure(error: &ProgramError, tracepoint: &str) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            if io_error.kind() == io::ErrorKind::PermissionDenied
                && verifier_log.to_string().trim().is_empty()
            {
                return format!("BPF_PROG_LOAD refused: {io_error}; {PERMISSION_HINT}");
            }
            format!(
                "BPF_PROG_LOAD failed: {io_error}; the verifier says: {}",
                last_lines(&verifier_log.to_string())
            )
        }
        ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{} refused: {}; {PERMISSION_HINT}", error.call, error.io_error)
        }
        ProgramError::SyscallError(error) => format!("{} failed: {}", error.call, error.io_error),
        ProgramError::Btf(error) => {
            format!(
                "this kernel has no tracepoint {tracepoint} ({error}); use a newer kernel for these events"
            )
        }
        other => other.to_string(),
    }
}

/// The end of a verifier log, where the reason is.
fn last_lines(log: &str) -> String {
    const LINES: usize = 3;
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|line| {
            !line.is_empty() && !line.starts_with("processed ") && !line.starts_with("verification time")
        })
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join(" / ")
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
