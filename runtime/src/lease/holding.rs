//! One resource as this member has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::lease::Lease;
use super::view::ResourceView;

/// A resource, who has it as far as we know, and what is on its way.
pub(super) struct Holding {
    pub resource: Arc<str>,
    pub key: String,
    pub view: ResourceView,
    pub held: Option<Held>,
    /// An operation on the key is under way; there is one at a time.
    pub busy: bool,
    /// No new attempt to take it before this time.
    pub retry_at: Duration,
    pending: Option<Pending>,
    /// Callers whose write is under way.
    writing: Vec<oneshot::Sender<bool>>,
}

/// The resource is ours.
pub(super) struct Held {
    pub lease: Lease,
    /// The application was asked to release it.
    pub releasing: bool,
}

/// What is to be written.
pub(super) struct Pending {
    pub note: Bytes,
    pub free: bool,
    waiting: Vec<oneshot::Sender<bool>>,
}

impl Holding {
    pub(super) fn new(resource: &str, key: String) -> Self {
        Self {
            resource: resource.into(),
            key,
            view: ResourceView::default(),
            held: None,
            busy: false,
            retry_at: Duration::ZERO,
            pending: None,
            writing: Vec::new(),
        }
    }

    /// Takes in what the key is; older news change nothing.
    pub(super) fn observe(&mut self, view: ResourceView) {
        if view.revision > self.view.revision {
            self.view = view;
        }
    }

    /// The application wants a note written, or the resource made free. The answer is false at once when the lease
    /// it shows is over.
    pub(super) fn request(&mut self, lease: &Lease, note: Bytes, free: bool, done: oneshot::Sender<bool>) {
        let ours = self.held.as_ref().is_some_and(|held| held.lease.epoch() == lease.epoch());
        if !ours || !lease.is_valid() {
            // Who does not wait for the answer does not want it.
            let _ = done.send(false);
            return;
        }
        if free {
            lease.end();
        }
        let pending =
            self.pending.get_or_insert_with(|| Pending { note: Bytes::new(), free, waiting: vec![] });
        pending.note = note;
        pending.free |= free;
        pending.waiting.push(done);
    }

    /// What to write now, when nothing else is under way.
    pub(super) fn next_write(&mut self) -> Option<Pending> {
        if self.busy || self.held.is_none() {
            return None;
        }
        let mut pending = self.pending.take()?;
        self.writing.append(&mut pending.waiting);
        self.busy = true;
        Some(pending)
    }

    /// The write under way has ended.
    pub(super) fn written(&mut self, done: bool) {
        for waiter in self.writing.drain(..) {
            let _ = waiter.send(done);
        }
    }

    /// It is not ours any more: ends the lease and answers everyone who waits.
    pub(super) fn end(&mut self) -> Option<Lease> {
        self.written(false);
        for waiter in self.pending.take().into_iter().flat_map(|pending| pending.waiting) {
            let _ = waiter.send(false);
        }
        let held = self.held.take()?;
        held.lease.end();
        Some(held.lease)
    }
}
