//! One watch per kind, all into one bounded queue.

use std::sync::Arc;

use futures::future::join_all;
use kube::Client;
use smol_str::SmolStr;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::clock::SharedClock;
use tokio::sync::{Semaphore, mpsc};

use super::reflector::{Change, Reflector, Shared};
use super::requests::Server;
use super::watched::Watched;

/// Changes that wait for conversion; then the watches wait, and the server's buffers fill.
pub const QUEUE_MAX: usize = 256;
/// Kinds that are listed at the same time: what is being read is all that is held of a list.
const LISTS_MAX: usize = 4;

/// What to watch and how patiently.
pub struct Watches {
    /// Connected to the API server; does not repeat requests by itself.
    pub client: Client,
    /// What to watch, in the order in which it is listed.
    pub kinds: Vec<Watched>,
    /// Only pods of this node; empty for all.
    pub node: SmolStr,
    /// Between errors.
    pub backoff: Backoff,
    /// Clock of the waits.
    pub clock: SharedClock,
}

impl Watches {
    /// Watches all kinds for ever; ends when the receiver is gone. A change comes with the place of its kind.
    pub async fn run(self, changes: mpsc::Sender<(usize, Change)>) {
        let fields =
            if self.node.is_empty() { String::new() } else { format!("spec.nodeName={}", self.node) };
        let shared = Shared {
            server: Server { client: self.client, clock: self.clock },
            backoff: self.backoff,
            fields: fields.into(),
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            changes,
        };
        let reflectors = self.kinds.into_iter().enumerate();
        join_all(reflectors.map(|(place, kind)| Reflector::new(place, kind, shared.clone()).run())).await;
    }
}
