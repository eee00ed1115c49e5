//! Settings of the storage service.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::{ByteSize, HumanDuration};

/// Settings under `storage`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Directory of the findings. Default empty: `findings` in the data directory of the process.
    pub path: PathBuf,
    /// Where the gRPC API listens; port 0 takes a free one. Default `127.0.0.1:50051`.
    pub listen: String,
    /// Findings older than this, by the time they were stored, are removed. Default 90 days.
    pub retention_age: HumanDuration,
    /// The oldest findings are removed beyond so many bytes of documents; indexes and free space of
    /// the database make about five times as much on disk. Default 1 GiB.
    pub retention_bytes: ByteSize,
    /// How often the age is looked at. Default 1 minute.
    pub retention_interval: HumanDuration,
    /// A batch is made durable so long after its first finding. Default 200 ms.
    pub flush_interval: HumanDuration,
    /// ... or when it has so many findings. Default 64.
    pub flush_findings: usize,
    /// Bytes of decoded findings kept in memory. Default 16 MiB.
    pub cache: ByteSize,
    /// Bytes of pages of the database kept in memory. Default 32 MiB.
    pub page_cache: ByteSize,
    /// Name of the position in the stream of findings; the identity of the store is appended, so a
    /// new store starts from the beginning. Default `storage`.
    pub consumer: String,
    /// A finding that is not on disk after this time is delivered again. Default 10 s.
    pub ack_wait: HumanDuration,
    /// Live subscribers at a time; one more is refused. Default 64.
    pub subscribers: usize,
}

impl StorageConfig {
    /// What a type cannot say.
    ///
    /// # Errors
    /// The first key of `storage` that cannot be used, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let in_names = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let wrong = [
            (self.path.as_os_str().is_empty(), "path", "must name a directory"),
            (self.flush_findings == 0, "flush_findings", "must be at least 1"),
            (
                self.consumer.is_empty() || !self.consumer.bytes().all(in_names),
                "consumer",
                "must be letters, digits, `-` and `_`",
            ),
            (self.ack_wait.get() < Duration::from_secs(1), "ack_wait", "must be at least 1s"),
            (self.retention_interval.get().is_zero(), "retention_interval", "must be longer than 0"),
        ];
        let first = wrong.into_iter().find(|(is_wrong, ..)| *is_wrong);
        first.map_or(Ok(()), |(_, key, message)| Err((key, message)))
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            listen: "127.0.0.1:50051".to_owned(),
            retention_age: HumanDuration::from_secs(90 * 24 * 3600),
            retention_bytes: ByteSize::gib(1),
            retention_interval: HumanDuration::from_secs(60),
            flush_interval: HumanDuration::from_millis(200),
            flush_findings: 64,
            cache: ByteSize::mib(16),
            page_cache: ByteSize::mib(32),
            consumer: "storage".to_owned(),
            ack_wait: HumanDuration::from_secs(10),
            subscribers: 64,
        }
    }
}
