//! A cluster as a recording tells it: the lines `k8s_object` and `k8s_event`.

use serde_json::Value;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::convert::WatchType;
use super::summary::NotAnObject;
use super::tracker::Tracker;

/// As for the live collector's default: what is older than this when the recording begins is not told.
const HISTORY_NS: u64 = 600_000_000_000;

/// Follows a recorded cluster. One value for a whole replay: changes are told against what came before.
pub struct RecordedCluster {
    tracker: Tracker,
    news_after: Option<UnixNanos>,
}

impl RecordedCluster {
    /// A cluster of which nothing is known yet.
    pub fn new(cluster: &str) -> Self {
        Self { tracker: Tracker::new(cluster, None), news_after: None }
    }

    /// Events of `{"type":"ADDED|MODIFIED|DELETED","object":{…}}`; none for bookmarks.
    ///
    /// # Errors
    /// When it holds no object.
    pub fn object(&mut self, at: UnixNanos, request: &Value) -> Result<Vec<UnifiedEvent>, NotAnObject> {
        let word = request["type"].as_str().ok_or(NotAnObject("type"))?;
        let Some(watch_type) = WatchType::parse(word) else { return Ok(Vec::new()) };
        let news_after = self.news_after(at);
        self.tracker.object(at, news_after, watch_type, &request["object"])
    }

    /// The event of a core/v1 or events.k8s.io/v1 Event; none when this count of it was told before.
    ///
    /// # Errors
    /// When it is about nothing.
    pub fn event(&mut self, at: UnixNanos, event: &Value) -> Result<Option<UnifiedEvent>, NotAnObject> {
        let news_after = self.news_after(at);
        self.tracker.event(at, news_after, event)
    }

    /// Events of what is wrong since some time and still is at `at`: each state every four minutes, for as long as it lasts.
    pub fn lasting(&mut self, at: UnixNanos) -> Vec<UnifiedEvent> {
        self.tracker.lasting(at)
    }

    fn news_after(&mut self, at: UnixNanos) -> UnixNanos {
        *self.news_after.get_or_insert(at.minus(HISTORY_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tapio_schemas::kind::EventKind;

    #[test]
    fn a_recording_begins_with_old_objects_and_goes_on_with_news() {
        let pod = |finished: &str| {
            json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "uid": "u"},
                "status": {"phase": "Running", "containerStatuses": [{"name": "app", "lastState": {"terminated":
                    {"containerID": finished, "exitCode": 1, "finishedAt": finished}}}]}})
        };
        let at: UnixNanos = "2030-01-01T12:00:00Z".parse().unwrap();
        let mut cluster = RecordedCluster::new("c");
        let first = json!({"type": "ADDED", "object": pod("2030-01-01T11:00:00Z")});
        let kinds = |events: Vec<UnifiedEvent>| events.iter().map(|e| e.kind).collect::<Vec<_>>();
        assert_eq!(kinds(cluster.object(at, &first).unwrap()), [EventKind::K8sObjectAdded]);
        let second = json!({"type": "MODIFIED", "object": pod("2030-01-01T12:00:30Z")});
        let later = at.plus(60_000_000_000);
        assert_eq!(kinds(cluster.object(later, &second).unwrap()), [EventKind::K8sContainerTerminated]);
        let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {}}});
        assert_eq!(cluster.object(later, &bookmark).unwrap(), []);
        assert!(cluster.object(later, &json!({"object": {}})).is_err());
    }
}
