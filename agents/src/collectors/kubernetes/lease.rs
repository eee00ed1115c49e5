//! Which of several agents watches the cluster: the one that holds a Lease of `coordination.k8s.io`. The others stand by and
//! take over when it is not renewed, or is given back.
//!
//! The method is that of the Kubernetes components: whoever finds the lease unchanged for its whole duration, by its own
//! clock, writes itself into it; the version of the object decides between two that try at once. Clocks of machines are never
//! compared. Who cannot renew in time stops before the others may begin.

use std::time::Duration;

use serde_json::{Value, json};
use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;

use super::json::{int, str_at};
use super::requests::{Fault, Server};

/// Without a renewal for this long the lease is free.
pub const LEASE_TIME: Duration = Duration::from_secs(10);
/// Who has not renewed for this long takes itself for deposed, before anybody else may take over.
pub const RENEW_WITHIN: Duration = Duration::from_secs(7);
/// Between two renewals, and between two looks of who stands by: together with the lease at most 12 s to a takeover.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the lease is and who wants it.
#[derive(Clone)]
pub struct Lease {
    server: Server,
    namespace: String,
    name: String,
    holder: SmolStr,
}

/// The lease as somebody who stands by has seen it last.
#[derive(Debug, Default)]
struct Seen {
    version: String,
    /// When it was first seen like this, by the own clock.
    at: Duration,
}

/// The right to watch, as long as it is renewed.
#[derive(Debug)]
pub struct Held {
    /// When the last renewal was asked for, by the own clock.
    renewed: Duration,
}

impl Held {
    /// False from the moment on at which another one may begin.
    pub fn is_valid(&self, monotonic: Duration) -> bool {
        monotonic.saturating_sub(self.renewed) < RENEW_WITHIN
    }
}

/// What came of an attempt.
enum Attempt {
    /// It is ours.
    Held,
    /// Somebody else has it.
    Other(SmolStr),
}

impl Lease {
    /// The lease `name` in `namespace`, wanted by `holder`, who must be the only one of this name.
    pub fn new(server: Server, namespace: &str, name: &str, holder: &str) -> Self {
        Self { server, namespace: namespace.to_owned(), name: name.to_owned(), holder: holder.into() }
    }

    /// Waits until it is held. `says` is told who has it, or what is wrong, whenever that changes.
    pub async fn acquire(&self, says: impl Fn(Result<&str, &str>)) -> Held {
        let mut seen = Seen::default();
        let mut told = None;
        loop {
            let asked = self.server.clock.monotonic();
            let now = match self.attempt(&mut seen, asked).await {
                Ok(Attempt::Held) => return Held { renewed: asked },
                Ok(Attempt::Other(holder)) => Ok(holder.to_string()),
                Err(fault) => Err(self.words(&fault)),
            };
            if told.as_ref() != Some(&now) {
                says(now.as_deref().map_err(String::as_str));
            }
            told = Some(now);
            self.server.clock.sleep(LOOK_EVERY).await;
        }
    }

    /// Renews it until that is no longer possible; returns why.
    pub async fn keep(&self, held: &std::sync::Mutex<Held>) -> String {
        loop {
            self.server.clock.sleep(LOOK_EVERY).await;
            let asked = self.server.clock.monotonic();
            let reason = match self.renew().await {
                Ok(Attempt::Held) => {
                    *lock(held) = Held { renewed: asked };
                    continue;
                }
                Ok(Attempt::Other(holder)) => return format!("{holder} holds the lease"),
                Err(fault) => self.words(&fault),
            };
            if !lock(held).is_valid(self.server.clock.monotonic()) {
                return reason;
            }
            tracing::warn!(lease = self.name, reason, "the lease was not renewed, trying again");
        }
    }

    /// Gives it back, so that another one need not wait for its end.
    pub async fn release(&self) {
        let given_back = async {
            let lease = self.read().await?.ok_or(Fault::NotServed)?;
            if holder_of(&lease) == self.holder {
                self.write(self.lease(Some(&lease), "")).await?;
            }
            Ok::<(), Fault>(())
        };
        if let Err(fault) = given_back.await {
            tracing::warn!(
                lease = self.name,
                reason = self.words(&fault),
                "the lease was not given back, it ends by itself"
            );
        }
    }

