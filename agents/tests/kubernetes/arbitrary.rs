//! Whatever an API server sends: no panic, no event from the future, and the same change told twice is told once.

use proptest::prelude::*;
use serde_json::Value;
use tapio_agents::collectors::kubernetes::{Tracker, WatchType};
use tapio_schemas::ids::UnixNanos;

use crate::fixtures::{deployment, event, killed_pod, node, pod};

fn objects() -> Vec<String> {
    let objects = [
        pod(1),
        killed_pod(2),
        deployment(3, 2, "shop/api:2", 3),
        node(4, "False", "KubeletNotReady"),
        event(5, 2),
    ];
    objects.iter().map(Value::to_string).collect()
}

/// One of the objects, with some bytes replaced.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5);
    (prop::sample::select(objects()), changes).prop_map(|(text, changes)| {
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_objects(sent in prop::collection::vec(damaged(), 1..6)) {
        let now: UnixNanos = "2030-01-01T11:00:00Z".parse().unwrap();
        let mut tracker = Tracker::new("c", None);
        for bytes in sent {
            let Ok(object) = serde_json::from_slice::<Value>(&bytes) else { continue };
            for watch_type in [WatchType::Added, WatchType::Modified] {
                let events = tracker.object(now, UnixNanos(0), watch_type, &object).unwrap_or_default();
                prop_assert!(events.iter().all(|event| event.timestamp <= now));
                prop_assert!(watch_type == WatchType::Added || events.is_empty(), "told twice: {events:?}");
            }
            let told = tracker.event(now, UnixNanos(0), &object).ok().flatten();
            prop_assert!(told.is_none_or(|event| event.timestamp <= now));
        }
    }
}
