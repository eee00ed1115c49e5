//! The registry of one process (or of one test), passed in and never global.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};

/// Prefix of every metric name.
const PREFIX: &str = "tapio";

type Hook = Box<dyn Fn() -> bool + Send>;

/// A prometheus-client registry whose names start with `tapio_`. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Inner>>);

struct Inner {
    registry: Registry,
    shared: HashMap<String, Box<dyn Any + Send>>,
    hooks: Vec<Hook>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        let registry = Registry::with_prefix(PREFIX);
        Self(Arc::new(Mutex::new(Inner { registry, shared: HashMap::new(), hooks: Vec::new() })))
    }

    /// Adds a metric under `tapio_<name>` (counters get `_total` when shown). The caller keeps a
    /// clone and updates it. Names must be unique; use [`Metrics::shared`] when several parts
    /// count into the same family.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.lock().registry.register(name, help, metric);
    }

    /// The metric of this name, made and registered when it is asked for first. Labels belong into
    /// a `Family`.
    ///
    /// # Panics
    /// When the name was asked for before with another type: a bug.
    pub fn shared<M: Metric + Clone + Default>(&self, name: &str, help: &str) -> M {
        let mut inner = self.lock();
        if let Some(existing) = inner.shared.get(name) {
            let same = existing.downcast_ref::<M>();
            return same.unwrap_or_else(|| panic!("metric {name} has two types")).clone();
        }
        let metric = M::default();
        inner.registry.register(name, help, metric.clone());
        inner.shared.insert(name.to_owned(), Box::new(metric.clone()));
        metric
    }

    /// Direct access to the registry, for collectors and units.
    pub fn with_registry<R>(&self, run: impl FnOnce(&mut Registry) -> R) -> R {
        run(&mut self.lock().registry)
    }

    /// Runs `hook` before every reading, until it returns false: for values that are cheaper to
    /// compute when someone looks. A hook must not use this registry.
    pub fn before_encode(&self, hook: impl Fn() -> bool + Send + 'static) {
        self.lock().hooks.push(Box::new(hook));
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut inner = self.lock();
        inner.hooks.retain(|hook| hook());
        let mut text = String::new();
        // Writing into a string does not fail; a metric that cannot be encoded is a bug of its type.
        encode(&mut text, &inner.registry).expect("metrics are encodable");
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("metrics registry lock")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn one_name_is_one_metric_and_hooks_end() {
        let metrics = Metrics::new();
        let first: Counter = metrics.shared("events", "Events seen");
        let second: Counter = metrics.shared("events", "Events seen");
        first.inc();
        let bump = second.clone();
        metrics.before_encode(move || {
            bump.inc_by(10);
            false
        });
        assert!(metrics.encode().contains("tapio_events_total 11"));
        assert!(metrics.encode().contains("tapio_events_total 11"), "the hook ran once");
        assert_eq!(metrics.encode().matches("# TYPE tapio_events").count(), 1);
    }
}
