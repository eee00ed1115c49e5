//! Exit codes.

use tapio_runtime::bus::BusError;
use tapio_runtime::config::{ConfigError, EXIT_CONFIG};
use tapio_runtime::telemetry::TelemetryError;

/// Findings are there, or bad usage (clap's own code).
pub const FINDINGS: i32 = 2;
/// It cannot be said whether anything is wrong.
pub const CANNOT_TELL: i32 = 3;
/// Something failed.
pub const FAILED: i32 = 1;
/// No running instance was found.
pub const UNAVAILABLE: i32 = 69;

/// Nobody reads what it prints any more: as a shell says it of a program that SIGPIPE ended.
pub const UNREAD: i32 = 141;

/// An error that carries its exit code.
#[derive(Debug)]
pub struct ExitWith {
    /// The code.
    pub code: i32,
    /// What to say.
    pub message: String,
}

impl std::fmt::Display for ExitWith {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExitWith {}

/// The code of an error: its own, 64 for bad configuration, else 1.
pub fn code_of(error: &anyhow::Error) -> i32 {
    if let Some(with) = error.downcast_ref::<ExitWith>() {
        return with.code;
    }
    if error.chain().any(is_of_configuration) {
        return EXIT_CONFIG;
    }
    FAILED
}

/// Whether a setting is wrong, of those that are found out before anything is bound, too.
fn is_of_configuration(cause: &(dyn std::error::Error + 'static)) -> bool {
    let of_bus = |error: &BusError| matches!(error, BusError::Url { .. } | BusError::HalfCertificate);
    cause.is::<ConfigError>()
        || matches!(cause.downcast_ref(), Some(TelemetryError::Filter { .. }))
        || cause.downcast_ref().is_some_and(of_bus)
}
