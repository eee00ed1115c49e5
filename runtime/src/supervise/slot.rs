//! Where the address of the current generation of an actor is.

use std::fmt;

use actix::{Actor, Addr};
use tokio::sync::watch;

/// The address of a supervised actor. Clones are the same slot.
pub struct ActorSlot<A: Actor> {
    current: watch::Sender<Option<Addr<A>>>,
}

impl<A: Actor> Clone for ActorSlot<A> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone() }
    }
}

impl<A: Actor> fmt::Debug for ActorSlot<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorSlot").field("filled", &self.current.borrow().is_some()).finish()
    }
}

impl<A: Actor> ActorSlot<A> {
    pub(super) fn new() -> Self {
        Self { current: watch::Sender::new(None) }
    }

    /// The address, `None` between two generations.
    pub fn get(&self) -> Option<Addr<A>> {
        self.current.borrow().clone()
    }

    /// Waits for an address.
    pub async fn wait(&self) -> Addr<A> {
        let mut receiver = self.current.subscribe();
        loop {
            if let Some(addr) = receiver.borrow_and_update().clone() {
                return addr;
            }
            // The sender is in self, so the channel cannot close.
            let _ = receiver.changed().await;
        }
    }

    pub(super) fn set(&self, addr: Addr<A>) {
        self.current.send_replace(Some(addr));
    }

    /// Empties the slot unless a later generation has filled it.
    pub(super) fn clear(&self, addr: &Addr<A>) {
        self.current.send_if_modified(|current| {
            let ours = current.as_ref() == Some(addr);
            if ours {
                *current = None;
            }
            ours
        });
    }
}
