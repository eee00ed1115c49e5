//! Times that objects tell beside those of their summaries.

use serde_json::Value;
use tapio_schemas::ids::UnixNanos;

use crate::collectors::kubernetes::json::{int, list, str_at, time};

/// Fields that say when something happened, wherever they stand in metadata and status. Others may lie ahead: ends of
/// certificates, next runs.
const HAPPENED: [&str; 15] = [
    "time",
    "lastTransitionTime",
    "lastUpdateTime",
    "lastHeartbeatTime",
    "lastProbeTime",
    "startTime",
    "startedAt",
    "finishedAt",
    "completionTime",
    "lastScheduleTime",
    "lastSuccessfulTime",
    "lastScaleTime",
    "lastObservedTime",
    "creationTimestamp",
    "renewTime",
];
/// Times of an Event.
const OF_EVENT: [&str; 5] = [
    "/lastTimestamp",
    "/deprecatedLastTimestamp",
    "/eventTime",
    "/series/lastObservedTime",
    "/firstTimestamp",
];
/// Levels that are looked at.
const DEPTH_MAX: usize = 8;

/// Newest time that an object tells; the epoch when it tells none.
pub(super) fn newest(object: &Value) -> UnixNanos {
    let mut newest = UnixNanos(0);
    for part in ["metadata", "status"] {
        walk(&object[part], DEPTH_MAX, &mut newest);
    }
    // A lease says in its spec when it was renewed.
    let renewed = time(object, "/spec/renewTime");
    OF_EVENT.iter().filter_map(|pointer| time(object, pointer)).chain(renewed).fold(newest, UnixNanos::max)
}

fn walk(value: &Value, depth: usize, newest: &mut UnixNanos) {
    if depth == 0 {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, depth - 1, newest)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if HAPPENED.contains(&name.as_str()) => {
                        *newest = (*newest).max(text.parse().unwrap_or_default());
                    }
                    // Who manages which field: large, and tells nothing of time below `time`.
                    _ if name == "fieldsV1" => {}
                    field => walk(field, depth - 1, newest),
                }
            }
        }
        _ => {}
    }
}

/// Last update of a workload's progress.
pub(super) fn updated(object: &Value) -> Option<UnixNanos> {
    let progressing = list(object, "/status/conditions").iter().find(|c| str_at(c, "/type") == "Progressing");
    progressing.and_then(|condition| time(condition, "/lastUpdateTime"))
}

/// Revision of a Deployment that a ReplicaSet stands for, or of a workload that a ControllerRevision does.
pub(super) fn revision(object: &Value) -> u64 {
    let annotation = str_at(object, "/metadata/annotations/deployment.kubernetes.io~1revision").parse().ok();
    annotation.unwrap_or_else(|| u64::try_from(int(object, "/revision")).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_time_is_one_that_has_been() {
        let object = json!({"kind": "Pod", "metadata": {"creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"notAfter": "2040-01-01T00:00:00Z"},
            "status": {"renewalTime": "2039-01-01T00:00:00Z", "containerStatuses": [
                {"state": {"running": {"startedAt": "2030-01-01T00:00:07Z"}}}]}});
        assert_eq!(newest(&object), "2030-01-01T00:00:07Z".parse().unwrap());
        let lease = json!({"kind": "Lease", "spec": {"renewTime": "2030-01-01T00:00:09.5Z"}});
        assert!(newest(&lease) > newest(&object));
        assert_eq!(newest(&json!({"kind": "Pod"})), UnixNanos(0));
    }
}
