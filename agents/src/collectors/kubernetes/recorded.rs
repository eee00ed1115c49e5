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

    #[test]
    fn an_older_state_that_comes_late_brings_nothing_back() {
        let at: UnixNanos = "2030-01-01T12:00:00Z".parse().unwrap();
        let pod = |word: &str, uid: &str, version: &str, ends: bool| {
            let mut object = json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "uid": uid,
                "resourceVersion": version, "creationTimestamp": "2030-01-01T11:59:50Z"}, "status": {"phase": "Running"}});
            if ends {
                object["metadata"]["deletionTimestamp"] = json!("2030-01-01T12:00:00Z");
            }
            json!({"type": word, "object": object})
        };
        let told = |lines: &[Value]| {
            let mut cluster = RecordedCluster::new("c");
            let mut told: Vec<_> = lines.iter().flat_map(|line| cluster.object(at, line).unwrap()).collect();
            // Long after: what was deleted and is still there is told as stuck.
            told.extend(cluster.lasting(at.plus(3_600_000_000_000)));
            let late = json!({"type": "ADDED", "object": {"kind": "Node", "metadata": {"name": "n"}}});
            told.extend(cluster.object(at.plus(3_600_000_000_000), &late).unwrap());
            told.iter().map(|e| e.kind).collect::<Vec<_>>()
        };
        let [begins, ending, gone] = [
            pod("ADDED", "u", "9", false),
            pod("MODIFIED", "u", "10", true),
            pod("DELETED", "u", "11", true),
        ];
        let next = pod("ADDED", "v", "12", false);
        let in_order = told(&[begins.clone(), ending.clone(), gone.clone(), next.clone()]);
        assert!(!in_order.contains(&EventKind::K8sStuck), "{in_order:?}");
        let after_its_end = told(&[begins.clone(), gone.clone(), ending.clone(), next.clone()]);
        assert!(!after_its_end.contains(&EventKind::K8sStuck), "{after_its_end:?}");
        let after_the_next = told(&[begins.clone(), next.clone(), ending.clone(), gone.clone()]);
        assert!(!after_the_next.contains(&EventKind::K8sStuck), "{after_the_next:?}");
        let deleted =
            |kinds: &[EventKind]| kinds.iter().filter(|k| **k == EventKind::K8sObjectDeleted).count();
        assert_eq!([deleted(&in_order), deleted(&after_its_end), deleted(&after_the_next)], [1, 1, 1]);
        assert!(
            told(&[begins, ending]).contains(&EventKind::K8sStuck),
            "it was asked to go, and has not gone"
        );
    }
}
