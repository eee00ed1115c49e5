//! Whether the server moves messages now: a message of our own, through the server and back.
//!
//! A server that stands still, or has no processor, leaves the connection as it is. Nothing comes, as when there is
//! nothing; only what was sent and has not come back tells the two apart.

use std::fmt;

use bytes::Bytes;

use super::{Bus, BusError, Subscription, Untold};

/// Calls into the server and hears what comes back.
pub struct Echo {
    bus: Bus,
    subject: String,
    subscription: Subscription,
}

impl fmt::Debug for Echo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Echo({})", self.subject)
    }
}

impl Bus {
    /// An echo of its own: nobody else hears it.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub async fn echo(&self) -> Result<Echo, BusError> {
        let subject = self.inner.client.new_inbox();
        let subscription = self.subscribe(&subject).await?;
        Ok(Echo { bus: self.clone(), subject, subscription })
    }
}

impl Echo {
    /// Calls a number. Never waits.
    ///
    /// # Errors
    /// [`Untold`]: it will not come back.
    pub fn call(&self, number: u64) -> Result<(), Untold> {
        self.bus.tell(&self.subject, Bytes::copy_from_slice(&number.to_be_bytes()))
    }

    /// The next number that comes back; what is called when the connection is lost never does. Waits for ever once the bus
    /// is closed. Cancelling it loses nothing.
    pub async fn heard(&mut self) -> u64 {
        loop {
            let Some(message) = self.subscription.next().await else { return std::future::pending().await };
            if let Ok(number) = message.payload.as_ref().try_into() {
                return u64::from_be_bytes(number);
            }
        }
    }
}
