//! A key that one owner writes: by compare-and-set, so that an owner that is one no more changes nothing.

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Kv};

/// Attempts to take a key over; the owner before can come between only as often as it still writes.
const TAKE_ATTEMPTS: usize = 16;

/// A key, and what is known to be in it.
pub struct KeptKey {
    kv: Kv,
    key: String,
    value: Bytes,
    revision: u64,
    /// A value that was sent, and of which it is not known whether it was stored.
    sent: Option<Bytes>,
}

impl KeptKey {
    /// Takes the key from whoever wrote it before: its value is written once more, after which every writer that knows
    /// an older revision is refused. A key without a value gets an empty one.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when another one keeps writing, [`BusError::Kv`].
    pub async fn take(kv: &Kv, key: String) -> Result<Self, BusError> {
        for _ in 0..TAKE_ATTEMPTS {
            let entry = kv.get(&key).await?;
            let value = entry.as_ref().map(|entry| entry.value.clone()).unwrap_or_default();
            let taken = match entry {
                Some(entry) => kv.compare_and_set(&key, value.clone(), entry.revision).await,
                None => kv.create(&key, value.clone()).await,
            };
            match taken {
                Ok(revision) => return Ok(Self { kv: kv.clone(), key, value, revision, sent: None }),
                Err(BusError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(BusError::Conflict { key })
    }

    /// What is in it.
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when another owner has taken it; [`BusError::Kv`] when it is not known whether it was
    /// written, and then the next call finds out.
    pub async fn set(&mut self, value: Bytes) -> Result<(), BusError> {
        if let Some(sent) = self.sent.take() {
            self.find_out(sent).await?;
        }
        self.sent = Some(value.clone());
        let revision = self.kv.compare_and_set(&self.key, value.clone(), self.revision).await?;
        (self.value, self.revision, self.sent) = (value, revision, None);
        Ok(())
    }

    async fn find_out(&mut self, sent: Bytes) -> Result<(), BusError> {
        let found = self.kv.get(&self.key).await;
        let entry = match found {
            Ok(entry) => entry,
            Err(error) => {
                self.sent = Some(sent);
                return Err(error);
            }
        };
        match entry {
            // Should this be a later owner's copy of our value, the fence of the findings still ends us, and that owner's
            // stage is built anew.
            Some(entry) if entry.revision == self.revision || entry.value == sent => {
                (self.value, self.revision) = (entry.value, entry.revision);
                Ok(())
            }
            _ => Err(BusError::Conflict { key: self.key.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_runtime::harness::NatsServer;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_owner_before_changes_nothing_after_the_key_was_taken() {
        let server = NatsServer::start().expect("nats-server");
        let kv = server.bus().await.expect("a bus").kv().await.expect("the bucket");
        let key = || "correlator.test.signals".to_owned();
        let mut first = KeptKey::take(&kv, key()).await.expect("taken");
        assert!(first.value().is_empty());
        first.set("1".into()).await.expect("set");
        first.set("2".into()).await.expect("set again");
        let mut second = KeptKey::take(&kv, key()).await.expect("taken over");
        assert_eq!(second.value(), "2");
        for _ in 0..2 {
            let refused = first.set("3".into()).await;
            assert!(matches!(refused, Err(BusError::Conflict { .. })), "{refused:?}");
        }
        second.set("4".into()).await.expect("the new owner writes");
        assert_eq!(kv.get(&key()).await.expect("read").expect("a value").value, "4");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_write_without_an_answer_is_found_out() {
        let server = NatsServer::start().expect("nats-server");
        let kv = server.bus().await.expect("a bus").kv().await.expect("the bucket");
        let mut own = KeptKey::take(&kv, "k".into()).await.expect("taken");
        // Stored, and the answer was lost.
        kv.compare_and_set("k", "1".into(), own.revision).await.expect("stored");
        own.sent = Some("1".into());
        own.set("2".into()).await.expect("it was ours");
        // Never stored.
        own.sent = Some("3".into());
        own.set("4".into()).await.expect("nothing had changed");
        assert_eq!(own.value(), "4");
        // Another one has written.
        kv.put("k", "other".into()).await.expect("stored");
        own.sent = Some("5".into());
        assert!(matches!(own.set("6".into()).await, Err(BusError::Conflict { .. })));
    }
}
