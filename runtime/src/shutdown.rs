//! One token that says "stop"; signals set it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process told twice to stop, as shells report an interrupted one.
pub const EXIT_FORCED: i32 = 130;

/// A request to stop, passed to every part. Clones are the same request; a child can be triggered
/// alone and is triggered with its parent.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A token that is not triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that follows this one but can be triggered alone.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Asks everything that holds this token or a child to stop. Idempotent.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// Whether a stop was asked for.
    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for the request.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

/// Triggers `shutdown` on SIGINT or SIGTERM; a second signal ends the process at once with
/// [`EXIT_FORCED`], for the person who does not want to wait for the drain.
///
/// # Errors
/// When a signal handler cannot be installed. Must be called inside a tokio runtime.
pub fn trigger_on_signals(shutdown: &Shutdown) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let name = next_signal(&mut interrupt, &mut terminate).await;
        tracing::info!(signal = name, "stopping; a second signal forces the end");
        shutdown.trigger();
        let name = next_signal(&mut interrupt, &mut terminate).await;
        tracing::warn!(signal = name, "forced end: what was not drained is lost");
        std::process::exit(EXIT_FORCED);
    });
    Ok(())
}

async fn next_signal(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn child_follows_parent_but_not_the_other_way() {
        let parent = Shutdown::new();
        let child = parent.child();
        child.trigger();
        assert!(child.is_triggered() && !parent.is_triggered());
        let other = parent.child();
        parent.trigger();
        other.wait().await;
        assert!(other.is_triggered());
    }

    #[tokio::test]
    async fn first_signal_triggers() {
        let shutdown = Shutdown::new();
        trigger_on_signals(&shutdown).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(5), shutdown.wait()).await.unwrap();
    }
}
