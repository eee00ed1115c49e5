//! A process's word of itself in the state bucket, so that `tapio status` needs NATS and nothing else.

use bytes::Bytes;
use serde::Serialize;
use tapio_schemas::status::{EVERY, TTL};

use crate::bus::{Bus, BusError, ConnectionState, Kv};
use crate::supervise::{WorkerContext, WorkerResult};

/// Writes what `read` gives under `key`, every [`EVERY`], until the context is shut down; then once more, so that the last
/// word is the end of the run. While NATS is away nothing is written and nothing waits.
///
/// # Errors
/// None: a word that is not heard is said again.
pub async fn tell<T: Serialize>(
    bus: Bus,
    key: String,
    read: impl Fn() -> T + Send,
    context: WorkerContext,
) -> WorkerResult {
    let mut bucket = None;
    loop {
        context.progress.tick();
        if bus.state() == ConnectionState::Connected
            && let Err(error) = say(&bus, &mut bucket, &key, &read()).await
        {
            tracing::debug!(key, %error, "the status is not told");
            bucket = None;
        }
        if context.shutdown.is_triggered() {
            return Ok(());
        }
        tokio::select! {
            () = context.clock.sleep(EVERY) => {}
            () = context.shutdown.wait() => {}
        }
    }
}

async fn say<T: Serialize>(bus: &Bus, bucket: &mut Option<Kv>, key: &str, word: &T) -> Result<(), BusError> {
    let bucket = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(bus.kv().await?.with_timeout(EVERY)),
    };
    let json = serde_json::to_vec(word)
        .map_err(|error| BusError::Kv { key: key.to_owned(), message: error.to_string() })?;
    bucket.put_with_ttl(key, Bytes::from(json), TTL).await.map(drop)
}