    async fn attempt(&self, seen: &mut Seen, asked: Duration) -> Result<Attempt, Fault> {
        let lease = self.read().await?;
        let is_free = match &lease {
            None => true,
            Some(lease) => {
                let version = str_at(lease, "/metadata/resourceVersion");
                if seen.version != version {
                    *seen = Seen { version: version.to_owned(), at: asked };
                }
                let holder = holder_of(lease);
                holder.is_empty()
                    || asked.saturating_sub(seen.at) >= duration_of(lease)
                    || holder == self.holder
            }
        };
        if !is_free {
            return Ok(Attempt::Other(lease.map(|lease| holder_of(&lease).into()).unwrap_or_default()));
        }
        match &lease {
            None => self.create().await?,
            Some(old) => self.write(self.lease(Some(old), &self.holder)).await?,
        };
        Ok(Attempt::Held)
    }

    async fn renew(&self) -> Result<Attempt, Fault> {
        let Some(lease) = self.read().await? else {
            // Somebody has deleted it; whoever makes it anew has it.
            self.create().await?;
            return Ok(Attempt::Held);
        };
        if holder_of(&lease) != self.holder {
            return Ok(Attempt::Other(holder_of(&lease).into()));
        }
        self.write(self.lease(Some(&lease), &self.holder)).await?;
        Ok(Attempt::Held)
    }

    async fn read(&self) -> Result<Option<Value>, Fault> {
        match self.server.document(&format!("{}/{}", self.path(), self.name)).await {
            Ok(lease) => Ok(Some(lease)),
            Err(Fault::NotServed) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn create(&self) -> Result<Value, Fault> {
        self.server.write("POST", &self.path(), &self.lease(None, &self.holder)).await
    }

    /// Refused by the server when somebody else has written it since it was read.
    async fn write(&self, lease: Value) -> Result<Value, Fault> {
        self.server.write("PUT", &format!("{}/{}", self.path(), self.name), &lease).await
    }

    /// The lease with another holder, or renewed by the same one.
    fn lease(&self, old: Option<&Value>, holder: &str) -> Value {
        let now = micro_time(UnixNanos(self.server.clock.now_unix_nanos()));
        let (before, transitions, acquired) = match old {
            Some(old) => (
                holder_of(old),
                int(old, "/spec/leaseTransitions"),
                str_at(old, "/spec/acquireTime").to_owned(),
            ),
            None => ("", 0, now.clone()),
        };
        let is_same = before == holder;
        let is_transition = old.is_some() && !holder.is_empty() && !is_same;
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": LEASE_TIME.as_secs(),
                "acquireTime": if is_same && !acquired.is_empty() { acquired } else { now.clone() },
                "renewTime": now,
                "leaseTransitions": transitions + i64::from(is_transition),
            },
        });
        if let Some(old) = old {
            lease["metadata"] = old["metadata"].clone();
        }
        lease
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn words(&self, fault: &Fault) -> String {
        let (name, namespace) = (&self.name, &self.namespace);
        match fault {
            Fault::Forbidden(said) => format!(
                "not allowed: grant get, create and update of leases.coordination.k8s.io in namespace {namespace}: {said}"
            ),
            Fault::NotServed => format!("the API server has no leases, or no namespace {namespace}"),
            Fault::Expired => "the API server has forgotten the lease's version".to_owned(),
            Fault::Refused(reason) | Fault::Passing(reason, _) => {
                format!("lease {namespace}/{name}: {reason}")
            }
        }
    }
}

fn lock(held: &std::sync::Mutex<Held>) -> std::sync::MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn holder_of(lease: &Value) -> &str {
    str_at(lease, "/spec/holderIdentity")
}

/// What the holder asks for; ours when it says nothing.
fn duration_of(lease: &Value) -> Duration {
    match u64::try_from(int(lease, "/spec/leaseDurationSeconds")) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => LEASE_TIME,
    }
}

/// As the API wants it: six digits after the point.
fn micro_time(at: UnixNanos) -> String {
    let text = UnixNanos(at.0 / 1_000_000_000 * 1_000_000_000).to_string();
    let whole = text.split(['.', 'Z']).next().unwrap_or_default();
    format!("{whole}.{:06}Z", at.0 % 1_000_000_000 / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_the_api_wants_them() {
        assert_eq!(micro_time(UnixNanos(1_900_000_000_123_456_789)), "2030-03-17T17:46:40.123456Z");
        assert_eq!(micro_time(UnixNanos(1_900_000_000_000_000_000)), "2030-03-17T17:46:40.000000Z");
    }

    #[test]
    fn who_holds_it_stops_before_another_may_begin() {
        let held = Held { renewed: Duration::from_secs(100) };
        assert!(held.is_valid(Duration::from_secs(106)) && !held.is_valid(Duration::from_secs(107)));
        // From the last renewal on the others wait for a whole lease; from there it is one look to the takeover.
        assert!(RENEW_WITHIN + LOOK_EVERY < LEASE_TIME);
        assert!(LEASE_TIME + LOOK_EVERY <= Duration::from_secs(15));
    }
}
