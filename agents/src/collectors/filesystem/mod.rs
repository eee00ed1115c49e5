//! Room on the machine's file systems.
//!
//! | metric | attributes | source |
//! |---|---|---|
//! | `system.filesystem.usage`, By | `system.filesystem.{mountpoint,type,state}` (`used`, `free`, `reserved`), `system.device` | statvfs(3) of each mount |
//!
//! `limit` of each is what programs can use in all: used and free, without what is reserved for root. One file system is
//! told once, however often it is mounted; what is read-only, has no size, or is on another machine is not told.

mod config;
mod mounts;
mod sampler;

use tapio_schemas::ids::UnixNanos;

use super::sampling::{Look, Looks};
use super::status::CollectorState;

pub use config::FilesystemConfig;
pub use sampler::Sampler;

impl Looks for Sampler {
    const LIMIT: &'static str = "filesystem.mounts_max";

    fn look(&mut self, at: UnixNanos) -> Look {
        let events = self.sample(at);
        let reason = self.blind().map(str::to_owned);
        let state = reason.map_or(CollectorState::Running, CollectorState::Degraded);
        Look { events, left_out: self.left_out(), state }
    }
}
