//! The state bucket: small values under keys, with compare-and-set.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use futures::TryStreamExt;
use tapio_schemas::names;

use super::message::chain;
use super::{Bus, BusError};

/// A value and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEntry {
    /// The bytes.
    pub value: Bytes,
    /// Grows with every change in the bucket; what compare-and-set compares.
    pub revision: u64,
}

/// The bucket `tapio_state`. Keys are letters, digits and `-/_=.`.
#[derive(Debug, Clone)]
pub struct Kv {
    store: Store,
}

impl Bus {
    /// Opens the state bucket, which [`Bus::ensure_streams`] made.
    ///
    /// # Errors
    /// [`BusError::Stream`] when it does not exist.
    pub async fn kv(&self) -> Result<Kv, BusError> {
        let store = self.inner.jetstream.get_key_value(names::BUCKET_STATE).await;
        let store = store.map_err(|error| BusError::Stream {
            stream: names::BUCKET_STATE.to_owned(),
            message: chain(&error),
        })?;
        Ok(Kv { store })
    }
}

impl Kv {
    /// The value of a key, `None` when it has none.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn get(&self, key: &str) -> Result<Option<KvEntry>, BusError> {
        let entry = self.store.entry(key).await.map_err(|error| failed(key, &error))?;
        let live = entry.filter(|entry| entry.operation == Operation::Put);
        Ok(live.map(|entry| KvEntry { value: entry.value, revision: entry.revision }))
    }

    /// Sets a key, whatever it was; gives the new revision.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.store.put(key, value).await.map_err(|error| failed(key, &error))
    }

    /// Sets a key that has no value; gives its revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it has one, [`BusError::Kv`].
    pub async fn create(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.store.create(key, value).await.map_err(|error| match error.kind() {
            CreateErrorKind::AlreadyExists => BusError::Conflict { key: key.to_owned() },
            _ => failed(key, &error),
        })
    }

    /// Sets a key if its revision is still `expected`; gives the new revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it was changed meanwhile, [`BusError::Kv`].
    pub async fn compare_and_set(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        self.store.update(key, value, expected).await.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => BusError::Conflict { key: key.to_owned() },
            _ => failed(key, &error),
        })
    }

    /// Removes a key; nothing happens when it has no value.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn delete(&self, key: &str) -> Result<(), BusError> {
        self.store.delete(key).await.map_err(|error| failed(key, &error))
    }

    /// All keys that have a value, sorted.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn keys(&self) -> Result<Vec<String>, BusError> {
        let keys = self.store.keys().await.map_err(|error| failed("*", &error))?;
        let mut keys: Vec<String> = keys.try_collect().await.map_err(|error| failed("*", &error))?;
        keys.sort();
        Ok(keys)
    }
}

fn failed(key: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Kv { key: key.to_owned(), message: chain(error) }
}
